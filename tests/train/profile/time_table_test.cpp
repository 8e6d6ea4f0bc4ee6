// SPDX-License-Identifier: BSD-3-Clause
// Classes of kernels, idle time, and operations without those within them.
#include "train/profile/time_table.h"

#include "testing/compare.h"

namespace moe8 {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kMs = 1'000'000;

TEST(TimeTable, OfAGpuByClassWithIdleTime) {
  const std::vector<ProfiledEvent> events{
      {"aten::mm", false, 1, 0, 50 * kMs},  // of the host: not counted beside a GPU's
      {"nvjet_sm90_tst_256x128", true, 7, 10 * kMs, 14 * kMs},
      {"void moe8::cuda::(anonymous namespace)::quantize_rows<a<b>>(c)", true, 7, 20 * kMs,
       22 * kMs},
      {"Memcpy DtoD (Device -> Device)", true, 8, 21 * kMs, 24 * kMs},  // beside the one before
      {"nvjet_sm90_tst_256x128", true, 7, 24 * kMs, 26 * kMs}};
  const TimeTable table = time_table(events, 2);
  EXPECT_TRUE(table.is_of_gpu);
  EXPECT_DOUBLE_EQ(table.span_ms, 8);
  EXPECT_DOUBLE_EQ(table.idle_ms, 3);
  ASSERT_EQ(table.classes.size(), 3u);
  EXPECT_EQ(table.classes[0].name, "products bf16");
  EXPECT_DOUBLE_EQ(table.classes[0].ms, 3);
  EXPECT_DOUBLE_EQ(table.classes[0].calls, 1);
  EXPECT_EQ(table.classes[1].name, "copies");
  EXPECT_EQ(table.classes[2].name, "quantize");
  EXPECT_EQ(table.kernels[2].name, "quantize_rows  (quantize)");
  EXPECT_THAT(to_text(table), HasSubstr("3.000      37.5 %         idle between"));
}

TEST(TimeTable, OfACpuByOperationWithoutThoseWithin) {
  const std::vector<ProfiledEvent> events{{"outer", false, 1, 0, 10 * kMs},
                                          {"inner", false, 1, 2 * kMs, 5 * kMs},
                                          {"innermost", false, 1, 3 * kMs, 4 * kMs},
                                          {"inner", false, 1, 6 * kMs, 7 * kMs},
                                          {"elsewhere", false, 2, 1 * kMs, 12 * kMs}};
  const TimeTable table = time_table(events, 1);
  EXPECT_FALSE(table.is_of_gpu);
  ASSERT_EQ(table.classes.size(), 4u);
  EXPECT_EQ(table.classes[0].name, "elsewhere");
  EXPECT_EQ(table.classes[1].name, "outer");
  EXPECT_DOUBLE_EQ(table.classes[1].ms, 6);
  EXPECT_EQ(table.classes[2].name, "inner");
  EXPECT_DOUBLE_EQ(table.classes[2].ms, 3);
  EXPECT_DOUBLE_EQ(table.classes[2].calls, 2);
  EXPECT_DOUBLE_EQ(table.span_ms, 12);
  EXPECT_DOUBLE_EQ(table.idle_ms, 0);
}

TEST(TimeTable, OfNothing) {
  EXPECT_EQ(time_table({}, 3).span_ms, 0);
  EXPECT_THAT(to_text(time_table({}, 3)), HasSubstr("a step"));
}

TEST(KernelClass, OwnKernelsAndThoseOfLibraries) {
  const std::string grouped =
      "void moe8::cuda::sm90::grouped_gemm_kernel<moe8::cuda::sm90::Config<"
      "(moe8::cuda::GemmElement)";
  EXPECT_EQ(kernel_class(grouped + "0, ..."), "products FP8");
  EXPECT_EQ(kernel_class(grouped + "1, ..."), "products FP8");
  EXPECT_EQ(kernel_class(grouped + "2, ..."), "products bf16");
  EXPECT_EQ(kernel_class("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"),
            "exchanges of ranks");
  EXPECT_EQ(kernel_class("flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel"), "attention");
  EXPECT_EQ(kernel_class("void at::native::vectorized_elementwise_kernel<4, x>(int)"),
            "norms and elementwise");
  EXPECT_EQ(short_kernel_name("void at::native::vectorized_elementwise_kernel<4, x>(int)"),
            "vectorized_elementwise_kernel");
  EXPECT_EQ(short_kernel_name("nvjet_sm90_tst"), "nvjet_sm90_tst");
}

}  // namespace
}  // namespace moe8
