// SPDX-License-Identifier: BSD-3-Clause
// Tokens on their way to the ranks of their experts.
#include "cuda/experts/exchange.h"

#include "cuda/experts_check/check.h"
#include "reference/exchange.h"

namespace moe8::cuda {
namespace {

// Experts as int32, those outside its range as one that is nowhere.
std::vector<int32_t> narrow(const std::vector<int64_t>& experts) {
  std::vector<int32_t> result;
  result.reserve(experts.size());
  for (const int64_t e : experts) {
    result.push_back(e == static_cast<int32_t>(e) ? static_cast<int32_t>(e) : -7);
  }
  return result;
}

void check_ranks(const Layer& layer, int64_t ranks, int64_t own, std::mt19937& rng) {
  const bool wide = rng() % 2;
  const std::vector<int32_t> narrowed = narrow(layer.experts);
  const std::vector<int64_t> experts =
      wide ? layer.experts : std::vector<int64_t>(narrowed.begin(), narrowed.end());
  const DeviceBytes source(wide ? bytes_of(experts) : bytes_of(narrowed));
  const reference::RanksOfTokens expected =
      reference::ranks_of_tokens(experts, layer.top_k, ranks, own);
  const Bytes of_tokens = bytes_of(expected.of_tokens), choices = bytes_of(expected.choices);
  DeviceBytes tokens_out(of_tokens.size()), choices_out(choices.size());
  const RanksOfTokensArgs args{source.get(),
                               wide ? IndexType::I64 : IndexType::I32,
                               layer.tokens,
                               layer.top_k,
                               ranks,
                               own,
                               tokens_out.as<int32_t>(),
                               choices_out.as<int32_t>()};
  run("ranks of tokens, " + std::to_string(ranks) + " ranks, " + layer.name(),
      {{&tokens_out, &of_tokens}, {&choices_out, &choices}},
      [&] { return launch_ranks_of_tokens(args, nullptr); });
}

void check_beside(const Layer& layer, int64_t own, std::mt19937& rng) {
  const auto n = static_cast<size_t>(layer.tokens), k = static_cast<size_t>(layer.top_k);
  const bool has_scores = rng() % 2;
  const size_t scale_words = rng() % 3;
  reference::Beside tokens{.experts = narrow(layer.experts), .scores = {}, .scale = {}};
  for (size_t i = 0; has_scores && i < n * k; ++i) {
    tokens.scores.push_back(static_cast<float>(rng() % 1000) / 999);
  }
  for (size_t i = 0; i < n * scale_words; ++i) tokens.scale.push_back(static_cast<uint32_t>(rng()));
  // Each token to two ranks: its slots, in the order of the layer's.
  std::vector<int32_t> slots, token_of_row;
  for (const int32_t slot : layer.order.slot_of_row) {
    slots.push_back(slot / static_cast<int32_t>(k) * 2 + static_cast<int32_t>(rng() % 2));
    token_of_row.push_back(slot / static_cast<int32_t>(k));
  }
  const auto rows = static_cast<int64_t>(slots.size());
  const BesideRow row{layer.top_k, has_scores, static_cast<int64_t>(scale_words) * 4};
  const Bytes packed = bytes_of(reference::pack_beside(tokens, layer.top_k, token_of_row));
  const DeviceBytes experts(bytes_of(tokens.experts)), scores(bytes_of(tokens.scores)),
      scale(bytes_of(tokens.scale)), order(bytes_of(slots));
  DeviceBytes packed_out(packed.size());
  const PackBesideArgs pack{row,
                            experts.get(),
                            IndexType::I32,
                            has_scores ? scores.as<float>() : nullptr,
                            scale_words > 0 ? scale.get() : nullptr,
                            order.as<int32_t>(),
                            2,
                            rows,
                            packed_out.as<uint32_t>()};
  run("packed beside, " + layer.name(), {{&packed_out, &packed}},
      [&] { return launch_pack_beside(pack, nullptr); });

  const int64_t first = static_cast<int64_t>(rng() % 3) * own;
  const reference::Beside got = reference::unpack_beside(
      reference::pack_beside(tokens, layer.top_k, token_of_row), layer.top_k, has_scores,
      static_cast<int64_t>(scale_words), first, own);
  const Bytes got_experts = bytes_of(got.experts), got_scores = bytes_of(got.scores),
              got_scale = bytes_of(got.scale);
  const DeviceBytes in(packed);
  DeviceBytes experts_out(got_experts.size()), scores_out(got_scores.size()),
      scale_out(got_scale.size());
  const UnpackBesideArgs unpack{row,
                                in.as<uint32_t>(),
                                rows,
                                first,
                                own,
                                experts_out.as<int32_t>(),
                                has_scores ? scores_out.as<float>() : nullptr,
                                scale_words > 0 ? scale_out.as<uint32_t>() : nullptr};
  run("unpacked beside, " + layer.name(),
      {{&experts_out, &got_experts}, {&scores_out, &got_scores}, {&scale_out, &got_scale}},
      [&] { return launch_unpack_beside(unpack, nullptr); });
}

}  // namespace

void check_exchange(const Layer& layer, std::mt19937& rng) {
  if (layer.top_k < 1) return;
  for (const int64_t ranks : {1, 2, 7}) {
    const int64_t own = (layer.groups + ranks - 1) / ranks;
    if (own < 1) continue;
    check_ranks(layer, ranks, own, rng);
    check_beside(layer, own, rng);
  }
}

}  // namespace moe8::cuda
