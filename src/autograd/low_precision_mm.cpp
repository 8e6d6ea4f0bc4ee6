// SPDX-License-Identifier: BSD-3-Clause
#include "autograd/low_precision_mm.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include "autograd/function_parts.h"
#include "autograd/group_bias.h"
#include "autograd/shared_input.h"
#include "gemm/low_precision_gemm.h"
#include "moe8/memory.h"
#include "quantize/check_input.h"
#include "weights/backward_end.h"
#include "weights/usage.h"
#include "weights/weight_cache.h"

namespace moe8 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// What the three GEMMs of one product share, and what its backward needs besides tensors.
struct Product : torch::CustomClassHolder {
  TrainingFormats formats;
  TokenGroups groups;
  std::vector<int64_t> a_sizes;
  at::ScalarType a_dtype{};
  at::ScalarType w_dtype{};
  at::ScalarType out_dtype{};
  std::optional<at::ScalarType> bias_dtype;  // set: there is a bias
  bool needs_grad_input = false;
  bool needs_grad_weight = false;
  WeightId weight;
  std::optional<FormKey> saved_form;  // set: this form of A was saved, not A

  GemmProblem out(const Operand& A, const Operand& W) const {
    return problem(Gemm::OUT, formats.out, A, W, out_dtype);
  }
  GemmProblem grad_input(const Operand& grad_out, const Operand& W) const {
    return problem(Gemm::GRAD_INPUT, formats.grad_input, grad_out, W, a_dtype);
  }
  GemmProblem grad_weight(const Operand& grad_out, const Operand& A) const {
    return problem(Gemm::GRAD_WEIGHT, formats.grad_weight, grad_out, A, w_dtype);
  }

 private:
  GemmProblem problem(Gemm gemm, const GemmFormats& gemm_formats, const Operand& left,
                      const Operand& right, at::ScalarType dtype) const {
    return {.gemm = gemm,
            .left = left,
            .right = right,
            .groups = groups,
            .formats = gemm_formats,
            .out_dtype = dtype,
            .kernel_preference = formats.kernel_preference,
            .weight = weight};
  }
};

size_t itemsize(Encoding encoding) {
  return encoding == Encoding::FLOAT32 ? 4 : encoding == Encoding::BF16 ? 2 : 1;
}

// The form of A that its weight gradient reads, when saving it instead of A costs no more memory.
std::optional<FormKey> form_to_save(const Product& product, const at::Tensor& A,
                                    const Operand& grad_out, const Operand& a) {
  if (!product.needs_grad_weight || !save_quantized_activations()) return std::nullopt;
  if (numerics_observed()) return std::nullopt;  // listeners want the input itself
  const FormKey key = right_key(product.grad_weight(grad_out, a));
  const bool is_smaller = itemsize(key.encoding) <= c10::elementSize(A.scalar_type());
  return is_smaller && !is_source(key, A) ? std::optional(key) : std::nullopt;
}

constexpr const char* kProductsOnce =
    "moe8: low-precision products cannot be differentiated twice (create_graph=true). "
    "Take the conversion back with dequantize_() for second derivatives.";

struct LowPrecisionMM : torch::autograd::Function<LowPrecisionMM> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& A, const at::Tensor& W,
                            const std::optional<at::Tensor>& bias,
                            const c10::intrusive_ptr<Product>& product) {
    const PlainOps guard;
    // Forms along rows of groups are those of these groups alone.
    const Operand a(A, product->groups.offs() ? make_form_store() : input_forms(A));
    const CachedOperand w = weight_for_forward(W, product->needs_grad_input);
    const Operand grad_out =
        Operand::future({A.size(0), W.size(1)}, product->out_dtype, A.device());
    // Said before the product, so that its pass over a tensor makes these as well.
    product->saved_form = form_to_save(*product, A, grad_out, a);
    if (product->saved_form) a.expect(*product->saved_form);
    if (product->needs_grad_input && w.is_kept) {
      w.operand.expect(right_key(product->grad_input(grad_out, w.operand)));
    }
    const GemmProblem to_out = product->out(a, w.operand);
    const at::Tensor out = low_precision_gemm(to_out);
    if (w.is_for_step) w.operand.drop(right_key(to_out));  // backward reads another form
    if (bias) add_group_bias(out, *bias, product->groups);
    save(ctx, *product, A, W, a);
    ctx->saved_data["product"] = c10::IValue::make_capsule(product);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    const auto product =
        c10::static_intrusive_pointer_cast<Product>(ctx->saved_data["product"].toCapsule());
    variable_list grads(product->bias_dtype ? 3 : 2);  // A, W, bias
    if (any_unjudged()) judge_after_this_backward();
    if (grad_outputs[0].defined()) {
      check_dense("backward", "gradient of the output", grad_outputs[0]);
      const PlainOps guard;
      const Operand grad_out(grad_outputs[0].contiguous());  // y.sum() sends stride 0
      std::optional<GemmProblem> for_input, for_weight;
      if (ctx->needs_input_grad(0)) {
        for_input = product->grad_input(grad_out, weight_for_backward(saved[kWeight]));
        grad_out.expect(left_key(*for_input));
      }
      if (ctx->needs_input_grad(1)) {
        for_weight = product->grad_weight(grad_out, saved_input(*product, saved));
        grad_out.expect(left_key(*for_weight));
      }
      // The weights' product first: it has the fewest tiles, and the product after it fills the
      // multiprocessors that its last, partial wave leaves idle.
      if (for_weight) {
        grads[1] = low_precision_gemm(*for_weight);
        if (saved[kWeight].defined()) note_weight_gradient(saved[kWeight]);
      }
      if (for_input) {
        for_input->follows_unrelated = for_weight.has_value();
        grads[0] = low_precision_gemm(*for_input);
      }
      if (product->bias_dtype && ctx->needs_input_grad(2)) {
        grads[2] = group_sums(grad_out.source(), product->groups).to(*product->bias_dtype);
      }
    }
    if (at::GradMode::is_enabled()) forbid_double_backward(grads, kProductsOnce);
    grads.resize(4);  // of bias and product
    return grads;
  }

 private:
  enum Slot { kInput, kWeight, kInputScale };

  static void save(AutogradContext* ctx, const Product& product, const at::Tensor& A,
                   const at::Tensor& W, const Operand& a) {
    variable_list tensors(3);
    if (product.saved_form) {
      const Form form = a.form(*product.saved_form, product.groups);
      tensors[kInput] = form.data;
      tensors[kInputScale] = form.decode_scale;
    } else if (product.needs_grad_weight) {
      tensors[kInput] = A;
    }
    if (product.needs_grad_input) tensors[kWeight] = W;
    ctx->save_for_backward(tensors);
  }

  static Operand saved_input(const Product& product, const variable_list& saved) {
    if (!product.saved_form) return Operand(saved[kInput]);
    return Operand::kept(product.a_sizes, product.a_dtype,
                         {*product.saved_form, saved[kInput], saved[kInputScale]});
  }
};

}  // namespace

at::Tensor low_precision_mm(const at::Tensor& A, const at::Tensor& W,
                            const std::optional<at::Tensor>& offs, const TrainingFormats& formats,
                            at::ScalarType out_dtype, const std::optional<at::Tensor>& bias) {
  auto product = c10::make_intrusive<Product>();
  product->formats = formats;
  product->groups = TokenGroups(offs);
  product->a_sizes = A.sizes().vec();
  product->a_dtype = A.scalar_type();
  product->w_dtype = W.scalar_type();
  product->out_dtype = out_dtype;
  if (bias) product->bias_dtype = bias->scalar_type();
  product->needs_grad_input = at::GradMode::is_enabled() && A.requires_grad();
  product->needs_grad_weight = at::GradMode::is_enabled() && W.requires_grad();
  if (numerics_observed()) product->weight = weight_id(W);
  note_use(W);
  return LowPrecisionMM::apply(A, W, bias, product);
}

}  // namespace moe8
