// SPDX-License-Identifier: BSD-3-Clause
// Rows as MX values: gathered, and made by the gated activation. Values in blocks must be those of
// the kernel's own bf16 rows, bit for bit.
#include "cuda/experts/mx_rows.h"

#include "cuda/experts_check/gate_problem.h"
#include "kernels/mx_args.h"
#include "reference/mx.h"

namespace moe8::cuda {
namespace {

using Expected = std::vector<std::pair<DeviceBytes*, const Bytes*>>;

ScaleCalculationMode draw_mode(std::mt19937& rng) {
  using enum ScaleCalculationMode;
  constexpr ScaleCalculationMode kModes[] = {RCEIL, FLOOR, CEIL, EVEN};
  return rng() % 2 ? RCEIL : kModes[rng() % 4];
}

// ---- outputs
struct MxOutput {
  explicit MxOutput(size_t bytes) : values(bytes), by_rows(bytes), by_columns(bytes) {}
  MxRows args() const { return {values.get(), by_rows.get(), by_columns.get()}; }

  DeviceBytes values, by_rows, by_columns;
};

// x [outer, length, inner] in blocks along the middle.
Bytes in_blocks(const Bytes& x, int64_t outer, int64_t length, int64_t inner,
                const std::vector<MxBlock>& blocks, ScaleCalculationMode mode) {
  Bytes values(x.size());
  MxQuantizeArgs a{};
  a.elem = ElemDtype::E4M3;
  a.mode = mode;
  a.x = x.data();
  a.x_type = FloatType::BF16;
  a.outer = outer;
  a.length = length;
  a.inner = inner;
  a.blocks = blocks.data();
  a.block_count = static_cast<int64_t>(blocks.size());
  a.dequantized = values.data();
  a.dequantized_type = FloatType::BF16;
  reference::quantize_mx(a, 0, a.work_items());
  return values;
}

// What all outputs must hold when the rows are these.
struct MxExpectedRows {
  MxExpectedRows(const Layer& layer, const Bytes& rows, int64_t width, ScaleCalculationMode mode)
      : values(rows),
        by_rows(in_blocks(rows, layer.rows(), width, 1, mx_blocks(width, nullptr, 0), mode)),
        by_columns(in_blocks(rows, 1, layer.rows(), width, blocks_of_groups(layer), mode)) {}

  static std::vector<MxBlock> blocks_of_groups(const Layer& layer) {
    if (layer.groups == 0) return {};
    return mx_blocks(layer.rows(), layer.order.offs.data(), layer.groups);
  }
  Expected of(MxOutput& out) const {
    return {{&out.values, &values}, {&out.by_columns, &by_columns}, {&out.by_rows, &by_rows}};
  }
  Bytes values, by_rows, by_columns;
};

// ---- gathered
void check_gathered(const Layer& layer, Fill fill, std::mt19937& rng) {
  const DeviceLayer on_device(layer);
  const Bytes tokens = bytes_of(draw_rows(fill, layer.tokens, layer.columns, rng));
  const DeviceBytes in(tokens);
  const ScaleCalculationMode mode = draw_mode(rng);
  const MxExpectedRows expected(
      layer, reference::gather_rows(tokens, 2 * layer.columns, layer.order, layer.top_k),
      layer.columns, mode);
  MxOutput out(expected.values.size());
  GatherMxArgs args{.in = in.get(),
                    .columns = layer.columns,
                    .groups = on_device.groups,
                    .slot_of_row = on_device.slot_of_row.as<int32_t>(),
                    .row_of_slot = on_device.row_of_slot.as<int32_t>(),
                    .top_k = layer.top_k,
                    .mode = mode,
                    .out = out.args()};
  const std::string what = "gathered as mx, " + layer.name();
  const auto launch = [&] { return launch_gather_mx(args, nullptr); };
  run(what, expected.of(out), launch);
  args.out = {nullptr, out.by_rows.get()};
  run(what + ", by rows alone", {{&out.by_rows, &expected.by_rows}}, launch);
  args.out = {nullptr, nullptr, out.by_columns.get()};
  run(what + ", by columns alone", {{&out.by_columns, &expected.by_columns}}, launch);
}

// ---- the activation
void check_forward(const GateProblem& p, ScaleCalculationMode mode) {
  const Layer& l = p.layer;
  const std::string what = p.name() + " forward as mx";
  MxOutput out(static_cast<size_t>(l.rows() * l.columns * 2));
  SwigluMxArgs args{p.source, mode, out.args()};
  const auto launch = [&] { return launch_swiglu_mx(args, nullptr); };
  require(launch(), what.c_str());
  require(cudaDeviceSynchronize(), what.c_str());
  compare_forward(p, from_device(out.values));
  const MxExpectedRows expected(l, out.values.host(), l.columns, mode);
  run(what, expected.of(out), launch);
  args.out = {nullptr, out.by_rows.get()};
  run(what + ", by rows alone", {{&out.by_rows, &expected.by_rows}}, launch);
}

// The activations in the memory of the gradients that they are made beside.
void check_in_place(const GateProblem& p, SwigluMxBackwardArgs args, const Bytes& by_columns) {
  DeviceBytes both(by_columns.size());
  args.grad = both.get();
  args.scored_activation = {nullptr, nullptr, both.get()};
  for (int time = 0; time < 2; ++time) {
    both.poison();
    const Bytes grad = bytes_of(p.grad);
    require(cudaMemcpy(both.get(), grad.data(), grad.size(), cudaMemcpyHostToDevice), "grad");
    require(launch_swiglu_mx_backward(args, nullptr), "in place");
    require(cudaDeviceSynchronize(), "in place");
    expect_equal(p.name() + " backward as mx, in place", both, by_columns);
  }
}

void check_backward(const GateProblem& p, ScaleCalculationMode mode) {
  const Layer& l = p.layer;
  const std::string what = p.name() + " backward as mx";
  const auto bytes = static_cast<size_t>(l.rows() * l.columns * 2);
  MxOutput hidden(2 * bytes), activation(bytes);
  DeviceBytes score(static_cast<size_t>(l.rows() * 4)),
      parts(static_cast<size_t>(l.rows() * swiglu_mx_score_parts(l.columns) * 4));
  const bool splits_blocks =
      p.source.activation.layout == GateLayout::HALVES && l.columns % 32 != 0;
  SwigluMxBackwardArgs args{p.source,           mode,
                            p.grad_bytes.get(), hidden.args(),
                            activation.args(),  score.as<float>(),
                            parts.as<float>()};
  const auto launch = [&] { return launch_swiglu_mx_backward(args, nullptr); };
  if (splits_blocks) {
    expect_refused(launch(), "halves of no whole blocks");
    args.hidden_grad.row_values = nullptr;
  }
  require(launch(), what.c_str());
  require(cudaDeviceSynchronize(), what.c_str());
  compare_backward(p, from_device(hidden.values), from_device(activation.values), floats_of(score));
  const MxExpectedRows eh(l, hidden.values.host(), 2 * l.columns, mode),
      ea(l, activation.values.host(), l.columns, mode);
  const Bytes expected_score = score.host();
  Expected all = ea.of(activation);
  all.push_back({&score, &expected_score});
  all.push_back({&hidden.values, &eh.values});
  all.push_back({&hidden.by_columns, &eh.by_columns});
  if (!splits_blocks) all.push_back({&hidden.by_rows, &eh.by_rows});
  run(what, all, launch);

  check_in_place(p, args, ea.by_columns);
  args.score_grad = nullptr;
  args.hidden_grad.values = nullptr;
  args.scored_activation = {nullptr, nullptr, activation.by_columns.get()};
  Expected some{{&hidden.by_columns, &eh.by_columns}, {&activation.by_columns, &ea.by_columns}};
  if (!splits_blocks) some.push_back({&hidden.by_rows, &eh.by_rows});
  run(what + ", blocks alone", some, launch);
  args.hidden_grad = args.scored_activation = {};
  args.score_grad = score.as<float>();
  run(what + ", scores alone", {{&score, &expected_score}}, launch);
}

void check_problem(const GateProblem& p, std::mt19937& rng) {
  const ScaleCalculationMode mode = draw_mode(rng);
  check_forward(p, mode);
  check_backward(p, mode);
}

}  // namespace

void check_mx_rows(const Layer& layer, std::mt19937& rng) {
  if (layer.columns % 8 != 0) return;
  for (const Fill fill : kFills) {
    check_gathered(layer, fill, rng);
    check_problem(GateProblem(layer, fill, rng), rng);
  }
}

// Tiles that end anywhere, blocks that fill rows, and many groups.
void check_mx_row_widths(std::mt19937& rng) {
  for (const int64_t columns : {8, 24, 32, 64, 96, 264, 512, 1000, 2048, 2880}) {
    const Layer layer = layer_of_sizes({33, 0, 9, 64}, columns % 5, columns, rng);
    for (int time = 0; time < 3; ++time) {
      check_problem(GateProblem(layer, time == 0 ? Fill::BROKEN : Fill::WIDE, rng), rng);
    }
  }
}

void check_mx_row_refusals() {
  const GroupMetadata metadata = group_metadata(nullptr, 64, 1, 32);
  SwigluMxBackwardArgs args{};
  args.columns = 40;
  args.groups = RowGroups::of(metadata);
  args.score_grad = reinterpret_cast<float*>(16);
  args.slot_of_row = reinterpret_cast<const int32_t*>(16);
  const auto launch = [&] { return launch_swiglu_mx_backward(args, nullptr); };
  expect_refused(launch(), "a gradient of scores without slot_of_row or score_parts");
  args.score_grad = nullptr;
  args.scored_activation.values = reinterpret_cast<void*>(8);
  expect_refused(launch(), "rows not 16-byte aligned");
  args.columns = 44;
  expect_refused(launch(), "columns that are no multiple of 8");

  GatherMxArgs gather{};
  gather.columns = 40;
  gather.groups = RowGroups::equal(2, 32);
  expect_refused(launch_gather_mx(gather, nullptr), "groups of equal size instead of ragged ones");
  gather.groups = RowGroups::of(metadata);
  expect_refused(launch_gather_mx(gather, nullptr), "tokens without slots");
  gather.in = reinterpret_cast<const void*>(8);
  expect_refused(launch_gather_mx(gather, nullptr), "rows not 16-byte aligned");
}

}  // namespace moe8::cuda
