# SPDX-License-Identifier: BSD-3-Clause
"""The converter of torchtitan on classes with torchtitan's protocol: configs that know their module's class, and are
swapped in the tree of a model's config. torchtitan itself would bring fifty packages, Triton among them."""
import dataclasses
import sys
import types

import pytest
import torch
from torch import nn

import moe8


class Configurable(nn.Module):
    @dataclasses.dataclass(kw_only=True, slots=True)
    class Config:
        _owner = None

        def build(self):
            return self._owner(dataclasses.replace(self))

        def traverse(self, kind):
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                children = [(value, self, field.name)] if not isinstance(value, list) else \
                    [(child, value, i) for i, child in enumerate(value)]
                for child, parent, attribute in children:
                    name = field.name if parent is self else f"{field.name}.{attribute}"
                    if isinstance(child, kind):
                        yield name, child, parent, attribute
                    elif isinstance(child, Configurable.Config):
                        for fqn, *rest in child.traverse(kind):
                            yield (f"{name}.{fqn}", *rest)

    def __init_subclass__(cls):
        assert "Config" in cls.__dict__ and dataclasses.is_dataclass(cls.Config)
        cls.Config._owner = cls


class GroupedExperts(Configurable):
    @dataclasses.dataclass(kw_only=True, slots=True)
    class Config(Configurable.Config):
        dim: int
        num_experts: int

    def __init__(self, config):
        super().__init__()
        self.w1_EFD = nn.Parameter(torch.randn(config.num_experts, 48, config.dim))

    def forward(self, x, counts):
        offs = torch.cumsum(counts, dim=0, dtype=torch.int32)
        return self._grouped_mm(A=x.bfloat16(), B_t=self.w1_EFD.bfloat16().transpose(-2, -1), offs=offs)

    def _grouped_mm(self, *, A, B_t, offs):
        return torch._grouped_mm(A, B_t, offs=offs)


class Linear(nn.Linear, Configurable):
    @dataclasses.dataclass(kw_only=True, slots=True)
    class Config(Configurable.Config):
        in_features: int
        out_features: int
        bias: bool = False

    def __init__(self, config):
        super().__init__(config.in_features, config.out_features, bias=config.bias)


class Model(Configurable):
    @dataclasses.dataclass(kw_only=True, slots=True)
    class Config(Configurable.Config):
        layers: list
        output: Linear.Config

    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(layer.build() for layer in config.layers)
        self.output = config.output.build()

    def forward(self, x, counts):
        return self.output(self.layers[0](x, counts).float())


@pytest.fixture(autouse=True)
def torchtitan(monkeypatch):
    for name, value in (("moe", GroupedExperts), ("linear", Linear)):
        module = types.ModuleType(f"torchtitan.models.common.{name}")
        setattr(module, value.__name__, value)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("torchtitan", "torchtitan.models", "torchtitan.models.common"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


def config():
    return Model.Config(layers=[GroupedExperts.Config(dim=64, num_experts=4)],
                        output=Linear.Config(in_features=48, out_features=16))


def test_converted_model():
    from moe8.integrations.torchtitan import Moe8Converter
    plain = config().build()
    model = Moe8Converter("fp8_rowwise", "rowwise").convert(config()).build()
    assert isinstance(model.layers[0], GroupedExperts) and isinstance(model.output, Linear)
    model.load_state_dict(plain.state_dict())
    assert all(type(p) is nn.Parameter for p in model.parameters())
    x, counts = torch.randn(50, 64), torch.tensor([7, 0, 30, 13])
    hidden = moe8.grouped_mm(x.bfloat16(), plain.layers[0].w1_EFD.bfloat16().transpose(-2, -1),
                             torch.tensor([7, 7, 37, 50], dtype=torch.int32))
    assert torch.equal(model(x, counts), moe8.linear(hidden.float(), plain.output.weight))


def test_errors():
    from moe8.integrations.torchtitan import Moe8Converter
    with pytest.raises(moe8.Error, match="expected a config of experts, got Float8LinearConfig"):
        Moe8Converter("rowwise")
    with pytest.raises(moe8.Error, match="expected experts or linears to convert, found none"):
        Moe8Converter(linears="rowwise", filter_fqns=["output"]).convert(config())
