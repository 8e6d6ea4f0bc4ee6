// SPDX-License-Identifier: BSD-3-Clause
// Layers and codes.
#include "cuda/experts_check/check.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "formats/integers.h"

namespace moe8::cuda {
namespace {

int64_t up_to(int64_t n, std::mt19937& rng) {
  return static_cast<int64_t>(rng() % static_cast<uint64_t>(n + 1));
}

// k different experts per token, as routers choose.
std::vector<int64_t> different_experts(int64_t tokens, int64_t top_k, int64_t groups,
                                       std::mt19937& rng) {
  std::vector<int64_t> all(static_cast<size_t>(groups)), chosen;
  std::iota(all.begin(), all.end(), 0);
  for (int64_t t = 0; t < tokens; ++t) {
    std::shuffle(all.begin(), all.end(), rng);
    chosen.insert(chosen.end(), all.begin(), all.begin() + top_k);
  }
  return chosen;
}

// Any expert in any slot, more often the first ones; some of them nobody's.
std::vector<int64_t> any_experts(int64_t slots, int64_t groups, bool with_nobody,
                                 std::mt19937& rng) {
  constexpr int64_t kNobody[] = {-1, std::numeric_limits<int64_t>::min(), int64_t{1} << 32};
  std::vector<int64_t> experts(static_cast<size_t>(slots));
  for (int64_t& expert : experts) {
    expert = up_to(up_to(groups - 1, rng), rng);
    if (with_nobody && rng() % 5 == 0) expert = rng() % 2 ? groups : kNobody[rng() % 3];
  }
  return experts;
}

}  // namespace

std::string Layer::name() const {
  return std::to_string(tokens) + " tokens to " + std::to_string(top_k) + " of " +
         std::to_string(groups) + ", " + std::to_string(columns) + " columns, " +
         std::to_string(order.rows_in_groups()) + " rows in groups";
}

Layer make_layer(int64_t tokens, int64_t top_k, int64_t groups, int64_t columns,
                 std::vector<int64_t> experts) {
  Layer layer{tokens, top_k, groups, columns, std::move(experts), {}};
  layer.order = reference::expert_order(layer.experts, groups);
  return layer;
}

Layer layer_of_sizes(const std::vector<int64_t>& sizes, int64_t tail, int64_t columns,
                     std::mt19937& rng) {
  std::vector<int64_t> experts(static_cast<size_t>(tail), -1);
  for (size_t g = 0; g < sizes.size(); ++g) {
    experts.insert(experts.end(), static_cast<size_t>(sizes[g]), static_cast<int64_t>(g));
  }
  std::shuffle(experts.begin(), experts.end(), rng);
  const auto rows = static_cast<int64_t>(experts.size());
  return make_layer(rows, 1, static_cast<int64_t>(sizes.size()), columns, std::move(experts));
}

std::vector<Layer> hard_layers(std::mt19937& rng) {
  std::vector<Layer> layers;
  for (const int64_t columns : {1, 16, 40, 101, 520, 1040}) {
    layers.push_back(layer_of_sizes({1, 63, 0, 65, 64, 0}, 0, columns, rng));
    layers.push_back(layer_of_sizes({0, 127, 129, 1}, 70, columns, rng));
    layers.push_back(make_layer(37, 8, 8, columns, different_experts(37, 8, 8, rng)));  // k = E
    layers.push_back(make_layer(50, 6, 40, columns, different_experts(50, 6, 40, rng)));
    layers.push_back(make_layer(90, 3, 5, columns, any_experts(270, 5, true, rng)));
  }
  for (const int64_t columns : {7, 64}) {
    layers.push_back(make_layer(0, 2, 4, columns, {}));  // no tokens
    layers.push_back(make_layer(1, 1, 1, columns, {0}));
    layers.push_back(make_layer(1, 2, 3, columns, {2, 0}));
    layers.push_back(make_layer(5, 2, 3, columns, std::vector<int64_t>(10, -1)));    // nobody's
    layers.push_back(make_layer(130, 2, 7, columns, std::vector<int64_t>(260, 5)));  // one's
    layers.push_back(make_layer(3, 40, 64, columns, different_experts(3, 40, 64, rng)));  // k > 32
    layers.push_back(make_layer(9, 4, 0, columns, std::vector<int64_t>(36, 0)));  // no groups
  }
  layers.push_back(make_layer(300, 2, 4096, 24, any_experts(600, 4096, true, rng)));
  return layers;
}

Layer random_layer(std::mt19937& rng) {
  const int64_t groups = 1 + up_to(rng() % 8 == 0 ? 200 : 12, rng);
  const int64_t top_k = 1 + up_to(std::min<int64_t>(groups, 9) - 1, rng);
  const int64_t tokens = up_to(400 / top_k, rng);
  const int64_t columns = rng() % 2 ? 1 + up_to(150, rng) : 16 * (1 + up_to(70, rng));
  if (rng() % 2) {
    return make_layer(tokens, top_k, groups, columns,
                      different_experts(tokens, top_k, groups, rng));
  }
  return make_layer(tokens, top_k, groups, columns,
                    any_experts(tokens * top_k, groups, rng() % 2, rng));
}

DeviceLayer::DeviceLayer(const Layer& layer, int64_t padding)
    : experts(bytes_of(layer.experts)),
      offs(bytes_of(layer.order.offs)),
      slot_of_row(bytes_of(layer.order.slot_of_row)),
      row_of_slot(bytes_of(layer.order.row_of_slot)),
      memory(static_cast<size_t>(group_metadata_bytes(layer.rows(), layer.groups, padding))),
      metadata(group_metadata(memory.get(), layer.rows(), layer.groups, padding)),
      groups(RowGroups::of(metadata)),
      rows_in_groups(metadata.begins + layer.groups) {
  require(launch_group_metadata(offs.as<int32_t>(), metadata, nullptr), "launch_group_metadata");
}

reference::RowCodes random_codes(ElemDtype elem, int64_t rows, int64_t columns, bool broken,
                                 std::mt19937& rng) {
  const int64_t pitch = round_up(columns, 16);
  reference::RowCodes codes{elem, columns, pitch, Bytes(static_cast<size_t>(rows * pitch)), {}};
  const uint8_t largest = elem == ElemDtype::E4M3 ? 0x7E : 0x7B;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < columns; ++c) {
      auto code = static_cast<uint8_t>(rng());
      // NaN and Inf poison whole columns: few of them, and those only when asked for.
      if ((code & 0x7F) > largest && (!broken || rng() % 16 != 0)) code &= 0x87;
      codes.codes[static_cast<size_t>(row * pitch + c)] = code;
    }
    const int exponent = static_cast<int>(rng() % 8 == 0 ? rng() % 160 : rng() % 12) - 48;
    float scale = std::ldexp(1.0f, exponent);
    if (broken && rng() % 64 == 0) scale = rng() % 2 ? HUGE_VALF : std::nanf("");
    codes.inverse_scale.push_back(scale);
  }
  return codes;
}

Bytes random_values(FloatType type, int64_t count, std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(rng);
  if (type == FloatType::F32) return bytes_of(values);
  std::vector<BFloat16> halves;
  halves.reserve(values.size());
  for (const float v : values) halves.push_back(from_float<BFloat16>(v));
  return bytes_of(halves);
}

void expect_equal_values(const std::string& what, FloatType type, const DeviceBytes& actual,
                         const Bytes& expected) {
  Bytes alike = expected;
  const Bytes got = actual.host();
  const size_t size = type == FloatType::BF16 ? 2 : 4;
  const auto is_nan = [&](const Bytes& bytes, size_t i) {
    uint32_t bits = 0;
    std::memcpy(reinterpret_cast<uint8_t*>(&bits) + (4 - size), &bytes[i], size);
    return std::isnan(std::bit_cast<float>(bits));
  };
  for (size_t i = 0; i < alike.size(); i += size) {
    if (is_nan(alike, i) && is_nan(got, i)) std::memcpy(&alike[i], &got[i], size);
  }
  expect_equal(what, actual, alike);
}

void expect_refused(const LaunchStatus& status, const std::string& why) {
  expect(!status.ok() && why == status.failed, "not refused: " + why);
}

}  // namespace moe8::cuda
