# SPDX-License-Identifier: BSD-3-Clause
"""Configs and recipes: which formats a weight's three products have. The values of include/moe8/config.h; what
fields may be, and what they mean, is decided in C++."""
import dataclasses
import enum
import functools
from typing import Optional, Union

import torch

from ._native import Error, ask, fail

_DTYPES = {torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float8_e4m3fn: "float8_e4m3fn",
           torch.float8_e5m2: "float8_e5m2"}


def _text_of(value):
    """A field's value as set_field() of C++ reads it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, torch.dtype):
        return _DTYPES.get(value, str(value).removeprefix("torch."))
    if isinstance(value, enum.Enum):
        return str(value.value).lower()
    return str(value)


class _Config:
    """A config as text: TYPE(field=value, ...); made once, so that compiled code need not."""

    def __post_init__(self):
        fields = (f"{field.name}={_text_of(getattr(self, field.name))}" for field in dataclasses.fields(self))
        object.__setattr__(self, "text", f"{type(self).__name__}({', '.join(fields)})")

    def __str__(self):
        return self.text


@dataclasses.dataclass(frozen=True)
class FP8GroupedMMConfig(_Config):
    """Expert weights (E, N, K) in FP8, a power-of-two scale per row of every operand."""
    out_dtype: torch.dtype = torch.bfloat16


@dataclasses.dataclass(frozen=True)
class MXFP8GroupedMMConfig(_Config):
    """Expert weights (E, N, K) in MXFP8: e4m3, an e8m0 scale per 32 elements."""
    kernel_preference: str = "auto"
    out_dtype: torch.dtype = torch.bfloat16
    wgrad_with_hp: bool = False
    scale_calculation_mode: str = "rceil"


@dataclasses.dataclass(frozen=True)
class MXLinearConfig(_Config):
    """Linear weights (N, K) in an MX format."""
    block_size: int = 32
    elem_dtype: Union[str, torch.dtype] = "float8_e4m3fn"
    elem_dtype_weight_override: Optional[Union[str, torch.dtype]] = None
    elem_dtype_grad_output_override: Optional[Union[str, torch.dtype]] = None
    kernel_preference: str = "emulated"
    scale_calculation_mode: str = "floor"


@dataclasses.dataclass(frozen=True)
class Float8LinearConfig(_Config):
    """Linear weights (N, K) in FP8 with float32 scales. A cast is "disabled", "tensorwise" or "axiswise", or one of
    the latter with its dtype ("tensorwise:float8_e5m2"); of how a product accumulates: "fast_accum",
    "exact_accum"."""
    cast_config_input: str = "tensorwise"
    cast_config_weight: str = "tensorwise"
    cast_config_grad_output: str = "tensorwise"
    cast_config_input_for_grad_weight: Optional[str] = None
    cast_config_weight_for_grad_input: Optional[str] = None
    cast_config_grad_output_for_grad_weight: Optional[str] = None
    gemm_config_output: str = "fast_accum"
    gemm_config_grad_input: str = "exact_accum"
    gemm_config_grad_weight: str = "exact_accum"
    round_scales_to_power_of_2: bool = False
    emulate: bool = False


Config = Union[str, FP8GroupedMMConfig, MXFP8GroupedMMConfig, MXLinearConfig, Float8LinearConfig]


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What a config says of products; formats as numbers of python/native/format_code.h."""
    text: str
    grouped: bool
    out_dtype: Optional[torch.dtype]  # None: that of the input
    left: tuple  # of the products out, grad_input, grad_weight
    right: tuple
    fast_accum: tuple


@functools.lru_cache(maxsize=None)
def _meaning(text: str) -> Meaning:
    said = ask("config", config=text)
    products = [said[name] for name in ("out", "grad_input", "grad_weight")]
    return Meaning(said["text"], said["grouped"],
                   getattr(torch, said["out_dtype"]) if said["out_dtype"] else None,
                   tuple(p["left"] for p in products), tuple(p["right"] for p in products),
                   tuple(int(p["fast_accum"]) for p in products))


@torch.compiler.assume_constant_result
def meaning(text: str) -> Meaning:
    """What the config of a text means; compiled code takes it as it is."""
    return _meaning(text)


@torch.compiler.assume_constant_result
def _canonical(text: str) -> str:
    return _meaning(text).text


def config_text(config) -> str:
    """The canonical text of a config, the recipe of a name, or one of torchao's configs.

    Raises Error naming the field or value and the allowed ones.
    """
    if isinstance(config, str):
        return _canonical(config)
    return _canonical((config if isinstance(config, _Config) else from_torchao(config)).text)


def recipes():
    """Every recipe: dicts of name, applies_to ("experts" or "linear"), description and config."""
    return ask("recipes")


# ---- torchao ----------------------------------------------------------------------------------------
def _name(value):
    return str(getattr(value, "value", value)).lower()


def _torchao_float8(config):
    """Float8TrainingOpConfig, and FP8GroupedMMConfig of older versions."""
    return FP8GroupedMMConfig(out_dtype=getattr(config, "out_dtype", torch.bfloat16))


def _torchao_mx(config):
    preference = _name(getattr(config, "kernel_preference", "auto"))
    return MXFP8GroupedMMConfig(
        kernel_preference="emulated" if preference == "emulated" else "auto",
        out_dtype=getattr(config, "out_dtype", torch.bfloat16), wgrad_with_hp=getattr(config, "wgrad_with_hp", False),
        scale_calculation_mode=_name(getattr(config, "scale_calculation_mode", "rceil")))


def _torchao_mx_linear(config):
    return MXLinearConfig(
        block_size=config.block_size, elem_dtype=config.elem_dtype,
        elem_dtype_weight_override=config.elem_dtype_weight_override,
        elem_dtype_grad_output_override=config.elem_dtype_grad_output_override,
        kernel_preference="emulated" if _name(config.kernel_preference) == "emulated" else "auto",
        scale_calculation_mode=_name(config.scale_calculation_mode))


def _torchao_cast(cast):
    if _name(cast.scaling_type) == "disabled":
        return "disabled"
    granularity = _name(cast.scaling_granularity)
    dtype = getattr(cast, "target_dtype", None)
    return f"{granularity}:{_text_of(dtype)}" if dtype is not None else granularity


def _torchao_linear(config):
    casts = {field.name: _torchao_cast(getattr(config, field.name))
             for field in dataclasses.fields(Float8LinearConfig)
             if field.name.startswith("cast_") and getattr(config, field.name) is not None}
    products = {name: "fast_accum" if getattr(config, name).use_fast_accum else "exact_accum"
                for name in ("gemm_config_output", "gemm_config_grad_input", "gemm_config_grad_weight")}
    return Float8LinearConfig(**casts, **products, round_scales_to_power_of_2=config.round_scales_to_power_of_2,
                              emulate=config.emulate)


_TORCHAO = {"FP8GroupedMMConfig": _torchao_float8, "Float8TrainingOpConfig": _torchao_float8,
            "MXFP8GroupedMMConfig": _torchao_mx, "MXFP8TrainingOpConfig": _torchao_mx,
            "MXLinearConfig": _torchao_mx_linear, "Float8LinearConfig": _torchao_linear}


def from_torchao(config) -> Config:
    """moe8's config that means what a config of torchao's means, of its names before and after 0.17."""
    convert = _TORCHAO.get(type(config).__name__)
    if convert is None:
        fail("config", "", f"expected a config, the name of a recipe or one of torchao's {', '.join(_TORCHAO)}, got "
             f"{type(config).__name__}")
    try:
        return convert(config)
    except AttributeError as error:
        raise Error(f"[config] {type(config).__name__}: expected the fields of torchao's config, got one without "
                    f"them ({error})") from error
