// SPDX-License-Identifier: BSD-3-Clause
// Rotary positions: by the kernels of a GPU, by the reference itself on a CPU, and by LibTorch's
// operations for what neither takes.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/view_as_complex.h>
#include <ATen/ops/view_as_real.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "autograd/function_parts.h"
#include "base/check.h"
#include "device/allocate.h"
#include "device/implementation.h"
#include "device/parallel.h"
#include "moe8/model_ops.h"
#include "nn/model_kernels.h"
#include "reference/model.h"

namespace moe8 {
namespace {

constexpr const char* kRotary = "rotary_embedding";

// ---- on a CPU -----------------------------------------------------------------
template <typename T>
void rotate_rows(const at::Tensor& x, const at::Tensor& freqs, RotaryPairs pairs, bool inverse,
                 const at::Tensor& out) {
  const auto* in = static_cast<const T*>(x.const_data_ptr());
  const auto* angles = static_cast<const float*>(freqs.const_data_ptr());
  auto* results = static_cast<T*>(out.mutable_data_ptr());
  const int64_t positions = x.size(1), heads = x.size(2), width = x.size(3);
  parallel_items(x.size(0) * positions, heads * width, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t batch = i / positions, position = i % positions;
      reference::rotate(in + batch * x.stride(0) + position * x.stride(1), x.stride(2),
                        angles + position * width, heads, width, pairs, inverse,
                        results + i * heads * width);
    }
  });
}

at::Tensor rotate_on_cpu(const at::Tensor& x, const at::Tensor& freqs, RotaryPairs pairs,
                         bool inverse) {
  const at::Tensor in = x.stride(3) == 1 ? x : x.contiguous();
  at::Tensor out = allocate_result(x.sizes(), x.scalar_type(), x);
  if (x.scalar_type() == at::kBFloat16) {
    rotate_rows<BFloat16>(in, freqs, pairs, inverse, out);
  } else {
    rotate_rows<float>(in, freqs, pairs, inverse, out);
  }
  return out;
}

RotatedHeads rotate_heads(const at::Tensor& q, const at::Tensor& k, const at::Tensor& freqs,
                          RotaryPairs pairs, bool inverse) {
  if (!q.is_cpu()) return cuda_rotary(q, k, freqs, pairs, inverse);
  return {rotate_on_cpu(q, freqs, pairs, inverse),
          k.defined() ? rotate_on_cpu(k, freqs, pairs, inverse) : at::Tensor()};
}

// ---- the function ---------------------------------------------------------------
struct Rotary : torch::autograd::Function<Rotary> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const at::Tensor& q, const at::Tensor& k,
                                                const at::Tensor& freqs, int64_t pairs) {
    ctx->save_for_backward({freqs});
    ctx->saved_data["pairs"] = pairs;
    ctx->set_materialize_grads(false);
    const RotatedHeads out = rotate_heads(q, k, freqs, static_cast<RotaryPairs>(pairs), false);
    return {out.q, out.k};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const at::Tensor freqs = ctx->get_saved_variables()[0];
    const auto pairs = static_cast<RotaryPairs>(ctx->saved_data["pairs"].toInt());
    torch::autograd::variable_list results(4);
    if (grads[0].defined()) {
      RotatedHeads back = rotate_heads(grads[0], grads[1], freqs, pairs, true);
      results[0] = std::move(back.q), results[1] = std::move(back.k);
    } else if (grads[1].defined()) {
      results[1] = rotate_heads(grads[1], {}, freqs, pairs, true).q;
    }
    if (at::GradMode::is_enabled()) {
      forbid_double_backward(results,
                             "moe8: rotary_embedding cannot be differentiated twice "
                             "(create_graph=true).");
    }
    return results;
  }
};

// ---- LibTorch's operations --------------------------------------------------------
at::Tensor rotate_by_operations(const at::Tensor& x, const at::Tensor& freqs, RotaryPairs pairs) {
  const at::ScalarType inner = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor angles = freqs.to(c10::toComplexType(inner)).unsqueeze(1);
  const bool neighbours = pairs == RotaryPairs::NEIGHBOURS;
  const at::Tensor wide = x.to(inner);
  const at::Tensor as_pairs = neighbours ? wide.unflatten(3, {-1, 2}).contiguous()
                                         : wide.unflatten(3, {2, -1}).transpose(3, 4).contiguous();
  const at::Tensor rotated = at::view_as_real(at::view_as_complex(as_pairs) * angles);
  return (neighbours ? rotated : rotated.transpose(3, 4)).flatten(3).to(x.scalar_type());
}

bool has_rotary_kernel(const at::Tensor& q, const at::Tensor& k) {
  if (!q.is_cpu()) return model_kernels_take({q, k});
  const bool has_type = q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kFloat;
  return has_type && implementation_on(q.device()) == Implementation::CPU_KERNELS;
}

void check_heads(const char* name, const at::Tensor& x, const at::Tensor& q) {
  MOE8_CHECK(x.dim() == 4 && x.is_floating_point(), kRotary, name,
             "expected a floating [B, S, H, D], got ", x.scalar_type(), " ", x.sizes());
  MOE8_CHECK(x.size(3) > 0 && x.size(3) % 2 == 0, kRotary, name,
             "expected an even number of features per head, got ", x.sizes());
  MOE8_CHECK(x.size(0) == q.size(0) && x.size(1) == q.size(1) && x.size(3) == q.size(3) &&
                 x.scalar_type() == q.scalar_type() && x.device() == q.device(),
             kRotary, name, "expected q's batch, positions, features, dtype and device (",
             q.scalar_type(), " ", q.sizes(), " on ", q.device(), "), got ", x.scalar_type(), " ",
             x.sizes(), " on ", x.device());
}

}  // namespace

RotatedHeads rotary_embedding(const at::Tensor& q, const at::Tensor& k, const at::Tensor& freqs,
                              RotaryPairs pairs) {
  check_heads("q", q, q);
  check_heads("k", k, q);
  MOE8_CHECK(
      freqs.dim() == 2 && freqs.scalar_type() == at::kComplexFloat && freqs.size(0) >= q.size(1) &&
          freqs.size(1) == q.size(3) / 2 && freqs.device() == q.device(),
      kRotary, "freqs", "expected complex64 [at least ", q.size(1), ", ", q.size(3) / 2, "] on ",
      q.device(), ", got ", freqs.scalar_type(), " ", freqs.sizes(), " on ", freqs.device());
  const at::Tensor angles = freqs.narrow(0, 0, q.size(1)).contiguous();
  if (has_rotary_kernel(q, k)) {
    auto out = Rotary::apply(q, k, angles, static_cast<int64_t>(pairs));
    return {std::move(out[0]), std::move(out[1])};
  }
  return {rotate_by_operations(q, angles, pairs), rotate_by_operations(k, angles, pairs)};
}

}  // namespace moe8
