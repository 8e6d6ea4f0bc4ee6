// SPDX-License-Identifier: BSD-3-Clause
// moe8 conformance on cases made here: right ones pass, and everything that is wrong, missing or
// unreadable fails by its own line.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <sstream>

#include "apps/run_command.h"
#include "device/cuda_backend.h"
#include "moe8/blocked_scales.h"
#include "moe8/float8.h"
#include "moe8/grouped_mm.h"
#include "moe8/linear.h"
#include "moe8/mx.h"
#include "moe8/safetensors.h"
#include "testing/fill.h"
#include "testing/folder.h"

namespace moe8::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// A case as it will stand in a file; tests change one thing and save it.
struct Case {
  std::string parameters;
  std::map<std::string, at::Tensor> tensors;

  void save(const TemporaryFolder& folder, const std::string& name) const {
    save_safetensors(folder / (name + ".safetensors"), {tensors.begin(), tensors.end()},
                     {{"case", parameters}});
  }
  Case without(const std::string& name) const {
    Case other = *this;
    other.tensors.erase(name);
    return other;
  }
  Case with(const std::string& name, const at::Tensor& tensor) const {
    Case other = *this;
    other.tensors[name] = tensor;
    return other;
  }
  // The first element another one: its lowest bit flipped.
  Case with_flipped_bit(const std::string& name) const {
    const at::Tensor changed = tensors.at(name).clone();
    static_cast<uint8_t*>(changed.mutable_data_ptr())[0] ^= 1;
    return with(name, changed);
  }
};

at::Tensor bytes(const at::Tensor& x) {
  return x.contiguous().view(at::kByte);
}

Case mx_case() {
  at::Tensor input = wide_normal({4, 96}, at::kBFloat16, 1);
  input[3][70] = std::numeric_limits<float>::quiet_NaN();
  const MXTensor mx = quantize_mx(input, ElemDtype::E4M3, ScaleCalculationMode::RCEIL);
  at::Tensor data = bytes(mx.data).clone();
  data[3][70].bitwise_xor_(0x80);  // a NaN of the other sign is as good
  return {R"({"kind": "mx_quantize", "elem_dtype": "float8_e4m3fn",
              "scale_calculation_mode": "rceil", "block_size": 32, "axis": -1, "note": "x"})",
          {{"input", input},
           {"data", data},
           {"scale", bytes(mx.scale)},
           {"dequantized", dequantize(mx, at::kFloat)}}};
}

Case float8_case() {
  const at::Tensor input = wide_normal({5, 48}, at::kFloat, 2);
  const Float8Tensor q =
      quantize_float8(input, Float8Granularity::axiswise(0), ElemDtype::E5M2, true);
  return {R"({"kind": "fp8_quantize", "granularity": "axiswise", "axis": 0,
              "round_scales_to_power_of_2": true, "elem_dtype": "float8_e5m2"})",
          {{"input", input}, {"data", bytes(q.data)}, {"scale", q.scale}}};
}

Case float8_groups_case() {
  const at::Tensor input = wide_normal({48, 16}, at::kBFloat16, 3);
  const at::Tensor offs = offs_of({17, 0, 31});
  const Float8Tensor q =
      quantize_float8(input, Float8Granularity::axiswise(0), ElemDtype::E4M3, true, offs);
  const at::Tensor scale = q.scale.clone();
  scale[1].fill_(123);  // an empty group's scale is not compared
  return {R"({"kind": "fp8_quantize_groups", "axis": 0, "round_scales_to_power_of_2": true,
              "elem_dtype": "float8_e4m3fn", "group_sizes": [17, 0, 31]})",
          {{"input", input}, {"offs", offs}, {"data", bytes(q.data)}, {"scale", scale}}};
}

Case grouped_case() {
  MXFP8GroupedMMConfig config{.out_dtype = at::kFloat, .wgrad_with_hp = true};
  const at::Tensor A = wide_normal({50, 64}, at::kBFloat16, 4).requires_grad_(true);
  const at::Tensor B = wide_normal({3, 32, 64}, at::kBFloat16, 5).requires_grad_(true);
  const at::Tensor offs = offs_of({33, 0, 15});
  const at::Tensor grad_out = wide_normal({50, 32}, at::kFloat, 6);
  const at::Tensor out = to_mxfp8_then_scaled_grouped_mm(A, B.transpose(1, 2), offs, config);
  out.backward(grad_out);
  return {R"({"kind": "grouped_mm", "recipe": "mxfp8", "kernel_preference": "emulated",
              "out_dtype": "float32", "scale_calculation_mode": "rceil", "wgrad_with_hp": true})",
          {{"A", A.detach()},
           {"B", B.detach()},
           {"offs", offs},
           {"grad_out", grad_out},
           {"out", out.detach()},
           {"grad_A", A.grad()},
           {"grad_B", B.grad()}}};
}

Case linear_case() {
  MXLinearConfig config{.elem_dtype_grad_output_override = ElemDtype::E5M2};
  const at::Tensor x = wide_normal({2, 7, 64}, at::kBFloat16, 7).requires_grad_(true);
  const at::Tensor weight = wide_normal({32, 64}, at::kBFloat16, 8).requires_grad_(true);
  const at::Tensor bias = wide_normal({32}, at::kBFloat16, 9).requires_grad_(true);
  const at::Tensor grad_out = wide_normal({2, 7, 32}, at::kBFloat16, 10);
  const at::Tensor out = quantize_then_linear(x, weight, bias, config);
  out.backward(grad_out);
  return {R"({"kind": "linear", "config": "MXLinearConfig", "recipe": "mxfp8_emulated",
              "elem_dtype_grad_output_override": "float8_e5m2"})",
          {{"x", x.detach()},
           {"weight", weight.detach()},
           {"bias", bias.detach()},
           {"grad_out", grad_out},
           {"out", out.detach()},
           {"grad_x", x.grad()},
           {"grad_weight", weight.grad()},
           {"grad_bias", bias.grad()}}};
}

Case blocked_k_groups_case() {
  const at::Tensor scale = at::randint(256, {100, 30}, at::kByte);
  const at::Tensor offs = offs_of({7, 0, 23});
  const BlockedGroups groups = to_blocked_k_groups(scale, offs);
  return {
      R"({"kind": "to_blocked_k_groups"})",
      {{"scale", scale}, {"offs", offs}, {"blocked", groups.blocked}, {"start_col", groups.start}}};
}

constexpr const char* kTables = R"({"kind": "fqn_to_config",
  "modules": [["", "Model"], ["wq", "Linear"], ["tok", "Embedding"], ["experts", "Experts"]],
  "parameters": [["wq.weight", [8, 8]], ["tok.weight", [8, 8]], ["experts.w1", [2, 8, 8]]],
  "tables": [
    {"config": [["re:.*experts.*", "mx_rceil"], ["_default", "linear"]],
     "expected": {"converted": {"experts.w1": "mx_rceil", "wq.weight": "linear"}}},
    {"config": [["", "fp8"], ["experts.w1", null]], "expected": {"converted": {}}},
    {"config": [["wq.weight", "mx_emu"]], "expected": {"error_names": ["wq.weight"]}}]})";

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// The line of a file's case.
std::string line_about(const Ran& ran, const std::string& file) {
  for (const std::string& line : lines_of(ran.out)) {
    if (line.find(" " + file) != std::string::npos) return line;
  }
  return "no line about " + file + " in:\n" + ran.out;
}

TEST(Conformance, RightCasesOfEveryKindPass) {
  const TemporaryFolder folder;
  mx_case().save(folder, "mx");
  float8_case().save(folder, "float8");
  float8_groups_case().save(folder, "float8_groups");
  grouped_case().save(folder, "grouped");
  linear_case().save(folder, "linear");
  blocked_k_groups_case().save(folder, "blocked");
  folder.write("fqn_to_config.json", kTables);
  folder.write("README.md", "not a case");
  const Ran ran = run_moe8({"conformance", folder / ""});
  EXPECT_EQ(ran.status, 0) << ran.out;
  EXPECT_EQ(ran.err, "");
  const std::vector<std::string> lines = lines_of(ran.out);
  ASSERT_EQ(lines.size(), 10u) << ran.out;
  EXPECT_EQ(lines.back(), "9 passed, 0 failed");
  EXPECT_THAT(line_about(ran, "mx.safetensors"),
              AllOf(StartsWith("ok "), HasSubstr("mx_quantize"), HasSubstr("0 of "),
                    HasSubstr("bit for bit")));
  EXPECT_THAT(line_about(ran, "grouped.safetensors"),
              AllOf(HasSubstr("grad_A"), HasSubstr(">= 40 dB")));
}

TEST(Conformance, TamperedCasesFail) {
  const TemporaryFolder folder;
  mx_case().with_flipped_bit("data").save(folder, "mx-data");
  mx_case().with_flipped_bit("scale").save(folder, "mx-scale");
  mx_case().with_flipped_bit("dequantized").save(folder, "mx-dequantized");
  float8_case().with_flipped_bit("scale").save(folder, "float8-scale");
  float8_groups_case().with_flipped_bit("scale").save(folder, "groups-scale");
  blocked_k_groups_case().with_flipped_bit("start_col").save(folder, "blocked-start");
  for (const char* name : {"out", "grad_A", "grad_B"}) {  // 2 % off: 34 dB
    const Case grouped = grouped_case();
    grouped.with(name, grouped.tensors.at(name) * 1.02)
        .save(folder, std::string("grouped-") + name);
  }
  const Case linear = linear_case();
  linear.with("grad_bias", at::zeros_like(linear.tensors.at("grad_bias"))).save(folder, "linear");
  at::Tensor nan = linear.tensors.at("out").clone();
  nan.view(-1)[0] = std::numeric_limits<float>::quiet_NaN();
  linear.with("out", nan).save(folder, "linear-nan");
  std::string tables = kTables;
  tables.replace(tables.find("\"converted\": {}"), 15, "\"converted\": {\"experts.w1\": \"fp8\"}");
  folder.write("tables.json", tables);

  const Ran ran = run_moe8({"conformance", folder / ""});
  EXPECT_EQ(ran.status, 1);
  EXPECT_THAT(line_about(ran, "mx-data"), AllOf(StartsWith("FAILED"), HasSubstr("data at [0, 0]")));
  EXPECT_THAT(line_about(ran, "groups-scale"), HasSubstr("scale of group 0"));
  EXPECT_THAT(line_about(ran, "blocked-start"), HasSubstr("start_col at [0]"));
  EXPECT_THAT(line_about(ran, "linear-nan"), HasSubstr("not finite"));
  EXPECT_THAT(line_about(ran, "tables.json table 1"),
              AllOf(StartsWith("FAILED"), HasSubstr("experts.w1: expected fp8, got nothing")));
  EXPECT_EQ(lines_of(ran.out).back(), "2 passed, 12 failed") << ran.out;
}

TEST(Conformance, WhatCannotBeCheckedFails) {
  const TemporaryFolder folder;
  mx_case().save(folder, "whole");
  const std::string whole = folder.read("whole.safetensors");
  std::filesystem::remove(folder / "whole.safetensors");
  folder.write("truncated.safetensors", whole.substr(0, whole.size() - 10));
  folder.write("cut-header.safetensors", whole.substr(0, 40));
  folder.write("empty.safetensors", "");
  folder.write("noise.safetensors", std::string(500, '\x7f'));
  std::filesystem::create_directory(folder / "folder.safetensors");
  std::filesystem::create_symlink("nowhere", folder / "dangling.safetensors");
  Case{R"({"kind": "to_the_moon"})", {{"x", at::zeros({1})}}}.save(folder, "unknown-kind");
  Case{R"({"kind": 7})", {{"x", at::zeros({1})}}}.save(folder, "kind-number");
  Case{"{{", {{"x", at::zeros({1})}}}.save(folder, "not-json");
  save_safetensors(folder / "no-case.safetensors", {{"x", at::zeros({1})}});
  mx_case().without("scale").save(folder, "missing-tensor");
  linear_case().without("grad_bias").save(folder, "missing-grad");
  linear_case().with("out", at::zeros({7, 32})).save(folder, "wrong-shape");
  Case bad = grouped_case();
  bad.parameters = R"({"kind": "grouped_mm", "recipe": "mxfp8", "block": 16})";
  bad.save(folder, "unknown-field");
  bad.parameters = R"({"kind": "grouped_mm", "recipe": "mxfp9"})";
  bad.save(folder, "unknown-recipe");
  grouped_case().with("offs", offs_of({33, 0, 9999})).save(folder, "offs-past-end");
  folder.write("tables.json", "[");
  folder.write("other.json", R"({"kind": "something"})");

  const Ran ran = run_moe8({"conformance", folder / ""});
  EXPECT_EQ(ran.status, 1) << ran.err;
  EXPECT_EQ(ran.err, "");
  EXPECT_EQ(lines_of(ran.out).size(), 19u) << ran.out;
  EXPECT_EQ(lines_of(ran.out).back(), "0 passed, 18 failed") << ran.out;
  EXPECT_THAT(ran.out, ::testing::Not(HasSubstr(".cpp")));  // no backtrace
  EXPECT_THAT(line_about(ran, "unknown-kind"), HasSubstr("expected one of mx_quantize"));
  EXPECT_THAT(line_about(ran, "missing-tensor"), HasSubstr("scale"));
  EXPECT_THAT(line_about(ran, "wrong-shape"), HasSubstr("expected shape [7, 32]"));
  EXPECT_THAT(line_about(ran, "unknown-field"), HasSubstr("there is no such field"));
}

TEST(Conformance, AFolderWithoutCasesFails) {
  const TemporaryFolder folder;
  const Ran missing = run_moe8({"conformance", folder / "nowhere"});
  EXPECT_EQ(missing.status, 1);
  EXPECT_THAT(missing.err, AllOf(StartsWith("moe8: [conformance] DIR: expected a folder"),
                                 HasSubstr("nowhere")));
  const Ran empty = run_moe8({"conformance", folder / ""});
  EXPECT_EQ(empty.status, 1);
  EXPECT_THAT(empty.err, HasSubstr("got none"));
}

TEST(Conformance, CudaIsRefusedWithItsReasonWhereItCannotBeUsed) {
  const std::optional<std::string> failure = load_cuda_backend();
  if (!failure) GTEST_SKIP() << "CUDA can be used here; ctest's cuda/conformance checks it";
  const Ran ran = run_moe8({"conformance", ".", "--device", "cuda"});
  EXPECT_EQ(ran.status, 1);
  EXPECT_THAT(ran.err, HasSubstr(*failure));
}

}  // namespace
}  // namespace moe8::testing
