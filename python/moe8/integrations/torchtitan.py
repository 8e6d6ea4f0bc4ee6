# SPDX-License-Identifier: BSD-3-Clause
"""torchtitan: experts and linears of a model's config computed by moe8, through the seams that torchtitan has for it.

    from moe8.integrations.torchtitan import Moe8Converter
    converters = [Moe8Converter(experts="fp8_rowwise", linears="rowwise", filter_fqns=["output", "router"])]

Parameters stay plain tensors, so FSDP2 and expert parallelism work as without moe8. Groups of tokens may have any
size: no padding, no other token dispatcher."""
import dataclasses
import functools

from .. import ops
from .._native import fail
from ..config import config_text, meaning


def _swapped(config, cls):
    """A config of `cls` with the fields of another one."""
    return cls.Config(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)
                         if field.init})


def _config_class(parent_config):
    """A Config of its own, as torchtitan finds a config's class by the class that it was defined in."""
    @dataclasses.dataclass(kw_only=True, slots=True)
    class Config(parent_config):
        pass
    return Config


@functools.lru_cache(maxsize=None)
def experts_class(parent, text):
    """A GroupedExperts of torchtitan whose grouped products are moe8's."""

    def grouped_mm(self, *, A, offs, B_t=None, weight_EOI=None):
        weights = B_t if weight_EOI is None else weight_EOI.transpose(-2, -1)
        return ops.grouped_mm(A, weights, offs, text)
    return type(f"Moe8{parent.__name__}", (parent,), {
        "Config": _config_class(parent.Config), "_grouped_mm": grouped_mm, "__module__": __name__,
        "__doc__": f"{parent.__name__} with products in {text}."})


@functools.lru_cache(maxsize=None)
def linear_class(parent, text):
    """A Linear of torchtitan whose product is moe8's."""

    def forward(self, input):
        return ops.linear(input, self.weight, self.bias, text)
    return type(f"Moe8{parent.__name__}", (parent,), {
        "Config": _config_class(parent.Config), "forward": forward, "__module__": __name__,
        "__doc__": f"{parent.__name__} with its product in {text}."})


def _owner_of(config):
    """The module's class of a config."""
    owner = getattr(type(config), "_owner", None)
    if owner is None:
        fail("Moe8Converter", "model_config", f"expected configs that know their module's class, got "
             f"{type(config).__qualname__}. This torchtitan is older or newer than those that moe8 knows")
    return owner


class Moe8Converter:
    """Swaps the configs of experts and linears of a model's config, in place.

    experts, linears: a recipe, a config, or None to leave them alone. filter_fqns: parts of the names of linears that
    stay as they are. Raises Error where nothing was found to convert.
    """

    def __init__(self, experts=None, linears=None, filter_fqns=()):
        self.experts = None if experts is None else config_text(experts)
        self.linears = None if linears is None else config_text(linears)
        self.filter_fqns = tuple(filter_fqns)
        for name, text, grouped in (("experts", self.experts, True), ("linears", self.linears, False)):
            if text is not None and meaning(text).grouped != grouped:
                fail("Moe8Converter", name, f"expected a config of {name}, got {text}")

    def convert(self, model_config):
        """Returns the model's config."""
        from torchtitan.models.common.linear import Linear
        from torchtitan.models.common.moe import GroupedExperts
        count = 0
        for kind, text, make in ((GroupedExperts, self.experts, experts_class), (Linear, self.linears, linear_class)):
            if text is None:
                continue
            for fqn, config, parent, attribute in list(model_config.traverse(kind.Config)):
                if kind is Linear and any(part in fqn for part in self.filter_fqns):
                    continue
                owner = _owner_of(config)
                if kind is GroupedExperts and not hasattr(owner, "_grouped_mm"):
                    fail("Moe8Converter", fqn, f"expected experts with a method _grouped_mm, got {owner.__name__}. "
                         "Take a torchtitan of April 2026 or later")
                if kind is Linear and owner.forward is not Linear.forward:
                    fail("Moe8Converter", fqn, f"expected a plain Linear, got {owner.__name__}, whose forward is its "
                         "own. Name it in filter_fqns")
                new = _swapped(config, make(owner, text))
                if parent is None:
                    model_config = new
                elif isinstance(parent, list):
                    parent[attribute] = new
                else:
                    setattr(parent, attribute, new)
                count += 1
        if count == 0:
            fail("Moe8Converter", "model_config", "expected experts or linears to convert, found none. Check experts, "
                 "linears and filter_fqns")
        return model_config
