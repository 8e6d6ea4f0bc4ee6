// SPDX-License-Identifier: BSD-3-Clause
#include "operand/cuda_forms.h"

#include <algorithm>
#include <variant>

#include "base/log.h"
#include "base/overloaded.h"
#include "device/cuda_launch.h"
#include "groups/cuda_groups.h"
#include "quantize/cuda_args.h"

namespace moe8 {
namespace {

constexpr const char* kOp = "make_cuda_forms";

// A matrix, or the experts' weights as one matrix of E * N rows.
struct Source {
  at::Tensor x;  // contiguous
  cuda::RowGroups groups;
  int64_t columns;
  bool is_matrix;
  bool has_tail;  // rows that may be in no group

  // Shape of a result with one entry for each group and column.
  std::vector<int64_t> by_group() const { return {groups.groups, columns}; }
};

Source source_of(const at::Tensor& x, const TokenGroups& groups) {
  const at::Tensor contiguous = x.detach().contiguous();
  if (x.dim() == 3) {
    return {contiguous, cuda::RowGroups::equal(x.size(0), x.size(1)), x.size(2), false, false};
  }
  return {contiguous, cuda::RowGroups::of(groups.on_device(x.size(0), x.device()).metadata),
          x.size(1), true, groups.offs().has_value()};
}

// ---- FP8 --------------------------------------------------------------------
// Which kernel takes the rows.
std::string describe(const cuda::Float8RowsArgs& args) {
  const cuda::Float8RowsVariant v = cuda::choose_float8_rows(args);
  const std::string rows = c10::str("fp8 rows [", args.groups.rows, ", ", args.columns, "]\n  -> ");
  return rows + (v.row_threads == 0
                     ? "element by element: rows too long, or not of whole 16 bytes"
                     : c10::str(v.row_threads, " threads a row, ", v.packets, " packets each"));
}

// The codes of one tensor along its rows, and transposed along its columns.
class Float8Forms {
 public:
  Float8Forms(const Source& source, const Float8Format& format, cudaStream_t stream)
      : s_(source), f_(format), stream_(stream) {}

  // `rows` is null where only the transposed codes are wanted: their scales need its pass.
  void make(Form* rows, Form* transposed) {
    if (one_scale()) {
      find_amax();
      const bool together = rows && transposed && !s_.has_tail;
      if (rows && !together) make_tensor_rows(*rows);
      if (transposed) make_transposed(*transposed, together ? rows : nullptr);
      return;
    }
    Form unwanted{};
    make_rows(rows ? *rows : unwanted, transposed != nullptr);
    if (transposed) make_transposed(*transposed, nullptr);
  }

 private:
  bool one_scale() const { return f_.granularity == ScalingGranularity::TENSORWISE; }
  template <class Args>
  Args args() const {
    return float8_args<Args>(s_.x, s_.columns, s_.groups, f_.elem, f_.round_scales_to_power_of_2);
  }
  std::vector<int64_t> row_sizes() const {
    if (s_.is_matrix) return {s_.groups.rows};
    return {s_.groups.groups, s_.groups.group_rows};
  }

  void allocate_rows(Form& form) const {
    std::vector<int64_t> sizes = row_sizes();
    form.decode_scale = empty_on(s_.x, sizes, at::kFloat);
    sizes.push_back(code_pitch(s_.columns));
    form.data = empty_on(s_.x, sizes, at::kByte);
  }

  void find_amax() {
    amax_ = empty_on(s_.x, {1}, at::kInt);
    check_launch(kOp, cuda::launch_amax(s_.x.const_data_ptr(), float_type(s_.x.scalar_type()),
                                        s_.x.numel(), amax_bits(amax_), stream_));
  }

  void make_tensor_rows(Form& form) const {
    allocate_rows(form);
    const at::Tensor inverse = empty_on(s_.x, {1}, at::kFloat);
    auto args = this->args<cuda::Float8TensorArgs>();
    args.amax = amax_bits(amax_);
    args.codes = form.data.mutable_data_ptr<uint8_t>();
    args.pitch = code_pitch(s_.columns);
    args.inverse_scale = inverse.mutable_data_ptr<float>();
    check_launch(kOp, cuda::launch_float8_tensor(args, stream_));
    form.decode_scale.copy_(
        inverse.expand(form.decode_scale.numel()).view(form.decode_scale.sizes()));
  }

  void make_rows(Form& form, bool wants_columns) {
    allocate_rows(form);
    auto args = this->args<cuda::Float8RowsArgs>();
    args.codes = form.data.mutable_data_ptr<uint8_t>();
    args.pitch = code_pitch(s_.columns);
    args.inverse_scale = form.decode_scale.mutable_data_ptr<float>();
    if (wants_columns) {
      amax_ = empty_on(s_.x, s_.by_group(), at::kInt);
      args.column_amax = amax_bits(amax_);
    }
    if (logs_dispatch()) log_dispatch(describe(args));
    check_launch(kOp, cuda::launch_float8_rows(args, stream_));
  }

  // `rows` too where they share the one scale.
  void make_transposed(Form& form, Form* rows) const {
    const int64_t width = s_.groups.transposed_columns();
    form.data = s_.is_matrix ? empty_on(s_.x, {s_.columns, width}, at::kByte)
                             : empty_on(s_.x, {s_.groups.groups, s_.columns, width}, at::kByte);
    form.decode_scale = empty_on(s_.x, s_.by_group(), at::kFloat);
    auto args = this->args<cuda::Float8TransposedArgs>();
    args.amax = amax_bits(amax_);
    args.one_scale = one_scale();
    args.codes = form.data.mutable_data_ptr<uint8_t>();
    args.inverse_scale = form.decode_scale.mutable_data_ptr<float>();
    if (rows) {
      allocate_rows(*rows);
      args.row_codes = rows->data.mutable_data_ptr<uint8_t>();
      args.row_pitch = code_pitch(s_.columns);
      args.row_inverse_scale = rows->decode_scale.mutable_data_ptr<float>();
    }
    check_launch(kOp, cuda::launch_float8_transposed(args, stream_));
  }

  const Source& s_;
  Float8Format f_;
  cudaStream_t stream_;
  at::Tensor amax_;  // [E, columns], or [1] of a whole tensor
};

// ---- MX ---------------------------------------------------------------------
// Values of both directions in one pass.
void make_mx(const Source& s, const MxFormat& format, at::ScalarType dtype, Form* rows,
             Form* columns, cudaStream_t stream) {
  cuda::MxArgs args = mx_args(s.x, s.columns, s.groups, format.elem, format.mode);
  args.values_type = float_type(dtype);
  if (rows) {
    rows->data = empty_on(s.x, s.x.sizes(), dtype);
    args.row_blocks.values = rows->data.mutable_data_ptr();
  }
  if (columns) {
    columns->data = empty_on(s.x, s.x.sizes(), dtype);
    args.column_blocks.values = columns->data.mutable_data_ptr();
  }
  if (s.x.numel() > 0) check_launch(kOp, cuda::launch_mx(args, stream));
}

// ---- pairs ------------------------------------------------------------------
bool along_rows(const FormKey& key, const at::Tensor& source) {
  return key.axis == source.dim() - 1;
}

// The form of the same format and encoding along the other axis that is still to be made.
Form* partner_of(std::vector<Form>& forms, size_t i) {
  for (size_t j = i + 1; j < forms.size(); ++j) {
    const bool same = forms[j].key.format == forms[i].key.format &&
                      forms[j].key.encoding == forms[i].key.encoding &&
                      forms[j].key.axis != forms[i].key.axis;
    if (same && !forms[j].data.defined()) return &forms[j];
  }
  return nullptr;
}

// Whether a kernel of src/cuda/ makes the form; LibTorch's operations make the others.
bool needs_source_groups(const FormKey& key) {
  return std::visit(
      Overloaded{[](const HighPrecision&) { return false; }, [](const MxFormat&) { return true; },
                 [&](const Float8Format&) { return key.encoding == Encoding::FLOAT8; }},
      key.format);
}

void make_pair(const Source& s, Form* rows, Form* columns, const FormKey& key,
               cudaStream_t stream) {
  std::visit(
      Overloaded{
          [](const HighPrecision&) {},  // never here, see needs_source_groups
          [&](const MxFormat& f) { make_mx(s, f, dtype_of(key.encoding), rows, columns, stream); },
          [&](const Float8Format& f) { Float8Forms(s, f, stream).make(rows, columns); }},
      key.format);
}

}  // namespace

std::vector<Form> make_cuda_forms(at::TensorList parts, const std::vector<FormKey>& keys,
                                  const TokenGroups& groups) {
  const Launch launch(source.device());
  std::vector<Form> forms;
  forms.reserve(keys.size());
  for (const FormKey& key : keys) forms.push_back({key, {}, {}});
  std::optional<Source> s;
  for (size_t i = 0; i < forms.size(); ++i) {
    Form& form = forms[i];
    if (form.data.defined()) continue;  // made with its partner
    if (!needs_source_groups(form.key)) {
      const bool by_group = source.dim() == 2 && form.key.axis == 0;
      form.data =
          operand_values(source, form.key.format, form.key.axis,
                         by_group ? groups.offs() : std::nullopt, dtype_of(form.key.encoding));
      continue;
    }
    if (!s) s = source_of(source, groups);
    Form* const partner = partner_of(forms, i);
    const bool rows_first = along_rows(form.key, source);
    make_pair(*s, rows_first ? &form : partner, rows_first ? partner : &form, form.key,
              launch.stream);
  }
  return forms;
}

}  // namespace moe8
