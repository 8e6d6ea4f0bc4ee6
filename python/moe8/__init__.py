# SPDX-License-Identifier: BSD-3-Clause
"""Low-precision training of mixture-of-experts models: FP8 and MX products for PyTorch.

    import moe8
    moe8.quantize_(model, {"re:.*experts.*": "fp8_rowwise", "_default": "rowwise"})

docs/python.md of the repository has the rest."""
import torch as _torch

if tuple(int(part) for part in _torch.__version__.split("+")[0].split(".")[:2]) < (2, 11):
    raise ImportError(f"moe8: expected torch 2.11 or later, got {_torch.__version__}. pip install 'torch>=2.11'")

from ._kept import clear_weight_cache, set_weight_cache, weight_cache_use
from ._native import Error, ask as _ask
from .config import (Config, Float8LinearConfig, FP8GroupedMMConfig, MXFP8GroupedMMConfig, MXLinearConfig, recipes)
from .conversion import (ConversionCheck, ConversionReport, ConversionRow, check_conversion, dequantize_, is_linear,
                         quantize_)
from .ops import grouped_mm, grouped_mm_wgrad, linear, moe_experts

__version__ = _ask("about")["version"]
__all__ = ["Config", "ConversionCheck", "ConversionReport", "ConversionRow", "Error", "FP8GroupedMMConfig",
           "Float8LinearConfig", "MXFP8GroupedMMConfig", "MXLinearConfig", "check_conversion", "clear_weight_cache",
           "dequantize_", "grouped_mm", "grouped_mm_wgrad", "is_linear", "linear", "moe_experts", "quantize_",
           "recipes", "set_weight_cache", "weight_cache_use"]
