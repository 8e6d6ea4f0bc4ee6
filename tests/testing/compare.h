// SPDX-License-Identifier: BSD-3-Clause
// How tests compare: bit for bit where docs/numerics.md says exact, by SQNR elsewhere, errors by
// text.
#pragma once

#include <ATen/core/Tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

namespace moe8::testing {

/// Same shape, dtype and bytes. Names the first difference: index, expected, got.
::testing::AssertionResult same_bits(const at::Tensor& expected, const at::Tensor& got);

/// As same_bits, but any NaN equals any NaN (floating dtypes, float8 included).
::testing::AssertionResult same_values(const at::Tensor& expected, const at::Tensor& got);

/// 20 log10(|reference| / |reference - got|) in dB; infinite when equal; -infinite for NaN.
double sqnr_db(const at::Tensor& reference, const at::Tensor& got);

/// The shortest of a few calls, so that what else the machine does hardly counts.
double least_seconds(const std::function<void()>& call);

/// The message of the c10::Error that `call` throws, or "(no error)".
std::string error_of(const std::function<void()>& call);

}  // namespace moe8::testing
