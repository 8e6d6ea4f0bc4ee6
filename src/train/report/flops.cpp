// SPDX-License-Identifier: BSD-3-Clause
#include "train/report/flops.h"

#include <utility>

namespace moe8 {

double model_flops(const TransformerConfig& config, int64_t seq_len) {
  // An embedding multiplies nothing, unless it is the output projection as well.
  const int64_t looked_up = config.tied_embeddings ? 0 : config.vocab_size * config.dim;
  const double multiplied = static_cast<double>(count_parameters(config).active - looked_up);
  const double attention = static_cast<double>(config.n_layers * config.n_heads) *
                           static_cast<double>(config.query_width() + config.head_width()) / 2 *
                           static_cast<double>(seq_len);
  return 6 * (multiplied + attention);
}

std::optional<double> bf16_peak(std::string_view device) {
  // A part of the name that LibTorch shows, the more special first. Of NVIDIA's data sheets.
  constexpr std::pair<std::string_view, double> kPeaks[] = {
      {"GB200", 2500e12}, {"B200", 2250e12},      {"H100 PCIe", 756e12}, {"H100 NVL", 835e12},
      {"H100", 989e12},   {"H200", 989e12},       {"H800", 989e12},      {"H20", 148e12},
      {"A100", 312e12},   {"A800", 312e12},       {"A40", 149.7e12},     {"A30", 165e12},
      {"A10G", 70e12},    {"A10", 125e12},        {"L40S", 362e12},      {"L40", 181e12},
      {"L4", 121e12},     {"RTX 4090", 165.2e12}, {"RTX 3090", 71e12}};
  if (device.find("MIG ") != std::string_view::npos) return std::nullopt;  // a part of one
  for (const auto& [name, peak] : kPeaks) {
    if (device.find(name) != std::string_view::npos) return peak;
  }
  return std::nullopt;
}

}  // namespace moe8
