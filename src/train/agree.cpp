// SPDX-License-Identifier: BSD-3-Clause
#include "train/agree.h"

#include <exception>

#include "base/check.h"
#include "dist/activity.h"

namespace moe8 {
namespace {

constexpr char kDone = '+', kFailed = '-';  // begins what a rank sends

}  // namespace

std::vector<std::string> gather(const Group& ranks, const std::function<std::string()>& work) {
  if (ranks.size() == 1) return {work()};
  std::string own;
  try {
    const LongWork with_files;
    own = kDone + work();
  } catch (const std::exception& error) {
    own = kFailed + message_of(error);
  }
  std::vector<std::string> texts = all_gather_text(ranks, own);
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    const bool failed = texts[rank].starts_with(kFailed);
    texts[rank].erase(0, 1);
    if (failed) throw SharedError((rank > 0 ? concat("rank ", rank, ": ") : "") + texts[rank]);
  }
  return texts;
}

void agree(const Group& ranks, const std::function<void()>& work) {
  gather(ranks, [&] {
    work();
    return std::string();
  });
}

std::string tell_all(const Group& ranks, const std::function<std::string()>& work) {
  return gather(ranks, [&] { return ranks.rank() == 0 ? work() : std::string(); }).front();
}

}  // namespace moe8
