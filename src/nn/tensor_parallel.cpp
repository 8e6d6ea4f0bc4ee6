// SPDX-License-Identifier: BSD-3-Clause
// Linears in parts, and what lies between them and the positions of a rank.
#include "moe8/tensor_parallel.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "autograd/function_parts.h"
#include "base/check.h"
#include "moe8/model_ops.h"
#include "nn/init.h"

namespace moe8 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kTensorParallel = "tensor_parallel";

int64_t equal_part(const char* what, int64_t all, const Group& group) {
  MOE8_CHECK(all > 0 && all % group.size() == 0, kTensorParallel, what,
             "expected a multiple of the ", group.size(), " ranks of group '", group.name(),
             "', got ", all);
  return all / group.size();
}

void check_positions(const at::Tensor& x, int64_t dim) {
  MOE8_CHECK(x.defined() && dim >= 0 && dim < x.dim(), kTensorParallel, "dim",
             "expected a dimension of x, counted from 0, got ", dim);
}

// [..., s, ...] of each rank -> [..., size * s, ...].
at::Tensor gathered_positions(const Group& group, const at::Tensor& x, int64_t dim) {
  const at::Tensor all = all_gather(group, x.contiguous());
  if (dim == 0) return all;
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.insert(sizes.begin(), group.size());
  return all.view(sizes).movedim(0, dim).flatten(dim, dim + 1);
}

// [..., size * s, ...] -> the sum's [..., s, ...] of this rank.
at::Tensor scattered_positions(const Group& group, const at::Tensor& x, int64_t dim) {
  const int64_t part = x.size(dim) / group.size();
  const at::Tensor parts = x.unflatten(dim, {group.size(), part}).movedim(dim, 0);
  return reduce_scatter(group, parts.contiguous().flatten(0, 1));
}

struct HeldGroup : torch::CustomClassHolder {
  explicit HeldGroup(Group g) : group(std::move(g)) {}
  Group group;
};

// The two are each other's gradients.
template <auto kForward, auto kBackward>
struct SequenceExchange : torch::autograd::Function<SequenceExchange<kForward, kBackward>> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const Group& group,
                            int64_t dim) {
    ctx->saved_data["group"] = c10::IValue::make_capsule(c10::make_intrusive<HeldGroup>(group));
    ctx->saved_data["dim"] = dim;
    return kForward(group, x, dim);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto held =
        c10::static_intrusive_pointer_cast<HeldGroup>(ctx->saved_data["group"].toCapsule());
    return {kBackward(held->group, grads[0], ctx->saved_data["dim"].toInt()), {}, {}};
  }
};

// [..., 1] float32: the sum of x over the features of all ranks.
at::Tensor sum_of_features(const Group& group, const at::Tensor& x) {
  const at::Tensor sum = x.sum(-1, /*keepdim=*/true).contiguous();
  all_reduce_(group, sum);
  return sum;
}

// n = x r with r = (mean of x^2 + eps)^(-1/2): out = n w, grad_x = (g w - n mean(g w n)) r.
struct NormInParts : torch::autograd::Function<NormInParts> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const Group& group, double eps) {
    const at::Tensor values = x.to(at::kFloat);
    const auto width = static_cast<double>(weight.size(0));
    const at::Tensor rstd = (sum_of_features(group, values.square()) / width + eps).rsqrt();
    ctx->save_for_backward({x, weight, rstd});
    ctx->saved_data["group"] = c10::IValue::make_capsule(c10::make_intrusive<HeldGroup>(group));
    const at::Tensor out = values * rstd * own_features(group, weight).to(at::kFloat);
    return out.to(x.scalar_type());
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto held =
        c10::static_intrusive_pointer_cast<HeldGroup>(ctx->saved_data["group"].toCapsule());
    const Group& group = held->group;
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &rstd = saved[2];
    const at::Tensor grad = grads[0].to(at::kFloat), normed = x.to(at::kFloat) * rstd;
    variable_list results(4);
    const at::Tensor of_normed = grad * own_features(group, weight).to(at::kFloat);
    const at::Tensor mean =
        sum_of_features(group, of_normed * normed) / static_cast<double>(weight.size(0));
    if (ctx->needs_input_grad(0)) {
      results[0] = ((of_normed - normed * mean) * rstd).to(x.scalar_type());
    }
    if (ctx->needs_input_grad(1)) {
      results[1] = at::zeros_like(weight);
      own_features(group, results[1]).copy_((grad * normed).flatten(0, -2).sum(0));
    }
    if (at::GradMode::is_enabled()) {
      forbid_double_backward(
          results, "moe8: rms_norm_in_parts cannot be differentiated twice (create_graph=true).");
    }
    return results;
  }

 private:
  static at::Tensor own_features(const Group& group, const at::Tensor& weight) {
    const int64_t part = weight.size(0) / group.size();
    return weight.narrow(0, group.rank() * part, part);
  }
};

}  // namespace

torch::nn::Linear column_parallel_linear(int64_t in, int64_t out, const Group& group) {
  return linear_without_bias(in, equal_part("out", out, group));
}

torch::nn::Linear row_parallel_linear(int64_t in, int64_t out, const Group& group) {
  return linear_without_bias(equal_part("in", in, group), out);
}

at::Tensor gather_sequence(const Group& group, const at::Tensor& x, int64_t dim) {
  check_positions(x, dim);
  return group.size() == 1
             ? x
             : SequenceExchange<gathered_positions, scattered_positions>::apply(x, group, dim);
}

at::Tensor reduce_scatter_sequence(const Group& group, const at::Tensor& x, int64_t dim) {
  check_positions(x, dim);
  equal_part("x", x.size(dim), group);
  return group.size() == 1
             ? x
             : SequenceExchange<scattered_positions, gathered_positions>::apply(x, group, dim);
}

at::Tensor sequence_part(const Group& group, const at::Tensor& x, int64_t dim) {
  check_positions(x, dim);
  if (group.size() == 1) return x;
  const int64_t part = equal_part("x", x.size(dim), group);
  return x.narrow(dim, group.rank() * part, part);
}

at::Tensor rms_norm_in_parts(const Group& group, const at::Tensor& x, const at::Tensor& weight,
                             double eps) {
  MOE8_CHECK(x.dim() > 0 && x.size(-1) > 0 &&
                 (x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat),
             kTensorParallel, "x", "expected bf16 or float32 [..., D] with D > 0, got ",
             x.scalar_type(), " ", x.sizes());
  const int64_t width = group.size() * x.size(-1);
  MOE8_CHECK(weight.dim() == 1 && weight.size(0) == width &&
                 weight.scalar_type() == x.scalar_type() && weight.device() == x.device(),
             kTensorParallel, "weight", "expected ", x.scalar_type(), " [", width, "] on ",
             x.device(), ", got ", weight.scalar_type(), " ", weight.sizes(), " on ",
             weight.device());
  if (group.size() == 1) return rms_norm(x, weight, eps);
  return NormInParts::apply(x, weight, group, eps);
}

TensorSplit tensor_split(std::string_view parameter) {
  const auto has = [&](const auto& parts) {
    return std::ranges::any_of(parts, [&](std::string_view part) {
      return parameter.find(part) != std::string_view::npos;
    });
  };
  constexpr std::array<std::string_view, 3> kSplit{".attention.", ".feed_forward.",
                                                   ".shared_experts."};
  constexpr std::array<std::string_view, 5> kColumns{".wq.", ".wk.", ".wv.", ".w1.", ".w3."};
  constexpr std::array<std::string_view, 2> kRows{".wo.", ".w2."};
  if (!has(kSplit)) return TensorSplit::NONE;
  if (has(kColumns)) return TensorSplit::COLUMN_PARALLEL;
  // What is added to the sum of all parts is one vector.
  const bool is_added_once = parameter.ends_with(".bias");
  return has(kRows) && !is_added_once ? TensorSplit::ROW_PARALLEL : TensorSplit::NONE;
}

}  // namespace moe8
