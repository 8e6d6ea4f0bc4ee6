// SPDX-License-Identifier: BSD-3-Clause
// What products read of their operands on a GPU, as src/operand/cuda_forms.cpp makes it on tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <variant>

#include "base/check.h"
#include "cuda/quantize/float8.h"
#include "cuda/quantize/mx.h"
#include "operand/operand_format.h"
#include "repeat.h"
#include "workspace.h"

namespace moe8::native {

/// What a product reads of an operand along one axis.
struct Form {
  const void* data = nullptr;  // codes, or bf16 values
  int64_t pitch = 0;           // elements from row to row
  const float* scale = nullptr;
};

/// A matrix, or the experts' weights as one of E * N rows; its last axis is `columns`.
struct Source {
  const char* name;
  const void* x;
  FloatType type;
  int64_t columns;
  cuda::RowGroups groups;

  int64_t elements() const { return groups.rows * columns; }
};

struct Both {
  Form rows;     // quantized along rows
  Form columns;  // along columns, within groups
};

/// The forms of one operand, along rows and along columns in one pass where both are wanted.
class Forms {
 public:
  Forms(const char* op, Workspace& memory) : op_(op), memory_(memory) {}

  /// `as_codes`: the product reads FP8 codes; otherwise bf16 values.
  Both make(const Source& s, const OperandFormat& format, bool rows, bool columns, bool as_codes) {
    if (const auto* mx = std::get_if<MxFormat>(&format)) return make_mx(s, *mx, rows, columns);
    if (std::holds_alternative<HighPrecision>(format)) {
      MOE8_CHECK(s.type == FloatType::BF16, op_, s.name,
                 "expected bfloat16 where an operand of a product is not quantized, got float32. ",
                 "Convert the model to bfloat16, or take a recipe that quantizes every operand");
      const Form source = aligned({s.x, s.columns, nullptr}, s);
      return {source, source};
    }
    const Float8Format f = std::get<Float8Format>(format);
    MOE8_CHECK(
        as_codes, op_, s.name,
        "expected both operands of a product in FP8, or none, on a GPU. Take another recipe");
    return f.granularity == ScalingGranularity::TENSORWISE ? make_tensorwise(s, f, rows, columns)
                                                           : make_rows(s, f, rows, columns);
  }

 private:
  template <class Args>
  static Args source(const Source& s, const Float8Format& f) {
    Args args{};
    static_cast<cuda::Float8Source&>(args) = {s.x,      s.type, s.columns,
                                              s.groups, f.elem, f.round_scales_to_power_of_2};
    return args;
  }

  // Rows of whole 16 bytes, as products read them; the columns added are zeros.
  Form aligned(const Form& values, const Source& s) {
    const bool is_aligned = reinterpret_cast<uintptr_t>(values.data) % 16 == 0;
    if (s.columns % 8 == 0 && is_aligned) return values;
    const int64_t pitch = (s.columns + 7) / 8 * 8;
    auto* const out = memory_.take<uint16_t>(s.groups.rows * pitch);
    if (!memory_.is_quiet()) {
      const size_t width = static_cast<size_t>(s.columns) * 2, to = static_cast<size_t>(pitch) * 2;
      const auto rows = static_cast<size_t>(s.groups.rows);
      check(cudaMemsetAsync(out, 0, to * rows, memory_.stream()));
      check(cudaMemcpy2DAsync(out, to, values.data, width, width, rows, cudaMemcpyDeviceToDevice,
                              memory_.stream()));
    }
    return {out, pitch, nullptr};
  }

  void check(cudaError_t error) const { check_launch(op_, {error, "copy"}); }

  Both make_mx(const Source& s, const MxFormat& f, bool rows, bool columns) {
    cuda::MxArgs args{};
    args.x = s.x;
    args.x_type = s.type;
    args.columns = s.columns;
    args.groups = s.groups;
    args.elem = f.elem;
    args.mode = f.mode;
    args.values_type = FloatType::BF16;
    if (rows) args.row_blocks.values = memory_.take<uint16_t>(s.elements());
    if (columns) args.column_blocks.values = memory_.take<uint16_t>(s.elements());
    if (!memory_.is_quiet()) check_launch(op_, cuda::launch_mx(args, memory_.stream()));
    Both made;
    if (rows) made.rows = aligned({args.row_blocks.values, s.columns, nullptr}, s);
    if (columns) made.columns = aligned({args.column_blocks.values, s.columns, nullptr}, s);
    return made;
  }

  // The transposed codes read the amax that the pass along rows finds.
  Both make_rows(const Source& s, const Float8Format& f, bool rows, bool columns) {
    auto args = source<cuda::Float8RowsArgs>(s, f);
    args.pitch = code_pitch(s.columns);
    args.codes = memory_.take<uint8_t>(s.groups.rows * args.pitch);
    args.inverse_scale = memory_.take<float>(s.groups.rows);
    if (columns) args.column_amax = memory_.take<uint32_t>(s.groups.groups * s.columns);
    if (!memory_.is_quiet()) check_launch(op_, cuda::launch_float8_rows(args, memory_.stream()));
    Both made;
    if (rows) made.rows = {args.codes, args.pitch, args.inverse_scale};
    if (columns) made.columns = transposed(s, f, args.column_amax, false);
    if (!rows) memory_.give(args.codes), memory_.give(args.inverse_scale);
    memory_.give(args.column_amax);
    return made;
  }

  Form transposed(const Source& s, const Float8Format& f, const uint32_t* amax, bool one_scale) {
    auto args = source<cuda::Float8TransposedArgs>(s, f);
    const int64_t width = s.groups.transposed_columns();
    const int64_t slices = s.groups.is_jagged() ? 1 : s.groups.groups;
    args.amax = amax;
    args.one_scale = one_scale;
    args.codes = memory_.take<uint8_t>(slices * s.columns * width);
    args.inverse_scale = memory_.take<float>(s.groups.groups * s.columns);
    if (!memory_.is_quiet()) {
      check_launch(op_, cuda::launch_float8_transposed(args, memory_.stream()));
    }
    return {args.codes, width, args.inverse_scale};
  }

  Both make_tensorwise(const Source& s, const Float8Format& f, bool rows, bool columns) {
    auto* const amax = memory_.take<uint32_t>(1);
    if (!memory_.is_quiet()) {
      check_launch(op_, cuda::launch_amax(s.x, s.type, s.elements(), amax, memory_.stream()));
    }
    Both made;
    if (rows) made.rows = tensor_rows(s, f, amax);
    if (columns) made.columns = transposed(s, f, amax, true);
    return made;
  }

  Form tensor_rows(const Source& s, const Float8Format& f, const uint32_t* amax) {
    auto args = source<cuda::Float8TensorArgs>(s, f);
    args.amax = amax;
    args.pitch = code_pitch(s.columns);
    args.codes = memory_.take<uint8_t>(s.groups.rows * args.pitch);
    args.inverse_scale = memory_.take<float>(1);
    auto* const scales = memory_.take<float>(s.groups.rows);
    if (!memory_.is_quiet()) {
      check_launch(op_, cuda::launch_float8_tensor(args, memory_.stream()));
      check_launch(op_, launch_repeat(args.inverse_scale, scales, s.groups.rows, memory_.stream()));
    }
    return {args.codes, args.pitch, scales};
  }

  const char* op_;
  Workspace& memory_;
};

}  // namespace moe8::native
