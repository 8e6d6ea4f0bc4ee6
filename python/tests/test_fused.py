# SPDX-License-Identifier: BSD-3-Clause
"""The layer of experts by fused kernels, as far as a CPU can tell: which calls they take, what a forward keeps, what
the library is told. What they compute is compared on a GPU by bench/python_on_gpu.py."""
import pathlib
import re

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import moe8
from moe8 import _experts, _fused, _native, _products
from moe8.config import config_text

from conftest import sqnr

BF16, F32 = torch.bfloat16, torch.float32
GPU = torch.device("cuda", 0)
OPS = torch.ops.moe8


def options(config13="fp8_rowwise", config2=None, interleaved=False, clamped=False):
    text = config_text(config13)
    return _experts.Options(text, text if config2 is None else config_text(config2), interleaved, clamped, 1.702, 7.0,
                            False)


# ---- which calls ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("config, dtypes, reason", [
    ("fp8_rowwise", (BF16, BF16, BF16), None),
    ("fp8_rowwise", (F32, F32, F32), None),  # everything is quantized, and H is bf16 by the config
    ("mxfp8_rceil", (BF16, F32, BF16), None),
    ("mxfp8_floor", (F32, BF16, BF16), None),
    ("mxfp8_rceil_wgrad_with_hp", (BF16, F32, F32), None),
    ("mxfp8_rceil_wgrad_with_hp", (F32, BF16, BF16), "x is not bfloat16, and a product reads it as it is"),
    ("none", (BF16, BF16, BF16), None),
    ("none", (BF16, F32, BF16), "w1 is not bfloat16, and a product reads it as it is"),
    ("none", (BF16, BF16, F32), "w2 is not bfloat16, and a product reads it as it is"),
    ("none", (F32, F32, F32), "hidden rows are not bfloat16"),
    (moe8.FP8GroupedMMConfig(out_dtype=F32), (BF16, BF16, BF16), "hidden rows are not bfloat16"),
])
def test_which_calls(config, dtypes, reason):
    o = options(config)
    hidden = _experts.hidden_dtype(torch.empty(0, dtype=dtypes[0]), o)
    assert _fused.refusal(GPU, *dtypes, hidden, o) == reason
    assert _fused.refusal(torch.device("cpu"), *dtypes, hidden, o) == "tokens are not on a GPU"


def test_weights_of_two_configs():
    hidden = BF16
    assert _fused.refusal(GPU, F32, F32, BF16, hidden, options("fp8_rowwise", "mxfp8_rceil")) is None
    reason = _fused.refusal(GPU, F32, F32, BF16, hidden, options("fp8_rowwise", "none"))
    assert reason == "the gradient of the result is not bfloat16, and a product reads it as it is"


def test_switched_off(monkeypatch):
    monkeypatch.setattr(_fused, "is_wanted", False)
    assert _fused.refusal(GPU, BF16, BF16, BF16, BF16, options()) == "moe8._fused.is_wanted is False"


@pytest.mark.parametrize("config, keeps", [("fp8_rowwise", True), ("mxfp8_rceil", False), ("none", False)])
def test_codes_of_x_are_kept_where_they_make_the_weight_s_gradient(config, keeps):
    assert _fused.keeps_codes(BF16, BF16, BF16, BF16, options(config)) is keeps


# ---- what is passed ----------------------------------------------------------------------------------------
def test_requests_are_as_long_as_the_library_s():
    header = (pathlib.Path(__file__).parents[1] / "native" / "interface.h").read_text()
    sizes = {name: int(size) for name, size in re.findall(r"sizeof\((\w+)\) == (\d+)", header)}
    assert sizes == {"Moe8Operand": _products._OPERAND.size, "Moe8Product": _products._PRODUCT.size,
                     "Moe8Experts": _fused._HEAD.size + _fused._TAIL.size}
    assert _fused._HEAD.size % 8 == 0  # numbers of 8 bytes follow


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (16, 2, 64, 4), (131, 7, 33, 3), (4096, 8, 2048, 128)])
@pytest.mark.parametrize("codes", [False, True])
def test_python_and_the_library_lay_out_what_is_kept_alike(shape, codes):
    tokens, top_k, columns, experts = shape
    total = _native.ask("fused_experts_saved", tokens=tokens, top_k=top_k, columns=columns, experts=experts,
                        keeps_codes=codes)
    slots, rows, offs, end = _fused.layout(*shape, codes)
    assert end == total and offs + 4 * experts <= end
    assert rows - slots >= 4 * tokens * top_k and offs - rows >= 4 * tokens * top_k
    assert slots >= (tokens * columns + 4 * tokens + 4 * experts * columns if codes else 0)
    assert all(offset % 16 == 0 for offset in (slots, rows, offs))


# ---- fake kernels: what a forward on a GPU keeps -------------------------------------------------------------
def fake_layer(o):
    x = torch.empty(32, 64, dtype=BF16, device="cuda", requires_grad=True)
    w13 = torch.empty(4, 96, 64, dtype=BF16, device="cuda", requires_grad=True)
    w2 = torch.empty(4, 64, 48, dtype=BF16, device="cuda", requires_grad=True)
    experts = torch.empty(32, 2, dtype=torch.int64, device="cuda")
    scores = torch.empty(32, 2, dtype=F32, device="cuda", requires_grad=True)
    rest = (w13, w2, experts, scores, None, None, o.config13, o.config2, o.interleaved, o.clamped, o.alpha, o.limit,
            o.scores_on_input)
    return x, rest, OPS.moe_experts(x, *rest)


@pytest.mark.parametrize("config, codes", [("fp8_rowwise", True), ("mxfp8_rceil", False), ("none", False)])
def test_fake_kernels_of_a_gpu(config, codes):
    with FakeTensorMode():
        x, rest, (out, hidden, saved) = fake_layer(options(config))
        assert out.shape == (32, 64) and out.dtype == BF16 and hidden.shape == (64, 96) and hidden.dtype == BF16
        assert saved.shape == (_fused.layout(32, 2, 64, 4, codes)[-1],) and saved.dtype == torch.uint8
        assert not hidden.requires_grad and not saved.requires_grad
        kept = [t for t in out.grad_fn.saved_tensors if t is not None]
        assert any(t is x for t in kept) is not codes  # codes are kept instead of x
        grads = OPS.moe_experts_backward(torch.empty_like(out), hidden, saved, None if codes else x, *rest,
                                         [True, True, False, True, False, False])
        assert [(g.shape, g.dtype) for g in grads[:2]] == [(t.shape, t.dtype) for t in (x, rest[0])]
        assert grads[3].shape == (32, 2) and grads[3].dtype == F32 and all(grads[i].numel() == 0 for i in (2, 4, 5))


def test_a_call_that_the_kernels_refuse_keeps_nothing_of_theirs():
    with FakeTensorMode():
        _, _, (_, hidden, saved) = fake_layer(options(moe8.FP8GroupedMMConfig(out_dtype=F32)))
        assert hidden.dtype == F32 and saved.shape == (0,)


# ---- the order that a backward finds -------------------------------------------------------------------------
@pytest.mark.parametrize("codes", [False, True])
def test_the_order_that_a_forward_saved(codes):
    experts = torch.randint(-1, 6, (33, 3))  # of four: some slots take no part
    made = _experts.Order(experts, 4)
    slots, _, offs, end = _fused.layout(33, 3, 40, 4, codes)
    saved = torch.full((end,), 255, dtype=torch.uint8)
    for offset, values in ((slots, made.slot_of_row), (offs, made.offs)):
        values = values.int().view(torch.uint8)
        saved[offset:offset + values.numel()] = values
    found = _experts.Order.of_saved(experts, 4, saved, 40)
    for name in ("slot_of_row", "offs", "outside", "slots_outside"):
        assert torch.equal(getattr(made, name), getattr(found, name)), name
    scores = torch.rand(33, 3)
    assert torch.equal(made.slots(scores), found.slots(scores))
    assert torch.equal(made.group_of_rows(), found.group_of_rows())


# ---- experts in high precision -------------------------------------------------------------------------------
def plain_layer(x, w13, w2, experts, scores):
    out = torch.zeros(x.shape, dtype=torch.float64)
    for t in range(x.shape[0]):
        for j, e in enumerate(experts[t].tolist()):
            gate, up = (w13[e].double() @ x[t].double()).chunk(2)
            out[t] += scores[t, j].double() * (w2[e].double() @ (F.silu(gate) * up))
    return out


def test_no_config_is_high_precision():
    tensors = [torch.randn(12, 32), torch.randn(3, 48, 32) / 6, torch.randn(3, 32, 24) / 5, torch.rand(12, 2)]
    experts = torch.randint(0, 3, (12, 2))
    grad = torch.randn(12, 32)
    results = []
    for layer in (lambda x, a, b, s: plain_layer(x, a, b, experts, s),
                  lambda x, a, b, s: moe8.moe_experts(x, a, None, b, experts, s, config=None),
                  lambda x, a, b, s: moe8.moe_experts(x, a, None, b, experts, s, config="none")):
        leaves = [x.clone().requires_grad_(True) for x in tensors]
        out = layer(*leaves)
        out.backward(grad.to(out.dtype))
        results.append([out.detach()] + [x.grad for x in leaves])
    for expected, got, named in zip(*results):
        assert sqnr(expected, got) > 120 and torch.equal(got, named)


def test_without_gradients_the_result_is_the_same():
    x, w13, w2 = torch.randn(9, 64).bfloat16(), torch.randn(4, 96, 64).bfloat16(), torch.randn(4, 64, 48).bfloat16()
    experts, scores = torch.randint(0, 4, (9, 2)), torch.rand(9, 2)
    expected = moe8.moe_experts(x, w13.requires_grad_(True), None, w2, experts, scores)
    assert expected.requires_grad
    with torch.no_grad():
        got = moe8.moe_experts(x, w13, None, w2, experts, scores)
    assert not got.requires_grad and torch.equal(got, expected.detach())
