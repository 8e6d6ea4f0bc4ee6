// SPDX-License-Identifier: BSD-3-Clause
// The layer of experts over memory that Python owns: the steps of src/experts/fused.cpp with the
// stages of src/experts/cuda_stages.cpp. A piece of the workspace is given back as soon as the last
// kernel that reads it is launched, so that the steps after it may have it.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <optional>

#include "base/check.h"
#include "cuda/experts/combine.h"
#include "cuda/experts/gather.h"
#include "cuda/experts/mx_rows.h"
#include "cuda/experts/routing.h"
#include "cuda/experts/swiglu.h"
#include "cuda/experts/transpose_codes.h"
#include "cuda/quantize/float8.h"
#include "experts/stage_forms.h"
#include "forms.h"
#include "fused_experts.h"
#include "grouped_weight.h"
#include "guarded.h"
#include "interface.h"
#include "workspace.h"

namespace moe8::native {
namespace {

constexpr const char* kOp = "moe_experts";

bool is_aligned(const void* x) {
  return reinterpret_cast<uintptr_t>(x) % 16 == 0;
}

// FP8 codes with one scale per row: of tokens as they came, or of rows in the order of experts.
struct CodedRows {
  Float8Format format;
  int64_t columns;
  bool of_tokens;
  uint8_t* codes;         // [rows, pitch]
  float* inverse_scale;   // [rows]
  uint32_t* column_amax;  // [E, columns] of the rows in the order of experts; null: nobody asks

  int64_t pitch() const { return code_pitch(columns); }
};

// A matrix [R, columns] in the order of experts, with what a stage made of it.
struct Matrix {
  const char* name;
  int64_t columns;
  FloatType type = FloatType::BF16;    // of values
  void* values = nullptr;              // null: nobody reads them
  std::optional<CodedRows> codes{};    // along rows
  std::optional<CodedRows> to_turn{};  // of what codes along columns are made
  cuda::MxRows mx{};

  cuda::ActivationRows activation_rows() const {
    cuda::ActivationRows rows{.values = values};
    if (!codes) return rows;
    rows.codes = codes->codes;
    rows.pitch = codes->pitch();
    rows.inverse_scale = codes->inverse_scale;
    rows.column_amax = codes->column_amax;
    return rows;
  }
};

class Layer {
 public:
  explicit Layer(const Moe8Experts& p)
      : p_(p),
        rows_count_(p.T * p.k),
        memory_(p.workspace, p.stream),
        w13_(kOp,
             {p.w13,
              type_of(p.w13_type),
              p.E,
              2 * p.h,
              p.d,
              {p.left13, p.right13},
              p.fast_accum13,
              p.kept13,
              p.kept13_is_made != 0},
             memory_),
        w2_(kOp,
            {p.w2,
             type_of(p.w2_type),
             p.E,
             p.d,
             p.h,
             {p.left2, p.right2},
             p.fast_accum2,
             p.kept2,
             p.kept2_is_made != 0},
            memory_) {}

  void forward() {
    place_saved();
    find_order();
    rows_ = rows_of_offs(kOp, order_.offs, rows_count_, p_.E, memory_);
    up();
    Matrix A = activate();
    down(A);
  }

  void backward() {
    place_saved();
    if (p_.part == 2) memory_.set_quiet(true);
    rows_ = rows_of_offs(kOp, order_.offs, rows_count_, p_.E, memory_);
    Matrix G = gather_grads();
    dA_ = p_.hidden_grad != nullptr ? p_.hidden_grad : memory_.take<uint16_t>(rows_count_ * p_.h);
    activation_grad(G);
    if (p_.part == 1) return;
    if (p_.part == 2) memory_.set_quiet(p_.workspace == nullptr);

    Matrix dH{"the gradient of gate and up", 2 * p_.h}, A{"the activation", p_.h};
    activate_backward(dH, A);
    if (p_.grad_w2 != nullptr) {
      weight_gradient(w2_, G, A, p_.grad_w2, p_.w2_type);
    }
    give(G);
    give(A);
    if (p_.grad_w13 != nullptr) {
      Matrix X = gather_saved();
      weight_gradient(w13_, dH, X, p_.grad_w13, p_.w13_type);
      give(X);
    }
    if (p_.grad_x != nullptr) token_gradient(dH);
  }

  Moe8ExpertsBytes bytes() const { return {memory_.used(), w13_.kept_bytes(), w2_.kept_bytes()}; }

 private:
  struct Order {
    int32_t *offs, *slot_of_row, *row_of_slot;
  };

  // ---- the order of rows --------------------------------------------------------
  // What lies in `saved`, or in a forward without a backward in the workspace.
  void place_saved() {
    const bool keeps_codes = p_.keeps_codes != 0 && p_.saved != nullptr;
    const KeptLayout at = KeptLayout::of(p_.T, p_.k, p_.d, p_.E, keeps_codes);
    MOE8_CHECK(p_.saved == nullptr || p_.saved_bytes == at.bytes, kOp, "saved", "expected ",
               at.bytes, " bytes, got ", p_.saved_bytes, ". This is a defect of moe8");
    auto* const base =
        p_.saved != nullptr ? static_cast<char*>(p_.saved) : memory_.take<char>(at.bytes);
    const auto piece = [&](int64_t offset) { return reinterpret_cast<int32_t*>(base + offset); };
    order_ = {piece(at.offs), piece(at.slot_of_row), piece(at.row_of_slot)};
    if (!keeps_codes) return;
    const Float8Format format = std::get<Float8Format>(w13_.formats().left(Gemm::OUT));
    kept_tokens_ = {format,
                    p_.d,
                    /*of_tokens=*/true,
                    reinterpret_cast<uint8_t*>(base + at.codes),
                    reinterpret_cast<float*>(base + at.scale),
                    reinterpret_cast<uint32_t*>(base + at.amax)};
  }

  void find_order() {
    const cuda::ExpertOrderArgs args{
        .experts = p_.experts,
        .experts_type = experts_type(),
        .slots = rows_count_,
        .groups = p_.E,
        .workspace = memory_.take<char>(cuda::expert_order_workspace_bytes(rows_count_, p_.E)),
        .offs = order_.offs,
        .counts = nullptr,
        .counts_type = cuda::IndexType::I32,
        .slot_of_row = order_.slot_of_row,
        .row_of_slot = order_.row_of_slot};
    if (launches()) check_launch(kOp, cuda::launch_expert_order(args, memory_.stream()));
    memory_.give(args.workspace);
  }

  // ---- the steps of forward -------------------------------------------------------
  void up() {
    const StageForm form = w13_.formats().left_form(Gemm::OUT);
    Matrix X = gather("x", p_.x, {form}, kept_tokens_);
    const Form rows = read(X, form), weight = w13_.form(Gemm::OUT);
    w13_.multiply(Gemm::OUT, rows, weight, rows_, p_.hidden, FloatType::BF16);
    w13_.give(weight);
    memory_.give(rows.data);  // what was made of X.values, where there are such
    give(X);
  }

  Matrix activate() {
    Matrix A{"the activation", p_.h};
    const StageForms forms{w2_.formats().left_form(Gemm::OUT)};
    if (const auto mx = mx_of_activation(forms, {})) {
      place_mx(A, forms);
      const cuda::SwigluMxArgs args{hidden(), mx->mode, A.mx};
      if (launches()) check_launch(kOp, cuda::launch_swiglu_mx(args, memory_.stream()));
      return A;
    }
    place(A, forms);
    cuda::SwigluArgs args{hidden(), A.activation_rows()};
    if (A.codes) args.elem = A.codes->format.elem;
    if (launches()) check_launch(kOp, cuda::launch_swiglu(args, memory_.stream()));
    return A;
  }

  void down(Matrix& A) {
    const Form rows = read(A, w2_.formats().left_form(Gemm::OUT)), weight = w2_.form(Gemm::OUT);
    void* const Y = memory_.take<char>(rows_count_ * p_.d * size_of(type_of(p_.row_type)));
    w2_.multiply(Gemm::OUT, rows, weight, rows_, Y, type_of(p_.row_type));
    combine(Y, p_.row_type, p_.scores_on_input != 0 ? nullptr : p_.scores, p_.b2, p_.out);
  }

  // ---- the steps of backward ------------------------------------------------------
  bool wants_hidden_rows() const { return p_.grad_x != nullptr || p_.grad_w13 != nullptr; }
  bool wants_activation_grad() const {
    return wants_hidden_rows() || p_.grad_scores != nullptr || p_.hidden_grad != nullptr;
  }

  Matrix gather_grads() {
    StageForms forms;
    if (wants_activation_grad()) forms.push_back(w2_.formats().left_form(Gemm::GRAD_INPUT));
    if (p_.grad_w2 != nullptr) forms.push_back(w2_.formats().left_form(Gemm::GRAD_WEIGHT));
    return gather("the gradient of the result", p_.grad_out, forms, std::nullopt);
  }

  // dA = G W2; zeros where the activation's result is all that is wanted of it.
  void activation_grad(Matrix& G) {
    if (!wants_activation_grad()) {
      const auto bytes = static_cast<size_t>(rows_count_ * p_.h * 2);
      if (launches()) {
        check_launch(kOp, {cudaMemsetAsync(dA_, 0, bytes, memory_.stream()), "cudaMemsetAsync"});
      }
      return;
    }
    const Form rows = read(G, w2_.formats().left_form(Gemm::GRAD_INPUT));
    const Form weight = w2_.form(Gemm::GRAD_INPUT);
    w2_.multiply(Gemm::GRAD_INPUT, rows, weight, rows_, dA_, FloatType::BF16);
    w2_.give(weight);
    if (rows.data == G.values) return;  // both products read it
    memory_.give(rows.data);
    memory_.give(rows.scale);
    G.codes.reset();
    G.mx.row_values = nullptr;
  }

  StageForms forms_of_hidden_grad() const {
    StageForms forms;
    if (p_.grad_x != nullptr) forms.push_back(w13_.formats().left_form(Gemm::GRAD_INPUT));
    if (p_.grad_w13 != nullptr) forms.push_back(w13_.formats().left_form(Gemm::GRAD_WEIGHT));
    return forms;
  }
  StageForms forms_of_activation() const {
    if (p_.grad_w2 == nullptr) return {};
    return {w2_.formats().right_form_of_gradient()};
  }

  void activate_backward(Matrix& dH, Matrix& A) {
    const StageForms of_dH = forms_of_hidden_grad(), of_A = forms_of_activation();
    if (const auto mx = mx_of_activation(of_A, of_dH)) {
      activate_backward_mx(*mx, dH, A);
      return;
    }
    place(A, of_A);
    // A row of dH's codes is as long as one of dA, and written when that has been read, but where rows
    // are read again element by element.
    const bool fits = code_pitch(2 * p_.h) == 2 * p_.h && stage_codes(of_dH, true);
    place(dH, of_dH, fits ? dA_ : nullptr);
    cuda::SwigluBackwardArgs args{hidden(), dA_, dH.activation_rows(), A.activation_rows(),
                                  p_.grad_scores};
    if (fits && cuda::choose_swiglu_backward(args).row_threads == 0) {
      dH.codes->codes = memory_.take<uint8_t>(rows_count_ * dH.codes->pitch());
      dH.to_turn = dH.codes;
      args.hidden_grad = dH.activation_rows();
    }
    if (dH.codes) args.elem = dH.codes->format.elem;
    if (A.codes) args.elem = A.codes->format.elem;
    if (launches()) check_launch(kOp, cuda::launch_swiglu_backward(args, memory_.stream()));
    if (!dH.codes || dH.codes->codes != dA_) memory_.give(dA_);
  }

  // One form of A' takes the memory of dA.
  void activate_backward_mx(const MxFormat& format, Matrix& dH, Matrix& A) {
    place_mx(dH, forms_of_hidden_grad());
    place_mx(A, forms_of_activation(), dA_);
    cuda::SwigluMxBackwardArgs args{hidden(), format.mode, dA_, dH.mx, A.mx};
    if (p_.grad_scores != nullptr) {
      args.score_grad = p_.grad_scores;
      args.score_parts = memory_.take<float>(cuda::swiglu_mx_score_parts(p_.h) * rows_count_);
    }
    if (launches()) check_launch(kOp, cuda::launch_swiglu_mx_backward(args, memory_.stream()));
    memory_.give(args.score_parts);
    if (!A.mx.any()) memory_.give(dA_);
  }

  Matrix gather_saved() {
    const StageForm form = w13_.formats().right_form_of_gradient();
    if (!kept_tokens_) return gather("x", p_.x, {form}, std::nullopt);
    return {.name = "x", .columns = p_.d, .to_turn = kept_tokens_};
  }

  void weight_gradient(GroupedWeight& weight, Matrix& left, Matrix& right, void* out,
                       int32_t out_type) {
    const Form l = read(left, weight.formats().left_form(Gemm::GRAD_WEIGHT));
    const Form r = read(right, weight.formats().right_form_of_gradient());
    weight.multiply(Gemm::GRAD_WEIGHT, l, r, rows_, out, type_of(out_type));
    for (const Form& form : {l, r}) {
      if (form.data == left.values || form.data == right.values) continue;
      memory_.give(form.data);
      memory_.give(form.scale);
    }
  }

  // dx: the product of the weight's gradient was launched just before, where there is one.
  void token_gradient(Matrix& dH) {
    const StageForm form = w13_.formats().left_form(Gemm::GRAD_INPUT);
    const bool is_there =
        dH.codes || dH.mx.row_values != nullptr || (is_high_precision(form) && (2 * p_.h) % 8 == 0);
    const bool follows_unrelated =
        p_.grad_w13 != nullptr && is_there && w13_.is_there(Gemm::GRAD_INPUT);
    const Form rows = read(dH, form), weight = w13_.form(Gemm::GRAD_INPUT);
    void* const dX = memory_.take<char>(rows_count_ * p_.d * size_of(type_of(p_.x_type)));
    w13_.multiply(Gemm::GRAD_INPUT, rows, weight, rows_, dX, type_of(p_.x_type), follows_unrelated);
    combine(dX, p_.x_type, nullptr, nullptr, p_.grad_x);
  }

  // ---- rows of tokens, and their sums ---------------------------------------------
  // x [T, d] in the order of experts, in the forms that a product reads. `tokens`: where codes of x
  // are to lie.
  Matrix gather(const char* name, const void* x, const StageForms& forms,
                std::optional<CodedRows> tokens) {
    Matrix rows{.name = name, .columns = p_.d, .type = type_of(p_.x_type)};
    if (const auto format = stage_codes(forms, true)) {
      if (!tokens) tokens = codes_of(*format, p_.T, p_.d, !only_by_rows(forms), true);
      rows.codes = codes_of(*format, rows_count_, p_.d, false, false);
      rows.codes->column_amax = tokens->column_amax;
      quantize_tokens(x, *tokens);
      gather_codes(*tokens, *rows.codes);
      rows.to_turn = tokens;
      return rows;
    }
    const auto mx = stage_mx(forms);
    if (mx && rows.type == FloatType::BF16 && p_.d % 8 == 0 && is_aligned(x)) {
      place_mx(rows, forms);
      gather_mx(x, *mx, rows.mx);
      return rows;
    }
    const int64_t row_bytes = p_.d * size_of(rows.type);
    rows.values = memory_.take<char>(rows_count_ * row_bytes);
    const cuda::GatherRowsArgs args{.in = x,
                                    .tokens = p_.T,
                                    .row_bytes = row_bytes,
                                    .top_k = p_.k,
                                    .row_of_slot = order_.row_of_slot,
                                    .rows_in_groups = rows_in_groups(),
                                    .out = rows.values};
    if (launches()) check_launch(kOp, cuda::launch_gather_rows(args, memory_.stream()));
    return rows;
  }
  static bool only_by_rows(const StageForms& forms) {
    return !has_form(forms, /*is_by_rows=*/false);
  }

  void quantize_tokens(const void* x, const CodedRows& made) {
    cuda::Float8RowsArgs args{};
    static_cast<cuda::Float8Source&>(args) = {
        x, type_of(p_.x_type), p_.d, cuda::RowGroups::equal(1, p_.T), made.format.elem, true};
    args.codes = made.codes;
    args.pitch = made.pitch();
    args.inverse_scale = made.inverse_scale;
    if (launches()) check_launch(kOp, cuda::launch_float8_rows(args, memory_.stream()));
  }

  void gather_codes(const CodedRows& tokens, const CodedRows& rows) {
    const cuda::GatherCodesArgs args{.in = row_codes(tokens),
                                     .row_of_slot = order_.row_of_slot,
                                     .codes = rows.codes,
                                     .inverse_scale = rows.inverse_scale,
                                     .column_amax = rows.column_amax,
                                     .tokens = p_.T};
    if (launches()) check_launch(kOp, cuda::launch_gather_codes(args, memory_.stream()));
  }

  void gather_mx(const void* x, const MxFormat& format, const cuda::MxRows& out) {
    const cuda::GatherMxArgs args{.in = x,
                                  .columns = p_.d,
                                  .groups = groups(),
                                  .slot_of_row = order_.slot_of_row,
                                  .row_of_slot = order_.row_of_slot,
                                  .top_k = p_.k,
                                  .mode = format.mode,
                                  .out = out,
                                  .tokens = p_.T};
    if (launches()) check_launch(kOp, cuda::launch_gather_mx(args, memory_.stream()));
  }

  void combine(const void* rows, int32_t rows_type, const float* scores, const float* bias,
               void* out) {
    const cuda::CombineArgs args{.rows = rows,
                                 .rows_type = type_of(rows_type),
                                 .tokens = p_.T,
                                 .top_k = p_.k,
                                 .columns = p_.d,
                                 .row_of_slot = order_.row_of_slot,
                                 .rows_in_groups = rows_in_groups(),
                                 .scores = scores,
                                 .bias = bias,
                                 .bias_type = FloatType::F32,
                                 .experts = p_.experts,
                                 .experts_type = experts_type(),
                                 .out = out,
                                 .out_type = type_of(p_.x_type)};
    if (launches()) check_launch(kOp, cuda::launch_combine(args, memory_.stream()));
  }

  // ---- the activation ---------------------------------------------------------------
  cuda::SwigluSource hidden() const {
    cuda::SwigluSource source{
        .hidden = p_.hidden,
        .columns = p_.h,
        .groups = groups(),
        .activation = {.function = p_.clamped != 0 ? GateFunction::CLAMPED : GateFunction::SWIGLU,
                       .layout = p_.interleaved != 0 ? GateLayout::INTERLEAVED : GateLayout::HALVES,
                       .alpha = p_.alpha,
                       .limit = p_.limit}};
    source.bias = p_.b13;
    source.bias_type = FloatType::F32;
    source.scores = p_.scores;
    source.slot_of_row = order_.slot_of_row;
    source.placement = p_.scores_on_input != 0 ? GateScores::INPUT : GateScores::OUTPUT;
    return source;
  }

  std::optional<MxFormat> mx_of_activation(const StageForms& of_A, const StageForms& of_dH) const {
    if (!is_aligned(p_.hidden) || !is_aligned(p_.b13)) return std::nullopt;
    return activation_mx(p_.h, p_.interleaved != 0, of_A, of_dH);
  }

  // ---- what stages write, and products read -------------------------------------------
  CodedRows codes_of(const Float8Format& format, int64_t rows, int64_t columns, bool with_amax,
                     bool of_tokens, void* memory = nullptr) {
    auto* const codes = memory != nullptr ? static_cast<uint8_t*>(memory)
                                          : memory_.take<uint8_t>(rows * code_pitch(columns));
    auto* const scale = memory_.take<float>(rows);
    return {format, columns, of_tokens,
            codes,  scale,   with_amax ? memory_.take<uint32_t>(p_.E * columns) : nullptr};
  }

  // Codes where all forms are such, else values. `memory`: for codes.
  void place(Matrix& x, const StageForms& forms, void* memory = nullptr) {
    if (forms.empty()) return;
    if (const auto format = stage_codes(forms, true)) {
      x.codes = codes_of(*format, rows_count_, x.columns, !only_by_rows(forms), false, memory);
      x.to_turn = x.codes;
    } else {
      x.values = memory_.take<uint16_t>(rows_count_ * x.columns);
    }
  }

  // `memory`: for the first form, of its size.
  void place_mx(Matrix& x, const StageForms& forms, void* memory = nullptr) {
    for (const StageForm& form : forms) {
      void*& data = is_high_precision(form) ? x.mx.values
                    : form.is_by_rows       ? x.mx.row_values
                                            : x.mx.column_values;
      if (data != nullptr) continue;
      data = memory != nullptr ? memory : memory_.take<uint16_t>(rows_count_ * x.columns);
      memory = nullptr;
    }
    x.values = x.mx.values;
  }

  Form read(const Matrix& x, const StageForm& form) {
    const bool is_high = is_high_precision(form);
    if (form.reads_codes && form.is_by_rows && x.codes) {
      return {x.codes->codes, x.codes->pitch(), x.codes->inverse_scale};
    }
    if (form.reads_codes && !form.is_by_rows && x.to_turn) return turned(*x.to_turn);
    if (!is_high && x.mx.any()) {
      return {form.is_by_rows ? x.mx.row_values : x.mx.column_values, x.columns, nullptr};
    }
    Forms forms(kOp, memory_);
    const Both made = forms.make({x.name, x.values, x.type, x.columns, groups()}, form.format,
                                 form.is_by_rows, !form.is_by_rows, form.reads_codes);
    return form.is_by_rows ? made.rows : made.columns;
  }

  // As the kernels read codes by rows: those of tokens through the order.
  cuda::RowCodes row_codes(const CodedRows& x) const {
    cuda::RowCodes in{.codes = x.codes,
                      .inverse_scale = x.inverse_scale,
                      .elem = x.format.elem,
                      .columns = x.columns,
                      .pitch = x.pitch(),
                      .groups = groups()};
    if (x.of_tokens) {
      in.slot_of_row = order_.slot_of_row;
      in.top_k = p_.k;
    }
    return in;
  }

  // Codes along columns, made when their product asks: by then the memory of others is free.
  Form turned(const CodedRows& x) {
    const int64_t width = groups().transposed_columns();
    const cuda::TransposeCodesArgs args{.in = row_codes(x),
                                        .column_amax = x.column_amax,
                                        .codes = memory_.take<uint8_t>(x.columns * width),
                                        .inverse_scale = memory_.take<float>(p_.E * x.columns)};
    if (launches()) check_launch(kOp, cuda::launch_transpose_codes(args, memory_.stream()));
    return {args.codes, width, args.inverse_scale};
  }

  // Once each: what is taken afterwards may lie where these lay.
  void give(const CodedRows& x) {
    memory_.give(x.codes);
    memory_.give(x.inverse_scale);
    memory_.give(x.column_amax);
  }
  void give(const Matrix& x) {
    memory_.give(x.values);
    for (const void* piece : {x.mx.row_values, x.mx.column_values}) memory_.give(piece);
    if (x.codes) give(*x.codes);
    if (x.to_turn) give(*x.to_turn);
  }

  bool launches() const { return !memory_.is_quiet(); }
  cuda::RowGroups groups() const { return cuda::RowGroups::of(rows_.metadata); }
  // The end of the last group: rows from there on are in none.
  const int32_t* rows_in_groups() const { return order_.offs + (p_.E - 1); }
  cuda::IndexType experts_type() const {
    return p_.experts_type == 0 ? cuda::IndexType::I32 : cuda::IndexType::I64;
  }

  const Moe8Experts& p_;
  int64_t rows_count_;
  Workspace memory_;
  GroupedWeight w13_, w2_;
  Order order_{};
  TokenRows rows_{};
  std::optional<CodedRows> kept_tokens_;
  void* dA_ = nullptr;
};

void check_sizes(const Moe8Experts& p) {
  MOE8_CHECK(p.E <= cuda::kMaxGroups, kOp, "w1", "expected at most ", cuda::kMaxGroups,
             " experts on a GPU, got ", p.E);
  MOE8_CHECK(p.T * p.k < INT32_MAX, kOp, "experts", "expected fewer than 2^31 slots, got [", p.T,
             ", ", p.k, "]");
  for (const int64_t size : {p.d, 2 * p.h}) {
    MOE8_CHECK(size <= INT32_MAX, kOp, "w1", "expected sizes below 2^31, got ", size);
  }
}

void compute(const Moe8Experts& p, Moe8ExpertsBytes* bytes, void (Layer::*call)()) {
  check_sizes(p);
  const OnDevice device(p.device);
  Layer layer(p);
  (layer.*call)();
  if (bytes != nullptr) *bytes = layer.bytes();
}

}  // namespace
}  // namespace moe8::native

using namespace moe8::native;  // NOLINT(google-build-using-namespace): C functions stand in none

int moe8_cuda_experts_forward(const Moe8Experts* layer, Moe8ExpertsBytes* bytes) {
  return guarded([&] { compute(*layer, bytes, &Layer::forward); });
}

int moe8_cuda_experts_backward(const Moe8Experts* layer, Moe8ExpertsBytes* bytes) {
  return guarded([&] { compute(*layer, bytes, &Layer::backward); });
}
