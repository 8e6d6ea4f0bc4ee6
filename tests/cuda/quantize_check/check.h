// SPDX-License-Identifier: BSD-3-Clause
// What the parts of quantize_check share: inputs, and expected results by src/reference/.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "cuda/comparison.h"
#include "cuda/groups/group_metadata.h"
#include "cuda/quantize/groups.h"
#include "formats/float_type.h"
#include "kernels/float8_args.h"
#include "kernels/mx_args.h"
#include "moe8/formats.h"

namespace moe8::cuda {

inline constexpr const char* kElemNames[] = {"e4m3", "e5m2", "e2m3", "e3m2", "e2m1"};

// ---- inputs
enum class Fill { NORMAL, WIDE, HARD };
constexpr Fill kFills[] = {Fill::NORMAL, Fill::WIDE, Fill::HARD};

struct Problem {
  FloatType type;
  int64_t columns;
  std::vector<int32_t> offs;
  int64_t rows;
  Fill fill;
  Bytes x;

  std::string name() const {
    return std::string(type == FloatType::BF16 ? "bf16" : "f32") + " [" + std::to_string(rows) +
           ", " + std::to_string(columns) + "] in " + std::to_string(offs.size()) +
           " groups, fill " + std::to_string(static_cast<int>(fill));
  }
};

Problem make_problem(FloatType type, int64_t columns, std::vector<int32_t> offs, int64_t rows,
                     Fill fill, std::mt19937& rng);

/// End rows of groups of these sizes.
std::vector<int32_t> ends_of(const std::vector<int32_t>& sizes);

/// The groups of a problem, on the device.
struct Metadata {
  Metadata(const Problem& p, int64_t padding)
      : offs(bytes_of(p.offs)),
        memory(static_cast<size_t>(
            group_metadata_bytes(p.rows, static_cast<int64_t>(p.offs.size()), padding))),
        m(group_metadata(memory.get(), p.rows, static_cast<int64_t>(p.offs.size()), padding)) {
    require(launch_group_metadata(offs.as<int32_t>(), m, nullptr), "launch_group_metadata");
  }
  DeviceBytes offs, memory;
  GroupMetadata m;
};

template <typename T>
std::vector<T> fetch(const T* p, int64_t count) {
  std::vector<T> v(static_cast<size_t>(count));
  require(cudaMemcpy(v.data(), p, v.size() * sizeof(T), cudaMemcpyDeviceToHost), "fetch");
  return v;
}

/// The groups of the rows and where each one's transposed codes start and how wide they are.
struct Placed {
  RowGroups groups;
  std::vector<Float8Set> sets;  // in rows
  std::vector<int64_t> starts;  // byte of (group, column 0, row 0)
  int64_t pitch;
  int64_t bytes;
};

Placed place_jagged(const Problem& p, const GroupMetadata& m);
Placed place_equal(const Problem& p, int64_t groups, int64_t padding);

// ---- expected results
struct Float8Expected {
  Bytes codes;               // layout of x
  std::vector<float> scale;  // one a set
};

Float8Expected reference_float8(const Problem& p, ElemDtype elem, bool pow2, int64_t outer,
                                int64_t length, int64_t inner, std::vector<Float8Set> sets);
Bytes inverses(const std::vector<float>& scale);
/// Codes as Float8TransposedArgs lays them out.
Bytes transposed(const Problem& p, const Bytes& codes, const Placed& placed);

/// Numbers of `type` in which every NaN is the one that kernels write.
Bytes with_one_nan(Bytes values, FloatType type);

struct MxExpected {
  Bytes codes, values, scale;
};

MxExpected reference_mx(const Problem& p, ElemDtype elem, ScaleCalculationMode mode,
                        FloatType values, int64_t outer, int64_t length, int64_t inner,
                        const std::vector<MxBlock>& blocks, int64_t scale_rows);

// ---- checks
void check_metadata(const Problem& p, int64_t padding);
void check_invalid_offs();
void check_float8(const Problem& p, const Placed& placed, ElemDtype elem, bool pow2);
/// Rows [first, first + count) of each group of `group_rows`.
Bytes part_of(const Problem& p, int64_t group_rows, int64_t first, int64_t count);
/// The same as check_joined of MX values; parts are whole blocks, but for the last.
void check_joined_mx(const Problem& p, const std::vector<int64_t>& parts, ElemDtype elem,
                     ScaleCalculationMode mode, FloatType values_type);
/// The groups of p, cut after these many of their rows into weights of their own, and joined again.
void check_joined(const Problem& p, const std::vector<int64_t>& parts, int64_t padding,
                  ElemDtype elem, bool pow2);
void check_tensorwise(const Problem& p, ElemDtype elem, bool pow2);
/// `equal_groups` 0: p's own groups.
void check_mx(const Problem& p, const RowGroups& groups, int64_t equal_groups, ElemDtype elem,
              ScaleCalculationMode mode, FloatType values_type);
void check_blocked(int64_t rows, int64_t columns, const std::vector<int32_t>& offs,
                   std::mt19937& rng);
void check_graph(std::mt19937& rng);

}  // namespace moe8::cuda
