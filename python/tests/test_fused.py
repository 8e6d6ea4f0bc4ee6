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
    assert sizes == {"Moe8Operand": _products._OPERAND.size,
                     "Moe8Product": _products._POINTERS.size + _products._NUMBERS.size,
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


# ---- what stands around the kernels --------------------------------------------------------------------------
class KernelsOfOperations:
    """_fused.forward and backward in the operations of _experts.py, on a CPU: what they are given and give is the
    kernels'."""

    def __init__(self):
        self.tokens = {}  # by the address of what was saved: x, where its codes would lie
        self.calls = []

    def forward(self, x, w13, w2, experts, scores, b13, b2, o, kept, keeps):
        self.calls.append(("forward", keeps))
        order, count = _experts.Order(experts, w13.shape[0]), w13.shape[0]
        out, hidden, _ = self._by_operations(_experts.forward, x, w13, w2, experts, scores, b13, b2, o, kept, keeps)
        if keeps is None:
            return out, hidden, torch.empty(0, dtype=torch.uint8)
        slots, _, offs, end = _fused.layout(*experts.shape, x.shape[1], count, keeps)
        saved = torch.full((end,), 255, dtype=torch.uint8)
        for offset, values in ((slots, order.slot_of_row), (offs, order.offs)):
            values = values.int().view(torch.uint8)
            saved[offset:offset + values.numel()] = values
        if keeps:
            self.tokens[saved.data_ptr()] = x.detach()
        return out, hidden, saved

    def backward(self, grad_out, x, w13, w2, experts, scores, b13, hidden, saved, o, needs, kept, between=None):
        self.calls.append(("backward", *sorted(needs), between is not None))
        if x is None and "w13" in needs:
            x = self.tokens[saved.data_ptr()]
        order, grads = _experts.Order(experts, w13.shape[0]), _experts.Gradients()
        x = grad_out if x is None else x
        rest = order, grad_out, x, w13, w2, experts, scores, b13, hidden, saved, o
        if between is not None:
            dA, _ = _products.backward("", order.tokens(grad_out), hidden[:, :w2.shape[2]], w2, order.offs, o.config2,
                                       True, False, None)
            between(dA)
        if needs:
            _experts._backward(grads, *rest, needs, kept)
        return grads.x, grads.w13, grads.w2, grads.scores

    @staticmethod
    def _by_operations(function, *arguments):
        before, _fused.is_wanted = _fused.is_wanted, False
        try:
            return function(*arguments)
        finally:
            _fused.is_wanted = before


@pytest.fixture
def kernels(monkeypatch):
    stand_in, decide = KernelsOfOperations(), _fused.refusal
    monkeypatch.setattr(_fused, "refusal", lambda device, *rest: decide(GPU, *rest))
    monkeypatch.setattr(_fused, "forward", stand_in.forward)
    monkeypatch.setattr(_fused, "backward", stand_in.backward)
    return stand_in


NAMES = ("x", "w13", "w2", "scores", "b13", "b2")


def step(needs, as_operation, biases=True, interleaved=False, clamped=False, scores_on="output", config="fp8_rowwise"):
    torch.manual_seed(4)
    shapes = ((24, 64), (4, 96, 64), (4, 64, 48), (24, 2), (4, 96), (4, 64))
    leaves = [torch.randn(shape).to(F32 if name in ("scores", "b13", "b2") else BF16).requires_grad_(name in needs)
              for name, shape in zip(NAMES, shapes)]
    x, w13, w2, scores, b13, b2 = leaves[:4] + (leaves[4:] if biases else [None, None])
    experts = torch.randint(-1, 5, (24, 2))
    if as_operation:
        out = OPS.moe_experts(x, w13, w2, experts, scores, b13, b2, config_text(config), config_text(config),
                              interleaved, clamped, 1.702, 7.0, scores_on == "input")[0]
    else:
        out = moe8.moe_experts(x, w13, None, w2, experts, scores, config=config, b1=b13, b2=b2,
                               gate_up="interleaved" if interleaved else "halves", scores_on=scores_on,
                               activation="clamped_swiglu" if clamped else "swiglu")
    out.backward(torch.randn(out.shape).to(out.dtype))
    return [out.detach()] + [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("as_operation", [False, True])
@pytest.mark.parametrize("options_of_call", [
    {}, {"biases": False}, {"scores_on": "input"}, {"interleaved": True, "clamped": True}, {"config": "mxfp8_rceil"},
    {"config": "none"}])
@pytest.mark.parametrize("needs", [NAMES, ("x",), ("w13",), ("w2",), ("scores",), ("b13",), ("b2",), ("w13", "b13"),
                                   ("scores", "b2"), ("x", "w2")])
def test_gradients_around_the_kernels(kernels, monkeypatch, needs, options_of_call, as_operation):
    if not options_of_call.get("biases", True):
        needs = tuple(name for name in needs if name not in ("b13", "b2"))
        if not needs:
            return
    got = step(needs, as_operation, **options_of_call)
    assert [call[0] for call in kernels.calls] == ["forward"] + ["backward"] * (needs != ("b2",))
    keeps = options_of_call.get("config", "fp8_rowwise") == "fp8_rowwise" and (as_operation or "w13" in needs)
    assert kernels.calls[0] == ("forward", keeps)
    monkeypatch.setattr(_fused, "is_wanted", False)
    expected = step(needs, as_operation, **options_of_call)
    assert len(got) == len(expected) == 1 + len(needs)
    assert all(torch.equal(a, b) for a, b in zip(expected, got))


def test_no_gradients_nothing_kept(kernels):
    with torch.no_grad():
        moe8.moe_experts(torch.randn(8, 64).bfloat16(), torch.randn(4, 96, 64).bfloat16().requires_grad_(True), None,
                         torch.randn(4, 64, 48).bfloat16(), torch.randint(0, 4, (8, 2)))
    assert kernels.calls == [("forward", None)]


def test_compiled_around_the_kernels(kernels):
    """The compiler sees operations alone, with what a forward on a GPU keeps."""
    def layer(x, w13, w2, scores):
        experts = torch.arange(48).view(24, 2) % 4
        return moe8.moe_experts(x, w13, None, w2, experts, scores)
    results = []
    torch._dynamo.reset()
    for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(4)
        leaves = [torch.randn(shape).bfloat16().requires_grad_(True) for shape in ((24, 64), (4, 96, 64), (4, 64, 48))]
        leaves.append(torch.rand(24, 2, requires_grad=True))
        out = function(*leaves)
        out.float().square().sum().backward()
        results.append([out.detach()] + [leaf.grad for leaf in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*results))
    assert kernels.calls == [("forward", True), ("backward", "scores", "w13", "w2", "x", False)] * 2


def test_opcheck_around_the_kernels(kernels):
    """Among others: sizes of what is saved are right for any number of tokens."""
    leaf = lambda *shape: torch.randn(shape).requires_grad_(True)
    for config in ("fp8_rowwise", "mxfp8_rceil"):
        o = options(config)
        arguments = (leaf(20, 64), leaf(4, 96, 64), leaf(4, 64, 48), torch.randint(0, 5, (20, 2)), leaf(20, 2),
                     leaf(4, 96), leaf(4, 64), o.config13, o.config2, False, False, 1.702, 7.0, False)
        assert set(torch.library.opcheck(OPS.moe_experts.default, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("saves", [True, False])
def test_selective_checkpoint_around_the_kernels(kernels, saves):
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    def policy(_context, op, *_arguments, **_named):
        is_layer = op == OPS.moe_experts.default
        return CheckpointPolicy.MUST_SAVE if is_layer and saves else CheckpointPolicy.PREFER_RECOMPUTE
    x, w13, w2 = (torch.randn(shape).bfloat16().requires_grad_(True) for shape in ((24, 64), (4, 96, 64), (4, 64, 48)))
    experts = torch.randint(0, 4, (24, 2))

    def layer(x, w13, w2):
        return moe8.moe_experts(x, w13, None, w2, experts) * 2
    results = []
    for function in (layer, lambda *leaves: checkpoint(
            layer, *leaves, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(policy))):
        kernels.calls.clear()
        out = function(x, w13, w2)
        results.append([out.detach(), *torch.autograd.grad(out.float().square().sum(), (x, w13, w2))])
    assert all(torch.equal(a, b) for a, b in zip(*results))
    assert [call[0] for call in kernels.calls].count("forward") == (1 if saves else 2)
