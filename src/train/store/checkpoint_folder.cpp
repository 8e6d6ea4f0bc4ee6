// SPDX-License-Identifier: BSD-3-Clause
#include "train/store/checkpoint_folder.h"

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "base/check.h"
#include "base/log.h"
#include "base/plain_text.h"
#include "io/file.h"
#include "train/store/checkpoint.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;

constexpr const char* kCheckpointFolder = "checkpoint";
constexpr std::string_view kPrefix = "step-";
constexpr const char* kPartial = ".partial";  // remove_leftovers() knows it
constexpr const char* kDamaged = ".damaged";

std::string name_of(int64_t step) {
  return formatted("step-%08lld", static_cast<long long>(step));
}

std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = 0;
  std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), step);
  return name == name_of(step) ? std::optional(step) : std::nullopt;
}

void point(const std::string& link, const std::string& target) {
  std::error_code error;
  if (fs::read_symlink(link, error) == target) return;
  fs::remove(link + kPartial, error);
  fs::create_symlink(target, link + kPartial, error);
  if (!error) fs::rename(link + kPartial, link, error);
  if (error)
    log_warning(link + ": the link to " + target + " could not be made: " + error.message());
}

}  // namespace

std::string CheckpointFolder::path_of(int64_t step) const {
  return path_ + "/" + name_of(step);
}

std::vector<CheckpointFolder::Entry> CheckpointFolder::entries() const {
  std::vector<Entry> found;
  std::error_code error;
  for (fs::directory_iterator it(path_, error), end; !error && it != end; it.increment(error)) {
    const auto step = step_of(it->path().filename());
    if (step) found.push_back({*step, it->path()});
  }
  std::ranges::sort(found, std::greater{}, &Entry::step);
  return found;
}

std::optional<CheckpointFolder::Entry> CheckpointFolder::newest_good() const {
  const std::vector<Entry> all = entries();
  std::string problem;
  for (const Entry& entry : all) {
    try {
      check_checkpoint(entry.path);
      return entry;
    } catch (const c10::Error& error) {
      problem = message_of(error);
      if (&entry != &all.back()) log_warning(problem + ". Going back to the checkpoint before it.");
    }
  }
  MOE8_CHECK(all.empty(), kCheckpointFolder, path_, "expected at least one whole checkpoint, got ",
             all.size(), " damaged ", all.size() == 1 ? "one: " : "ones; the oldest: ", problem);
  return std::nullopt;
}

void CheckpointFolder::prepare() {
  std::error_code error;
  fs::create_directories(path_, error);
  MOE8_CHECK(!error, kCheckpointFolder, path_,
             "expected to make the folder, got: ", error.message());
  remove_leftovers(path_);
}

void CheckpointFolder::set_aside_after(int64_t step) {
  for (const Entry& entry : entries()) {
    if (entry.step <= step) break;
    std::error_code error;
    fs::remove_all(entry.path + kDamaged, error);
    fs::rename(entry.path, entry.path + kDamaged, error);
    MOE8_CHECK(!error, kCheckpointFolder, entry.path,
               "expected to rename the damaged checkpoint, got: ", error.message());
  }
}

void CheckpointFolder::keep(int64_t count, std::optional<int64_t> best) {
  const std::vector<Entry> all = entries();
  const auto is_best = [&](const Entry& entry) { return entry.step == best; };
  if (std::ranges::any_of(all, is_best)) {
    point(path_ + "/best", name_of(*best));
  } else {
    discard(path_ + "/best");
  }
  for (size_t i = 0; i < all.size(); ++i) {
    if (static_cast<int64_t>(i) < count || is_best(all[i])) continue;
    const std::error_code error = discard(all[i].path);
    if (error) log_warning(all[i].path + ": could not be removed: " + error.message());
  }
}

}  // namespace moe8
