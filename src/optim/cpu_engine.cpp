// SPDX-License-Identifier: BSD-3-Clause
// The kernels of src/cpu/adamw.h over LibTorch's threads: the runs of all tensors are shared out
// together, so that small tensors do not wait for one another.
#include <ATen/ops/empty.h>

#include <algorithm>

#include "cpu/adamw.h"
#include "device/parallel.h"
#include "formats/integers.h"
#include "optim/host_engine.h"
#include "reference/adamw.h"

namespace moe8 {
namespace {

/// Runs of kNormChunk elements of several tensors, in order.
class Runs {
 public:
  void add(int64_t elements) {
    starts_.push_back(count_);
    elements_.push_back(elements);
    count_ += ceil_div(elements, kNormChunk);
  }
  int64_t count() const { return count_; }

  /// visit(tensor, begin, end) for the runs [first, last).
  template <typename Visit>
  void for_each(int64_t first, int64_t last, const Visit& visit) const {
    auto tensor = static_cast<size_t>(std::upper_bound(starts_.begin(), starts_.end(), first) -
                                      starts_.begin() - 1);
    for (int64_t run = first; run < last; ++run) {
      while (tensor + 1 < starts_.size() && starts_[tensor + 1] <= run) ++tensor;
      const int64_t begin = (run - starts_[tensor]) * kNormChunk;
      visit(tensor, begin, std::min(begin + kNormChunk, elements_[tensor]), run);
    }
  }

 private:
  std::vector<int64_t> starts_, elements_;
  int64_t count_ = 0;
};

Runs runs_of(const std::vector<at::Tensor>& tensors) {
  Runs runs;
  for (const at::Tensor& tensor : tensors) runs.add(tensor.numel());
  return runs;
}

const void* element(const at::Tensor& tensor, int64_t i) {
  return static_cast<const char*>(tensor.const_data_ptr()) +
         i * static_cast<int64_t>(tensor.itemsize());
}

AdamWArgs args_of(const AdamWItem& item, const AdamWRule& rule, const StepScalars& scalars) {
  return {
      .rule = rule,
      .scalars = scalars,
      .grad_type = float_type(item.grad.scalar_type()),
      .weight_type = float_type(item.weight.scalar_type()),
      .moment_type = float_type(item.first.scalar_type()),
      .grad = item.grad.const_data_ptr(),
      .weight = item.weight.mutable_data_ptr(),
      .copy = item.copy.defined() ? static_cast<BFloat16*>(item.copy.mutable_data_ptr()) : nullptr,
      .first = item.first.mutable_data_ptr(),
      .second = item.second.mutable_data_ptr()};
}

class CpuOptimEngine : public HostOptimEngine {
 public:
  using HostOptimEngine::HostOptimEngine;

  at::Tensor squares(const std::vector<at::Tensor>& grads) override {
    const Runs runs = runs_of(grads);
    const at::Tensor squares = at::empty({runs.count()}, at::kFloat);
    auto* const sums = squares.mutable_data_ptr<float>();
    parallel_items(runs.count(), kNormChunk, [&](int64_t first, int64_t last) {
      runs.for_each(first, last, [&](size_t i, int64_t begin, int64_t end, int64_t run) {
        sums[run] = cpu::sum_of_squares(element(grads[i], begin),
                                        float_type(grads[i].scalar_type()), end - begin);
      });
    });
    return squares;
  }

  at::Tensor norm_of(const at::Tensor& squares) override {
    const at::Tensor norm = at::empty({}, at::kFloat);
    *norm.mutable_data_ptr<float>() =
        reference::norm_of(squares.const_data_ptr<float>(), squares.numel());
    return norm;
  }

  void add(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b,
           const std::vector<at::Tensor>& out) override {
    const Runs runs = runs_of(out);
    parallel_items(runs.count(), kNormChunk, [&](int64_t first, int64_t last) {
      runs.for_each(first, last, [&](size_t i, int64_t begin, int64_t end, int64_t) {
        cpu::add_gradients(a[i].const_data_ptr(), float_type(a[i].scalar_type()),
                           b[i].const_data_ptr(), float_type(b[i].scalar_type()),
                           out[i].mutable_data_ptr<float>(), begin, end);
      });
    });
  }

  void adamw(const AdamWRule& rule, const std::vector<AdamWItem>& items,
             const at::Tensor& norm) override {
    const float* const norm_value = norm.defined() ? norm.const_data_ptr<float>() : nullptr;
    Runs runs;
    std::vector<AdamWArgs> args;
    for (const AdamWItem& item : items) {
      runs.add(item.weight.numel());
      args.push_back(args_of(item, rule, begin(item, rule, norm_value)));
    }
    parallel_items(runs.count(), kNormChunk, [&](int64_t first, int64_t last) {
      runs.for_each(first, last, [&](size_t i, int64_t begin, int64_t end, int64_t) {
        cpu::adamw(args[i], begin, end);
      });
    });
  }
};

}  // namespace

std::unique_ptr<OptimEngine> make_cpu_optim_engine(size_t parameters) {
  return std::make_unique<CpuOptimEngine>(parameters);
}

}  // namespace moe8
