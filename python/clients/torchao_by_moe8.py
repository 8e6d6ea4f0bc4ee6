# SPDX-License-Identifier: BSD-3-Clause
"""A plugin of pytest for torchao's own tests of MoE training: its products are served by moe8
(moe8.integrations.torchao), and each of its conversions by name is asked of moe8.quantize_ as well, on a copy of the
model: the same parameters must be converted."""
import copy

import torchao.quantization.quant_api as quant_api
from torch import nn

import moe8
from moe8.integrations.torchao import serve

_quantize = quant_api.quantize_
compared = []


def _converted_by_torchao(model):
    """Names of parameters that have a tensor of torchao's in them, or are the weight of a linear of its own."""
    for fqn, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_its_tensor = type(parameter.data).__module__.startswith("torchao.")
            if is_its_tensor or isinstance(module, nn.Linear) and type(module).__module__.startswith("torchao."):
                yield f"{fqn}.{name}" if fqn else name


def _by_both(model, config, filter_fn=None, **named):
    if not hasattr(config, "fqn_to_config"):
        return _quantize(model, config, **({} if filter_fn is None else {"filter_fn": filter_fn}), **named)
    report = moe8.quantize_(copy.deepcopy(model), config)
    result = _quantize(model, config, filter_fn=filter_fn, **named)
    assert {row.fqn for row in report.converted()} == set(_converted_by_torchao(model))
    compared.append(len(report.converted()))
    return result


def pytest_configure(config):
    serve()
    quant_api.quantize_ = _by_both


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"moe8.quantize_ converted what torchao did in {len(compared)} conversions by name, "
                                f"{sum(compared)} parameters")
