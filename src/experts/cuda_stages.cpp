// SPDX-License-Identifier: BSD-3-Clause
// The stages on the kernels of src/cuda/experts/. What a product reads as FP8 codes is written as
// codes by the stage before it: tokens are quantized once each and their codes gathered; hidden rows
// and their gradients are quantized as they are made; codes along columns are made from those along
// rows. What a product reads as MX values is written as such, along rows and columns in one pass.
// Other forms are made of values in bf16, as of any operand. Somebody who observes products gets the
// values beside the codes: the arithmetic is the same.

#include <algorithm>
#include <utility>
#include <variant>

#include "cuda/experts/gather.h"
#include "cuda/experts/mx_rows.h"
#include "cuda/experts/swiglu.h"
#include "cuda/quantize/float8.h"
#include "device/cuda_launch.h"
#include "device/implementation.h"
#include "experts/activation.h"
#include "experts/stage_forms.h"
#include "experts/stages.h"
#include "groups/cuda_groups.h"
#include "quantize/cuda_args.h"
#include "routing/cuda_rows.h"

namespace moe8 {
namespace {

constexpr const char* kOp = "moe_experts";
constexpr int64_t kAlongRows = 1, kAlongColumns = 0;

using Keys = std::vector<FormKey>;

// ---- which forms are codes ----------------------------------------------------
StageForms forms_of(const Keys& keys) {
  StageForms forms;
  for (const FormKey& key : keys) {
    forms.push_back({.format = key.format,
                     .is_by_rows = key.axis == kAlongRows,
                     .reads_codes = key.encoding == Encoding::FLOAT8,
                     .reads_bf16 = key.encoding == Encoding::BF16});
  }
  return forms;
}

// The one format in which a stage writes all forms as codes; else it gives the values.
std::optional<Float8Format> codes_for(const ExpertsCall& call, const Keys& keys) {
  return stage_codes(forms_of(keys), call.column_codes == ColumnCodes::FROM_ROW_CODES);
}

bool has_axis(const Keys& keys, int64_t axis) {
  return std::any_of(keys.begin(), keys.end(), [&](const FormKey& k) { return k.axis == axis; });
}

Operand of_values(const at::Tensor& values, const Keys& keys) {
  Operand operand(values);
  for (const FormKey& key : keys) operand.expect(key);
  return operand;
}

// The tokens of x [T, d] in the order of experts, without forms.
Operand rows_to_code(const ExpertsCall& call, const Tokens& x) {
  if (call.is_observed) return cuda_gather_tokens(x.values().contiguous(), call.order);
  return Operand::future({call.rows(), call.dim}, call.x_dtype, call.device);
}

// ---- codes by rows --------------------------------------------------------------
// Codes of a matrix [rows, columns] with one scale per row, and the amax of its columns by group.
struct CodedRows {
  Float8Format format;
  int64_t columns;
  at::Tensor codes;          // uint8 [rows, pitch]
  at::Tensor inverse_scale;  // float32 [rows]
  at::Tensor column_amax;    // int32 [E, columns]: bits; undefined where no one asks

  static CodedRows empty(const ExpertsCall& call, const Float8Format& format, int64_t rows,
                         int64_t columns, bool with_columns, const at::Tensor& memory = {}) {
    const bool fits = memory.defined() && memory.nbytes() == size_t(rows * code_pitch(columns));
    return {format, columns,
            fits ? memory.view(at::kByte).view({rows, code_pitch(columns)})
                 : empty_on(call.device, {rows, code_pitch(columns)}, at::kByte),
            empty_on(call.device, {rows}, at::kFloat),
            with_columns ? empty_on(call.device, {call.order.n_experts(), columns}, at::kInt)
                         : at::Tensor()};
  }
  int64_t pitch() const { return codes.size(1); }
  uint32_t* amax() const { return column_amax.defined() ? amax_bits(column_amax) : nullptr; }
  Form form(const FormKey& key) const { return {key, codes, inverse_scale}; }
};

cuda::RowGroups groups_of(const ExpertsCall& call) {
  return cuda::RowGroups::of(call.groups.on_device(call.rows(), call.device).metadata);
}

// Each row of x [T, d] once, in the order of tokens.
CodedRows quantize_tokens(const ExpertsCall& call, const at::Tensor& x, const Float8Format& format,
                          cudaStream_t stream) {
  const CodedRows made = CodedRows::empty(call, format, x.size(0), x.size(1), false);
  auto args = float8_args<cuda::Float8RowsArgs>(x, x.size(1), cuda::RowGroups::equal(1, x.size(0)),
                                                format.elem, true);
  args.codes = made.codes.mutable_data_ptr<uint8_t>();
  args.pitch = made.pitch();
  args.inverse_scale = made.inverse_scale.mutable_data_ptr<float>();
  check_launch(kOp, cuda::launch_float8_rows(args, stream));
  return made;
}

// Codes that came from other ranks, as they are; nothing where their format or pitch is another.
std::optional<CodedRows> codes_that_came(const Tokens& tokens, const Float8Format& format) {
  if (!tokens.codes) return std::nullopt;
  const at::Tensor& codes = tokens.codes->rows.data;
  const auto* const came = std::get_if<Float8Format>(&tokens.codes->code.format());
  if (!came || !(*came == format) || codes.size(1) != code_pitch(codes.size(1))) {
    return std::nullopt;
  }
  const at::Tensor scale = tokens.codes->rows.scale.view(at::kFloat);
  return CodedRows{format, codes.size(1), codes, scale.reciprocal().view({-1}), at::Tensor()};
}

CodedRows codes_of_tokens(const ExpertsCall& call, const Tokens& tokens, const Float8Format& format,
                          cudaStream_t stream) {
  if (std::optional<CodedRows> came = codes_that_came(tokens, format)) return std::move(*came);
  return quantize_tokens(call, tokens.values().contiguous(), format, stream);
}

// As the kernels read codes by rows: those of tokens through the order.
cuda::RowCodes row_codes(const ExpertsCall& call, const CodedRows& x, bool of_tokens) {
  cuda::RowCodes in{.codes = x.codes.const_data_ptr<uint8_t>(),
                    .inverse_scale = x.inverse_scale.const_data_ptr<float>(),
                    .elem = x.format.elem,
                    .columns = x.columns,
                    .pitch = x.pitch(),
                    .groups = groups_of(call)};
  if (of_tokens) {
    in.slot_of_row = call.order.slot_of_row.const_data_ptr<int32_t>();
    in.top_k = call.order.top_k();
  }
  return in;
}

// The codes of tokens in the order of experts.
CodedRows gather_codes(const ExpertsCall& call, const CodedRows& tokens, bool with_columns,
                       cudaStream_t stream) {
  const CodedRows made =
      CodedRows::empty(call, tokens.format, call.rows(), tokens.columns, with_columns);
  const cuda::GatherCodesArgs args{.in = row_codes(call, tokens, /*of_tokens=*/true),
                                   .row_of_slot = call.order.row_of_slot.const_data_ptr<int32_t>(),
                                   .codes = made.codes.mutable_data_ptr<uint8_t>(),
                                   .inverse_scale = made.inverse_scale.mutable_data_ptr<float>(),
                                   .column_amax = made.amax(),
                                   .tokens = call.order.tokens()};
  check_launch(kOp, cuda::launch_gather_codes(args, stream));
  return made;
}

// The form along the rows of groups, from codes along columns.
Form turned(const ExpertsCall& call, const CodedRows& x, const FormKey& key, bool of_tokens) {
  const Launch on(call.device);
  const cuda::RowCodes in = row_codes(call, x, of_tokens);
  Form form{key, empty_on(call.device, {x.columns, in.groups.transposed_columns()}, at::kByte),
            empty_on(call.device, {call.order.n_experts(), x.columns}, at::kFloat)};
  check_launch(kOp, transpose_codes(in, x.amax(), form.data, form.decode_scale, on.stream));
  return form;
}

// Made when its product asks: by then the memory of others is free. The call outlives its operands.
void add_turned(const Operand& operand, const ExpertsCall& call, CodedRows x, const FormKey& key,
                bool of_tokens) {
  operand.add_later(
      key, [&call, x = std::move(x), key, of_tokens] { return turned(call, x, key, of_tokens); });
}

// The forms of tokens `x` that were quantized once. `rows` are theirs, with the maxima of the columns.
Operand gathered(const ExpertsCall& call, const Tokens& x, const CodedRows& tokens,
                 const CodedRows& rows, const Keys& keys) {
  Operand operand = rows_to_code(call, x);
  CodedRows with_maxima = tokens;
  with_maxima.column_amax = rows.column_amax;
  for (const FormKey& key : keys) {
    if (key.axis == kAlongRows) {
      operand.add(rows.form(key));
    } else {
      add_turned(operand, call, with_maxima, key, /*of_tokens=*/true);
    }
  }
  return operand;
}

// ---- MX values --------------------------------------------------------------------
bool is_high_precision(const FormKey& key) {
  return std::holds_alternative<HighPrecision>(key.format);
}

std::optional<MxFormat> mx_format_of(const Keys& keys) {
  return stage_mx(forms_of(keys));
}

// Whether those kernels read it: undefined, or in whole 16-byte pieces.
bool is_wide(const at::Tensor& x) {
  const bool is_aligned =
      reinterpret_cast<uintptr_t>(x.defined() ? x.const_data_ptr() : nullptr) % 16 == 0;
  return !x.defined() || (x.is_contiguous() && is_aligned && x.size(-1) % 8 == 0);
}

// The forms of a bf16 matrix [R, columns] that such a kernel writes.
class MxMade {
 public:
  /// @param memory  for one of the forms, of their size; undefined: all have memory of their own
  MxMade(const ExpertsCall& call, const Keys& keys, int64_t columns, at::Tensor memory = {})
      : call_(call), keys_(keys), columns_(columns) {
    for (const FormKey& key : keys) {
      at::Tensor& data = this->*data_of(key);
      if (data.defined()) continue;
      data = memory.defined() ? std::exchange(memory, {})
                              : empty_on(call.device, {call.rows(), columns}, at::kBFloat16);
    }
    if (call.is_observed && !keys.empty() && !values_.defined()) {
      values_ = empty_on(call.device, {call.rows(), columns}, at::kBFloat16);
    }
  }

  cuda::MxRows rows() const {
    const auto data = [](const at::Tensor& x) {
      return x.defined() ? x.mutable_data_ptr() : nullptr;
    };
    return {data(values_), data(by_rows_), data(by_columns_)};
  }

  std::optional<Operand> operand() const {
    if (keys_.empty()) return std::nullopt;
    Operand operand = values_.defined()
                          ? Operand(values_)
                          : Operand::future({call_.rows(), columns_}, at::kBFloat16, call_.device);
    for (const FormKey& key : keys_) {
      if (!is_high_precision(key)) operand.add({key, this->*data_of(key), {}});
    }
    return operand;
  }

 private:
  static at::Tensor MxMade::*data_of(const FormKey& key) {
    if (is_high_precision(key)) return &MxMade::values_;
    return key.axis == kAlongRows ? &MxMade::by_rows_ : &MxMade::by_columns_;
  }

  const ExpertsCall& call_;
  const Keys& keys_;
  int64_t columns_;
  at::Tensor values_, by_rows_, by_columns_;
};

// Rows of tokens as MX values, or as they are.
Operand gather_values(const ExpertsCall& call, const at::Tensor& x, const Keys& keys) {
  const std::optional<MxFormat> format = mx_format_of(keys);
  if (!format || x.scalar_type() != at::kBFloat16 || !is_wide(x)) {
    return of_values(cuda_gather_tokens(x, call.order), keys);
  }
  const Launch on(call.device);
  const MxMade made(call, keys, x.size(1));
  const cuda::GatherMxArgs args{.in = x.const_data_ptr(),
                                .columns = x.size(1),
                                .groups = groups_of(call),
                                .slot_of_row = call.order.slot_of_row.const_data_ptr<int32_t>(),
                                .row_of_slot = call.order.row_of_slot.const_data_ptr<int32_t>(),
                                .top_k = call.order.top_k(),
                                .mode = format->mode,
                                .out = made.rows(),
                                .tokens = call.order.tokens()};
  check_launch(kOp, cuda::launch_gather_mx(args, on.stream));
  return *made.operand();
}

// ---- the activation ---------------------------------------------------------------
GateFunction function_of(Activation activation) {
  switch (activation) {
    case Activation::SWIGLU:
      return GateFunction::SWIGLU;
    case Activation::CLAMPED_SWIGLU:
      break;
  }
  return GateFunction::CLAMPED;
}

cuda::SwigluSource source_of(const ExpertsCall& call, const ActivationInputs& inputs) {
  const bool is_interleaved = call.layout == GateUpLayout::INTERLEAVED;
  const bool on_input = call.placement == ScorePlacement::INPUT;
  cuda::SwigluSource source{
      .hidden = inputs.H.const_data_ptr(),
      .columns = call.hidden,
      .groups = groups_of(call),
      .activation = {.function = function_of(call.activation),
                     .layout = is_interleaved ? GateLayout::INTERLEAVED : GateLayout::HALVES,
                     .alpha = static_cast<float>(call.alpha),
                     .limit = static_cast<float>(call.limit)}};
  if (inputs.bias.defined()) {
    source.bias = inputs.bias.const_data_ptr();
    source.bias_type = FloatType::F32;
  }
  source.slot_of_row = call.order.slot_of_row.const_data_ptr<int32_t>();
  if (inputs.scores.defined()) source.scores = inputs.scores.const_data_ptr<float>();
  source.placement = on_input ? GateScores::INPUT : GateScores::OUTPUT;
  return source;
}

ActivationInputs contiguous(ActivationInputs inputs) {
  for (at::Tensor* x : {&inputs.H, &inputs.bias, &inputs.scores}) {
    if (x->defined()) *x = x->contiguous();
  }
  return inputs;
}

// What a kernel writes of one matrix that it makes: codes, or values, or for observers both.
class Made {
 public:
  /// @param memory  for the codes where it fits them; else, and by default, memory of their own
  Made(const ExpertsCall& call, const Keys& keys, int64_t columns, const at::Tensor& memory = {})
      : call_(call), keys_(keys), columns_(columns) {
    if (keys.empty()) return;
    const bool by_columns = has_axis(keys, kAlongColumns);
    if (const std::optional<Float8Format> format = codes_for(call, keys)) {
      codes_ = CodedRows::empty(call, *format, call.rows(), columns, by_columns, memory);
    }
    if (!codes_ || call.is_observed) {
      values_ = empty_on(call.device, {call.rows(), columns}, call.hidden_dtype);
    }
  }

  cuda::ActivationRows rows() const {
    cuda::ActivationRows rows;
    if (values_.defined()) rows.values = values_.mutable_data_ptr();
    if (!codes_) return rows;
    rows.codes = codes_->codes.mutable_data_ptr<uint8_t>();
    rows.pitch = codes_->pitch();
    rows.inverse_scale = codes_->inverse_scale.mutable_data_ptr<float>();
    rows.column_amax = codes_->amax();
    return rows;
  }
  std::optional<Float8Format> format() const {
    return codes_ ? std::optional(codes_->format) : std::nullopt;
  }

  std::optional<Operand> operand() const {
    if (keys_.empty()) return std::nullopt;
    if (!codes_) return of_values(values_, keys_);
    Operand operand = values_.defined() ? Operand(values_)
                                        : Operand::future({call_.rows(), columns_},
                                                          call_.hidden_dtype, call_.device);
    for (const FormKey& key : keys_) {
      if (key.axis == kAlongRows) {
        operand.add(codes_->form(key));
      } else {
        add_turned(operand, call_, *codes_, key, /*of_tokens=*/false);
      }
    }
    return operand;
  }

 private:
  const ExpertsCall& call_;
  const Keys& keys_;
  int64_t columns_;
  std::optional<CodedRows> codes_;
  at::Tensor values_;
};

// ---- the activation as MX values ----------------------------------------------------
// The format of all that the activation is to make as MX values; nothing: it makes them otherwise.
std::optional<MxFormat> activation_mx_format(const ExpertsCall& call,
                                             const ActivationInputs& inputs, const Keys& keys,
                                             const Keys& of_hidden_grad = {}) {
  if (!is_wide(inputs.H) || !is_wide(inputs.bias)) return std::nullopt;
  return activation_mx(call.hidden, call.layout == GateUpLayout::INTERLEAVED, forms_of(keys),
                       forms_of(of_hidden_grad));
}

// `grads` and what activate_backward() gives beside them. A' takes the memory of dA, `grad`.
void activate_backward_mx(const ExpertsCall& call, const ActivationInputs& inputs,
                          const at::Tensor& grad, const ActivationWants& wants,
                          const MxFormat& format, ActivationGrads& grads) {
  const Launch on(call.device);
  const MxMade dH(call, wants.dH, 2 * call.hidden), A(call, wants.A, call.hidden, grad);
  cuda::SwigluMxBackwardArgs args{source_of(call, inputs), format.mode, grad.const_data_ptr(),
                                  dH.rows(), A.rows()};
  at::Tensor parts;
  if (wants.scores) {
    parts =
        empty_on(call.device, {cuda::swiglu_mx_score_parts(call.hidden), call.rows()}, at::kFloat);
    args.score_grad = grads.scores.mutable_data_ptr<float>();
    args.score_parts = parts.mutable_data_ptr<float>();
  }
  check_launch(kOp, cuda::launch_swiglu_mx_backward(args, on.stream));
  grads.dH = dH.operand();
  grads.A = A.operand();
}

// ---- the stages ---------------------------------------------------------------------
class CudaStages final : public ExpertStages {
 public:
  const char* name() const override { return "cuda"; }

  std::optional<std::string> refusal(const ExpertsCall& call) const override {
    if (!call.device.is_cuda()) return "tokens are not on a GPU";
    if (auto refusal = kernels_refusal(call.device, call.order.n_experts())) return refusal;
    if (call.rows() == 0) return "there are no rows";
    if (const char* refusal = hidden_refusal(call.hidden_dtype)) return refusal;
    return std::nullopt;
  }

  GatheredTokens gather_tokens(const ExpertsCall& call, const Tokens& tokens, const Keys& keys,
                               bool for_backward) const override {
    const std::optional<Float8Format> format = codes_for(call, keys);
    if (!format) return {gather_values(call, tokens.values(), keys), {}};
    const Launch on(call.device);
    const CodedRows coded = codes_of_tokens(call, tokens, *format, on.stream);
    const bool keeps_codes = for_backward && call.column_codes == ColumnCodes::FROM_ROW_CODES;
    const CodedRows rows = gather_codes(call, coded, keeps_codes, on.stream);
    GatheredTokens result{gathered(call, tokens, coded, rows, keys), {}};
    if (keeps_codes) result.instead = {coded.codes, coded.inverse_scale, rows.column_amax};
    return result;
  }

  Operand gather_saved(const ExpertsCall& call, const SavedTokens& saved,
                       const Keys& keys) const override {
    if (saved.instead.empty()) return gather_values(call, saved.tokens.values(), keys);
    const std::optional<Float8Format> format = codes_for(call, keys);
    MOE8_CHECK(format, kOp, "x", "expected its codes, which forward kept, to be of use in ",
               "backward. This is a defect of moe8");
    const CodedRows tokens{*format, call.dim, saved.instead[0], saved.instead[1], saved.instead[2]};
    Operand operand = rows_to_code(call, saved.tokens);
    for (const FormKey& key : keys) add_turned(operand, call, tokens, key, /*of_tokens=*/true);
    return operand;
  }

  Operand gather_grads(const ExpertsCall& call, const at::Tensor& grad_out,
                       const Keys& keys) const override {
    const std::optional<Float8Format> format = codes_for(call, keys);
    if (!format) return gather_values(call, grad_out, keys);
    const Launch on(call.device);
    const CodedRows tokens = quantize_tokens(call, grad_out, *format, on.stream);
    const CodedRows rows = gather_codes(call, tokens, has_axis(keys, kAlongColumns), on.stream);
    return gathered(call, {grad_out}, tokens, rows, keys);
  }

  Operand activate(const ExpertsCall& call, const ActivationInputs& given,
                   const Keys& keys) const override {
    const Launch on(call.device);
    const ActivationInputs inputs = contiguous(given);
    if (const auto format = activation_mx_format(call, inputs, keys)) {
      const MxMade A(call, keys, call.hidden);
      const cuda::SwigluMxArgs args{source_of(call, inputs), format->mode, A.rows()};
      check_launch(kOp, cuda::launch_swiglu_mx(args, on.stream));
      return *A.operand();
    }
    const Made A(call, keys, call.hidden);
    cuda::SwigluArgs args{source_of(call, inputs), A.rows()};
    if (A.format()) args.elem = A.format()->elem;
    check_launch(kOp, cuda::launch_swiglu(args, on.stream));
    return *A.operand();
  }

  ActivationGrads activate_backward(const ExpertsCall& call, const ActivationInputs& given,
                                    const at::Tensor& dA,
                                    const ActivationWants& wants) const override {
    const Launch on(call.device);
    const ActivationInputs inputs = contiguous(given);
    ActivationGrads grads;
    if (wants.bias) {
      grads.bias = moe8::activate_backward(call, inputs, dA, false, false, false, true).bias;
    }
    if (wants.scores) {
      grads.scores = empty_on(call.device, inputs.scores.sizes(), at::kFloat);
      if (call.rows() < inputs.scores.numel()) grads.scores.zero_();  // of slots that have no row
    }
    const at::Tensor grad = dA.defined() ? dA.contiguous() : zeros_like_A(call);
    const auto mx = activation_mx_format(call, inputs, wants.A, wants.dH);
    if (mx && is_wide(grad)) {
      activate_backward_mx(call, inputs, grad, wants, *mx, grads);
      return grads;
    }
    const Made A(call, wants.A, call.hidden);
    // A row of dH's codes is as long as one of dA, and written when that has been read, but where rows
    // are read again element by element.
    std::optional<Made> dH(std::in_place, call, wants.dH, 2 * call.hidden, grad);
    cuda::SwigluBackwardArgs args{source_of(call, inputs), grad.const_data_ptr(), dH->rows(),
                                  A.rows()};
    if (cuda::choose_swiglu_backward(args).row_threads == 0) {
      args.hidden_grad = dH.emplace(call, wants.dH, 2 * call.hidden).rows();
    }
    if (dH->format() || A.format()) args.elem = (dH->format() ? *dH : A).format()->elem;
    if (wants.scores) args.score_grad = grads.scores.mutable_data_ptr<float>();
    check_launch(kOp, cuda::launch_swiglu_backward(args, on.stream));
    grads.dH = dH->operand();
    grads.A = A.operand();
    return grads;
  }

  void combine_into(const ExpertsCall& call, const at::Tensor& rows, const at::Tensor& scores,
                    const at::Tensor& bias, int64_t first_token,
                    const at::Tensor& out) const override {
    cuda_sum_rows_into(rows, call.order, scores, bias, first_token, out);
  }

 private:
  // Where A' alone is wanted, no gradient was computed; the kernel reads one all the same.
  static at::Tensor zeros_like_A(const ExpertsCall& call) {
    return empty_on(call.device, {call.rows(), call.hidden}, call.hidden_dtype).zero_();
  }
};

}  // namespace

const ExpertStages* cuda_stages() {
  static const CudaStages stages;
  return &stages;
}

}  // namespace moe8
