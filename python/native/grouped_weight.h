// SPDX-License-Identifier: BSD-3-Clause
// A weight (E, N, K) and its three products, as src/gemm/cuda_gemm.cpp computes them on tensors: in
// which formats, from which of its forms.
#pragma once

#include <cstdint>
#include <variant>

#include "cuda/gemm/grouped_gemm.h"
#include "forms.h"
#include "weight_formats.h"

namespace moe8::native {

/// The rows that are multiplied, in the order of groups.
struct TokenRows {
  const int32_t* offs;
  cuda::GroupMetadata metadata;
};

/// Launches what finds out about groups, whose memory is taken.
inline TokenRows rows_of_offs(const char* op, const int32_t* offs, int64_t rows, int64_t groups,
                              Workspace& memory) {
  const int64_t bytes = cuda::group_metadata_bytes(rows, groups, cuda::kGroupPadding);
  const cuda::GroupMetadata metadata =
      cuda::group_metadata(memory.take<uint8_t>(bytes), rows, groups, cuda::kGroupPadding);
  if (!memory.is_quiet()) {
    check_launch(op, cuda::launch_group_metadata(offs, metadata, memory.stream()));
  }
  return {offs, metadata};
}

class GroupedWeight {
 public:
  struct Parts {
    const void* data;  // [E, N, K]
    FloatType type;
    int64_t E, N, K;
    WeightFormats formats;
    const int32_t* fast_accum;  // by product
    void* kept;         // for both forms, which the caller keeps; null: made in the workspace
    bool kept_is_made;  // by an earlier call; else this one makes them
  };

  GroupedWeight(const char* op, const Parts& parts, Workspace& memory)
      : op_(op), w_(parts), memory_(memory) {}

  const WeightFormats& formats() const { return w_.formats; }

  /// The form that OUT or GRAD_INPUT reads. A kept weight's are made both at once, in one pass where
  /// they are of one format, and lie where they lay when they were made.
  Form form(Gemm gemm) {
    const bool is_out = gemm == Gemm::OUT;
    if (w_.kept == nullptr) {
      Forms forms(op_, memory_);
      const Both made = forms.make(source(), w_.formats.right(gemm), is_out, !is_out,
                                   w_.formats.reads_codes(gemm));
      return is_out ? made.rows : made.columns;
    }
    Workspace kept(w_.kept, memory_.stream(), memory_.is_quiet() || w_.kept_is_made);
    Forms forms(op_, kept);
    const OperandFormat of_out = w_.formats.right(Gemm::OUT);
    const OperandFormat of_grad = w_.formats.right(Gemm::GRAD_INPUT);
    const bool codes = w_.formats.reads_codes(Gemm::OUT);
    const bool codes_back = w_.formats.reads_codes(Gemm::GRAD_INPUT);
    const bool in_one_pass = of_out == of_grad && codes == codes_back;
    Both made = forms.make(source(), of_out, true, in_one_pass, codes);
    if (!in_one_pass) made.columns = forms.make(source(), of_grad, false, true, codes_back).columns;
    kept_bytes_ = kept.used();
    return is_out ? made.rows : made.columns;
  }
  /// How much memory the forms have that are kept, after form().
  int64_t kept_bytes() const { return kept_bytes_; }
  /// Whether form() launches nothing.
  bool is_there(Gemm gemm) const {
    const bool is_source = std::holds_alternative<HighPrecision>(w_.formats.right(gemm)) &&
                           w_.K % 8 == 0 && reinterpret_cast<uintptr_t>(w_.data) % 16 == 0;
    return is_source || (w_.kept != nullptr && w_.kept_is_made);
  }

  /// A form that form() gave, when no product reads it any more.
  void give(const Form& form) {
    memory_.give(form.data);
    memory_.give(form.scale);
  }

  /// out [M, N], [M, K] or [E, N, K].
  /// @param follows_unrelated  what was launched just before writes neither l nor r
  void multiply(Gemm gemm, const Form& l, const Form& r, const TokenRows& rows, void* out,
                FloatType out_type, bool follows_unrelated = false) {
    const bool codes = w_.formats.reads_codes(gemm);
    cuda::GroupedGemmArgs args{};
    args.kind = gemm;
    args.element = cuda::GemmElement::BF16;
    if (codes) {
      const bool is_e5m2 = std::get<Float8Format>(w_.formats.left(gemm)).elem == ElemDtype::E5M2;
      args.element = is_e5m2 ? cuda::GemmElement::E5M2_E4M3 : cuda::GemmElement::E4M3;
    }
    args.output = out_type;
    args.M = rows.metadata.rows;
    args.N = w_.N;
    args.K = w_.K;
    args.E = w_.E;
    args.left = l.data;
    args.left_pitch = l.pitch;
    args.right = r.data;
    args.right_pitch = r.pitch;
    args.row_scale = l.scale;
    args.col_scale = r.scale;
    args.offs = rows.offs;
    if (codes && gemm == Gemm::GRAD_WEIGHT) {
      args.padded_starts = rows.metadata.padded_starts;
      args.padded_tokens = rows.metadata.padded_rows();
    }
    args.use_fast_accum = w_.fast_accum[static_cast<int>(gemm)] != 0;
    args.operands_are_ready = follows_unrelated;
    args.out = out;
    args.out_pitch = gemm == Gemm::OUT ? w_.N : w_.K;
    args.stream = memory_.stream();
    args.slices = cuda::choose_slices(args);
    if (args.slices > 1) args.partial = memory_.take<float>(args.slices * w_.E * w_.N * w_.K);
    if (!memory_.is_quiet()) {
      check_launch(op_, cuda::launch_grouped_gemm(cuda::choose_grouped_gemm(args), args));
    }
    memory_.give(args.partial);
  }

 private:
  Source source() const {
    return {"W", w_.data, w_.type, w_.K, cuda::RowGroups::equal(w_.E, w_.N)};
  }

  const char* op_;
  Parts w_;
  Workspace& memory_;
  int64_t kept_bytes_ = 0;
};

}  // namespace moe8::native
