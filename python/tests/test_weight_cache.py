# SPDX-License-Identifier: BSD-3-Clause
"""Quantized weights are used again while nothing has changed them, and that changes no bit."""
import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import moe8

OFFS = torch.tensor([10, 10, 50, 64], dtype=torch.int32)
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.5),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),  # moves no version counter
}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.w1 = nn.Parameter(torch.randn(4, 96, 32) * 0.1)
        self.w2 = nn.Parameter(torch.randn(4, 32, 48) * 0.1)
        self.w3 = nn.Parameter(torch.randn(4, 32, 32) * 0.1)

    def forward(self, x):
        x = x + torch._grouped_mm(self.linear(x).bfloat16(), self.w3.bfloat16().transpose(-2, -1), offs=OFFS)
        x = x + torch.bmm(x.view(4, 16, 32), self.w3.transpose(1, 2)).view(64, 32)
        experts = torch.arange(128).view(64, 2) % 4
        with torch._C.DisableTorchFunctionSubclass():
            return x + moe8.moe_experts(x, self.w1, None, self.w2, experts, config="mxfp8_rceil")


@pytest.fixture(autouse=True)
def automatic():
    moe8.set_weight_cache("auto")
    yield
    moe8.set_weight_cache("auto")


def build():
    torch.manual_seed(3)
    model = Model()
    moe8.quantize_(model, {"re:w[12]": "mxfp8_rceil", "w3": "fp8_rowwise", "_default": "rowwise"}, unused="ignore")
    return model


def train(model, optimizer, steps=3, micro_batches=2, forward=lambda model, x: model(x)):
    generator = torch.Generator(torch.get_default_device()).manual_seed(7)
    for _ in range(steps):
        for _ in range(micro_batches):
            x = torch.randn(64, 32, generator=generator, requires_grad=True)
            forward(model, x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


def counted(function):
    before = moe8.weight_cache_use()
    result = function()
    after = moe8.weight_cache_use()
    return result, after["hits"] - before["hits"], after["misses"] - before["misses"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bits_with_and_without(name):
    results = []
    for mode in ("off", "auto", "on"):
        moe8.set_weight_cache(mode)
        model = build()
        result, hits, _ = counted(lambda: train(model, OPTIMIZERS[name](model.parameters())))
        results.append(result)
        assert (hits > 0) == (mode != "off")
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def one_linear():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(32, 32))
    moe8.quantize_(model, "rowwise")
    return model


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_micro_batches_quantize_once_per_step(name):
    """Once the optimizer was seen to write: two forms of the weight per step, however many micro-batches."""
    model = one_linear()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, steps=1)
    _, hits, misses = counted(lambda: train(model, optimizer, steps=2, micro_batches=5))
    assert (hits, misses) == (2 * 2 * 4, 2 * 2)
    assert moe8.weight_cache_use()["weights"] == 0  # the step's end frees them


def test_without_evidence_only_backward_reuses():
    """Nobody has seen this model change: its writer may be one that nobody sees."""
    model = one_linear()
    x = torch.randn(8, 32, requires_grad=True)
    w = model[0]._parameters["weight"]
    for _ in range(3):
        y = model(x)
        y.sum().backward()
        w.data.mul_(2)  # moves no counter that can be read
    assert torch.equal(model(x), moe8.linear(x, w, model[0].bias))
    _, hits, misses = counted(lambda: model(x).sum().backward())
    assert (hits, misses) == (0, 2)


def test_a_write_is_seen():
    model = one_linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, steps=2)
    x = torch.randn(8, 32, requires_grad=True)
    w = model[0]._parameters["weight"]
    writes = [lambda: w.detach().mul_(2), lambda: model.load_state_dict({name: 3 * x for name, x in model.state_dict().items()}), optimizer.step,
              lambda: setattr(w, "data", torch.randn(32, 32))]
    for write in writes:
        model(x).sum().backward()
        with torch.no_grad():
            write()
        assert torch.equal(model(x), moe8.linear(x, w, model[0].bias))


def test_validation_keeps_nothing():
    model = one_linear()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with torch.no_grad():
        _, hits, misses = counted(lambda: [model(torch.randn(8, 32)) for _ in range(3)])
    assert (hits, misses) == (0, 0) and moe8.weight_cache_use()["bytes"] == 0


def test_recomputation_uses_the_forward_s():
    recomputed = lambda model, x: checkpoint(model, x, use_reentrant=False)
    results = []
    for forward in (lambda model, x: model(x), recomputed):
        model = one_linear()
        results.append(train(model, torch.optim.SGD(model.parameters(), lr=0.1), forward=forward)[0])
    assert torch.equal(*results)


def test_freed_with_the_weight_and_the_conversion():
    for end in (lambda model: moe8.dequantize_(model), lambda model: model.__delitem__(0),
                lambda model: moe8.clear_weight_cache()):
        model = one_linear()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
        model(torch.randn(8, 32, requires_grad=True)).sum().backward()
        assert moe8.weight_cache_use()["weights"] == 1
        end(model)
        assert moe8.weight_cache_use() == dict(moe8.weight_cache_use(), weights=0, bytes=0)


def test_copies_have_their_own():
    model = one_linear()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
    x = torch.randn(8, 32, requires_grad=True)
    model(x).sum().backward()
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(other[0].weight)
    assert torch.equal(other(x), other[0].bias.expand(8, 32))
    assert not torch.equal(model(x), other(x))


def test_modes():
    with pytest.raises(moe8.Error, match="expected off, auto or on, got 'sometimes'"):
        moe8.set_weight_cache("sometimes")
