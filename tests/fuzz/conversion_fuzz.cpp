// SPDX-License-Identifier: BSD-3-Clause
// Conversion files, from text to the decision about every parameter of a model. Input: the text.
#include "convert/conversion_rules.h"
#include "convert/resolve.h"
#include "fuzz/refusal.h"

namespace moe8 {
namespace {

const std::vector<ParameterInfo>& parameters() {
  static const std::vector<ParameterInfo> all = {
      {"tok_embeddings.weight", {256, 64}, OwnerKind::EMBEDDING, "bfloat16"},
      {"layers.0.attention.wq.weight", {64, 64}, OwnerKind::LINEAR, "bfloat16"},
      {"layers.0.moe.experts.w1", {8, 128, 64}, OwnerKind::OTHER, "bfloat16"},
      {"layers.0.moe.experts.w2", {8, 64, 128}, OwnerKind::OTHER, "float32"},
      {"layers.0.norm.weight", {64}, OwnerKind::OTHER, "float32"},
      {"output.weight", {256, 64}, OwnerKind::LINEAR, "float16"},
  };
  return all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string text = fuzz::FuzzInput(bytes, size).rest();
  fuzz::accepts([&] {
    const std::vector<ConversionRule> rules = parse_conversion(text, "file.toml");
    fuzz::require(parse_conversion(to_toml(rules), "again") == rules,
                  "rules can be written and read again");
    const FqnToConfig config = to_fqn_config(rules);
    const ConversionReport report = resolve(parameters(), {}, config);
    fuzz::require(report.rows.size() == parameters().size(), "every parameter has its row");
    fuzz::require(!report.to_table().empty() && !report.to_json().empty(), "a report has text");
  });
  return 0;
}

}  // namespace moe8
