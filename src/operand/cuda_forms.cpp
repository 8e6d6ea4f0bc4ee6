// SPDX-License-Identifier: BSD-3-Clause
#include "operand/cuda_forms.h"

#include <algorithm>
#include <variant>

#include "base/log.h"
#include "base/overloaded.h"
#include "base/plain_text.h"
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
  const at::Tensor contiguous = contiguous_values(x);
  if (x.dim() == 3) {
    return {contiguous, cuda::RowGroups::equal(x.size(0), x.size(1)), x.size(2), false, false};
  }
  return {contiguous, cuda::RowGroups::of(groups.on_device(x.size(0), x.device()).metadata),
          x.size(1), true, groups.offs().has_value()};
}

// Weights that lie as (E, K, N), of which x is the transposed view: their rows are its columns.
bool is_transposed(const at::Tensor& x) {
  return x.dim() == 3 && !x.is_contiguous() && x.transpose(1, 2).is_contiguous();
}

// ---- joined weights ---------------------------------------------------------
// Rows of a group of the result.
int64_t group_rows(const std::vector<Source>& parts) {
  int64_t rows = 0;
  for (const Source& part : parts) rows += part.groups.group_rows;
  return rows;
}

// Calls launch(part, where its rows are in the result) for each part.
template <class Launch>
void for_each_part(const std::vector<Source>& parts, Launch launch) {
  cuda::JoinedRows joined{parts.size() > 1 ? group_rows(parts) : 0, 0};
  for (const Source& part : parts) {
    launch(part, joined);
    joined.first += part.groups.group_rows;
  }
}

// ---- FP8 --------------------------------------------------------------------
// Which kernel takes the rows.
std::string describe(const cuda::Float8RowsArgs& args) {
  const cuda::Float8RowsVariant v = cuda::choose_float8_rows(args);
  const std::string rows = concat("fp8 rows [", args.groups.rows, ", ", args.columns, "]\n  -> ");
  return rows + (v.row_threads == 0
                     ? "element by element: rows too long, or not of whole 16 bytes"
                     : concat(v.row_threads, " threads a row, ", v.packets, " packets each"));
}

// The codes of one tensor, or of joined weights, along rows, and transposed along columns.
class Float8Forms {
 public:
  Float8Forms(const std::vector<Source>& parts, const Float8Format& format, cudaStream_t stream)
      : parts_(parts), s_(parts.front()), f_(format), stream_(stream) {}

  // `rows` is null where only the transposed codes are wanted: their scales need its pass, and they
  // may be made of its codes.
  void make(Form* rows, Form* transposed) {
    if (one_scale()) {
      find_amax();
      const bool together = rows && transposed && !s_.has_tail;
      if (rows && !together) make_tensor_rows(*rows);
      if (transposed) make_transposed(*transposed, together ? rows : nullptr);
      return;
    }
    Form unwanted{};
    Form& made = rows ? *rows : unwanted;
    make_rows(made, transposed != nullptr);
    if (transposed && transposed->key.from_row_codes && f_.round_scales_to_power_of_2) {
      turn(made, *transposed);
    } else if (transposed) {
      make_transposed(*transposed, nullptr);
    }
  }

 private:
  bool one_scale() const { return f_.granularity == ScalingGranularity::TENSORWISE; }
  template <class Args>
  Args args(const Source& part) const {
    return float8_args<Args>(part.x, part.columns, part.groups, f_.elem,
                             f_.round_scales_to_power_of_2);
  }
  template <class Args>
  Args args() const {
    return args<Args>(s_);
  }

  std::vector<int64_t> row_sizes() const {
    if (s_.is_matrix) return {s_.groups.rows};
    return {s_.groups.groups, group_rows(parts_)};
  }
  std::vector<int64_t> transposed_sizes() const {
    if (s_.is_matrix) return {s_.columns, s_.groups.transposed_columns()};
    const auto all = cuda::RowGroups::equal(s_.groups.groups, group_rows(parts_));
    return {s_.groups.groups, s_.columns, all.transposed_columns()};
  }

  void allocate_rows(Form& form) const {
    std::vector<int64_t> sizes = row_sizes();
    form.decode_scale = empty_on(s_.x, sizes, at::kFloat);
    sizes.push_back(code_pitch(s_.columns));
    form.data = empty_on(s_.x, sizes, at::kByte);
  }

  void allocate_transposed(Form& form) const {
    form.data = empty_on(s_.x, transposed_sizes(), at::kByte);
    form.decode_scale = empty_on(s_.x, s_.by_group(), at::kFloat);
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
    if (wants_columns) amax_ = empty_on(s_.x, s_.by_group(), at::kInt);
    for_each_part(parts_, [&](const Source& part, const cuda::JoinedRows& joined) {
      auto args = this->args<cuda::Float8RowsArgs>(part);
      args.codes = form.data.mutable_data_ptr<uint8_t>();
      args.pitch = code_pitch(s_.columns);
      args.inverse_scale = form.decode_scale.mutable_data_ptr<float>();
      args.column_amax = wants_columns ? amax_bits(amax_) : nullptr;
      args.joined = joined;
      args.adds_to_column_amax = joined.first > 0;
      if (logs_dispatch()) log_dispatch(describe(args));
      check_launch(kOp, cuda::launch_float8_rows(args, stream_));
    });
  }

  // `rows` too where they share the one scale.
  void make_transposed(Form& form, Form* rows) const {
    allocate_transposed(form);
    if (rows) allocate_rows(*rows);
    for_each_part(parts_, [&](const Source& part, const cuda::JoinedRows& joined) {
      auto args = this->args<cuda::Float8TransposedArgs>(part);
      args.amax = amax_bits(amax_);
      args.one_scale = one_scale();
      args.codes = form.data.mutable_data_ptr<uint8_t>();
      args.inverse_scale = form.decode_scale.mutable_data_ptr<float>();
      args.joined = joined;
      if (rows) {
        args.row_codes = rows->data.mutable_data_ptr<uint8_t>();
        args.row_pitch = code_pitch(s_.columns);
        args.row_inverse_scale = rows->decode_scale.mutable_data_ptr<float>();
      }
      check_launch(kOp, cuda::launch_float8_transposed(args, stream_));
    });
  }

  // A byte for each code less to read than from values in bf16.
  void turn(const Form& rows, Form& form) const {
    allocate_transposed(form);
    const cuda::RowCodes in{.codes = rows.data.const_data_ptr<uint8_t>(),
                            .inverse_scale = rows.decode_scale.const_data_ptr<float>(),
                            .elem = f_.elem,
                            .columns = s_.columns,
                            .pitch = code_pitch(s_.columns),
                            .groups = cuda::RowGroups::equal(s_.groups.groups, group_rows(parts_))};
    check_launch(kOp, transpose_codes(in, amax_bits(amax_), form.data, form.decode_scale, stream_));
  }

  const std::vector<Source>& parts_;
  const Source& s_;
  Float8Format f_;
  cudaStream_t stream_;
  at::Tensor amax_;  // [E, columns], or [1] of a whole tensor
};

// ---- MX ---------------------------------------------------------------------
// Values of both directions in one pass.
void make_mx(const std::vector<Source>& parts, const MxFormat& format, at::ScalarType dtype,
             Form* rows, Form* columns, cudaStream_t stream) {
  std::vector<int64_t> sizes = parts.front().x.sizes().vec();
  if (parts.size() > 1) sizes[1] = group_rows(parts);
  for (Form* form : {rows, columns}) {
    if (form) form->data = empty_on(parts.front().x, sizes, dtype);
  }
  for_each_part(parts, [&](const Source& part, const cuda::JoinedRows& joined) {
    cuda::MxArgs args = mx_args(part.x, part.columns, part.groups, format.elem, format.mode);
    args.values_type = float_type(dtype);
    args.joined = joined;
    if (rows) args.row_blocks.values = rows->data.mutable_data_ptr();
    if (columns) args.column_blocks.values = columns->data.mutable_data_ptr();
    if (part.x.numel() > 0) check_launch(kOp, cuda::launch_mx(args, stream));
  });
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

void make_pair(const std::vector<Source>& parts, Form* rows, Form* columns, const FormKey& key,
               cudaStream_t stream) {
  std::visit(
      Overloaded{[](const HighPrecision&) {},  // never here, see needs_source_groups
                 [&](const MxFormat& f) {
                   make_mx(parts, f, dtype_of(key.encoding), rows, columns, stream);
                 },
                 [&](const Float8Format& f) { Float8Forms(parts, f, stream).make(rows, columns); }},
      key.format);
}

// Codes with a scale per row or column: of a tensor as it lies, transposed or in parts.
bool are_codes_of_vectors(const FormKey& key) {
  const auto* format = std::get_if<Float8Format>(&key.format);
  return format && key.encoding == Encoding::FLOAT8 &&
         format->granularity != ScalingGranularity::TENSORWISE;
}

// MX blocks along columns start in each part where they start in the joined weight.
bool are_whole_blocks(at::TensorList parts) {
  return std::all_of(parts.begin(), parts.end(),
                     [](const at::Tensor& part) { return part.size(1) % kMxBlock == 0; });
}

// What no kernel of the source's groups makes: LibTorch's operations on the whole tensor.
at::Tensor values_of(const at::Tensor& whole, const FormKey& key, const TokenGroups& groups) {
  const bool by_group = whole.dim() == 2 && key.axis == 0;
  return operand_values(whole, key.format, key.axis, by_group ? groups.offs() : std::nullopt,
                        dtype_of(key.encoding));
}

}  // namespace

std::vector<Form> make_cuda_forms(at::TensorList parts, const std::vector<FormKey>& keys,
                                  const TokenGroups& groups) {
  const Launch launch(parts.front().device());
  std::vector<Form> forms;
  forms.reserve(keys.size());
  for (const FormKey& key : keys) forms.push_back({key, {}, {}});
  const bool codes = std::all_of(keys.begin(), keys.end(), are_codes_of_vectors);
  const bool mx = std::all_of(keys.begin(), keys.end(), [](const FormKey& key) {
    return std::holds_alternative<MxFormat>(key.format);
  });
  const bool by_parts = codes || (mx && parts.size() > 1 && are_whole_blocks(parts));
  // Only codes may come from what lies transposed: values have the shape of their source.
  const bool turned = codes && parts.size() == 1 && is_transposed(parts.front());
  const at::Tensor whole = turned     ? parts.front().transpose(1, 2)
                           : by_parts ? at::Tensor()
                                      : join(parts);
  const at::TensorList read = whole.defined() ? at::TensorList(whole) : parts;
  std::vector<Source> sources;
  for (size_t i = 0; i < forms.size(); ++i) {
    Form& form = forms[i];
    if (form.data.defined()) continue;  // made with its partner
    if (!needs_source_groups(form.key)) {
      form.data = values_of(whole, form.key, groups);
      continue;
    }
    if (sources.empty()) {
      for (const at::Tensor& part : read) sources.push_back(source_of(part, groups));
    }
    Form* const partner = partner_of(forms, i);
    const bool rows_first = along_rows(form.key, read.front()) != turned;
    make_pair(sources, rows_first ? &form : partner, rows_first ? partner : &form, form.key,
              launch.stream);
  }
  return forms;
}

}  // namespace moe8
