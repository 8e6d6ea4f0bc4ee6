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
from .._experts import Order
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
    """How gate and up are joined, as moe_experts names it; None: in a way of the model's own."""
    if not getattr(module, "has_gate", True) or getattr(module, "has_post_expert_norm", False):
        return None
    if hasattr(module, "alpha") and hasattr(module, "limit"):  # GPT-OSS
        return {"activation": "clamped_swiglu", "alpha": float(module.alpha), "limit": float(module.limit)}
    function = getattr(module, "act_fn", None)
    own_gate = getattr(type(module)._apply_gate, "__name__", "") != "_default_apply_gate"
    is_silu = isinstance(function, nn.SiLU) or getattr(function, "__name__", type(function).__name__) in (
        "silu", "SiLU", "SiLUActivation")
    return {"activation": "swiglu"} if is_silu and not own_gate else None


def _by_operations(module, x, index, scores, weights, biases, configs):
    """The layer with the model's own activation between moe8's products, each of which rounds to x's dtype."""
    order = Order(index, weights[0].shape[0])
    rows = order.tokens(x)
    for number, (weight, bias, config) in enumerate(zip(weights, biases, configs)):
        if number == 1:
            rows = module._apply_gate(rows) if getattr(module, "has_gate", True) else module.act_fn(rows)
        rows = ops.grouped_mm(rows, weight.transpose(-2, -1), order.offs, config, bias, out_dtype=x.dtype)
    if getattr(module, "has_post_expert_norm", False):
        rows = module.post_expert_norm(rows)
    return order.sums(rows, scores.float(), x.dtype)


def experts_forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor,
                    top_k_weights: torch.Tensor) -> torch.Tensor:
    """The experts of a layer of transformers: hidden_states [T, d], top_k_index and top_k_weights [T, k] -> [T, d]."""
    names = ("gate_up_proj" if getattr(self, "has_gate", True) else "up_proj", "down_proj")
    weights = [getattr(self, name) for name in names]
    configs = [_config_of(weight, name, self) for weight, name in zip(weights, names)]
    has_bias = getattr(self, "has_bias", False)
    biases = [getattr(self, f"{name}_bias") if has_bias else None for name in names]
    options = _activation(self)
    if getattr(self, "is_transposed", False):
        weights = [weight.transpose(-2, -1) for weight in weights]
    with torch._C.DisableTorchFunctionSubclass():
        if options is None:
            return _by_operations(self, hidden_states, top_k_index, top_k_weights, weights, biases, configs)
        return ops.moe_experts(hidden_states, weights[0], None, weights[1], top_k_index, top_k_weights,
                               config=configs[0], config2=configs[1],
                               gate_up="halves" if self.is_concatenated else "interleaved", **options, b1=biases[0],
                               b2=biases[1])
