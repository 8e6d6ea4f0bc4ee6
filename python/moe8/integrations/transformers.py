# SPDX-License-Identifier: BSD-3-Clause
"""Hugging Face's transformers 5: moe8's layer of experts as the experts implementation "moe8".

    import moe8.integrations.transformers as moe8_transformers
    moe8_transformers.register("fp8_rowwise")
    model = AutoModelForCausalLM.from_pretrained(path, experts_implementation="moe8")

Every family whose experts are stacked in gate_up_proj and down_proj: Qwen3-MoE, Mixtral, OLMoE, DeepSeek-V3, GPT-OSS
and others. Weights that moe8.quantize_ converted compute by their own config, others by the registered recipe."""
from typing import Optional

import torch
from torch import nn

from .. import ops
from .._native import fail
from ..config import config_text, meaning
from ..conversion import converted_config
from ..weights import handle_grouped_mm, note_low

_OP = "experts implementation 'moe8'"
_recipe: Optional[str] = None


def register(config=None) -> None:
    """Registers "moe8" in transformers' ExpertsInterface.

    config: the recipe (or config) of experts that are not converted by quantize_; None: those are an error, so that
    nothing trains in high precision unnoticed.
    """
    from transformers.integrations import moe
    global _recipe
    _recipe = None
    if config is not None:
        text = config_text(config)
        if not meaning(text).grouped:
            fail("register", "config", f"expected an FP8GroupedMMConfig or MXFP8GroupedMMConfig, got {text}")
        _recipe = text
    moe.ALL_EXPERTS_FUNCTIONS.register("moe8", experts_forward)
    # What the implementation "grouped_mm" falls back to is a product of converted weights as well.
    if hasattr(torch.ops.transformers, "grouped_mm_fallback"):
        handle_grouped_mm(torch.ops.transformers.grouped_mm_fallback)


def _config_of(weight, name, module):
    config = converted_config(module, name)
    if config is not None:
        note_low(weight)
        return config
    if _recipe is None:
        fail(_OP, name, f"expected a converted weight of {type(module).__name__}, got a plain one. Convert it by "
             "moe8.quantize_(model, {'re:.*experts.*': 'fp8_rowwise'}), or name a recipe in register()")
    return _recipe


def _activation(module):
    """How gate and up are joined, as moe_experts names it."""
    if not getattr(module, "has_gate", True):
        fail(_OP, "experts", f"expected experts with a gate, got {type(module).__name__} without. Load the model with "
             "experts_implementation='grouped_mm' and convert it by moe8.quantize_")
    if hasattr(module, "alpha") and hasattr(module, "limit"):  # GPT-OSS
        return {"activation": "clamped_swiglu", "alpha": float(module.alpha), "limit": float(module.limit)}
    function = getattr(module, "act_fn", None)
    own_gate = getattr(type(module)._apply_gate, "__name__", "") != "_default_apply_gate"
    is_silu = isinstance(function, nn.SiLU) or getattr(function, "__name__", type(function).__name__) in (
        "silu", "SiLU", "SiLUActivation")
    if own_gate or not is_silu or getattr(module, "has_post_expert_norm", False):
        fail(_OP, "experts", f"expected silu(gate) * up, got {type(module).__name__} with "
             f"{'a gate or a norm of its own' if is_silu else type(function).__name__}. Load the model with "
             "experts_implementation='grouped_mm' and convert it by moe8.quantize_")
    return {"activation": "swiglu"}


def experts_forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor,
                    top_k_weights: torch.Tensor) -> torch.Tensor:
    """The experts of a layer of transformers: hidden_states [T, d], top_k_index and top_k_weights [T, k] -> [T, d]."""
    gate_up, down = self.gate_up_proj, self.down_proj
    config, config2 = (_config_of(weight, name, self) for weight, name in ((gate_up, "gate_up_proj"),
                                                                           (down, "down_proj")))
    options = _activation(self)
    if getattr(self, "is_transposed", False):
        gate_up, down = gate_up.transpose(-2, -1), down.transpose(-2, -1)
    biases = {}
    if getattr(self, "has_bias", False):
        biases = {"b1": self.gate_up_proj_bias, "b2": self.down_proj_bias}
    with torch._C.DisableTorchFunctionSubclass():
        return ops.moe_experts(hidden_states, gate_up, None, down, top_k_index, top_k_weights, config=config,
                               config2=config2, gate_up="halves" if self.is_concatenated else "interleaved", **options,
                               **biases)
