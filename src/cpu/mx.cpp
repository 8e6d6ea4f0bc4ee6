// SPDX-License-Identifier: BSD-3-Clause
// What:  MX quantization, dequantization and both in one, along any axis.
// How:   tiles of float32 lanes in the first cache: load, amax of each strip (a strip is one
// block),
//        scale of each, multiply, encode or round, multiply back, store. Every stage is a flat loop
//        of lanes.h, so a new format or type adds a loop, not a kernel.
// Floor: memory. Codes from bf16 read 2 and write 1 byte an element, fake-quantized bf16 2 and 2.
#include "cpu/mx.h"

#include "cpu/lanes.h"
#include "formats/e8m0.h"

namespace moe8::cpu {
namespace {

// ---- configuration ----------------------------------------------------------
constexpr int64_t kBlock = 32;   // elements of a full strip
constexpr int64_t kStrips = 64;  // strips a tile: 8 KiB of lanes
constexpr int64_t kLanes = kBlock * kStrips;

/// One tile. Along the last axis its lanes are [strip][kBlock], a short strip followed by zeros;
/// along another axis [row of the block][kStrips], neighbouring columns being the strips.
struct Tile {
  alignas(64) float lanes[kLanes];
  alignas(64) uint8_t codes[kLanes];
  alignas(64) uint32_t amax[kStrips];
  alignas(64) uint8_t scale[kStrips];
  alignas(64) float factor[kStrips];
};

// ---- scales -----------------------------------------------------------------
template <ElemDtype elem, ScaleCalculationMode mode>
inline void scale_strips(Tile& tile) {
  for (int64_t j = 0; j < kStrips; ++j) tile.scale[j] = mx_scale(tile.amax[j], elem, mode);
}

inline void scale_strips(Tile& tile, ElemDtype format, ScaleCalculationMode mode) {
  using enum ScaleCalculationMode;
  with_elem(format, [&]<ElemDtype elem>() {
    switch (mode) {
      case FLOOR:
        return scale_strips<elem, FLOOR>(tile);
      case RCEIL:
        return scale_strips<elem, RCEIL>(tile);
      case CEIL:
        return scale_strips<elem, CEIL>(tile);
      case EVEN:
        return scale_strips<elem, EVEN>(tile);
    }
  });
}

// ---- the two directions -----------------------------------------------------
/// Where a tile lies: `strips` blocks of one row, or `strips` columns of one block.
struct Place {
  int64_t first;          // its first element in x
  const MxBlock* blocks;  // the block of each strip (Rows), or the block of all (Columns)
  int64_t strips;
  int64_t scale_at;  // its first scale
};

/// Strips are contiguous: neighbouring blocks of a row. `first` is the row's first element.
struct Rows {
  static int64_t lanes(const Place& p) { return p.strips * kBlock; }

  /// f(lane, at, n): n lanes from `lane` on are the elements from `at` on.
  template <typename F>
  static void for_each_run(const Place& p, int64_t, F f) {
    for (int64_t j = 0; j < p.strips; ++j) {
      const int64_t at = p.first + p.blocks[j].begin;
      if (p.blocks[j].size == kBlock) {
        f(j * kBlock, at, kBlock);
      } else {
        f(j * kBlock, at, p.blocks[j].size);
      }
    }
  }
  static void find_amax(Tile& tile, const Place& p) {
    for (int64_t j = 0; j < p.strips; ++j) {
      tile.amax[j] = max_magnitude(tile.lanes + j * kBlock, kBlock);
    }
  }
  static void multiply_by_factor(Tile& tile, const Place& p) {
    for (int64_t j = 0; j < p.strips; ++j)
      multiply(tile.lanes + j * kBlock, tile.factor[j], kBlock);
  }
};

/// Strips are columns, one block deep. `first` is the block's first element in the first column.
struct Columns {
  static int64_t lanes(const Place& p) { return p.blocks->size * kStrips; }

  template <typename F>
  static void for_each_run(const Place& p, int64_t inner, F f) {
    for (int64_t k = 0; k < p.blocks->size; ++k) {
      if (p.strips == kStrips) {
        f(k * kStrips, p.first + k * inner, kStrips);
      } else {
        f(k * kStrips, p.first + k * inner, p.strips);
      }
    }
  }
  static void find_amax(Tile& tile, const Place& p) {
    fill(tile.amax, kStrips, 0u);
    for (int64_t k = 0; k < p.blocks->size; ++k) {
      update_amax(tile.lanes + k * kStrips, tile.amax, kStrips);
    }
  }
  static void multiply_by_factor(Tile& tile, const Place& p) {
    for (int64_t k = 0; k < p.blocks->size; ++k) {
      multiply(tile.lanes + k * kStrips, tile.factor, kStrips);
    }
  }
};

/// Calls f(direction, place) for the tiles of the work items [begin, end).
template <typename Args, typename F>
inline void for_each_tile(const Args& a, int64_t begin, int64_t end, F f) {
  for (int64_t item = begin; item < end;) {
    const int64_t outer = item / a.block_count;
    const int64_t block = item % a.block_count;
    const int64_t scale_at = (outer * a.scale_rows + block) * a.inner;
    if (a.inner == 1) {
      const int64_t in_row = a.block_count - block;
      const int64_t left = in_row < end - item ? in_row : end - item;
      const int64_t strips = left < kStrips ? left : kStrips;
      f(Rows{}, Place{outer * a.length, a.blocks + block, strips, scale_at});
      item += strips;
      continue;
    }
    const int64_t first = (outer * a.length + a.blocks[block].begin) * a.inner;
    for (int64_t column = 0; column < a.inner; column += kStrips) {
      const int64_t left = a.inner - column;
      const int64_t strips = left < kStrips ? left : kStrips;
      f(Columns{}, Place{first + column, a.blocks + block, strips, scale_at + column});
    }
    ++item;
  }
}

// ---- kernels ----------------------------------------------------------------
/// Lanes that hold values of codes -> values of the source, in memory.
template <typename Direction>
inline void store_values(Tile& tile, const Place& p, int64_t inner, void* out, FloatType type) {
  for (int64_t j = 0; j < kStrips; ++j) tile.factor[j] = mx_scale_value(tile.scale[j]);
  Direction::multiply_by_factor(tile, p);
  Direction::for_each_run(p, inner, [&](int64_t lane, int64_t at, int64_t n) {
    store(tile.lanes + lane, out, type, at, n);
  });
}

inline void quantize_any(const MxQuantizeArgs& a, int64_t begin, int64_t end) {
  Tile tile;
  fill(tile.lanes, kLanes, 0.0f);  // lanes past a short strip count as zeros
  fill(tile.amax, kStrips, 0u);
  for_each_tile(a, begin, end, [&]<typename Direction>(Direction, const Place& p) {
    Direction::for_each_run(p, a.inner, [&](int64_t lane, int64_t at, int64_t n) {
      load(a.x, a.x_type, at, tile.lanes + lane, n);
      if (n < kBlock) fill(tile.lanes + lane + n, kBlock - n, 0.0f);
    });
    Direction::find_amax(tile, p);
    scale_strips(tile, a.elem, a.mode);
    if (a.scale) copy_bytes(tile.scale, a.scale + p.scale_at, p.strips);
    for (int64_t j = 0; j < kStrips; ++j) tile.factor[j] = mx_scale_inverse(tile.scale[j]);
    Direction::multiply_by_factor(tile, p);
    if (a.data) {
      encode_lanes(a.elem, tile.lanes, tile.codes, Direction::lanes(p));
      Direction::for_each_run(p, a.inner, [&](int64_t lane, int64_t at, int64_t n) {
        copy_bytes(tile.codes + lane, a.data + at, n);
      });
    }
    if (a.dequantized) {
      round_lanes(a.elem, tile.lanes, Direction::lanes(p));
      store_values<Direction>(tile, p, a.inner, a.dequantized, a.dequantized_type);
    }
  });
}

inline void dequantize_any(const MxDequantizeArgs& a, int64_t begin, int64_t end) {
  Tile tile;
  fill(tile.codes, kLanes, uint8_t{0});
  fill(tile.scale, kStrips, uint8_t{0});
  for_each_tile(a, begin, end, [&]<typename Direction>(Direction, const Place& p) {
    Direction::for_each_run(p, a.inner, [&](int64_t lane, int64_t at, int64_t n) {
      copy_bytes(a.data + at, tile.codes + lane, n);
    });
    copy_bytes(a.scale + p.scale_at, tile.scale, p.strips);
    decode_lanes(a.elem, tile.codes, tile.lanes, Direction::lanes(p));
    store_values<Direction>(tile, p, a.inner, a.out, a.out_type);
  });
}

// ---- entry points, one per instruction set ----------------------------------
using QuantizeKernel = void (*)(const MxQuantizeArgs&, int64_t, int64_t);
using DequantizeKernel = void (*)(const MxDequantizeArgs&, int64_t, int64_t);

[[gnu::flatten]] void quantize_portable(const MxQuantizeArgs& a, int64_t b, int64_t e) {
  quantize_any(a, b, e);
}
MOE8_TARGET_AVX2 void quantize_avx2(const MxQuantizeArgs& a, int64_t b, int64_t e) {
  quantize_any(a, b, e);
}
MOE8_TARGET_AVX512 void quantize_avx512(const MxQuantizeArgs& a, int64_t b, int64_t e) {
  quantize_any(a, b, e);
}
[[gnu::flatten]] void dequantize_portable(const MxDequantizeArgs& a, int64_t b, int64_t e) {
  dequantize_any(a, b, e);
}
MOE8_TARGET_AVX2 void dequantize_avx2(const MxDequantizeArgs& a, int64_t b, int64_t e) {
  dequantize_any(a, b, e);
}
MOE8_TARGET_AVX512 void dequantize_avx512(const MxDequantizeArgs& a, int64_t b, int64_t e) {
  dequantize_any(a, b, e);
}

constexpr QuantizeKernel kQuantize[] = {quantize_portable, quantize_avx2, quantize_avx512};
constexpr DequantizeKernel kDequantize[] = {dequantize_portable, dequantize_avx2,
                                            dequantize_avx512};

}  // namespace

void quantize_mx(const MxQuantizeArgs& args, int64_t begin, int64_t end, Isa isa) {
  kQuantize[static_cast<int>(isa)](args, begin, end);
}

void dequantize_mx(const MxDequantizeArgs& args, int64_t begin, int64_t end, Isa isa) {
  kDequantize[static_cast<int>(isa)](args, begin, end);
}

}  // namespace moe8::cpu
