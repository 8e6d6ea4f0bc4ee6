// SPDX-License-Identifier: BSD-3-Clause
#include "routing/cuda_router.h"

#include "cuda/nn/route.h"
#include "device/cuda_launch.h"
#include "device/implementation.h"
#include "quantize/check_input.h"

namespace moe8 {
namespace {

constexpr const char* kOp = "route_tokens";

cuda::RouteInputs inputs_of(const at::Tensor& logits, const RouterOptions& options) {
  return {.logits = logits.const_data_ptr(),
          .type = float_type(logits.scalar_type()),
          .tokens = logits.size(0),
          .experts = logits.size(1),
          .top_k = options.top_k,
          .score_function = options.score_function,
          .normalize = options.normalize,
          .scale = static_cast<float>(options.scale)};
}

}  // namespace

std::optional<std::string> cuda_router_refusal(const at::Tensor& logits,
                                               const RouterOptions& options) {
  if (!logits.is_cuda()) return "logits are not on a GPU";
  if (logits.size(1) > cuda::kMostRoutedExperts) return "more than 512 experts";
  if (options.n_groups > 1) return "experts in groups";
  if (options.top_k > cuda::kMostChosen) return "more than 32 experts for a token";
  return kernels_refusal(logits.device(), logits.size(1));
}

RoutedTokens cuda_route(const at::Tensor& logits, const RouterOptions& options,
                        const at::Tensor& bias) {
  const Launch launch(logits.device());
  const at::Tensor in = contiguous_values(logits);
  const at::Tensor preferred = bias.defined() ? bias.detach().to(at::kFloat).contiguous() : bias;
  const RoutedTokens out{empty_on(in, {in.size(0), options.top_k}, at::kLong),
                         empty_on(in, {in.size(0), options.top_k}, at::kFloat)};
  cuda::RouteArgs args{};
  static_cast<cuda::RouteInputs&>(args) = inputs_of(in, options);
  args.bias = preferred.defined() ? preferred.const_data_ptr<float>() : nullptr;
  args.chosen = out.experts.mutable_data_ptr<int64_t>();
  args.scores = out.scores.mutable_data_ptr<float>();
  check_launch(kOp, cuda::launch_route(args, launch.stream));
  return out;
}

at::Tensor cuda_route_backward(const at::Tensor& logits, const RouterOptions& options,
                               const at::Tensor& experts, const at::Tensor& grad) {
  const Launch launch(logits.device());
  const at::Tensor in = contiguous_values(logits), dy = contiguous_values(grad);
  at::Tensor out = empty_on(in, in.sizes(), in.scalar_type());
  cuda::RouteBackwardArgs args{};
  static_cast<cuda::RouteInputs&>(args) = inputs_of(in, options);
  args.chosen = experts.const_data_ptr<int64_t>();
  args.grad = dy.const_data_ptr<float>();
  args.grad_logits = out.mutable_data_ptr();
  check_launch(kOp, cuda::launch_route_backward(args, launch.stream));
  return out;
}

}  // namespace moe8
