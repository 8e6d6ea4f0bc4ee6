// SPDX-License-Identifier: BSD-3-Clause
// The kernels of src/cuda over memory that Python owns: products with both operands quantized
// before, as src/gemm/cuda_gemm.cpp and src/operand/cuda_forms.cpp do it on tensors, and the quantizers.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <variant>

#include "base/check.h"
#include "cuda/gemm/grouped_gemm.h"
#include "cuda/quantize/float8.h"
#include "cuda/quantize/mx.h"
#include "format_code.h"
#include "formats/float_type.h"
#include "guarded.h"
#include "interface.h"
#include "repeat.h"

namespace moe8::native {
namespace {

void check_launch(const char* op, const cuda::LaunchStatus& status) {
  if (status.ok()) return;
  (void)cudaGetLastError();  // a launch that was refused leaves nothing behind but this
  fail(op, "",
       concat("a CUDA kernel could not be launched (", status.failed,
              "): ", cudaGetErrorString(status.error)));
}

FloatType type_of(int32_t type) {
  return type == 0 ? FloatType::BF16 : FloatType::F32;
}

int64_t code_pitch(int64_t columns) {
  return (columns + 15) / 16 * 16;
}

// Pieces of a workspace, one after the other. One that only counts launches nothing.
class Workspace {
 public:
  Workspace(void* memory, void* stream)
      : Workspace(memory, stream, /*is_counting=*/memory == nullptr) {}
  Workspace(void* memory, void* stream, bool is_counting)
      : memory_(static_cast<char*>(memory)),
        stream_(static_cast<cudaStream_t>(stream)),
        is_counting_(is_counting) {}

  template <typename T>
  T* take(int64_t count) {
    const int64_t begin = used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + begin);
  }
  bool is_counting() const { return is_counting_; }
  int64_t used() const { return used_ > 0 ? used_ : 256; }
  cudaStream_t stream() const { return stream_; }

 private:
  char* memory_;
  cudaStream_t stream_;
  bool is_counting_;
  int64_t used_ = 0;
};

// The current device of the process is another one's business: it is as before afterwards.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    (void)cudaGetDevice(&before_);
    if (device != before_) check_launch("moe8", {cudaSetDevice(device), "cudaSetDevice"});
    device_ = device;
  }
  ~OnDevice() {
    if (device_ != before_) (void)cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0, device_ = 0;
};

// ---- forms of operands ----------------------------------------------------------
// What a product reads of an operand along one axis.
struct Form {
  const void* data = nullptr;  // codes, or bf16 values
  int64_t pitch = 0;           // elements from row to row
  const float* scale = nullptr;
};

// A matrix, or the experts' weights as one of E * N rows; its last axis is `columns`.
struct Source {
  const char* name;
  const void* x;
  FloatType type;
  int64_t columns;
  cuda::RowGroups groups;
  bool has_tail;

  int64_t elements() const { return groups.rows * columns; }
};

struct Both {
  Form rows;     // quantized along rows
  Form columns;  // along columns, within groups
};

// The forms of one operand, along rows and along columns in one pass where both are wanted.
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
    if (!memory_.is_counting()) {
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
    if (!memory_.is_counting()) check_launch(op_, cuda::launch_mx(args, memory_.stream()));
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
    if (!memory_.is_counting()) check_launch(op_, cuda::launch_float8_rows(args, memory_.stream()));
    Both made;
    if (rows) made.rows = {args.codes, args.pitch, args.inverse_scale};
    if (columns) made.columns = transposed(s, f, args.column_amax, false);
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
    if (!memory_.is_counting()) {
      check_launch(op_, cuda::launch_float8_transposed(args, memory_.stream()));
    }
    return {args.codes, width, args.inverse_scale};
  }

  Both make_tensorwise(const Source& s, const Float8Format& f, bool rows, bool columns) {
    auto* const amax = memory_.take<uint32_t>(1);
    if (!memory_.is_counting()) {
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
    if (!memory_.is_counting()) {
      check_launch(op_, cuda::launch_float8_tensor(args, memory_.stream()));
      check_launch(op_, launch_repeat(args.inverse_scale, scales, s.groups.rows, memory_.stream()));
    }
    return {args.codes, args.pitch, scales};
  }

  const char* op_;
  Workspace& memory_;
};

// ---- products -------------------------------------------------------------------
// The three products of one linear, for which product.left[gemm], right[gemm] are the formats.
class Products {
 public:
  Products(const char* op, const Moe8Product& product)
      : op_(op),
        p_(product),
        memory_(product.workspace, product.stream),
        kept_(product.kept, product.stream, memory_.is_counting() || product.kept_is_made != 0),
        forms_(op, memory_),
        metadata_(find_groups()) {}

  void forward() {
    const bool codes = reads_codes(Gemm::OUT);
    const Both A = make(input(), left(Gemm::OUT), true, false, codes);
    multiply(Gemm::OUT, A.rows, weight_form(Gemm::OUT), p_.out, p_.out_type);
  }

  void backward() {
    const bool wants_A = p_.grad_A != nullptr, wants_W = p_.grad_W != nullptr;
    const bool together = wants_A && wants_W && p_.left[1] == p_.left[2] &&
                          reads_codes(Gemm::GRAD_INPUT) == reads_codes(Gemm::GRAD_WEIGHT);
    Both shared;
    if (together) {
      shared = make(gradient(), left(Gemm::GRAD_INPUT), true, true, reads_codes(Gemm::GRAD_INPUT));
    }
    if (wants_W) {
      const bool codes = reads_codes(Gemm::GRAD_WEIGHT);
      const Form dO = together
                          ? shared.columns
                          : make(gradient(), left(Gemm::GRAD_WEIGHT), false, true, codes).columns;
      const Form A = make(input(), right(Gemm::GRAD_WEIGHT), false, true, codes).columns;
      multiply(Gemm::GRAD_WEIGHT, dO, A, p_.grad_W, p_.w_type);
    }
    if (wants_A) {
      const bool codes = reads_codes(Gemm::GRAD_INPUT);
      const Form dO = together ? shared.rows
                               : make(gradient(), left(Gemm::GRAD_INPUT), true, false, codes).rows;
      multiply(Gemm::GRAD_INPUT, dO, weight_form(Gemm::GRAD_INPUT), p_.grad_A, p_.a_type);
    }
  }

  Moe8Bytes bytes() const { return {memory_.used(), kept_.used()}; }

 private:
  OperandFormat left(Gemm gemm) const { return decode_format(p_.left[static_cast<int>(gemm)]); }
  OperandFormat right(Gemm gemm) const { return decode_format(p_.right[static_cast<int>(gemm)]); }

  // E5M2 on the right is no kernel's.
  bool reads_codes(Gemm gemm) const {
    const OperandFormat l = left(gemm), r = right(gemm);
    const auto* of_right = std::get_if<Float8Format>(&r);
    return std::holds_alternative<Float8Format>(l) && of_right != nullptr &&
           of_right->elem == ElemDtype::E4M3;
  }

  cuda::GroupMetadata find_groups() {
    const int64_t bytes = cuda::group_metadata_bytes(p_.M, p_.E, cuda::kGroupPadding);
    const cuda::GroupMetadata metadata =
        cuda::group_metadata(memory_.take<uint8_t>(bytes), p_.M, p_.E, cuda::kGroupPadding);
    if (!memory_.is_counting()) {
      check_launch(op_, cuda::launch_group_metadata(p_.offs, metadata, memory_.stream()));
    }
    return metadata;
  }

  Source rows_of_groups(const char* name, const void* x, int32_t type, int64_t columns) const {
    return {name, x, type_of(type), columns, cuda::RowGroups::of(metadata_), p_.has_tail != 0};
  }
  Source input() const { return rows_of_groups("A", p_.A, p_.a_type, p_.K); }
  Source gradient() const { return rows_of_groups("grad_out", p_.grad_out, p_.out_type, p_.N); }
  Source weight() const {
    return {"W", p_.W, type_of(p_.w_type), p_.K, cuda::RowGroups::equal(p_.E, p_.N), false};
  }

  Both make(const Source& s, const OperandFormat& format, bool rows, bool columns, bool as_codes) {
    return forms_.make(s, format, rows, columns, as_codes);
  }

  // The form of the weight that OUT or GRAD_INPUT reads. A kept weight's are made both at once, in one
  // pass where they are of one format, and lie where they lay when they were made.
  Form weight_form(Gemm gemm) {
    const bool is_out = gemm == Gemm::OUT;
    if (p_.kept == nullptr) {
      const Both made = make(weight(), right(gemm), is_out, !is_out, reads_codes(gemm));
      return is_out ? made.rows : made.columns;
    }
    Forms forms(op_, kept_);
    const bool codes = reads_codes(Gemm::OUT), codes_back = reads_codes(Gemm::GRAD_INPUT);
    const bool in_one_pass = p_.right[0] == p_.right[1] && codes == codes_back;
    Both made = forms.make(weight(), right(Gemm::OUT), true, in_one_pass, codes);
    if (!in_one_pass) {
      made.columns = forms.make(weight(), right(Gemm::GRAD_INPUT), false, true, codes_back).columns;
    }
    return is_out ? made.rows : made.columns;
  }

  void multiply(Gemm gemm, const Form& l, const Form& r, void* out, int32_t out_type) {
    const bool codes = reads_codes(gemm);
    cuda::GroupedGemmArgs args{};
    args.kind = gemm;
    args.element = cuda::GemmElement::BF16;
    if (codes) {
      const bool is_e5m2 = std::get<Float8Format>(left(gemm)).elem == ElemDtype::E5M2;
      args.element = is_e5m2 ? cuda::GemmElement::E5M2_E4M3 : cuda::GemmElement::E4M3;
    }
    args.output = type_of(out_type);
    args.M = p_.M;
    args.N = p_.N;
    args.K = p_.K;
    args.E = p_.E;
    args.left = l.data;
    args.left_pitch = l.pitch;
    args.right = r.data;
    args.right_pitch = r.pitch;
    args.row_scale = l.scale;
    args.col_scale = r.scale;
    args.offs = p_.offs;
    if (codes && gemm == Gemm::GRAD_WEIGHT) {
      args.padded_starts = metadata_.padded_starts;
      args.padded_tokens = metadata_.padded_rows();
    }
    args.use_fast_accum = p_.fast_accum[static_cast<int>(gemm)] != 0;
    args.out = out;
    args.out_pitch = gemm == Gemm::OUT ? p_.N : p_.K;
    args.stream = memory_.stream();
    args.slices = cuda::choose_slices(args);
    if (args.slices > 1) args.partial = memory_.take<float>(args.slices * p_.E * p_.N * p_.K);
    if (memory_.is_counting()) return;
    check_launch(op_, cuda::launch_grouped_gemm(cuda::choose_grouped_gemm(args), args));
  }

  const char* op_;
  const Moe8Product& p_;
  Workspace memory_;
  Workspace kept_;
  Forms forms_;
  cuda::GroupMetadata metadata_;
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
  const int64_t bytes = cuda::group_metadata_bytes(r.rows, r.groups, cuda::kGroupPadding);
  const cuda::GroupMetadata metadata =
      cuda::group_metadata(memory.take<uint8_t>(bytes), r.rows, r.groups, cuda::kGroupPadding);
  if (!memory.is_counting()) {
    check_launch(op, cuda::launch_group_metadata(r.offs, metadata, memory.stream()));
  }
  return cuda::RowGroups::of(metadata);
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
  if (!memory.is_counting()) check_launch(kOp, cuda::launch_mx(args, memory.stream()));
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
  if (memory.is_counting()) return;
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
  if (memory.is_counting()) return;
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
