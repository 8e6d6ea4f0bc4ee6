// SPDX-License-Identifier: BSD-3-Clause
#include "nn/attention.h"

#include <ATen/Context.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/softmax.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "autograd/function_parts.h"
#include "device/cuda_device.h"

namespace moe8 {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

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

// ---- sinks ------------------------------------------------------------------
// The logarithm of all sums of exponentials, the sink's among them.
at::Tensor with_sinks(const at::Tensor& log_sums, const at::Tensor& sinks) {
  return at::logaddexp(log_sums, sinks.to(at::kFloat).view({1, -1, 1}));
}

std::optional<at::Tensor> mask_of(const at::Tensor& window) {
  return window.defined() ? std::optional(window) : std::nullopt;
}

// A kernel's own mask of earlier positions; a single query sees all keys.
bool is_causal(const at::Tensor& q, const std::optional<at::Tensor>& window) {
  return !window && q.size(2) > 1;
}

std::optional<double> scale_of(double scale) {
  return scale > 0 ? std::optional(scale) : std::nullopt;
}

/// The CPU's kernel. Given the output and the sums of a softmax, its backward makes the gradients of
/// that softmax's keys, whatever else the sums hold.
struct CpuAttentionWithSinks : torch::autograd::Function<CpuAttentionWithSinks> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const at::Tensor& sinks,
                            const std::optional<at::Tensor>& window, double scale) {
    const auto [of_keys, log_sums] = at::_scaled_dot_product_flash_attention_for_cpu(
        q, k, v, /*dropout_p=*/0.0, is_causal(q, window), window, scale_of(scale));
    const at::Tensor all = with_sinks(log_sums, sinks);
    const at::Tensor share = (log_sums - all).exp_().unsqueeze(3);
    const at::Tensor out = (of_keys * share).to(q.scalar_type());
    ctx->save_for_backward({q, k, v, out, all, sinks, window ? *window : at::Tensor()});
    ctx->saved_data["scale"] = scale;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list results(6);
    if (!grads[0].defined()) return results;
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &q = saved[0], &out = saved[3], &all = saved[4], &sinks = saved[5];
    const std::optional<at::Tensor> window = mask_of(saved[6]);
    const double scale = ctx->saved_data["scale"].toDouble();
    std::tie(results[0], results[1], results[2]) =
        at::_scaled_dot_product_flash_attention_for_cpu_backward(
            grads[0], q, saved[1], saved[2], out, all, /*dropout_p=*/0.0, is_causal(q, window),
            window, scale_of(scale));
    // A softmax whose value is 0: minus its weight times what the other values are worth.
    const at::Tensor worth = (grads[0].to(at::kFloat) * out).sum(3);
    const at::Tensor weight = (sinks.to(at::kFloat).view({1, -1, 1}) - all).exp_();
    results[3] = (weight * worth).sum(at::IntArrayRef{0, 2}).neg_().to(sinks.scalar_type());
    if (at::GradMode::is_enabled()) {
      forbid_double_backward(results,
                             "moe8: attention cannot be differentiated twice (create_graph=true).");
    }
    return results;
  }
};

// By operations: a column for the sink, which is dropped after the softmax.
at::Tensor composed_with_sinks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               const AttentionOptions& options) {
  const int64_t queries = q.size(2), keys = k.size(2), groups = k.size(1);
  const double scale = options.scale > 0 ? options.scale : 1 / std::sqrt(double(q.size(3)));
  at::Tensor mask =
      options.window.defined() ? options.window : window_mask(queries, keys, keys, q.options());
  if (mask.dim() == 4) mask = mask.unsqueeze(1);
  const at::Tensor grouped = q.unflatten(1, {groups, -1});  // [B, K, H/K, S, D]
  const at::Tensor logits =
      at::matmul(grouped, k.unsqueeze(2).transpose(3, 4)).to(at::kFloat) * scale + mask;
  std::vector<int64_t> sizes = logits.sizes().vec();
  sizes.back() = 1;
  const at::Tensor sink = options.sinks.to(at::kFloat).view({1, groups, -1, 1, 1}).expand(sizes);
  const at::Tensor weights = at::softmax(at::cat({logits, sink}, -1), -1).narrow(-1, 0, keys);
  return at::matmul(weights.to(v.scalar_type()), v.unsqueeze(2)).flatten(1, 2);
}

bool takes_cpu_kernel(const at::Tensor& q, const at::Tensor& v) {
  const bool has_type = q.scalar_type() == at::kFloat || q.scalar_type() == at::kBFloat16;
  return q.is_cpu() && has_type && q.numel() > 0 && q.size(3) == v.size(3);
}

}  // namespace

at::Tensor window_mask(int64_t queries, int64_t keys, int64_t window,
                       const at::TensorOptions& options) {
  const at::Tensor never = at::full({queries, keys}, kNever, options);
  const int64_t before = keys - queries;
  return never.triu(1 + before).add_(never.tril(before - window));
}

at::Tensor document_mask(const at::Tensor& documents, int64_t window,
                         const at::TensorOptions& options) {
  const int64_t length = documents.size(1);
  const at::Tensor others = documents.unsqueeze(2).ne(documents.unsqueeze(1));  // [B, S, S]
  const at::Tensor mask = window_mask(length, length, window, options);
  return mask.unsqueeze(0).masked_fill(others, kNever).unsqueeze(1);
}

at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const AttentionOptions& options) {
  const bool is_plain = options.scale == 0 && !options.window.defined() && !options.sinks.defined();
  if (is_plain && has_cudnn_forward(q)) return CudnnThenFlash::apply(q, k, v);
  const std::optional<at::Tensor> window = mask_of(options.window);
  if (!options.sinks.defined()) {
    return at::scaled_dot_product_attention(q, k, v, window, /*dropout_p=*/0.0,
                                            is_causal(q, window), scale_of(options.scale),
                                            /*enable_gqa=*/q.size(1) != k.size(1));
  }
  if (!takes_cpu_kernel(q, v)) return composed_with_sinks(q, k, v, options);
  return CpuAttentionWithSinks::apply(q, k, v, options.sinks, window, options.scale);
}

}  // namespace moe8
