// SPDX-License-Identifier: BSD-3-Clause
// The kernels of src/cuda/optim/. Learning rate, clocks and norm are in the device's memory.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <cstring>
#include <map>
#include <utility>

#include "cuda/optim/adamw.h"
#include "cuda/optim/gradients.h"
#include "cuda/optim/muon.h"
#include "device/cuda_launch.h"
#include "optim/engine.h"
#include "quantize/check_input.h"

namespace moe8 {
namespace {

constexpr const char* kOp = "optimizer";

FloatType type_of(const at::Tensor& x) {
  return float_type(x.scalar_type());
}

template <typename T>
T* as(const at::Tensor& bytes) {
  return static_cast<T*>(bytes.mutable_data_ptr());
}

template <typename Item>
BFloat16* copy_of(const Item& item) {
  return item.copy.defined() ? as<BFloat16>(item.copy) : nullptr;
}

const float* norm_value(const at::Tensor& norm) {
  return norm.defined() ? as<float>(norm) : nullptr;
}

cuda::AdamWTensor tensor_of(const AdamWItem& item) {
  return {item.grad.const_data_ptr(),
          item.weight.mutable_data_ptr(),
          copy_of(item),
          item.first.mutable_data_ptr(),
          item.second.mutable_data_ptr(),
          item.weight.numel(),
          item.weight_decay,
          static_cast<int32_t>(item.index)};
}

class CudaOptimEngine : public OptimEngine {
 public:
  CudaOptimEngine(const c10::Device& device, size_t parameters)
      : device_(device),
        learning_rate_(at::full({}, 0.0, at::TensorOptions(device).dtype(at::kDouble))),
        scalars_(bytes(parameters * sizeof(StepScalars))) {
    set_clocks(std::vector<AdamWClock>(parameters));
  }

  at::Tensor squares(const std::vector<at::Tensor>& grads) override {
    std::vector<cuda::Gradient> gradients;
    gradients.reserve(grads.size());
    for (const at::Tensor& grad : grads) {
      gradients.push_back({grad.const_data_ptr(), type_of(grad), grad.numel()});
    }
    const Launch launch(device_);
    at::Tensor sums = empty_on(device_, {cuda::gradient_norm_sums(gradients)}, at::kFloat);
    check_launch(kOp, cuda::launch_gradient_squares(gradients, as<float>(sums), launch.stream));
    return sums;
  }

  at::Tensor norm_of(const at::Tensor& squares) override {
    const Launch launch(device_);
    at::Tensor norm = empty_on(device_, {}, at::kFloat);
    check_launch(kOp, cuda::launch_norm_of_squares(as<float>(squares), squares.numel(),
                                                   as<float>(norm), launch.stream));
    return norm;
  }

  void add(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b,
           const std::vector<at::Tensor>& out) override {
    std::vector<cuda::GradientSum> sums;
    for (size_t i = 0; i < a.size(); ++i) {
      sums.push_back({a[i].const_data_ptr(), type_of(a[i]), b[i].const_data_ptr(), type_of(b[i]),
                      as<float>(out[i]), out[i].numel()});
    }
    const Launch launch(device_);
    check_launch(kOp, cuda::launch_gradient_sums(sums, launch.stream));
  }

  void set_learning_rate(double learning_rate) override { learning_rate_.fill_(learning_rate); }

  void adamw(const AdamWRule& rule, const std::vector<AdamWItem>& items,
             const at::Tensor& norm) override {
    // A kernel for each combination of dtypes; of a model there is one, seldom two.
    std::map<std::pair<FloatType, FloatType>, std::vector<cuda::AdamWTensor>> by_types;
    for (const AdamWItem& item : items) {
      by_types[{type_of(item.grad), type_of(item.weight)}].push_back(tensor_of(item));
    }
    const Launch launch(device_);
    for (const auto& [types, tensors] : by_types) {
      const cuda::AdamWStep step{.rule = rule,
                                 .grad_type = types.first,
                                 .weight_type = types.second,
                                 .moment_type = type_of(items.front().first),
                                 .clocks = as<AdamWClock>(clocks_),
                                 .scalars = as<StepScalars>(scalars_),
                                 .learning_rate = as<double>(learning_rate_),
                                 .norm = norm_value(norm)};
      check_launch(kOp, cuda::launch_adamw(step, tensors, launch.stream));
    }
  }

  void muon_directions(const MuonRule& rule, const std::vector<MuonItem>& items,
                       const std::vector<at::Tensor>& directions, const at::Tensor& norm) override {
    std::map<std::pair<FloatType, FloatType>, std::vector<cuda::MuonMomentum>> by_types;
    for (size_t i = 0; i < items.size(); ++i) {
      const MuonItem& item = items[i];
      by_types[{type_of(item.grad), type_of(item.momentum)}].push_back(
          {item.grad.const_data_ptr(), item.momentum.mutable_data_ptr(),
           as<BFloat16>(directions[i]), item.weight.numel()});
    }
    const Launch launch(device_);
    for (const auto& [types, tensors] : by_types) {
      const cuda::MuonMomentumStep step{rule, types.first, types.second, norm_value(norm)};
      check_launch(kOp, cuda::launch_muon_directions(step, tensors, launch.stream));
    }
  }

  void muon_weights(const std::vector<MuonItem>& items, const std::vector<at::Tensor>& directions,
                    const at::Tensor& norm) override {
    std::map<FloatType, std::vector<cuda::MuonWeight>> by_type;
    for (size_t i = 0; i < items.size(); ++i) {
      const MuonItem& item = items[i];
      by_type[type_of(item.weight)].push_back(
          {as<BFloat16>(directions[i]), item.weight.mutable_data_ptr(), copy_of(item),
           item.weight.numel(), item.weight_decay, muon_scale(item.weight)});
    }
    const Launch launch(device_);
    for (const auto& [type, tensors] : by_type) {
      const cuda::MuonWeightStep step{type, as<double>(learning_rate_), norm_value(norm)};
      check_launch(kOp, cuda::launch_muon_weights(step, tensors, launch.stream));
    }
  }

  std::vector<AdamWClock> clocks() const override {
    const at::Tensor host = clocks_.cpu();
    std::vector<AdamWClock> clocks(host.nbytes() / sizeof(AdamWClock));
    std::memcpy(clocks.data(), host.const_data_ptr(), host.nbytes());
    return clocks;
  }
  void set_clocks(const std::vector<AdamWClock>& clocks) override {
    const at::Tensor host =
        at::empty({static_cast<int64_t>(clocks.size() * sizeof(AdamWClock))}, at::kByte);
    std::memcpy(host.mutable_data_ptr(), clocks.data(), host.nbytes());
    if (clocks_.defined()) {
      clocks_.copy_(host);
    } else {
      clocks_ = host.to(device_);
    }
  }

 private:
  at::Tensor bytes(size_t count) const {
    return empty_on(device_, {static_cast<int64_t>(count)}, at::kByte);
  }

  c10::Device device_;
  at::Tensor learning_rate_;  // float64 scalar
  at::Tensor clocks_;         // bytes of AdamWClock
  at::Tensor scalars_;        // bytes of StepScalars
};

}  // namespace

std::unique_ptr<OptimEngine> make_cuda_optim_engine(const c10::Device& device, size_t parameters) {
  return std::make_unique<CudaOptimEngine>(device, parameters);
}

}  // namespace moe8
