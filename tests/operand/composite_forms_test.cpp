// SPDX-License-Identifier: BSD-3-Clause
// FP8 codes as LibTorch's products read them: what they stand for, their layout, their padding.
#include "operand/composite_forms.h"

#include <torch/torch.h>

#include "testing/compare.h"
#include "testing/fill.h"

namespace moe8 {
namespace {

const std::vector<Float8Format>& formats() {
  static const std::vector<Float8Format> all = {
      {ElemDtype::E4M3, ScalingGranularity::AXISWISE, true},
      {ElemDtype::E4M3, ScalingGranularity::TENSORWISE, false},
      {ElemDtype::E5M2, ScalingGranularity::TENSORWISE, false}};
  return all;
}

// The values of codes whose last axis is the contraction, scales one per row.
at::Tensor values_of(const Form& form, const Float8Format& format, int64_t contracted) {
  const at::Tensor codes =
      form.data.view(format.elem == ElemDtype::E4M3 ? at::kFloat8_e4m3fn : at::kFloat8_e5m2);
  return codes.to(at::kFloat).narrow(-1, 0, contracted) * form.decode_scale.unsqueeze(-1);
}

TEST(CompositeForms, CodesStandForTheValues) {
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{37, 50}, {3, 20, 33}}) {
    const at::Tensor x = testing::wide_normal(sizes, at::kBFloat16, 21);
    const int64_t last = x.dim() - 1;
    for (const Float8Format& format : formats()) {
      for (const int64_t axis : {last, last - 1}) {
        SCOPED_TRACE(c10::str(to_string(OperandFormat(format)), " axis ", axis));
        const std::vector<Form> forms = make_composite_forms(
            x, {{format, axis, Encoding::FLOAT8}, {format, axis, Encoding::FLOAT32}}, {});
        ASSERT_EQ(forms.size(), 2u);
        const Form& codes = forms[0];
        EXPECT_EQ(codes.data.scalar_type(), at::kByte);
        EXPECT_TRUE(codes.data.is_contiguous());
        EXPECT_EQ(codes.data.size(-1) % 16, 0);
        const at::Tensor expected =
            axis == last ? forms[1].data : forms[1].data.transpose(last - 1, last).contiguous();
        EXPECT_TRUE(testing::same_values(expected, values_of(codes, format, x.size(axis))));
        const int64_t pitch = codes.data.size(-1);
        EXPECT_EQ(codes.data.narrow(-1, x.size(axis), pitch - x.size(axis))
                      .count_nonzero()
                      .item<int64_t>(),
                  0);
      }
    }
  }
}

}  // namespace
}  // namespace moe8
