# SPDX-License-Identifier: BSD-3-Clause
"""torchao: its prototype of MoE training computed by moe8's kernels. torchao's tensors, configs and quantize_ stay;
their products, `_quantize_then_scaled_grouped_mm`, are served by moe8, with groups of any size.

    from moe8.integrations.torchao import serve
    with serve():
        ...                  # or serve() once, for the whole process
"""
import contextlib
import importlib
import pkgutil
import sys

import torch

from .. import ops
from .._native import fail
from ..config import FP8GroupedMMConfig, MXFP8GroupedMMConfig, from_torchao

_NAME = "_quantize_then_scaled_grouped_mm"
_PACKAGE = "torchao.prototype.moe_training"


def _config_of(config, scaling_type):
    """Of a config of torchao, or of the scaling type that versions before 0.16 passed."""
    if config is not None:
        return from_torchao(config)
    name = str(getattr(scaling_type, "value", scaling_type)).lower()
    if name == "fp8_rowwise":
        return FP8GroupedMMConfig()
    if name.startswith("mxfp8"):
        return MXFP8GroupedMMConfig(wgrad_with_hp=name.endswith("wgrad_with_hp"))
    return fail(_NAME, "scaling_type", f"expected fp8_rowwise or mxfp8, got {name}")


def grouped_mm(A, B_t, *arguments, config=None, offs=None, out_dtype=None, scaling_type="fp8_rowwise", bias=None,
               **_ignored):
    """torchao's `_quantize_then_scaled_grouped_mm`, of every age. Its preferences of kernels mean nothing here."""
    for argument in arguments:  # positions differ between versions, types do not
        if isinstance(argument, torch.Tensor):
            offs = argument
        elif isinstance(argument, torch.dtype):
            out_dtype = argument
        elif hasattr(argument, "value"):
            scaling_type = argument
        elif argument is not None:
            config = argument
    return ops.grouped_mm(A, B_t, offs, _config_of(config, scaling_type), bias, out_dtype)


def _modules():
    """Every module of torchao's MoE training, loaded where it can be."""
    package = importlib.import_module(_PACKAGE)
    for info in pkgutil.walk_packages(package.__path__, _PACKAGE + "."):
        with contextlib.suppress(ImportError, AssertionError, AttributeError, RuntimeError):
            importlib.import_module(info.name)
    return [module for name, module in list(sys.modules.items()) if name.startswith(_PACKAGE) and
            hasattr(module, _NAME)]


class _Served(contextlib.AbstractContextManager):
    def __init__(self, modules):
        self.before = [(module, getattr(module, _NAME)) for module in modules]
        for module in modules:
            setattr(module, _NAME, grouped_mm)

    def __exit__(self, *_exception):
        for module, function in self.before:
            setattr(module, _NAME, function)


def serve():
    """From now on, or in a with block: torchao's products of expert weights are moe8's."""
    modules = _modules()
    if not modules:
        fail("torchao", "", f"expected a torchao with {_PACKAGE} and {_NAME} (0.14 to 0.18), found none")
    return _Served(modules)
