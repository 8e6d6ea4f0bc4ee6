# SPDX-License-Identifier: BSD-3-Clause
"""quantize_ and dequantize_: which parameters a config converts is decided in C++ (src/convert/resolve.cpp); here are
names, modules, and the attribute that gives a converted weight out."""
import dataclasses
import json
import warnings
from typing import Callable, Optional

import torch
from torch import nn

from . import _kept
from ._native import ask, fail
from .config import config_text, meaning
from .weights import Record, converted, weight_class

_WITHOUT_PRODUCTS = (nn.modules.conv._ConvNd, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.LayerNorm, nn.GroupNorm,
                     nn.modules.batchnorm._NormBase, nn.PReLU) + ((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ())
_CHOICES = {"unmatched": ("error", "warn", "ignore"), "unused": ("error", "warn", "ignore")}


# ---- reports ----------------------------------------------------------------------------------------------
@dataclasses.dataclass
class ConversionRow:
    """One parameter of a report, as in moe8/quantize_model.h. config, replaced: a recipe's name, a config as text, or
    None; key: the key that decided, "" is the root, None: none did."""
    fqn: str
    shape: tuple
    dtype: str
    config: Optional[str]
    replaced: Optional[str]
    key: Optional[str]
    reason: str


@dataclasses.dataclass
class ConversionReport:
    """What became of every parameter."""
    rows: list
    unmatched_keys: list

    def converted(self):
        return [row for row in self.rows if row.config is not None]

    def _request(self):
        return {"parameters": [dataclasses.asdict(row) for row in self.rows], "unmatched_keys": self.unmatched_keys}

    def to_table(self) -> str:
        return ask("report_table", **self._request())

    def to_json(self) -> str:
        return json.dumps(dict(self._request(), converted=len(self.converted())), indent=2)

    __str__ = to_table


@dataclasses.dataclass
class ConversionCheck:
    """Whether the products of every converted weight ran in low precision so far."""
    weights: list  # dicts of fqn, shape, use, ops (in high precision), remedy ("": nothing to do)

    def complaints(self):
        return [weight for weight in self.weights if weight["remedy"]]

    def to_table(self) -> str:
        return ask("check_text", weights=self.weights)["table"]

    def to_line(self) -> str:
        return ask("check_text", weights=self.weights)["line"]

    __str__ = to_table


# ---- names ------------------------------------------------------------------------------------------------
def _owner(module):
    if isinstance(module, nn.Linear):
        return {"owner": "linear", "owner_type": "", "has_known_use": True}
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return {"owner": "embedding", "owner_type": "", "has_known_use": False}
    if isinstance(module, _WITHOUT_PRODUCTS):
        return {"owner": "without_products", "owner_type": type(module).__name__, "has_known_use": False}
    return {"owner": "other", "owner_type": "", "has_known_use": False}


def _dtype_name(tensor):
    name = str(tensor.dtype).removeprefix("torch.")
    return name if tensor.layout == torch.strided else f"{name} with layout {tensor.layout}"


class _Names:
    """The names of a model's modules, parameters and buffers; a tied parameter has several."""

    def __init__(self, model):
        self.modules, self.parameters, self.buffers = [], [], []
        self.places = []  # (module, local name, parameter)
        for fqn, module in model.named_modules(remove_duplicate=False):
            self.modules.append((fqn, module))
            owner = _owner(module)
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                self.parameters.append(dict(owner, fqn=f"{fqn}.{name}" if fqn else name, shape=list(parameter.shape),
                                            dtype=_dtype_name(parameter), is_replaced=False))
                self.places.append((module, name, parameter))
            self.buffers += [f"{fqn}.{name}" if fqn else name for name in module._buffers]


# ---- the attribute ----------------------------------------------------------------------------------------
_BASE = "_moe8_base"  # of the classes below: the module's own class


def _attribute(name, config, strict):
    made = weight_class(config, strict)

    def get(self):
        parameter = self._parameters[name]
        return None if parameter is None else converted(parameter, made, self._moe8_records[name])
    return property(get, doc=f"The parameter {name}, converted to {config}.")


def _rebuild(base, configs):
    return nn.Module.__new__(_converted_class(base, configs))


def _reduce(self, _protocol=None):
    return _rebuild, (getattr(type(self), _BASE), type(self)._moe8_configs), self.__getstate__()


_classes = {}


def _converted_class(base, configs):
    """A class of the same name whose attributes of `configs`, (name, (config, strict)) pairs, give out converted
    weights."""
    key = (base, configs)
    if key not in _classes:
        body = {name: _attribute(name, *how) for name, how in configs}
        body.update({_BASE: base, "_moe8_configs": configs, "__module__": base.__module__, "__qualname__":
                     base.__qualname__, "__doc__": base.__doc__, "__reduce_ex__": _reduce})
        _classes[key] = type(base.__name__, (base,), body)
    return _classes[key]


def _configs(module):
    return dict(getattr(type(module), "_moe8_configs", ()))


def _set_configs(module, configs):
    current = type(module)
    if _BASE not in vars(current) and hasattr(current, _BASE):
        fail("quantize_", "model", f"expected a module whose class is its own, got {current.__name__}, which something "
             "(fully_shard, parametrizations) made of a converted one. Convert, and take back, before that")
    base = getattr(current, _BASE, current)
    module.__class__ = _converted_class(base, tuple(sorted(configs.items()))) if configs else base
    if not configs:
        module.__dict__.pop("_moe8_records", None)


def converted_config(module, name):
    """The config with which a module's parameter is converted, as text; None: it is not."""
    how = _configs(module).get(name)
    return None if how is None else how[0]


# ---- decisions ----------------------------------------------------------------------------------------------
def _text_of(row):
    what = row.config if row.config is not None else "to be left alone"
    return f"{what} by key '{row.key or ''}'"


def _merged(rows):
    """One row of all names of a tensor; names that disagree are an error."""
    decided = None
    for row in rows:
        if row.key is None:
            continue
        if decided is not None and decided.config != row.config:
            fail("quantize_", row.fqn, f"expected the same config as {decided.fqn}, which is the same tensor "
                 f"({_text_of(decided)}), got {_text_of(row)}")
        decided = decided or row
    merged = dataclasses.replace(decided or rows[0], fqn=rows[0].fqn)
    aliases = [row.fqn for row in rows[1:]]
    if aliases:
        merged.reason += ", the same tensor as " + ", ".join(aliases)
    return merged


def _short(text):
    """A config as reports write it: the recipe's name where it has one."""
    for recipe in ask("recipes"):
        if recipe["config"] == text:
            return recipe["name"]
    return text


def _compare_with_before(row, before):
    if before is None or row.config == before:
        return
    if row.key is not None:
        row.replaced = before
        row.reason += f", replacing {before}" if row.config is not None else ", conversion taken back"
    else:
        row.config, row.reason = before, "converted earlier, no key of this call names it"


def _rows(answer):
    return [ConversionRow(p["fqn"], tuple(p["shape"]), p["dtype"], p["config"], p["replaced"], p["key"], p["reason"])
            for p in answer]


def _convert(names, rows, unmatched_keys, dry_run, unused):
    groups = {}
    for row, place in zip(rows, names.places):
        groups.setdefault(id(place[2]), []).append((row, place))
    merged, orders = [], []
    for group in groups.values():
        row = _merged([row for row, _ in group])
        module, name, _ = group[0][1]
        before = converted_config(module, name)
        _compare_with_before(row, None if before is None else _short(before))
        merged.append(row)
        orders.append((row, [place for _, place in group]))
    if not dry_run:
        for row, places in orders:
            _carry_out(row, places, unused)
    return ConversionReport(merged, unmatched_keys)


def _carry_out(row, places, unused):
    text = None if row.config is None else config_text(row.config)
    record = None
    for module, name, parameter in places:
        configs = _configs(module)
        how = None if text is None else (text, unused != "ignore")
        if configs.pop(name, None) == how:
            continue
        _kept.forget(parameter)
        if text is not None:
            record = record or Record(row.fqn, parameter.shape, unused)
            configs[name] = how
            module.__dict__.setdefault("_moe8_records", {})[name] = record
        _set_configs(module, configs)


# ---- one config and a filter ----------------------------------------------------------------------------------
def is_linear(module: nn.Module, fqn: str) -> bool:
    """True for nn.Linear: the default filter."""
    return isinstance(module, nn.Linear)


_NOT_PASSED = "no enclosing module passed the filter"


def _enclosing(fqn):
    """The names of what encloses a name, the nearest first, the root last."""
    while fqn:
        fqn = fqn.rpartition(".")[0]
        yield fqn


def _decide_by_filter(names, config, filter_fn, unmatched):
    passing = set()
    for fqn, module in names.modules:
        if not any(above in passing for above in _enclosing(fqn)) and filter_fn(module, fqn):
            passing.add(fqn)
    decisions = ask("decide", parameters=names.parameters, config=config)
    rows, near = [], ""
    for parameter, decision in zip(names.parameters, decisions):
        key = next((above for above in _enclosing(parameter["fqn"]) if above in passing), None)
        row = ConversionRow(parameter["fqn"], tuple(parameter["shape"]), parameter["dtype"], None, None, None,
                            _NOT_PASSED if key is None else decision["reason"])
        if key is not None and decision["converts"]:
            row.config, row.key = _short(config), key
        elif key is not None and (not near or len(row.shape) == (3 if meaning(config).grouped else 2)):
            near = near or f", for example {row.fqn}: {row.reason}"
        rows.append(row)
    if not any(row.config for row in rows) and unmatched != "ignore":
        kind = "3-D expert weights" if meaning(config).grouped else "2-D weights of linears"
        message = (f"expected it to pass a module with parameters to which the config can apply ({kind}), got "
                   f"{len(passing)} modules and no such parameter{near}. The default filter, is_linear, passes "
                   "nn.Linear only.")
        if unmatched == "error":
            fail("quantize_", "filter_fn", message)
        warnings.warn(f"[quantize_] filter_fn: {message}", stacklevel=3)
    return rows, []


# ---- the public functions -------------------------------------------------------------------------------------
def _pairs(config):
    """The (key, config) pairs of a dict, a list of pairs, or torchao's FqnToConfig of both ages; None: one config."""
    for attribute in ("fqn_to_config", "module_fqn_to_config"):
        if hasattr(config, attribute):
            config = getattr(config, attribute)
    if isinstance(config, dict):
        return list(config.items())
    if isinstance(config, (list, tuple)):
        return [tuple(pair) for pair in config]
    return None


def quantize_(model: nn.Module, config, filter_fn: Optional[Callable[[nn.Module, str], bool]] = None, *,
              unmatched: str = "error", dry_run: bool = False, unused: str = "warn") -> ConversionReport:
    """Converts the parameters that `config` names, in place. They stay the same tensors under the same names:
    optimizers, state_dict, hooks and .grad are untouched.

    config: an ordered dict (or list of pairs, or torchao's FqnToConfig) of names to configs. A key is the name of a
    parameter or module, "re:PATTERN" against whole names, or "_default" (weights of Linears); a value is a config, the
    name of a recipe, one of torchao's configs, or None to leave alone. Precedence: moe8/quantize_model.h. Or one
    config, for the modules that filter_fn(module, fqn) passes (default: is_linear).
    unmatched: what to do when a key decides nothing; unused: when a converted weight trains in high precision after
    all. "error", "warn" or "ignore".

    Raises Error on a key, pattern or config that cannot be; nothing is converted then.
    """
    for name, value in (("unmatched", unmatched), ("unused", unused)):
        if value not in _CHOICES[name]:
            fail("quantize_", name, f"expected error, warn or ignore, got '{value}'")
    names, pairs = _Names(model), _pairs(config)
    if pairs is not None:
        if filter_fn is not None:
            fail("quantize_", "filter_fn", "expected none beside names; keys say what is converted")
        table = [(key, None if value is None else config_text(value)) for key, value in pairs]
        answer = ask("resolve", parameters=names.parameters, modules=[fqn for fqn, _ in names.modules],
                     buffers=names.buffers, config=table, unmatched=unmatched)
        rows, unmatched_keys = _rows(answer["parameters"]), answer["unmatched_keys"]
    else:
        rows, unmatched_keys = _decide_by_filter(names, config_text(config), filter_fn or is_linear, unmatched)
    return _convert(names, rows, unmatched_keys, dry_run, unused)


def check_conversion(model: nn.Module) -> ConversionCheck:
    """Did every converted weight of the model compute in low precision so far? Best asked after a first step."""
    seen, weights = set(), []
    for module in model.modules():
        for name in _configs(module):
            record = module._moe8_records[name]
            if id(record) not in seen:
                seen.add(id(record))
                weights.append(record.row())
    return ConversionCheck(weights)


def dequantize_(model: nn.Module) -> None:
    """Takes the conversion of every parameter of the model back: torch's own products run again."""
    for module in model.modules():
        for name in _configs(module):
            _kept.forget(module._parameters[name])
        if _configs(module):
            _set_configs(module, {})
