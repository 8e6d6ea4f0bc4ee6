// SPDX-License-Identifier: BSD-3-Clause
// The progress line of runs.
#include "train/progress.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>

#include "base/log.h"
#include "base/plain_text.h"

namespace moe8 {
namespace {

constexpr std::chrono::milliseconds kRewrite{100};
constexpr std::chrono::seconds kNewLine{10};
constexpr size_t kNoLimit = std::numeric_limits<size_t>::max();

std::string step_text(int64_t step, int64_t steps) {
  return formatted("step %lld/%lld", static_cast<long long>(step), static_cast<long long>(steps));
}

// Of a GPU: the most that tensors took, and what LibTorch has reserved.
std::string memory_text(const GpuMemory& memory) {
  return formatted("%.1f/%.1f GB", static_cast<double>(memory.peak) / 1e9,
                   static_cast<double>(memory.reserved) / 1e9);
}

std::string parts_text(const PartTimes& ms) {
  return formatted("ms: data %.1f, forward %.1f, backward %.1f, optimizer %.1f", ms.data,
                   ms.forward, ms.backward, ms.optimizer);
}

// A piece of a line; those of the highest rank go first where there is no room.
struct Piece {
  std::string text;
  int rank;
};

// The pieces that fit, two spaces between them, in their order.
std::string joined(std::vector<Piece> pieces, size_t columns) {
  const auto length = [&] {
    size_t sum = 0;
    for (const Piece& piece : pieces) sum += piece.text.size() + (sum > 0 ? 2 : 0);
    return sum;
  };
  while (pieces.size() > 1 && length() > columns) {
    pieces.erase(std::ranges::max_element(pieces, {}, &Piece::rank));
  }
  std::string line;
  for (const Piece& piece : pieces) line += (line.empty() ? "" : "  ") + piece.text;
  return line.substr(0, std::min(columns, line.size()));
}

}  // namespace

std::string duration_text(double seconds) {
  const auto total = static_cast<int64_t>(std::lround(std::max(0.0, seconds)));
  if (total < 60) return formatted("%ds", static_cast<int>(total));
  if (total < 3600) {
    return formatted("%dm %02ds", static_cast<int>(total / 60), static_cast<int>(total % 60));
  }
  return formatted("%lldh %02dm", static_cast<long long>(total / 3600),
                   static_cast<int>(total % 3600 / 60));
}

Progress::Progress(std::ostream* out, Kind kind, std::function<int()> columns)
    : out_(out), kind_(kind), columns_(std::move(columns)) {}

size_t Progress::add(std::string label, int64_t steps, int64_t done) {
  runs_.push_back({std::move(label), steps, done});
  return runs_.size() - 1;
}

bool Progress::all_ended() const {
  return std::ranges::all_of(runs_, [](const Run& run) { return run.last.step == run.steps; });
}

// How long it took, or will take if the other steps take as long as those so far.
std::string Progress::time_text() const {
  const double elapsed = std::chrono::duration<double>(Clock::now() - start_).count();
  if (all_ended()) return "took " + duration_text(elapsed);
  int64_t done = 0, left = 0;
  for (const Run& run : runs_) {
    done += std::max<int64_t>(0, run.last.step - run.done);
    left += run.steps - std::max(run.done, run.last.step);
  }
  return "ETA " + duration_text(elapsed * static_cast<double>(left) /
                                static_cast<double>(std::max<int64_t>(1, done)));
}

std::string Progress::line_of(const Run& run, size_t columns) const {
  const StepMetrics& m = run.last;
  std::vector<Piece> pieces{{run.label, 4},
                            {step_text(m.step, run.steps), 0},
                            {formatted("loss %.4f", m.loss), 1},
                            {formatted("lr %.2e", m.lr), 7},
                            {formatted("grad norm %.2f", m.grad_norm), 6},
                            {formatted("%.0f tokens/s", m.tokens_per_s), 3},
                            {time_text(), 2}};
  if (m.mfu) pieces.push_back({formatted("MFU %.1f %%", 100 * *m.mfu), 8});
  if (m.gpu_memory) pieces.push_back({memory_text(*m.gpu_memory), 9});
  if (m.ms) pieces.push_back({parts_text(*m.ms), 10});
  if (m.validation_loss) pieces.push_back({formatted("validation %.4f", *m.validation_loss), 5});
  return joined(std::move(pieces), columns);
}

// Of runs that take turns: how far all of them are, and each one's loss.
std::string Progress::line_of_all(size_t columns) const {
  const auto slowest = std::ranges::min_element(
      runs_, {}, [](const Run& run) { return static_cast<double>(run.last.step - run.steps); });
  std::vector<Piece> pieces{{step_text(slowest->last.step, slowest->steps), 0}};
  int rank = 2;
  for (const Run& run : runs_) {
    if (run.last.step == 0) continue;
    pieces.push_back({run.label + formatted(" %.4f", run.last.loss), rank++});
  }
  pieces.push_back({time_text(), 1});
  return joined(std::move(pieces), columns);
}

void Progress::show(size_t run, const StepMetrics& metrics) {
  runs_[run].last = metrics;
  if (!out_) return;
  const auto pause =
      kind_ == Kind::TERMINAL ? Clock::duration(kRewrite) : Clock::duration(kNewLine);
  if (!all_ended() && Clock::now() - shown_ < pause) return;
  shown_ = Clock::now();
  const bool terminal = kind_ == Kind::TERMINAL;
  // Not the last column: a cursor that stands there may already be on the next line.
  const size_t columns =
      terminal && columns_ ? static_cast<size_t>(std::max(2, columns_()) - 1) : kNoLimit;
  std::string line = runs_.size() == 1 ? line_of(runs_[run], columns) : line_of_all(columns);
  if (!terminal) {
    *out_ << line << std::endl;
    return;
  }
  const size_t length = line.size();
  line.resize(std::max(std::min(width_, columns), length), ' ');  // covers what stood there before
  width_ = length;
  *out_ << '\r' << line << std::flush;
}

void Progress::say(const std::string& line) {
  finish();
  if (out_) *out_ << line << std::endl;
}

void Progress::say_once(const std::string& line) {
  if (said_.insert(line).second) say(line);
}

void Progress::warn(size_t run, const std::vector<std::string>& warnings) {
  if (warnings.empty()) return;
  finish();
  const std::string whose = runs_.size() > 1 ? runs_[run].label + ": " : "";
  for (const std::string& warning : warnings) log_warning(whose + warning);
}

void Progress::finish() {
  if (out_ && kind_ == Kind::TERMINAL && width_ > 0) *out_ << std::endl;
  width_ = 0;
}

}  // namespace moe8
