// SPDX-License-Identifier: BSD-3-Clause
// silu(gate) * up and its gradients: any count, any address, in place.
#include "cuda/nn/gate.h"

#include <cmath>

#include "cuda/nn_check/check.h"
#include "reference/model.h"

namespace moe8::cuda {
namespace {

void check_count(int64_t count, int64_t shift, FloatType type, std::mt19937& rng) {
  const std::string what =
      "gate of " + std::to_string(count) + " shift " + std::to_string(shift) + " " + name_of(type);
  Numbers gate(type, count, rng, 3, shift), up(type, count, rng, 2, shift);
  Numbers grad(type, count, rng, 1, shift);
  if (count > 3) gate.set(0, 200), gate.set(1, -200), gate.set(2, 0);
  Numbers out(type, count, shift), to_gate(type, count, shift), to_up(type, count, shift);
  run_twice(what, {&out}, [&] {
    return launch_gate({gate.device(), up.device(), type, count, out.device()}, nullptr);
  });
  run_twice(what + " backward", {&to_gate, &to_up}, [&] {
    return launch_gate_backward(
        {gate.device(), up.device(), grad.device(), type, count, to_gate.device(), to_up.device()},
        nullptr);
  });
  std::vector<Expected> values, of_gate, of_up;
  for (int64_t i = 0; i < count; ++i) {
    const reference::Gate g = reference::gate(gate.at(i), up.at(i));
    const double dy = grad.at(i);
    values.push_back({g.value, 2e-6 * std::abs(g.value)});
    of_gate.push_back(
        {dy * g.by_gate, 2e-6 * std::abs(dy * up.at(i)) * (1 + std::abs(gate.at(i)))});
    of_up.push_back({dy * g.by_up, 2e-6 * std::abs(dy * g.by_up)});
  }
  // A sigmoid below 2^-126 is 0.
  for (auto* list : {&values, &of_gate, &of_up}) {
    for (Expected& e : *list) e.tolerance += 1e-35;
  }
  expect_close(what, out, values);
  expect_close(what + " of gate", to_gate, of_gate);
  expect_close(what + " of up", to_up, of_up);

  const Bytes expected_gate = to_gate.bytes(), expected_up = to_up.bytes();
  require(launch_gate_backward({gate.device(), up.device(), grad.device(), type, count,
                                gate.device(), grad.device()},
                               nullptr),
          "gate in place");
  require(cudaDeviceSynchronize(), "gate in place");
  expect(gate.bytes() == expected_gate && grad.bytes() == expected_up, what + ": in place");
}

}  // namespace

void check_gate(std::mt19937& rng, int random_shapes) {
  std::vector<int64_t> counts{0, 1, 7, 8, 9, 2048, 2049, 100003};
  for (int i = 0; i < random_shapes; ++i) counts.push_back(static_cast<int64_t>(rng() % 9000));
  for (const int64_t count : counts) {
    for (const FloatType type : kTypes) {
      for (const int64_t shift : {0, 3}) check_count(count, shift, type, rng);
    }
  }
}

}  // namespace moe8::cuda
