# SPDX-License-Identifier: BSD-3-Clause
"""Every operation gives the bits of the C++ one of the same name."""
import torch

import moe8


def same(name, expected, got):
    assert expected.dtype == got.dtype and expected.shape == got.shape, name
    assert torch.equal(expected, got), f"{name}: {(expected != got).sum()} of {got.numel()} elements differ"


def leaf(tensor):
    return tensor.clone().requires_grad_(True)


def grouped_cases(cases, operation):
    assert len(cases[operation]) >= 12
    for case, t in cases[operation].items():
        yield case, case.rpartition("-")[0], t


def test_mx(cases):
    assert len(cases["mx"]) == 40
    offs = cases["quantize"]["all"]["offs"]
    for case, t in cases["mx"].items():
        dtype, elem, mode = case.split("-")
        x = cases["quantize"][dtype]["x"]
        data, scale = torch.ops.moe8.quantize_mx(x, elem, mode)
        same(case, t["data"], data.view(torch.uint8))
        same(case, t["scale"], scale.view(torch.uint8))
        data, scale = torch.ops.moe8.quantize_mx(x, elem, mode, 0, offs)
        same(case, t["group_data"], data.view(torch.uint8))
        same(case, t["group_scale"], scale.view(torch.uint8))
        same(case, t["values"], torch.ops.moe8.fake_quantize_mx(x, elem, mode, 0, offs))
        same(case, t["values"], torch.ops.moe8.dequantize_mx(data, scale, elem, list(x.shape), 0, offs, dtype=x.dtype))


def test_float8(cases):
    assert len(cases["float8"]) == 8
    offs = cases["quantize"]["all"]["offs"]
    for case, t in cases["float8"].items():
        dtype, elem, rounding = case.split("-")
        x = cases["quantize"][dtype]["x"]
        for how, axis, groups in (("tensor", None, None), ("rows", 1, None), ("columns", 0, None), ("groups", 0, offs)):
            arguments = (elem, rounding == "pow2", axis, groups)
            data, scale = torch.ops.moe8.quantize_float8(x, *arguments)
            same(case, t[f"{how}_data"], data.view(torch.uint8))
            same(case, t[f"{how}_scale"], scale)
            same(case, t[f"{how}_values"], torch.ops.moe8.fake_quantize_float8(x, *arguments))
            same(case, t[f"{how}_values"],
                 torch.ops.moe8.dequantize_float8(data, scale, elem, axis, groups, dtype=x.dtype))


def test_grouped_mm(cases):
    for case, recipe, t in grouped_cases(cases, "grouped"):
        A, W, bias = leaf(t["A"]), leaf(t["W"]), leaf(t["bias"])
        out = moe8.grouped_mm(A, W.transpose(1, 2), t["offs"], recipe, bias)
        same(case, t["out"], out)
        out.backward(t["grad_out"])
        for name, x in (("grad_A", A), ("grad_W", W), ("grad_bias", bias)):
            same(f"{case} {name}", t[name], x.grad)
        same(case, t["grad_W"], moe8.grouped_mm_wgrad(t["grad_out"], t["A"], t["offs"], recipe))


def test_linear(cases):
    for case, recipe, t in grouped_cases(cases, "linear"):
        x, W, bias = leaf(t["x"]), leaf(t["W"]), leaf(t["bias"])
        out = moe8.linear(x, W, bias, recipe)
        same(case, t["out"], out)
        out.backward(t["grad_out"])
        for name, tensor in (("grad_x", x), ("grad_W", W), ("grad_bias", bias)):
            same(f"{case} {name}", t[name], tensor.grad)


def test_moe_experts(cases):
    for case, recipe, t in grouped_cases(cases, "experts"):
        kind = case.rpartition("-")[2]
        leaves = {name: leaf(t[name]) for name in ("x", "w1", "w2", "w3", "scores", "b1", "b2") if name in t}
        options = {"scores_on": "input"} if kind == "input" else {}
        if kind == "gpt":
            options = {"gate_up": "interleaved", "activation": "clamped_swiglu", "b1": leaves["b1"], "b2": leaves["b2"]}
        out = moe8.moe_experts(leaves["x"], leaves["w1"], leaves.get("w3"), leaves["w2"], t["experts"],
                               leaves["scores"], config=recipe, **options)
        same(case, t["out"], out)
        out.backward(t["grad_out"])
        for name, tensor in leaves.items():
            same(f"{case} grad_{name}", t[f"grad_{name}"], tensor.grad)
