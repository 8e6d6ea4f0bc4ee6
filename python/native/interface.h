// SPDX-License-Identifier: BSD-3-Clause
// What the Python package calls: C functions over the kernels and decisions of moe8, which know no
// Torch. Tensors are pointers, sizes and streams; memory is the caller's. So the library loads
// beside any torch, and beside none.
//
// A function that returns int gives 0, or 1 where it refused: moe8_error() then says why, in one
// sentence for people. Enumerators are passed as the numbers of include/moe8/formats.h; `type` is 0
// for bf16, 1 for float32; operand formats are numbers that moe8_ask("config") gives out.
#pragma once

#include <cstdint>

#define MOE8_INTERFACE extern "C" __attribute__((visibility("default")))

/// Why the last call of this thread refused.
MOE8_INTERFACE const char* moe8_error();

/// Decisions, as JSON: text.cpp lists the questions. *answer is valid until the thread's next call.
MOE8_INTERFACE int moe8_ask(const char* question, const char* request, const char** answer);

// ---- quantizers on a CPU ----------------------------------------------------
// x is [outer, length, inner], contiguous, quantized along the middle axis. `ends` are int32 end
// rows of `groups` groups of that axis, or null. Every byte of every result is written: elements in
// no group become 0. Results that are null are not wanted. `threads`: at most so many.

/// @param data    uint8 [outer, length, inner], a code per byte
/// @param scale   uint8 [outer, scale_rows, inner], scale_rows = (length + 31 max(groups, 1)) / 32
/// @param values  [outer, length, inner], the value of each code, of values_type
MOE8_INTERFACE int moe8_cpu_mx(int elem, int mode, const void* x, int type, int64_t outer,
                               int64_t length, int64_t inner, const int32_t* ends, int64_t groups,
                               uint8_t* data, uint8_t* scale, int64_t scale_rows, void* values,
                               int values_type, int threads);
MOE8_INTERFACE int moe8_cpu_mx_decode(int elem, const uint8_t* data, const uint8_t* scale,
                                      int64_t outer, int64_t length, int64_t inner,
                                      const int32_t* ends, int64_t groups, int64_t scale_rows,
                                      void* values, int values_type, int threads);

/// One scale per slice of the middle axis, or per group of it; one in all where `tensorwise`: outer
/// and inner are 1 then.
/// @param scale  float32 [outer, max(groups, 1), inner], always written: it multiplied the source
MOE8_INTERFACE int moe8_cpu_float8(int elem, int power_of_2, int tensorwise, const void* x,
                                   int type, int64_t outer, int64_t length, int64_t inner,
                                   const int32_t* ends, int64_t groups, uint8_t* data, float* scale,
                                   void* values, int values_type, int threads);
MOE8_INTERFACE int moe8_cpu_float8_decode(int elem, int tensorwise, const uint8_t* data,
                                          const float* scale, int64_t outer, int64_t length,
                                          int64_t inner, const int32_t* ends, int64_t groups,
                                          void* values, int values_type, int threads);

/// An operand of a product, to be quantized along its middle axis to the values that its codes stand for.
struct Moe8Operand {
  const void* x;
  void* values;  // [outer, length, inner]
  int64_t outer, length, inner;
  const int32_t* ends;
  int64_t groups;
  int32_t form;  // an operand format other than high precision
  int32_t type, values_type;
};
static_assert(sizeof(Moe8Operand) == 72);  // as Python packs it
MOE8_INTERFACE int moe8_cpu_values(const Moe8Operand* operands, int count, int threads);

// ---- a GPU ------------------------------------------------------------------
// All pointers are to the memory of the current device, or of the one that a request names. Functions
// with a workspace are called twice: first they say how much they need and launch nothing. It is
// 256-byte aligned and may be given back to the stream's memory at once. They never wait for the
// device.

/// 0 where kernels run on the current device: one of compute capability 9.0 in a build with CUDA.
MOE8_INTERFACE int moe8_cuda_available(int device);

/// The three products of a grouped linear: out = A W^T by group.
struct Moe8Product {
  const void* A;         // [M, K]
  const void* W;         // [E, N, K]
  const void* grad_out;  // [M, N]; backward only
  const int32_t* offs;   // [E] end rows, on the device
  void* out;             // [M, N] of out_type, forward only
  void* grad_A;          // [M, K] of a_type; null: not wanted
  void* grad_W;          // [E, N, K] of w_type; null: not wanted
  void* workspace;
  void* kept;  // for both forms of W, which the caller keeps; null: made in the workspace
  void* stream;
  int64_t M, N, K, E;
  int32_t a_type, w_type, out_type;
  int32_t has_tail;  // rows may be past the last group
  int32_t device;
  int32_t kept_is_made;  // by an earlier call; else this one makes them
  // Formats of the operands of the products out, grad_A, grad_W, and whether each accumulates fast.
  int32_t left[3], right[3], fast_accum[3];
};
static_assert(sizeof(Moe8Product) == 176);  // as Python packs it

/// How much memory a request needs.
struct Moe8Bytes {
  int64_t workspace;
  int64_t kept;
};
/// @param bytes  null: launch. Else this alone is written, and of the request's pointers it matters
///               only which are null, and their alignment
MOE8_INTERFACE int moe8_cuda_forward(const Moe8Product* product, Moe8Bytes* bytes);
MOE8_INTERFACE int moe8_cuda_backward(const Moe8Product* product, Moe8Bytes* bytes);

/// The layer of experts by the kernels of src/cuda/experts/ (docs/numerics.md, section 6; codes along
/// columns are made of those along rows). T tokens, k experts each, R = T k rows in the order of
/// experts; all of T, k, d, h and E at least 1. Tensors are contiguous and start at multiples of 16
/// bytes; those that are null do not exist, or are not wanted. Which calls are taken at all:
/// moe8_ask("fused_experts").
struct Moe8Experts {
  const void* x;         // [T, d] of x_type; in backward null where `saved` holds its codes
  const void* w13;       // [E, 2h, d]
  const void* w2;        // [E, d, h]
  const void* experts;   // [T, k]; those outside [0, E) take no part
  const float* scores;   // [T, k]
  const float* b13;      // [E, 2h], as w13 lies
  const float* b2;       // [E, d]; forward only
  const void* grad_out;  // [T, d] of x_type; backward only
  void* out;             // [T, d] of x_type; forward only
  void* hidden;          // bf16 [R, 2h]: written by forward, read by backward
  void* saved;           // saved_bytes: written by forward, read by backward
  void* grad_x;          // [T, d] of x_type
  void* grad_w13;
  void* grad_w2;
  // [T, k], without what a bias of w2 adds to it; 0 for slots that take no part.
  float* grad_scores;
  // bf16 [R, h]: the gradient dA of the activation's result, for part 1. Part 2 writes other things
  // there.
  void* hidden_grad;
  void* workspace;
  void* kept13;  // as Moe8Product::kept, of w13 and of w2
  void* kept2;
  void* stream;
  int32_t kept13_is_made, kept2_is_made;
  int32_t part;  // of a backward: 0 all; 1 to hidden_grad, 2 from there with the same workspace
  int32_t device;

  // What calls of the same shapes have in common.
  int64_t T, k, d, h, E, saved_bytes;
  int32_t x_type, w13_type, w2_type;
  int32_t row_type;      // of the rows that W2 gives
  int32_t experts_type;  // 0 int32, 1 int64
  int32_t keeps_codes;   // `saved` holds codes of x, from which grad_w13 is computed
  int32_t interleaved, clamped, scores_on_input;
  float alpha, limit;
  int32_t left13[3], right13[3], fast_accum13[3];  // as Moe8Product has them
  int32_t left2[3], right2[3], fast_accum2[3];
};
static_assert(sizeof(Moe8Experts) == 344);  // as Python packs it

struct Moe8ExpertsBytes {
  int64_t workspace;
  int64_t kept13, kept2;
};
MOE8_INTERFACE int moe8_cuda_experts_forward(const Moe8Experts* layer, Moe8ExpertsBytes* bytes);
MOE8_INTERFACE int moe8_cuda_experts_backward(const Moe8Experts* layer, Moe8ExpertsBytes* bytes);

/// Quantizers. x is [rows, columns]. Groups of rows: `offs` of `groups` end rows on the device, or
/// null: `groups` groups of as many rows each.
struct Moe8Quantize {
  const void* x;
  int64_t rows, columns;
  const int32_t* offs;
  int64_t groups;
  int32_t type, elem, mode, power_of_2;
  int32_t along_columns;  // scales are shared along a column, within each group, instead of a row
  int32_t tensorwise;     // FP8: one scale
  int32_t values_type;
  uint8_t* codes;  // MX: [rows, columns]. FP8: [rows, pitch], pitch = columns in whole 16 bytes;
                   // along columns transposed: [columns, width] or [groups, columns, width]
  void* scale;     // MX: uint8 [rows, blocks] or [scale_rows, columns]; FP8: float32
  int64_t scale_rows;  // MX along columns
  void* values;        // MX: instead of codes and scale
  int64_t width;       // FP8 along columns: written by the call with a null workspace
  int64_t padding;     // as width: what groups are padded to
  void* workspace;     // null: write `bytes` alone
  int64_t bytes;
  void* stream;
};
MOE8_INTERFACE int moe8_cuda_mx(Moe8Quantize* request);
MOE8_INTERFACE int moe8_cuda_float8(Moe8Quantize* request);
