# SPDX-License-Identifier: BSD-3-Clause
"""torchao's own conversion with its products served by moe8, and its configs in moe8.quantize_."""
import torch
from torch import nn
from torchao.prototype.moe_training.config import Float8TrainingOpConfig, MXFP8TrainingOpConfig
from torchao.quantization.quant_api import quantize_

import moe8
from moe8.integrations.torchao import serve

OFFS = torch.tensor([10, 10, 50, 68], dtype=torch.int32)  # of any size: torchao's kernels want multiples of 16


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 48, 64, dtype=torch.bfloat16))

    def forward(self, x):
        return torch._grouped_mm(x, self.w.transpose(-2, -1), offs=OFFS)


def test_served_products_are_moe8s():
    model = nn.ModuleDict({"experts": Experts()})
    w = model["experts"].w.detach().clone().requires_grad_()
    quantize_(model, Float8TrainingOpConfig(), filter_fn=lambda module, fqn: fqn == "experts")
    x = torch.randn(70, 64, dtype=torch.bfloat16, requires_grad=True)
    with serve():
        y = model["experts"](x)
        y.float().square().sum().backward()
    z = x.detach().clone().requires_grad_()
    expected = moe8.grouped_mm(z, w.transpose(-2, -1), OFFS, "fp8_rowwise")
    expected.float().square().sum().backward()
    assert torch.equal(y, expected)
    assert torch.equal(x.grad, z.grad) and torch.equal(model["experts"].w.grad, w.grad)


def test_after_the_block_torchao_computes_again():
    import torchao.prototype.moe_training.tensor as tensor
    before = tensor._quantize_then_scaled_grouped_mm
    with serve():
        assert tensor._quantize_then_scaled_grouped_mm is not before
    assert tensor._quantize_then_scaled_grouped_mm is before


def test_configs():
    for config, recipe in ((Float8TrainingOpConfig(), "fp8_rowwise"), (MXFP8TrainingOpConfig(), "mxfp8_rceil"),
                           (MXFP8TrainingOpConfig(wgrad_with_hp=True), "mxfp8_rceil_wgrad_with_hp")):
        report = moe8.quantize_(nn.ModuleDict({"experts": Experts()}), {"re:.*experts.*": config})
        assert report.rows[0].config == recipe
