# SPDX-License-Identifier: BSD-3-Clause
"""torch.ops.moe8 as operations of torch: opcheck, compile, autocast, checkpoints; and what they refuse."""
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import moe8
from moe8.config import config_text

OPS = torch.ops.moe8
FP8, ROWWISE = config_text("fp8_rowwise"), config_text("rowwise")
OFFS = torch.tensor([10, 10, 50, 68], dtype=torch.int32)


def leaf(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype).requires_grad_(True)


def experts_arguments(gpt_oss):
    tensors = (leaf(20, 64), leaf(4, 96, 64), leaf(4, 64, 48), torch.randint(0, 5, (20, 2)))
    rest = (None, None, None) if gpt_oss else (torch.rand(20, 2, requires_grad=True), leaf(4, 96), leaf(4, 64))
    return (*tensors, *rest, FP8, FP8, gpt_oss, gpt_oss, 1.702, 7.0, False)


def operations():
    x = torch.randn(70, 64)
    yield OPS.grouped_mm, (leaf(70, 64), leaf(4, 48, 64), OFFS, leaf(4, 48), FP8, torch.bfloat16), {}
    yield OPS.linear, (leaf(3, 9, 64), leaf(48, 64), ROWWISE), {}
    yield OPS.moe_experts, experts_arguments(False), {}
    yield OPS.moe_experts, experts_arguments(True), {}
    yield OPS.quantize_mx, (x, "e4m3", "rceil", 0, OFFS), {}
    yield OPS.quantize_mx, (x, "float4_e2m1fn_x2", "floor", -1), {}
    yield OPS.fake_quantize_mx, (x, "e4m3", "rceil", 0, OFFS), {"dtype": torch.bfloat16}
    yield OPS.quantize_float8, (x, "e4m3", True, 0, OFFS), {}
    yield OPS.fake_quantize_float8, (x, "e4m3", True, 1), {}


@pytest.mark.parametrize("operation", range(9))
def test_opcheck(operation):
    op, arguments, named = list(operations())[operation]
    assert set(opcheck(op.default, arguments, named).values()) == {"SUCCESS"}


def test_opcheck_of_decoders():
    x = torch.randn(70, 64)
    # Not test_schema: it multiplies its inputs, and torch has no product of FP8 codes.
    checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    codes = OPS.quantize_float8(x, "e4m3", True, 0, OFFS)
    opcheck(OPS.dequantize_float8.default, (*codes, "e4m3", 0, OFFS), {"dtype": x.dtype}, test_utils=checks)
    codes = OPS.quantize_mx(x, "e4m3", "rceil", 0, OFFS)
    opcheck(OPS.dequantize_mx.default, (*codes, "e4m3", [70, 64], 0, OFFS), {"dtype": x.dtype}, test_utils=checks)


# ---- compile --------------------------------------------------------------------------------------------
def gradients(function, tensors):
    for x in tensors:
        x.grad = None
    out = function(*tensors)
    out.float().square().sum().backward()
    return [out.detach()] + [x.grad for x in tensors]


def layer(x, w1, w2, scores):
    experts = torch.arange(64).view(32, 2) % 4
    y = moe8.moe_experts(x, w1, None, w2, experts, scores)
    y = moe8.grouped_mm(y, w1.transpose(1, 2), torch.tensor([5, 9, 9, 32], dtype=torch.int32), "mxfp8_rceil")
    return moe8.linear(y, w2.flatten(0, 1)[:, :1].expand(-1, 96).contiguous(), config="rowwise")


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_is_eager(backend):
    tensors = [leaf(32, 64, dtype=torch.bfloat16), leaf(4, 96, 64, dtype=torch.bfloat16),
               leaf(4, 64, 48, dtype=torch.bfloat16), torch.rand(32, 2, requires_grad=True)]
    torch._dynamo.reset()
    expected = gradients(layer, tensors)
    got = gradients(torch.compile(layer, fullgraph=True, backend=backend), tensors)
    assert all(torch.equal(a, b) for a, b in zip(expected, got))


# ---- autocast, checkpoints --------------------------------------------------------------------------------
def test_autocast():
    x, w = leaf(9, 64), leaf(48, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = moe8.linear(x, w)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, moe8.linear(x.bfloat16(), w.bfloat16()))
    y.float().sum().backward()
    assert x.grad.dtype == w.grad.dtype == torch.float32


def test_products_inside_autocast_are_the_recipe_s():
    """Values of a tensorwise scale are no bf16 numbers, nor are scores' gradients by a bias; backward is inside as
    well."""
    def experts(x, w1, w2, scores, b2):
        chosen = torch.arange(32).view(16, 2) % 4
        return moe8.moe_experts(x, w1, None, w2, chosen, scores, b2=b2)
    bf16 = torch.bfloat16
    cases = [(lambda x, w: moe8.linear(x, w, config="tensorwise"), (leaf(16, 64, dtype=bf16), leaf(48, 64, dtype=bf16))),
             (experts, (leaf(16, 64, dtype=bf16), leaf(4, 96, 64, dtype=bf16), leaf(4, 64, 48, dtype=bf16),
                        torch.rand(16, 2, requires_grad=True), leaf(4, 64, dtype=bf16)))]
    for function, tensors in cases:
        expected = gradients(function, tensors)
        with torch.autocast("cpu", dtype=bf16):
            got = gradients(function, tensors)
        assert all(torch.equal(a, b) for a, b in zip(expected, got))


def test_checkpoint():
    tensors = leaf(70, 64), leaf(4, 64, 48)
    product = lambda a, b: moe8.grouped_mm(a, b, OFFS, "mxfp8_rceil")
    expected = gradients(product, tensors)
    got = gradients(lambda *t: checkpoint(product, *t, use_reentrant=False), tensors)
    assert all(torch.equal(a, b) for a, b in zip(expected, got))


def test_selective_checkpoint_saves_by_name():
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
    calls = []

    def policy(_context, op, *_arguments, **_named):
        calls.append(str(op))
        return CheckpointPolicy.MUST_SAVE if op == OPS.grouped_mm.default else CheckpointPolicy.PREFER_RECOMPUTE
    tensors = leaf(70, 64), leaf(4, 64, 48)
    product = lambda a, b: moe8.grouped_mm(a, b, OFFS) * 2
    expected = gradients(product, tensors)
    got = gradients(lambda *t: checkpoint(product, *t, use_reentrant=False, context_fn=lambda:
                                          create_selective_checkpoint_contexts(policy)), tensors)
    assert "moe8.grouped_mm.default" in calls
    assert all(torch.equal(a, b) for a, b in zip(expected, got))


# ---- threads ----------------------------------------------------------------------------------------------
def test_any_number_of_threads_gives_the_same_bits():
    x = torch.randn(4096, 512) * torch.randn(4096, 1).exp()
    calls = [lambda: OPS.quantize_mx(x, "e4m3", "rceil", 0, torch.tensor([7, 4000], dtype=torch.int32)),
             lambda: OPS.quantize_float8(x, "e4m3", True, 1), lambda: OPS.quantize_float8(x, "e5m2")]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append([part.flatten().view(torch.uint8) for call in calls for part in call()])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_threads_share_no_memory_of_small_products():
    inputs = [(leaf(4, 64), leaf(48, 64)) for _ in range(4)]

    def gradients_many_times(tensors):
        return [gradients(moe8.linear, tensors) for _ in range(50)]
    expected = [gradients(moe8.linear, tensors) for tensors in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(gradients_many_times, inputs))
    assert all(torch.equal(a, b) for once, many in zip(expected, results) for got in many for a, b in zip(once, got))


def test_inference_mode_before_training():
    tensors = leaf(5, 64), leaf(48, 64)
    with torch.inference_mode():
        expected = moe8.linear(*tensors).clone()
    assert torch.equal(gradients(moe8.linear, tensors)[0], expected)


def test_no_gradient_is_needed():
    grads = OPS.grouped_mm_backward(torch.zeros(70, 48), torch.zeros(70, 64), torch.zeros(4, 48, 64), OFFS, FP8, False,
                                    False)
    assert [grad.numel() for grad in grads] == [0, 0]


def test_requests_are_as_long_as_the_library_s():
    from moe8 import _products
    assert (_products._OPERAND.size, _products._POINTERS.size + _products._NUMBERS.size) == (72, 176)


# ---- edges ------------------------------------------------------------------------------------------------
def test_no_tokens():
    x, w, w2 = leaf(0, 64), leaf(4, 96, 64), leaf(4, 64, 48)
    y = moe8.moe_experts(x, w, None, w2, torch.zeros((0, 2), dtype=torch.long))
    y.sum().backward()
    assert y.shape == (0, 64) and w.grad.abs().max() == 0 and w2.grad.abs().max() == 0


def test_shapes_on_meta():
    A, W = torch.empty(4, 8, device="meta"), torch.empty(2, 3, 8, device="meta")
    offs = torch.empty(2, dtype=torch.int32, device="meta")
    y = moe8.grouped_mm(A, W.transpose(1, 2), offs)
    assert y.is_meta and y.shape == (4, 3) and y.dtype == torch.bfloat16


def test_once_only():
    for product, message in ((moe8.linear, "once_differentiable"),
                             (lambda x, w: OPS.linear(x, w, ROWWISE), "expected one differentiation")):
        x, w = leaf(9, 64), leaf(48, 64)
        (grad,) = torch.autograd.grad(product(x, w).square().sum(), x, create_graph=True)
        with pytest.raises((moe8.Error, RuntimeError), match=message):
            grad.sum().backward()


@pytest.mark.parametrize("call, message", [
    (lambda: moe8.grouped_mm(torch.zeros(4, 8), torch.zeros(2, 9, 3), OFFS[:2]),
     "[grouped_mm] B_t: expected [E, 8, N] to fit A of [4, 8], got [2, 9, 3]. Weights (E, N, K) are passed as "
     "W.transpose(-2, -1)"),
    (lambda: moe8.grouped_mm(torch.zeros(4, 8), torch.zeros(2, 8, 3), OFFS[:2].long()),
     "[grouped_mm] offs: expected 1-D int32 end rows, got int64 [2] on cpu. cumsum() gives int64: call "
     ".to(torch.int32)"),
    (lambda: moe8.grouped_mm(torch.zeros(4, 8), torch.zeros(2, 8, 3), torch.tensor([3, 2], dtype=torch.int32)),
     "[grouped_mm] offs: expected non-decreasing end rows from 0 on, got 2 after 3 at index 1"),
    (lambda: moe8.grouped_mm(torch.zeros(4, 8).half(), torch.zeros(2, 8, 3), OFFS[:2]),
     "[grouped_mm] A: expected bfloat16 or float32, got float16 [4, 8] on cpu"),
    (lambda: moe8.linear(torch.zeros(4, 8), torch.zeros(3, 8), config="fp8_rowwise"),
     "[linear] config: expected an MXLinearConfig or Float8LinearConfig, got FP8GroupedMMConfig(out_dtype=bfloat16)"),
    (lambda: moe8.moe_experts(torch.zeros(4, 8), torch.zeros(2, 6, 8), None, torch.zeros(2, 8, 4),
                              torch.zeros((4, 1), dtype=torch.long)),
     "[moe_experts] w2: expected [2, 8, 3] on cpu, got float32 [2, 8, 4] on cpu. Weights stored as (E, in, out) are "
     "passed as W.transpose(-2, -1)"),
    (lambda: OPS.quantize_mx(torch.zeros(4), "e4m4", "rceil"), "[quantize_mx] elem: expected one of float8_e4m3fn, "),
    (lambda: OPS.quantize_float8(torch.zeros(4), "e2m1"),
     "[quantize_float8] elem: expected float8_e4m3fn or float8_e5m2, got e2m1"),
    (lambda: moe8.linear(torch.zeros(4, 8), torch.zeros(3, 8), config="rowise"), "rowwise"),
    (lambda: moe8.linear(torch.zeros(4, 8), torch.zeros(3, 8), config=moe8.MXLinearConfig(block_size=16)),
     "[MXLinearConfig] block_size: expected 32"),
])
def test_errors(call, message):
    with pytest.raises(moe8.Error, match=re.escape(message)):
        call()
