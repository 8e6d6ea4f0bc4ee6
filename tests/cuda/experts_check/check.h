// SPDX-License-Identifier: BSD-3-Clause
// What the parts of experts_check share: routed layers and codes to run the kernels on. Each part
// has its own file and a line in main.cpp.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "cuda/comparison.h"
#include "cuda/experts/gather.h"
#include "cuda/groups/group_metadata.h"
#include "cuda/launch_status.h"
#include "cuda/quantize/groups.h"
#include "formats/float_type.h"
#include "reference/experts.h"

namespace moe8::cuda {

// ---- inputs
/// The sizes of a layer and what its router chose.
struct Layer {
  int64_t tokens;
  int64_t top_k;
  int64_t groups;
  int64_t columns;
  std::vector<int64_t> experts;  // [tokens * top_k]; may lie outside [0, groups)
  reference::ExpertOrder order;

  int64_t rows() const { return tokens * top_k; }
  std::string name() const;
};

Layer make_layer(int64_t tokens, int64_t top_k, int64_t groups, int64_t columns,
                 std::vector<int64_t> experts);
/// One token per row, groups of these sizes, then `tail` rows of no expert, in a random order.
Layer layer_of_sizes(const std::vector<int64_t>& sizes, int64_t tail, int64_t columns,
                     std::mt19937& rng);

/// Sizes and routings where mistakes are likely.
std::vector<Layer> hard_layers(std::mt19937& rng);
Layer random_layer(std::mt19937& rng);

/// A layer on the device. The order is the reference's, so that no check depends on another kernel.
struct DeviceLayer {
  explicit DeviceLayer(const Layer& layer, int64_t padding = 32);

  DeviceBytes experts;  // int64
  DeviceBytes offs, slot_of_row, row_of_slot;
  DeviceBytes memory;
  GroupMetadata metadata;
  RowGroups groups;
  const int32_t* rows_in_groups;
};

/// Random codes, all 256 of them, zero from `columns` on, with scales that are powers of two; with
/// `broken` some NaN and Inf among scales, and codes of NaN and Inf.
reference::RowCodes random_codes(ElemDtype elem, int64_t rows, int64_t columns, bool broken,
                                 std::mt19937& rng);

/// Random normal numbers as bytes of the type.
Bytes random_values(FloatType type, int64_t count, std::mt19937& rng);

/// As expect_equal(), but a NaN equals every NaN: whose bits come out is the hardware's choice.
void expect_equal_values(const std::string& what, FloatType type, const DeviceBytes& actual,
                         const Bytes& expected);

void expect_refused(const LaunchStatus& status, const std::string& why);

// ---- checks of one layer
void check_order(const Layer& layer, std::mt19937& rng);
void check_gather(const Layer& layer, std::mt19937& rng);
void check_exchange(const Layer& layer, std::mt19937& rng);
void check_transpose_codes(const Layer& layer, std::mt19937& rng);
void check_combine(const Layer& layer, std::mt19937& rng);
void check_swiglu(const Layer& layer, std::mt19937& rng);
void check_mx_rows(const Layer& layer, std::mt19937& rng);

// ---- checks with layers of their own
void check_large_orders(std::mt19937& rng);
void check_swiglu_widths(std::mt19937& rng);
void check_swiglu_refusals();
void check_mx_row_widths(std::mt19937& rng);
void check_mx_row_refusals();
void check_refusals();
void check_graph(std::mt19937& rng);

}  // namespace moe8::cuda
