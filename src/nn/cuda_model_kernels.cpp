// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>

#include "cuda/nn/cross_entropy.h"
#include "cuda/nn/gate.h"
#include "cuda/nn/rms_norm.h"
#include "cuda/nn/rotary.h"
#include "device/cuda_launch.h"
#include "device/implementation.h"
#include "nn/model_kernels.h"
#include "quantize/check_input.h"

namespace moe8 {
namespace {

at::Tensor like(const at::Tensor& x) {
  return empty_on(x, x.sizes(), x.scalar_type());
}

// Heads with neighbouring features; other strides are read as they are.
at::Tensor with_dense_heads(const at::Tensor& x) {
  return x.defined() && x.stride(3) != 1 ? x.contiguous() : x;
}

cuda::RotaryHeads rotary_heads(const at::Tensor& in, const at::Tensor& out) {
  if (!in.defined()) return {};
  return {in.const_data_ptr(), in.stride(0), in.stride(1),
          in.stride(2),        in.size(2),   out.mutable_data_ptr()};
}

int64_t rows_of(const at::Tensor& x) {
  return x.numel() / x.size(-1);
}

cuda::CrossEntropyRows loss_rows(const at::Tensor& logits, const at::Tensor& targets,
                                 int64_t ignore_index) {
  return {logits.const_data_ptr(), float_type(logits.scalar_type()),  logits.size(0),
          logits.size(1),          targets.const_data_ptr<int64_t>(), ignore_index};
}

}  // namespace

bool model_kernels_take(std::initializer_list<at::Tensor> tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [&](const at::Tensor& x) {
    if (!x.defined()) return true;
    const bool has_type = x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat;
    return x.is_cuda() && has_type && x.scalar_type() == tensors.begin()->scalar_type() &&
           !kernels_refusal(x.device());
  });
}

RotatedHeads cuda_rotary(const at::Tensor& q, const at::Tensor& k, const at::Tensor& freqs,
                         RotaryPairs pairs, bool inverse) {
  const Launch launch(q.device());
  const at::Tensor q_in = with_dense_heads(q), k_in = with_dense_heads(k);
  const at::Tensor angles = freqs.contiguous();
  const RotatedHeads out{like(q), k.defined() ? like(k) : at::Tensor()};
  const cuda::RotaryArgs args{rotary_heads(q_in, out.q),
                              rotary_heads(k_in, out.k),
                              float_type(q.scalar_type()),
                              q.size(0),
                              q.size(1),
                              q.size(3),
                              static_cast<const float*>(angles.const_data_ptr()),
                              pairs,
                              inverse};
  check_launch("rotary_embedding", cuda::launch_rotary(args, launch.stream));
  return out;
}

NormResults cuda_rms_norm(const at::Tensor& x, const at::Tensor& y, const at::Tensor& weight,
                          double eps) {
  const Launch launch(x.device());
  const at::Tensor in = x.contiguous(), scale = weight.contiguous();
  const at::Tensor added = y.defined() ? y.contiguous() : y;
  const NormResults out{y.defined() ? like(in) : at::Tensor(), like(in),
                        empty_on(in, {rows_of(in)}, at::kFloat)};
  const cuda::RmsNormArgs args{in.const_data_ptr(),
                               y.defined() ? added.const_data_ptr() : nullptr,
                               y.defined() ? out.sum.mutable_data_ptr() : nullptr,
                               scale.const_data_ptr(),
                               float_type(in.scalar_type()),
                               rows_of(in),
                               in.size(-1),
                               static_cast<float>(eps),
                               out.normed.mutable_data_ptr(),
                               out.rstd.mutable_data_ptr<float>()};
  check_launch("rms_norm", cuda::launch_rms_norm(args, launch.stream));
  return out;
}

NormGradients cuda_rms_norm_backward(const at::Tensor& h, const at::Tensor& weight,
                                     const at::Tensor& rstd, const at::Tensor& grad,
                                     const at::Tensor& grad_sum) {
  const Launch launch(h.device());
  const at::Tensor in = h.contiguous(), scale = weight.contiguous(), dy = grad.contiguous();
  const at::Tensor other = grad_sum.defined() ? grad_sum.contiguous() : grad_sum;
  const NormGradients out{like(in), like(scale)};
  cuda::RmsNormBackwardArgs args{in.const_data_ptr(),
                                 scale.const_data_ptr(),
                                 rstd.const_data_ptr<float>(),
                                 dy.const_data_ptr(),
                                 other.defined() ? other.const_data_ptr() : nullptr,
                                 float_type(in.scalar_type()),
                                 rows_of(in),
                                 in.size(-1),
                                 out.x.mutable_data_ptr(),
                                 out.weight.mutable_data_ptr(),
                                 nullptr};
  const at::Tensor workspace = empty_on(in, {cuda::rms_norm_workspace(args)}, at::kFloat);
  args.workspace = workspace.mutable_data_ptr<float>();
  check_launch("rms_norm", cuda::launch_rms_norm_backward(args, launch.stream));
  return out;
}

at::Tensor cuda_gate(const at::Tensor& gate, const at::Tensor& up) {
  const Launch launch(gate.device());
  const at::Tensor g = gate.contiguous(), u = up.contiguous();
  at::Tensor out = like(g);
  check_launch("swiglu",
               cuda::launch_gate({g.const_data_ptr(), u.const_data_ptr(),
                                  float_type(g.scalar_type()), g.numel(), out.mutable_data_ptr()},
                                 launch.stream));
  return out;
}

GateGradients cuda_gate_backward(const at::Tensor& gate, const at::Tensor& up,
                                 const at::Tensor& grad) {
  const Launch launch(gate.device());
  const at::Tensor g = gate.contiguous(), u = up.contiguous(), dy = grad.contiguous();
  const GateGradients out{like(g), like(u)};
  check_launch("swiglu", cuda::launch_gate_backward(
                             {g.const_data_ptr(), u.const_data_ptr(), dy.const_data_ptr(),
                              float_type(g.scalar_type()), g.numel(), out.gate.mutable_data_ptr(),
                              out.up.mutable_data_ptr()},
                             launch.stream));
  return out;
}

LossResults cuda_cross_entropy(const at::Tensor& logits, const at::Tensor& targets,
                               int64_t ignore_index, const at::Tensor& divisor) {
  const Launch launch(logits.device());
  const LossResults out{empty_on(logits, {}, at::kFloat),
                        empty_on(logits, {logits.size(0)}, at::kFloat),
                        divisor.defined() ? divisor : empty_on(logits, {}, at::kFloat)};
  const at::Tensor row_loss = empty_on(logits, {logits.size(0)}, at::kFloat);
  cuda::CrossEntropyArgs args{};
  static_cast<cuda::CrossEntropyRows&>(args) = loss_rows(logits, targets, ignore_index);
  args.lse = out.lse.mutable_data_ptr<float>();
  args.row_loss = row_loss.mutable_data_ptr<float>();
  args.loss = out.loss.mutable_data_ptr<float>();
  args.divisor = out.divisor.mutable_data_ptr<float>();
  args.count_rows = !divisor.defined();
  check_launch("cross_entropy", cuda::launch_cross_entropy(args, launch.stream));
  return out;
}

void cuda_cross_entropy_backward(const at::Tensor& logits, const at::Tensor& targets,
                                 int64_t ignore_index, const LossResults& forward,
                                 const at::Tensor& grad_loss, const at::Tensor& grad) {
  const Launch launch(logits.device());
  cuda::CrossEntropyBackwardArgs args{};
  static_cast<cuda::CrossEntropyRows&>(args) = loss_rows(logits, targets, ignore_index);
  args.lse = forward.lse.const_data_ptr<float>();
  args.divisor = forward.divisor.const_data_ptr<float>();
  args.grad_loss = grad_loss.const_data_ptr<float>();
  args.grad = grad.mutable_data_ptr();
  check_launch("cross_entropy", cuda::launch_cross_entropy_backward(args, launch.stream));
}

}  // namespace moe8
