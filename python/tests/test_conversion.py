# SPDX-License-Identifier: BSD-3-Clause
"""quantize_ on modules: names, reports and errors of C++, products found where they are, and nothing else changed."""
import copy
import pickle
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import moe8
from moe8.weights import ConvertedWeight

OFFS = torch.tensor([10, 10, 50, 68], dtype=torch.int32)


class Experts(nn.Module):
    """Weights (E, N, K), multiplied as `how` says."""

    def __init__(self, how=None):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(4, 48, 64))
        self.b1 = nn.Parameter(torch.randn(4, 48))
        self.how = how

    def forward(self, x):
        return self.how(x, self.w1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 64)
        self.gate = nn.Linear(64, 4, bias=False)
        self.experts = Experts(lambda x, w: torch._grouped_mm(x.bfloat16(), w.bfloat16().transpose(-2, -1), offs=OFFS))
        self.output = nn.Linear(48, 10)

    def forward(self, x):
        return self.output(self.experts(x).float()) + self.gate(x).sum()


TABLE = {"re:.*experts.*": "fp8_rowwise", "gate": None, "_default": "rowwise"}


def test_report_and_state():
    model = Model()
    before = {name: (id(parameter), parameter.data_ptr()) for name, parameter in model.named_parameters()}
    keys, text = list(model.state_dict()), str(model)
    report = moe8.quantize_(model, TABLE)
    assert {row.fqn: row.config for row in report.rows} == {
        "embed.weight": None, "gate.weight": None, "experts.w1": "fp8_rowwise", "experts.b1": None,
        "output.weight": "rowwise", "output.bias": None}
    assert "2 of 6 parameters converted." in str(report)
    assert {n: (id(p), p.data_ptr()) for n, p in model.named_parameters()} == before
    assert list(model.state_dict()) == keys and str(model) == text
    assert all(type(p) is nn.Parameter for p in model.parameters())
    assert all(type(t) is torch.Tensor for t in model.state_dict().values())
    assert isinstance(model.experts.w1, ConvertedWeight) and isinstance(model.output, nn.Linear)
    moe8.dequantize_(model)
    assert type(model.output) is nn.Linear and type(model.experts.w1) is nn.Parameter


def test_training_equals_the_operations():
    model = Model()
    reference = copy.deepcopy(model)
    moe8.quantize_(model, TABLE, unused="error")
    x = torch.randn(70, 64)
    y = model(x)
    y.sum().backward()
    A, w = x.bfloat16(), reference.experts.w1.bfloat16()
    hidden = moe8.grouped_mm(A, w.transpose(-2, -1), OFFS, "fp8_rowwise")
    expected = moe8.linear(hidden.float(), reference.output.weight, reference.output.bias) + reference.gate(x).sum()
    expected.sum().backward()
    assert torch.equal(y, expected)
    for (name, p), q in zip(model.named_parameters(), reference.parameters()):
        assert (p.grad is None) == (q.grad is None) and (p.grad is None or torch.equal(p.grad, q.grad)), name
    check = moe8.check_conversion(model)
    assert not check.complaints() and "2 of 2 converted weights" in str(check)


X3 = torch.randn(4, 9, 64)
GROUPED = {
    "grouped_mm": lambda x, w: F.grouped_mm(x, w.transpose(-2, -1), offs=OFFS),
    "bmm": lambda x, w: torch.bmm(X3, w.transpose(1, 2)),
    "matmul": lambda x, w: X3 @ w.mT,
    "weight on the left": lambda x, w: torch.bmm(w, X3.transpose(1, 2)),
    "one expert": lambda x, w: F.linear(x, w[2]),
    "an expert of an index": lambda x, w: F.linear(x, w[torch.tensor(2)]),
    "one expert's transposed": lambda x, w: x @ w[1].t(),
    "chosen": lambda x, w: torch.bmm(w[torch.tensor([0, 0, 3])], X3[:3].transpose(1, 2)),
    "unbound": lambda x, w: F.linear(x, w.unbind(0)[1]),
    "cast": lambda x, w: torch._grouped_mm(x.bfloat16(), w.to(torch.bfloat16).transpose(-2, -1), offs=OFFS),
    "halves": lambda x, w: torch.cat([F.linear(x, half) for half in w[0].chunk(2, dim=0)], -1),
}


@pytest.mark.parametrize("name", GROUPED)
def test_products_that_are_converted(name):
    model = Experts(GROUPED[name])
    plain = model(torch.ones(70, 64))
    moe8.quantize_(model, {"w1": "fp8_rowwise"}, unused="error")
    x = torch.randn(70, 64)
    y = model(x)
    y.float().sum().backward()
    assert moe8.check_conversion(model).weights[0]["use"] == "low precision"
    assert y.shape == plain.shape
    assert y.dtype == (torch.bfloat16 if name == "grouped_mm" else plain.dtype)  # there the config decides
    assert not torch.equal(y, GROUPED[name](x, model._parameters["w1"]))
    difference = (y - GROUPED[name](x, model._parameters["w1"])).float().nan_to_num()
    assert difference[..., :60, :].abs().max() < 3


NOT_CONVERTED = {
    "einsum ran in high precision": lambda x, w: torch.einsum("md,end->men", x, w),
    "no product of it was seen, though a gradient reached it": lambda x, w: F.linear(x, (w * 2)[0]),
    "contracts along a part of the weight's rows": lambda x, w: F.linear(x[:, :32], w[0][:, :32]),
}


@pytest.mark.parametrize("message", NOT_CONVERTED)
def test_never_high_precision_unnoticed(message):
    for unused in ("error", "warn", "ignore"):
        model = Experts(NOT_CONVERTED[message])
        moe8.quantize_(model, {"w1": "fp8_rowwise"}, unused=unused)
        out = model(torch.randn(70, 64)).sum()
        if unused == "error":
            with pytest.raises(moe8.Error, match=message):
                out.backward()
        elif unused == "warn":
            with pytest.warns(UserWarning, match=message):
                out.backward()
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                out.backward()
        assert message.split(" ran")[0] in moe8.check_conversion(model).to_line()


@pytest.mark.parametrize("config, message", [
    ({"re:.*exprts.*": "fp8_rowwise"}, "matches no name; no name has 'exprts', nearest parts: experts"),
    ({"re:(": "fp8_rowwise"}, "re:("),
    ({"experts.b1": "fp8_rowwise"}, "expected 3-D expert weights (E, N, K), got 2-D"),
    ({"embed.weight": "rowwise"}, "expected the weight of a linear, got an Embedding's"),
    ({"output": "rowise"}, "rowwise"),
    ("fp8_rowwise", "got 2 modules and no such parameter, for example gate.weight: expected 3-D expert weights"),
])
def test_errors_of_cpp(config, message):
    model = Model()
    with pytest.raises(moe8.Error, match=re.escape(message)):
        moe8.quantize_(model, config)
    assert type(model.output) is nn.Linear


def test_one_config_and_a_filter():
    model = Model()
    report = moe8.quantize_(model, "mxfp8_rceil", lambda module, fqn: "experts" in fqn)
    assert [row.fqn for row in report.converted()] == ["experts.w1"]
    report = moe8.quantize_(model, moe8.MXLinearConfig(elem_dtype=torch.float8_e5m2))
    assert [(row.fqn, row.key) for row in report.converted()] == [
        ("gate.weight", "gate"), ("experts.w1", None), ("output.weight", "output")]
    again = moe8.quantize_(model, {"output": "tensorwise"}).rows[4]
    assert again.config == "tensorwise" and again.replaced.startswith("MXLinearConfig(") and "replacing" in again.reason


def test_dry_run_converts_nothing():
    model = Model()
    assert len(moe8.quantize_(model, TABLE, dry_run=True).converted()) == 2
    assert type(model.output) is nn.Linear


def test_tied_weights():
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    model["b"].weight = model["a"].weight
    with pytest.raises(moe8.Error, match="expected the same config as a.weight, which is the same tensor"):
        moe8.quantize_(model, {"a": "rowwise", "b": "tensorwise"})
    report = moe8.quantize_(model, {"a": "rowwise"})
    assert report.rows[0].reason == "converted, the same tensor as b.weight"
    assert isinstance(model["b"].weight, ConvertedWeight)


def test_copies_and_files(tmp_path):
    model = Model()
    moe8.quantize_(model, TABLE)
    x = torch.randn(70, 64)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model.output))):
        linear = getattr(other, "output", other)
        assert isinstance(linear.weight, ConvertedWeight) and linear.weight is not model.output.weight
    torch.save(model.state_dict(), tmp_path / "model.pt")
    fresh = Model()
    moe8.quantize_(fresh, TABLE)
    fresh.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert torch.equal(fresh(x), expected)


def test_functional_call_and_optimizers():
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    moe8.quantize_(model, TABLE, unused="error")
    x = torch.randn(70, 64)
    before = model(x)
    before.square().mean().backward()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    assert not torch.equal(model(x), before)
    assert torch.equal(torch.func.functional_call(model, weights, (x,)), before)


def test_export_is_refused():
    model = nn.Sequential(nn.Linear(8, 8))
    moe8.quantize_(model, "rowwise")
    with pytest.raises(moe8.Error, match="0.weight: expected a model without converted weights"):
        torch.export.export(model, (torch.randn(2, 8),), strict=False)


def test_classes_made_of_converted_ones_are_left_alone():
    linear = nn.Linear(8, 8)
    moe8.quantize_(linear, "rowwise")
    linear.__class__ = type("FSDPLinear", (type(linear),), {})  # as fully_shard does
    assert moe8.quantize_(linear, "rowwise").rows[0].config == "rowwise"
    with pytest.raises(moe8.Error, match="got FSDPLinear, which something"):
        moe8.dequantize_(linear)
    assert type(linear).__name__ == "FSDPLinear" and isinstance(linear.weight, ConvertedWeight)


def test_torchao_configs():
    class KernelPreference:
        value = "auto"

    class ScaleCalculationMode:
        value = "floor"

    class MXFP8TrainingOpConfig:
        kernel_preference, scale_calculation_mode = KernelPreference, ScaleCalculationMode
        out_dtype, wgrad_with_hp = torch.bfloat16, True

    class FqnToConfig:
        fqn_to_config = {"re:.*experts.*": MXFP8TrainingOpConfig()}
    model = Model()
    assert moe8.quantize_(model, FqnToConfig()).rows[2].config == "mxfp8_floor_wgrad_with_hp"


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = Experts(lambda x, w: torch._grouped_mm(x, w.transpose(-2, -1), offs=OFFS))
        self.output = nn.Linear(48, 16)

    def forward(self, x):
        return self.output(self.experts(x))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_model_is_eager(backend):
    model = Small().bfloat16()
    moe8.quantize_(model, {"re:.*experts.*": "mxfp8_rceil", "_default": "rowwise"})
    x = torch.randn(70, 64, dtype=torch.bfloat16)
    results = []
    torch._dynamo.reset()
    for function in (model, torch.compile(model, fullgraph=True, backend=backend)):
        model.zero_grad()
        y = function(x)
        y.float().square().sum().backward()
        results.append([y.detach()] + [p.grad for p in model.parameters() if p.grad is not None])
    assert len(results[0]) == 4 and all(torch.equal(a, b) for a, b in zip(*results))
