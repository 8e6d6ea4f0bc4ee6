// SPDX-License-Identifier: BSD-3-Clause
// The kernels of src/cuda over memory that Python owns: products with both operands quantized before,
// and the quantizers. The layer of experts: experts.cpp.
#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/check.h"
#include "cuda/quantize/float8.h"
#include "cuda/quantize/mx.h"
#include "formats/float_type.h"
#include "forms.h"
#include "grouped_weight.h"
#include "guarded.h"
#include "interface.h"
#include "workspace.h"

namespace moe8::native {
namespace {

// ---- products -------------------------------------------------------------------
// The three products of one linear, for which product.left[gemm], right[gemm] are the formats.
class Products {
 public:
  Products(const char* op, const Moe8Product& product)
      : p_(product),
        memory_(product.workspace, product.stream),
        forms_(op, memory_),
        weight_(op, parts(product), memory_),
        rows_(rows_of_offs(op, product.offs, product.M, product.E, memory_)) {}

  void forward() {
    const Both A = make(input(), weight_.formats().left(Gemm::OUT), true, false, Gemm::OUT);
    multiply(Gemm::OUT, A.rows, weight_.form(Gemm::OUT), p_.out, p_.out_type);
  }

  void backward() {
    constexpr Gemm kOfA = Gemm::GRAD_INPUT, kOfW = Gemm::GRAD_WEIGHT;
    const bool wants_A = p_.grad_A != nullptr, wants_W = p_.grad_W != nullptr;
    const bool together =
        wants_A && wants_W && p_.left[1] == p_.left[2] &&
        weight_.formats().reads_codes(kOfA) == weight_.formats().reads_codes(kOfW);
    Both shared;
    if (together) shared = make(gradient(), weight_.formats().left(kOfA), true, true, kOfA);
    if (wants_W) {
      const Form dO =
          together ? shared.columns
                   : make(gradient(), weight_.formats().left(kOfW), false, true, kOfW).columns;
      const Form A = make(input(), weight_.formats().right(kOfW), false, true, kOfW).columns;
      multiply(kOfW, dO, A, p_.grad_W, p_.w_type);
    }
    if (wants_A) {
      const Form dO = together
                          ? shared.rows
                          : make(gradient(), weight_.formats().left(kOfA), true, false, kOfA).rows;
      multiply(kOfA, dO, weight_.form(kOfA), p_.grad_A, p_.a_type);
    }
  }

  Moe8Bytes bytes() const { return {memory_.used(), weight_.kept_bytes()}; }

 private:
  static GroupedWeight::Parts parts(const Moe8Product& p) {
    return {p.W,    type_of(p.w_type),  p.E, p.N, p.K, {p.left, p.right}, p.fast_accum,
            p.kept, p.kept_is_made != 0};
  }

  Source rows_of_groups(const char* name, const void* x, int32_t type, int64_t columns) const {
    return {name, x, type_of(type), columns, cuda::RowGroups::of(rows_.metadata)};
  }
  Source input() const { return rows_of_groups("A", p_.A, p_.a_type, p_.K); }
  Source gradient() const { return rows_of_groups("grad_out", p_.grad_out, p_.out_type, p_.N); }

  Both make(const Source& s, const OperandFormat& format, bool rows, bool columns, Gemm gemm) {
    return forms_.make(s, format, rows, columns, weight_.formats().reads_codes(gemm));
  }
  void multiply(Gemm gemm, const Form& l, const Form& r, void* out, int32_t out_type) {
    weight_.multiply(gemm, l, r, rows_, out, type_of(out_type));
  }

  const Moe8Product& p_;
  Workspace memory_;
  Forms forms_;
  GroupedWeight weight_;
  TokenRows rows_;
};

void check_sizes(const char* op, const Moe8Product& p) {
  MOE8_CHECK(p.E <= cuda::kMaxGroups, op, "offs", "expected at most ", cuda::kMaxGroups,
             " groups on a GPU, got ", p.E);
  for (const int64_t size : {p.M, p.N, p.K}) {
    MOE8_CHECK(size <= INT32_MAX, op, "A", "expected sizes below 2^31, got ", size);
  }
}

void compute(const Moe8Product& p, Moe8Bytes* bytes, void (Products::*call)()) {
  check_sizes("moe8", p);
  const OnDevice device(p.device);
  Products products("moe8", p);
  (products.*call)();
  if (bytes != nullptr) *bytes = products.bytes();
}

// ---- quantizers -----------------------------------------------------------------
cuda::RowGroups groups_of(const char* op, const Moe8Quantize& r, Workspace& memory) {
  if (r.offs == nullptr)
    return cuda::RowGroups::equal(r.groups, r.groups == 0 ? 0 : r.rows / r.groups);
  MOE8_CHECK(r.groups <= cuda::kMaxGroups, op, "offs", "expected at most ", cuda::kMaxGroups,
             " groups on a GPU, got ", r.groups);
  return cuda::RowGroups::of(rows_of_offs(op, r.offs, r.rows, r.groups, memory).metadata);
}

void quantize_mx(Moe8Quantize& r) {
  constexpr const char* kOp = "quantize_mx";
  Workspace memory(r.workspace, r.stream);
  cuda::MxArgs args{};
  args.x = r.x;
  args.x_type = type_of(r.type);
  args.columns = r.columns;
  args.groups = groups_of(kOp, r, memory);
  args.elem = static_cast<ElemDtype>(r.elem);
  args.mode = static_cast<ScaleCalculationMode>(r.mode);
  args.values_type = type_of(r.values_type);
  const cuda::MxOutputs outputs{r.values, r.codes, static_cast<uint8_t*>(r.scale)};
  if (r.along_columns != 0) {
    args.column_blocks = outputs;
    args.column_scale_rows = r.scale_rows;
  } else {
    args.row_blocks = outputs;
  }
  r.bytes = memory.used();
  if (!memory.is_quiet()) check_launch(kOp, cuda::launch_mx(args, memory.stream()));
}

template <class Args>
Args float8_source(const Moe8Quantize& r, const cuda::RowGroups& groups) {
  Args args{};
  static_cast<cuda::Float8Source&>(args) = {
      r.x, type_of(r.type), r.columns, groups, static_cast<ElemDtype>(r.elem), r.power_of_2 != 0};
  return args;
}

void quantize_tensor(const Moe8Quantize& r, const cuda::RowGroups& groups, Workspace& memory) {
  auto args = float8_source<cuda::Float8TensorArgs>(r, groups);
  auto* const amax = memory.take<uint32_t>(1);
  args.amax = amax;
  args.codes = r.codes;
  args.pitch = code_pitch(r.columns);
  args.scale = static_cast<float*>(r.scale);
  args.inverse_scale = memory.take<float>(1);
  if (memory.is_quiet()) return;
  check_launch("quantize_float8",
               cuda::launch_amax(r.x, type_of(r.type), r.rows * r.columns, amax, memory.stream()));
  check_launch("quantize_float8", cuda::launch_float8_tensor(args, memory.stream()));
}

void quantize_float8(Moe8Quantize& r) {
  constexpr const char* kOp = "quantize_float8";
  Workspace memory(r.workspace, r.stream);
  const cuda::RowGroups groups = groups_of(kOp, r, memory);
  if (r.tensorwise != 0) {
    quantize_tensor(r, groups, memory);
    r.bytes = memory.used();
    return;
  }
  const bool along_columns = r.along_columns != 0;
  auto rows = float8_source<cuda::Float8RowsArgs>(r, groups);
  rows.pitch = code_pitch(r.columns);
  rows.codes = along_columns ? memory.take<uint8_t>(r.rows * rows.pitch) : r.codes;
  rows.inverse_scale = memory.take<float>(r.rows);
  if (!along_columns) rows.scale = static_cast<float*>(r.scale);
  auto columns = float8_source<cuda::Float8TransposedArgs>(r, groups);
  if (along_columns) {
    rows.column_amax = memory.take<uint32_t>(groups.groups * r.columns);
    columns.amax = rows.column_amax;
    columns.codes = r.codes;
    columns.inverse_scale = memory.take<float>(groups.groups * r.columns);
    columns.scale = static_cast<float*>(r.scale);
    r.width = groups.transposed_columns();
    r.padding = groups.padding;
  }
  r.bytes = memory.used();
  if (memory.is_quiet()) return;
  check_launch(kOp, cuda::launch_float8_rows(rows, memory.stream()));
  if (along_columns) check_launch(kOp, cuda::launch_float8_transposed(columns, memory.stream()));
}

// ---- devices --------------------------------------------------------------------
void check_available(int device) {
  int major = 0, minor = 0;
  const cudaError_t error =
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  MOE8_CHECK(error == cudaSuccess, "moe8", "",
             "expected a GPU and a driver for CUDA 13, got: ", cudaGetErrorString(error));
  (void)cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  MOE8_CHECK(major == 9 && minor == 0, "moe8", "",
             "its kernels are built for compute capability 9.0 (H100, H200), this GPU has ", major,
             ".", minor);
}

}  // namespace
}  // namespace moe8::native

using namespace moe8::native;  // NOLINT(google-build-using-namespace): C functions stand in none

int moe8_cuda_available(int device) {
  return guarded([&] { check_available(device); });
}

int moe8_cuda_forward(const Moe8Product* product, Moe8Bytes* bytes) {
  return guarded([&] { compute(*product, bytes, &Products::forward); });
}

int moe8_cuda_backward(const Moe8Product* product, Moe8Bytes* bytes) {
  return guarded([&] { compute(*product, bytes, &Products::backward); });
}

int moe8_cuda_mx(Moe8Quantize* request) {
  return guarded([&] { quantize_mx(*request); });
}

int moe8_cuda_float8(Moe8Quantize* request) {
  return guarded([&] { quantize_float8(*request); });
}
