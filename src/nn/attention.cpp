// SPDX-License-Identifier: BSD-3-Clause
#include "nn/attention.h"

#include <ATen/Context.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/csrc/autograd/custom_function.h>

#include "autograd/function_parts.h"
#include "device/cuda_device.h"

namespace moe8 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// cuDNN's forward and Flash Attention's backward. What passes from one to the other is the output
/// and, for each query, the natural logarithm of the sum of its exponentials, in float32.
struct CudnnThenFlash : torch::autograd::Function<CudnnThenFlash> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v) {
    const auto made = at::_scaled_dot_product_cudnn_attention(
        q, k, v, /*attn_bias=*/{}, /*compute_log_sumexp=*/true, /*dropout_p=*/0.0,
        /*is_causal=*/true);
    const at::Tensor& out = std::get<0>(made);
    const at::Tensor log_sums = std::get<1>(made).view({q.size(0), q.size(1), q.size(2)});
    ctx->save_for_backward({q, k, v, out, log_sums});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list results(3);
    if (!grads[0].defined()) return results;
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1];
    const at::Tensor no_dropout = at::empty({0}, q.options().dtype(at::kLong));
    std::tie(results[0], results[1], results[2]) = at::_scaled_dot_product_flash_attention_backward(
        grads[0], q, k, saved[2], saved[3], saved[4], /*cum_seq_q=*/{}, /*cum_seq_k=*/{}, q.size(2),
        k.size(2), /*dropout_p=*/0.0, /*is_causal=*/true, no_dropout, no_dropout);
    if (at::GradMode::is_enabled()) {
      forbid_double_backward(results,
                             "moe8: attention cannot be differentiated twice (create_graph=true).");
    }
    return results;
  }
};

// Where LibTorch would take Flash Attention both ways, and cuDNN has a faster forward.
bool has_cudnn_forward(const at::Tensor& q) {
  constexpr int64_t kMostFeatures = 128, kPacket = 8;
  constexpr long kCudnn = 90000;
  if (!q.is_cuda() || q.numel() == 0 || !is_hopper(q.device())) return false;
  const at::Context& context = at::globalContext();
  return context.deterministicAlgorithms() && !context.deterministicAlgorithmsWarnOnly() &&
         context.userEnabledFlashSDP() && at::Context::hasCuDNN() &&
         at::Context::versionCuDNN() >= kCudnn &&
         (q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf) && q.size(2) > 1 &&
         q.size(3) % kPacket == 0 && q.size(3) <= kMostFeatures;
}

}  // namespace

at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  if (has_cudnn_forward(q)) return CudnnThenFlash::apply(q, k, v);
  return at::scaled_dot_product_attention(q, k, v, /*attn_mask=*/{}, /*dropout_p=*/0.0,
                                          /*is_causal=*/true, /*scale=*/std::nullopt,
                                          /*enable_gqa=*/q.size(1) != k.size(1));
}

}  // namespace moe8
