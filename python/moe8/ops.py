# SPDX-License-Identifier: BSD-3-Clause
"""torch.ops.moe8: every operation with a fake kernel and autograd, and the functions that people call.

Configs are passed to operations as text (str(config), or a recipe's name)."""
import functools

import torch
from torch import Tensor
from torch.autograd import forward_ad
from typing import Optional

from . import _experts, _kept, _products, _quantize
from ._native import Error, fail
from ._tensors import (ELEMS, check_device, check_dtype, check_offs, choice, describe)
from .config import config_text, meaning

_library = torch.library.Library("moe8", "DEF")
_DEVICES = ("CPU", "CUDA")


def _define(schema, kernel, fake):
    name = schema[:schema.index("(")]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in _DEVICES:
        _library.impl(name, kernel, device)
    torch.library.register_fake(f"moe8::{name}", fake, lib=_library)


def _plainly(kernel):
    """The kernel with converted weights as what they are, tensors: nothing asks their class."""
    @functools.wraps(kernel)
    def call(*arguments):
        with torch._C.DisableTorchFunctionSubclass():
            return kernel(*arguments)
    return call


def _once(name):
    """Gradients of gradients are refused: they would not be those of quantized products."""
    def refuse(ctx, *grads):
        raise Error(f"[{name}] backward: expected one differentiation, got a second (create_graph=True). "
                    "Take the conversion back with moe8.dequantize_() for second derivatives.")
    torch.library.register_autograd(f"moe8::{name}", refuse, lib=_library)


def _autograd(name, backward, setup_context):
    torch.library.register_autograd(f"moe8::{name}", backward, setup_context=setup_context, lib=_library)


# ---- quantizers -----------------------------------------------------------------------------------------
def _fake_quantize_codes_mx(x, elem, mode, axis=-1, offs=None):
    number = choice("quantize_mx", "elem", elem, ELEMS)
    shape, dtype = _quantize.packed_shape(x.shape, number)
    scale = _quantize.scale_shape_mx(x, axis % x.dim(), offs)
    return x.new_empty(shape, dtype=dtype), x.new_empty(scale, dtype=torch.float8_e8m0fnu)


def _fake_quantize_codes_float8(x, elem, round_scales_to_power_of_2=False, axis=None, offs=None):
    number = choice("quantize_float8", "elem", elem, ELEMS)
    shape, dtype = _quantize.packed_shape(x.shape, number)
    scale = _quantize.scale_shape_float8(x, None if axis is None else axis % x.dim(), offs)
    return x.new_empty(shape, dtype=dtype), x.new_empty(scale, dtype=torch.float32)


def _fake_values(x, *_arguments, dtype=None, **_named):
    return torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)


_define("quantize_mx(Tensor x, str elem, str mode, int axis=-1, Tensor? offs=None) -> (Tensor data, Tensor scale)",
        lambda x, elem, mode, axis=-1, offs=None: _quantize.quantize_mx(x, elem, mode, axis, offs),
        _fake_quantize_codes_mx)
_define("fake_quantize_mx(Tensor x, str elem, str mode, int axis=-1, Tensor? offs=None, *, ScalarType? dtype=None) "
        "-> Tensor",
        lambda x, elem, mode, axis=-1, offs=None, dtype=None:
        _quantize.fake_quantize_mx(x, elem, mode, axis, offs, dtype), _fake_values)
_define("dequantize_mx(Tensor data, Tensor scale, str elem, SymInt[] shape, int axis=-1, Tensor? offs=None, *, "
        "ScalarType dtype) -> Tensor",
        lambda data, scale, elem, shape, axis=-1, offs=None, *, dtype:
        _quantize.dequantize_mx(data, scale, elem, shape, axis, offs, dtype),
        lambda data, scale, elem, shape, axis=-1, offs=None, *, dtype: data.new_empty(shape, dtype=dtype))
_define("quantize_float8(Tensor x, str elem, bool round_scales_to_power_of_2=False, int? axis=None, "
        "Tensor? offs=None) -> (Tensor data, Tensor scale)",
        lambda x, elem, round_scales_to_power_of_2=False, axis=None, offs=None:
        _quantize.quantize_float8(x, elem, round_scales_to_power_of_2, axis, offs), _fake_quantize_codes_float8)
_define("fake_quantize_float8(Tensor x, str elem, bool round_scales_to_power_of_2=False, int? axis=None, "
        "Tensor? offs=None, *, ScalarType? dtype=None) -> Tensor",
        lambda x, elem, round_scales_to_power_of_2=False, axis=None, offs=None, dtype=None:
        _quantize.fake_quantize_float8(x, elem, round_scales_to_power_of_2, axis, offs, dtype), _fake_values)
_define("dequantize_float8(Tensor data, Tensor scale, str elem, int? axis=None, Tensor? offs=None, *, "
        "ScalarType dtype) -> Tensor",
        lambda data, scale, elem, axis=None, offs=None, *, dtype:
        _quantize.dequantize_float8(data, scale, elem, axis, offs, dtype),
        lambda data, scale, elem, axis=None, offs=None, *, dtype: torch.empty(data.shape, dtype=dtype,
                                                                              device=data.device))


# ---- products -------------------------------------------------------------------------------------------
# grouped_mm and linear are one product; two names, so that selective checkpointing can tell them apart.
def _product(A, W, offs, bias, config, out_dtype, kept=None, ctx=None):
    out = _products.forward("grouped_mm", A, W, offs, config, out_dtype, kept, ctx)
    return out if bias is None else _products.add_bias(out, bias, offs)


def _linear(x, weight, config, kept=None, ctx=None):
    if x.dim() == 2:
        return _products.forward("linear", x, weight, None, config, x.dtype, kept, ctx)
    n, k = weight.shape
    rows = x.reshape(x.shape[:-1].numel(), k)
    out = _products.forward("linear", rows, weight, None, config, x.dtype, kept, ctx)
    return out.view(*x.shape[:-1], n)


def _linear_backward(grad_out, x, weight, config, needs_x, needs_weight, kept=None, ctx=None):
    if x.dim() == 2:
        return _products.backward("linear", grad_out, x, weight, None, config, needs_x, needs_weight, kept, ctx)
    n, k = weight.shape
    rows = x.shape[:-1].numel()
    grad_x, grad_w = _products.backward("linear", grad_out.reshape(rows, n), x.reshape(rows, k), weight, None, config,
                                        needs_x, needs_weight, kept, ctx)
    return grad_x.view(x.shape) if needs_x else None, grad_w


def _all_tensors(backward):
    """An operation of torch returns a tensor, of no elements, for a gradient that is not needed."""
    @_plainly
    def call(grad_out, first, weight, *rest):
        grads = backward(grad_out, first, weight, *rest)
        return tuple(like.new_empty(0) if grad is None else grad for grad, like in zip(grads, (first, weight)))
    return call


def _grouped_backward(grad_out, A, W, offs, config, needs_A, needs_W):
    return _products.backward("grouped_mm", grad_out, A, W, offs, config, needs_A, needs_W)


def _fake_product_backward(grad_out, A, W, offs, config, needs_A, needs_W):
    return (A.new_empty(A.shape if needs_A else (0,)), W.new_empty(W.shape if needs_W else (0,)))


_define("grouped_mm(Tensor A, Tensor W, Tensor offs, Tensor? bias, str config, ScalarType out_dtype) -> Tensor",
        _plainly(_product), lambda A, W, offs, bias, config, out_dtype:
        torch.empty((A.shape[0], W.shape[1]), dtype=out_dtype, device=A.device))
_define("grouped_mm_backward(Tensor grad_out, Tensor A, Tensor W, Tensor offs, str config, bool needs_A, "
        "bool needs_W) -> (Tensor, Tensor)", _all_tensors(_grouped_backward), _fake_product_backward)
_define("grouped_bias_grad(Tensor grad_out, Tensor offs, int groups) -> Tensor",
        lambda grad_out, offs, groups: _products.group_sums(grad_out, offs, groups),
        lambda grad_out, offs, groups: grad_out.new_empty((groups, grad_out.shape[1]), dtype=torch.float32))
_define("linear(Tensor x, Tensor weight, str config) -> Tensor", _plainly(_linear),
        lambda x, weight, config: torch.empty((*x.shape[:-1], weight.shape[0]), dtype=x.dtype, device=x.device))
_define("linear_backward(Tensor grad_out, Tensor x, Tensor weight, str config, bool needs_x, bool needs_weight) "
        "-> (Tensor, Tensor)", _all_tensors(_linear_backward),
        lambda grad_out, x, weight, config, needs_x, needs_weight:
        (torch.empty(x.shape if needs_x else (0,), dtype=x.dtype, device=x.device),
         torch.empty(weight.shape if needs_weight else (0,), dtype=weight.dtype, device=weight.device)))


def _save_grouped(ctx, inputs, output):
    A, W, offs, bias, ctx.config, _ = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(A, W, offs)


def _grouped_grads(ctx, grad_out):
    A, W, offs = ctx.saved_tensors
    needs_A, needs_W, _, needs_bias = ctx.needs_input_grad[:4]
    grad_A = grad_W = grad_bias = None
    if needs_A or needs_W:
        grad_A, grad_W = torch.ops.moe8.grouped_mm_backward(grad_out, A, W, offs, ctx.config, needs_A, needs_W)
    if ctx.bias_dtype is not None and needs_bias:
        grad_bias = torch.ops.moe8.grouped_bias_grad(grad_out, offs, W.shape[0]).to(ctx.bias_dtype)
    return grad_A if needs_A else None, grad_W if needs_W else None, None, grad_bias, None, None


def _save_linear(ctx, inputs, output):
    x, weight, ctx.config = inputs
    ctx.save_for_backward(x, weight)


def _linear_grads(ctx, grad_out):
    x, weight = ctx.saved_tensors
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    grad_x, grad_w = torch.ops.moe8.linear_backward(grad_out, x, weight, ctx.config, needs_x, needs_weight)
    return grad_x if needs_x else None, grad_w if needs_weight else None, None


# The same two without the dispatcher, for eager code: an operation of torch with gradients in Python costs several
# times as much. Here weights are kept between forward and backward, and for later forwards.
def _once_differentiable(grads):
    """torch's once_differentiable, where somebody could differentiate again; it costs what a product does."""
    refusing = torch.autograd.function.once_differentiable(grads)

    def backward(ctx, grad_out):
        with torch._C.DisableTorchFunctionSubclass():
            return (refusing if torch.is_grad_enabled() else grads)(ctx, grad_out)
    return staticmethod(backward)


def _applied(function):
    """function.apply without what it does for function transforms, of which eager code has none; and the engine calls
    function.backward, without asking first whether it is called vjp."""
    function._backward_cls.apply = function.backward
    return super(torch.autograd.Function, function).apply


class _Grouped(torch.autograd.Function):
    """Of B_t [E, K, N]: a view that is made in here is none for autograd to go back through."""

    @staticmethod
    def forward(ctx, A, B_t, offs, bias, config, out_dtype):
        ctx.config, ctx.bias_dtype = config, None if bias is None else bias.dtype
        W = B_t.mT  # sooner made than transpose(1, 2)
        ctx.save_for_backward(A, W, offs)
        return _product(A, W, offs, bias, config, out_dtype, _kept.for_forward(W), ctx)

    @_once_differentiable
    def backward(ctx, grad_out):
        A, W, offs = ctx.saved_tensors
        needs_A, needs_W, _, needs_bias, *_ = ctx.needs_input_grad
        grad_A = grad_W = grad_bias = None
        if needs_A or needs_W:
            grad_A, grad_W = _products.backward("grouped_mm", grad_out, A, W, offs, ctx.config, needs_A, needs_W,
                                                _kept.for_backward(W), ctx)
        if needs_W:
            _kept.note_gradient(W)
            grad_W = grad_W.mT
        if ctx.bias_dtype is not None and needs_bias:
            grad_bias = _products.group_sums(grad_out, offs, W.shape[0]).to(ctx.bias_dtype)
        return grad_A, grad_W, None, grad_bias, None, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, config):
        ctx.config = config
        ctx.save_for_backward(x, weight)
        return _linear(x, weight, config, _kept.for_forward(weight), ctx)

    @_once_differentiable
    def backward(ctx, grad_out):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        grad_x, grad_weight = _linear_backward(grad_out, x, weight, ctx.config, needs_x, needs_weight,
                                               _kept.for_backward(weight), ctx)
        if needs_weight:
            _kept.note_gradient(weight)
        return grad_x, grad_weight, None


_apply_grouped, _apply_linear = _applied(_Grouped), _applied(_Linear)
_PLAIN_DISPATCH = torch.Tensor.__torch_dispatch__


def _is_eager(a, b):
    """Whether nothing but autograd wants to see the operation: no compiler, dispatch mode, function transform or
    forward-mode derivative, no subclass of tensors but converted weights."""
    return (not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() == 0 and
            torch._C._functorch.peek_interpreter_stack() is None and forward_ad._current_level < 0 and
            type(a).__torch_dispatch__ is _PLAIN_DISPATCH and type(b).__torch_dispatch__ is _PLAIN_DISPATCH and
            not a.is_meta)


def _wants_grad(a, b):
    return torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)


_autograd("grouped_mm", _grouped_grads, _save_grouped)
_autograd("linear", _linear_grads, _save_linear)
for _name in ("grouped_mm_backward", "linear_backward", "grouped_bias_grad"):
    _once(_name)


# ---- the layer of experts ---------------------------------------------------------------------------------
_EXPERTS = ("Tensor x, Tensor w13, Tensor w2, Tensor experts, Tensor? scores, Tensor? b13, Tensor? b2, "
            "str config13, str config2, bool interleaved, bool clamped, float alpha, float limit, "
            "bool scores_on_input")
_NEEDS = ("x", "w13", "w2", "scores", "b13", "b2")  # in the order of gradients


def _experts_forward(x, w13, w2, experts, scores, b13, b2, *options):
    o = _experts.Options(*options)
    return _experts.forward(x, w13, w2, experts, scores, b13, b2, o, (None, None),
                            _experts.keeps_codes(x, w13, w2, o))


def _fake_experts(x, w13, w2, experts, scores, b13, b2, *options):
    o = _experts.Options(*options)
    return torch.empty_like(x, memory_format=torch.contiguous_format), \
        torch.empty((experts.numel(), w13.shape[1]), dtype=_experts.hidden_dtype(x, o), device=x.device), \
        torch.empty(_experts.saved_bytes(x, w13, w2, experts, o), dtype=torch.uint8, device=x.device)


def _experts_backward(grad_out, hidden, saved, x, w13, w2, experts, scores, b13, b2, *options_and_needs):
    *options, needs = options_and_needs
    needs = {name for name, wanted in zip(_NEEDS, needs) if wanted}
    grads = _experts.backward(grad_out, x, w13, w2, experts, scores, b13, b2, hidden, saved,
                              _experts.Options(*options), needs)
    return tuple(grad_out.new_empty(0) if getattr(grads, name) is None else getattr(grads, name) for name in _NEEDS)


def _fake_experts_backward(grad_out, hidden, saved, x, w13, w2, experts, scores, b13, b2, *options_and_needs):
    like = dict(zip(_NEEDS, (grad_out, w13, w2, scores, b13, b2)))
    return tuple(torch.empty(like[name].shape, dtype=like[name].dtype, device=grad_out.device) if wanted else
                 grad_out.new_empty(0) for name, wanted in zip(_NEEDS, options_and_needs[-1]))


_define(f"moe_experts({_EXPERTS}) -> (Tensor out, Tensor hidden, Tensor saved)", _plainly(_experts_forward),
        _fake_experts)
_define(f"moe_experts_backward(Tensor grad_out, Tensor hidden, Tensor saved, "
        f"{_EXPERTS.replace('Tensor x', 'Tensor? x', 1)}, bool[] needs) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)", _plainly(_experts_backward), _fake_experts_backward)


def _save_experts(ctx, inputs, output):
    x, *tensors, ctx.options = inputs[:7] + (inputs[7:],)
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)
    keeps_codes = _experts.keeps_codes(x, *tensors[:2], _experts.Options(*ctx.options))
    ctx.save_for_backward(output[1], output[2], None if keeps_codes else x, *tensors)


def _experts_grads(ctx, grad_out, _grad_hidden, _grad_saved):
    nothing = (None,) * (7 + len(ctx.options))
    if grad_out is None:
        return nothing
    wanted = ctx.needs_input_grad
    needs = [wanted[i] for i in (0, 1, 2, 4, 5, 6)]
    grads = torch.ops.moe8.moe_experts_backward(grad_out, *ctx.saved_tensors, *ctx.options, needs)
    dx, dw13, dw2, dscores, db13, db2 = (grad if need else None for grad, need in zip(grads, needs))
    return (dx, dw13, dw2, None, dscores, db13, db2) + nothing[7:]


_autograd("moe_experts", _experts_grads, _save_experts)
_once("moe_experts_backward")


class _Experts(torch.autograd.Function):
    """The same for eager code, with weights that are kept."""

    @staticmethod
    def forward(ctx, x, w13, w2, experts, scores, b13, b2, o):
        ctx.options = o
        needs_w13 = ctx.needs_input_grad[1]
        keeps_codes = needs_w13 and _experts.keeps_codes(x, w13, w2, o)
        out, hidden, saved = _experts.forward(x, w13, w2, experts, scores, b13, b2, o,
                                              (_kept.for_forward(w13), _kept.for_forward(w2)), keeps_codes)
        # Where it is fused, x matters to the gradient of w13 alone.
        reads_x = saved.numel() == 0 or needs_w13 and not keeps_codes
        ctx.save_for_backward(x if reads_x else None, w13, w2, experts, scores, b13, b2, hidden, saved)
        return out

    @_once_differentiable
    def backward(ctx, grad_out):
        x, w13, w2, *rest = ctx.saved_tensors
        needs = {name for name, i in zip(_NEEDS, (0, 1, 2, 4, 5, 6)) if ctx.needs_input_grad[i]}
        grads = _experts.backward(grad_out, x, w13, w2, *rest, ctx.options, needs,
                                  (_kept.for_backward(w13), _kept.for_backward(w2)))
        for name, weight in (("w13", w13), ("w2", w2)):
            if name in needs:
                _kept.note_gradient(weight)
        return grads.x, grads.w13, grads.w2, None, grads.scores, grads.b13, grads.b2, None


_apply_experts = _applied(_Experts)


# ---- what people call ---------------------------------------------------------------------------------------
def autocast(device, *tensors):
    """Tensors as autocast wants them."""
    if not torch._C._is_any_autocast_enabled():
        return tensors
    kind = device.type
    if kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(device.type)
    return tuple(x.to(dtype) if x is not None and x.is_floating_point() else x for x in tensors)


def _of_grouped(op, text):
    """What a config of experts means."""
    said = meaning(text)
    if not said.grouped:
        fail(op, "config", f"expected an FP8GroupedMMConfig or MXFP8GroupedMMConfig, got {text}")
    return said


def grouped_mm(A: Tensor, B_t: Tensor, offs: Tensor, config="fp8_rowwise", bias: Optional[Tensor] = None,
               out_dtype: Optional[torch.dtype] = None) -> Tensor:
    """Every expert's rows of A times that expert's matrix, with quantized operands (moe8/grouped_mm.h).

    A [M, K]; B_t [E, K, N], normally W.transpose(-2, -1), bf16 or float32 of any strides; offs [E] int32 end rows;
    bias [E, N]. Returns [M, N] of out_dtype, by default the config's; rows past offs[-1] are zero.
    Differentiable once in A, B_t and bias. Raises Error when ranks, dtypes, devices or sizes disagree.
    """
    op = "grouped_mm"
    text = config_text(config)
    of_config = _of_grouped(op, text)
    device = A.device
    A, B_t = autocast(device, A, B_t)
    check_dtype(op, "A", A)
    check_dtype(op, "B_t", B_t)
    of_A, of_B = A.shape, B_t.shape
    if len(of_A) != 2:
        fail(op, "A", f"expected [M, K], got {describe(A)}")
    if len(of_B) != 3:
        fail(op, "B_t", f"expected [E, K, N], got {describe(B_t)}")
    if B_t.device != device:
        fail(op, "B_t", f"expected on {device} as A is, got {describe(B_t)}")
    if of_B[1] != of_A[1]:
        fail(op, "B_t", f"expected [E, {of_A[1]}, N] to fit A of {list(of_A)}, got {list(of_B)}. Weights (E, N, K) are "
             "passed as W.transpose(-2, -1)")
    check_offs(op, offs, of_B[0], device)
    if bias is not None and (tuple(bias.shape) != (of_B[0], of_B[2]) or bias.device != device):
        fail(op, "bias", f"expected [{of_B[0]}, {of_B[2]}], a row for each expert, on {device}, got {describe(bias)}")
    dtype = out_dtype or of_config.out_dtype or A.dtype
    if not _is_eager(A, B_t):
        return torch.ops.moe8.grouped_mm(A, B_t.transpose(1, 2), offs, bias, text, dtype)
    if _wants_grad(A, B_t) or bias is not None and _wants_grad(bias, bias):
        return _apply_grouped(A, B_t, offs, bias, text, dtype)
    return _product(A, B_t.mT, offs, bias, text, dtype)


def grouped_mm_wgrad(grad_out: Tensor, A: Tensor, offs: Tensor, config="fp8_rowwise",
                     out_dtype: Optional[torch.dtype] = None) -> Tensor:
    """The product of two matrices within each group, grad_out[rows of e].T A[rows of e]: [E, N, K].

    grad_out [M, N], A [M, K], offs [E]: the gradient of expert weights as `config` computes it. Not differentiable.
    """
    op = "grouped_mm_wgrad"
    text = _of_grouped(op, config_text(config)).text
    for name, x in (("grad_out", grad_out), ("A", A)):
        check_dtype(op, name, x)
        if x.dim() != 2 or x.shape[0] != A.shape[0]:
            fail(op, name, f"expected a matrix of {A.shape[0]} rows, got {describe(x)}")
    check_offs(op, offs, None, A.device)
    W = A.new_empty((offs.shape[0], grad_out.shape[1], A.shape[1]), dtype=out_dtype or A.dtype)
    with torch.no_grad():
        return torch.ops.moe8.grouped_mm_backward(grad_out, A, W, offs, text, False, True)[1]


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, config="rowwise") -> Tensor:
    """y = x weight^T + bias with quantized operands (moe8/linear.h).

    x [..., K], weight [N, K], bias [N]; bf16 or float32. Returns [..., N] of x's dtype. Differentiable once.
    Raises Error when ranks, dtypes, devices or sizes disagree, or the config is one of experts.
    """
    op = "linear"
    text = config_text(config)
    if meaning(text).grouped:
        fail(op, "config", f"expected an MXLinearConfig or Float8LinearConfig, got {text}")
    return product_of_one(op, x, weight, bias, text)


def product_of_one(op, x, weight, bias, text):
    """linear() with a config of any kind: that of one expert's matrix among them."""
    device = x.device
    x, weight, bias = autocast(device, x, weight, bias)
    check_dtype(op, "x", x)
    check_dtype(op, "weight", weight)
    shape = weight.shape
    if len(shape) != 2:
        fail(op, "weight", f"expected [N, K], got {describe(weight)}")
    if x.dim() < 1 or x.shape[-1] != shape[1]:
        fail(op, "x", f"expected [..., {shape[1]}] to fit a weight of {list(shape)}, got {describe(x)}")
    if weight.device != device:
        fail(op, "weight", f"expected on {device} as x is, got {describe(weight)}")
    if not _is_eager(x, weight):
        y = torch.ops.moe8.linear(x, weight, text)
    else:
        y = (_apply_linear if _wants_grad(x, weight) else _linear)(x, weight, text)
    return y if bias is None else y + bias.to(y.dtype)


def moe_experts(x: Tensor, w1: Tensor, w3: Optional[Tensor], w2: Tensor, experts: Tensor,
                scores: Optional[Tensor] = None, *, config="fp8_rowwise", config2=None,
                gate_up: str = "halves", activation: str = "swiglu", alpha: float = 1.702, limit: float = 7.0,
                scores_on: str = "output", b1: Optional[Tensor] = None, b3: Optional[Tensor] = None,
                b2: Optional[Tensor] = None) -> Tensor:
    """All routed experts of a layer, on tokens in their own order (moe8/experts.h).

        out[t] = sum_j scores[t, j] * (W2[e] act(W1[e] x[t], W3[e] x[t]))        e = experts[t, j]

    x [T, d]; w1 [E, h, d] and w3 [E, h, d], or w3 None and both in w1 [E, 2h, d] as `gate_up` says ("halves",
    "interleaved"); w2 [E, d, h]; experts [T, k] integers, those outside [0, E) take no part; scores [T, k], on the
    experts' "output" or "input". activation "swiglu" or "clamped_swiglu" of alpha and limit; biases b1, b3, b2.
    config is of all weights, config2 of w2 alone where given; "none", and a config of None: multiplied as they are.
    Returns [T, d] of x's dtype. Differentiable once.
    """
    op = "moe_experts"
    device = x.device
    x, w1, w3, w2, b1, b3, b2 = autocast(device, x, w1, w3, w2, b1, b3, b2)
    for name, value, allowed in (("gate_up", gate_up, ("halves", "interleaved")),
                                 ("activation", activation, ("swiglu", "clamped_swiglu")),
                                 ("scores_on", scores_on, ("output", "input"))):
        if value not in allowed:
            fail(op, name, f"expected one of {', '.join(allowed)}, got '{value}'")
    text13 = _of_grouped(op, "none" if config is None else config_text(config)).text
    text2 = text13 if config2 is None else _of_grouped(op, config_text(config2)).text
    w13, b13, interleaved = _joined(op, x, w1, w3, w2, b1, b3, gate_up)
    _check_slots(op, x, w13, experts, scores)
    if b2 is not None:
        _check_bias(op, "b2", b2, w2.shape[:2], device)
    to_float = lambda t: None if t is None else t.float()
    tensors = x, w13, w2, experts, to_float(scores), to_float(b13), to_float(b2)
    o = _experts.Options(text13, text2, interleaved, activation == "clamped_swiglu", float(alpha), float(limit),
                         scores_on == "input")
    if _is_eager(x, w13) and type(w2).__torch_dispatch__ is _PLAIN_DISPATCH:
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            return _apply_experts(*tensors, o)
        with torch._C.DisableTorchFunctionSubclass():
            return _experts.forward(*tensors, o)[0]
    return torch.ops.moe8.moe_experts(*tensors, *o)[0]


def _check_weight(op, name, w, shape, device):
    check_dtype(op, name, w)
    if tuple(w.shape) != tuple(shape) or w.device != device:
        fail(op, name, f"expected {list(shape)} on {device}, got {describe(w)}. Weights stored as (E, in, out) are "
             "passed as W.transpose(-2, -1)")


def _check_bias(op, name, b, shape, device):
    if tuple(b.shape) != tuple(shape) or b.device != device or not b.is_floating_point():
        fail(op, name, f"expected floating-point {list(shape)}, a row for each expert, on {device}, got {describe(b)}")


def _joined(op, x, w1, w3, w2, b1, b3, gate_up):
    """W13 and its bias of one weight, or of two by halves."""
    check_dtype(op, "x", x)
    if x.dim() != 2:
        fail(op, "x", f"expected [T, d], got {describe(x)}. Flatten what comes before the last axis")
    check_dtype(op, "w1", w1)
    if w1.dim() != 3 or w1.shape[0] < 1 or w1.shape[2] != x.shape[1] or (w3 is None and w1.shape[1] % 2):
        fail(op, "w1", f"expected [E, {'2h' if w3 is None else 'h'}, {x.shape[1]}] to fit x of {list(x.shape)}, got "
             f"{describe(w1)}. Weights stored as (E, in, out) are passed as W.transpose(-2, -1)")
    h = w1.shape[1] // 2 if w3 is None else w1.shape[1]
    _check_weight(op, "w2", w2, (w1.shape[0], x.shape[1], h), x.device)
    if b1 is not None:
        _check_bias(op, "b1", b1, w1.shape[:2], x.device)
    if w3 is None:
        if b3 is not None:
            fail(op, "b3", "expected none where w3 is none. b1 holds both, as w1 does")
        return w1, b1, gate_up == "interleaved"
    _check_weight(op, "w3", w3, w1.shape, x.device)
    if b3 is not None:
        _check_bias(op, "b3", b3, w1.shape[:2], x.device)
    bias = None
    if b1 is not None or b3 is not None:
        none = w1.new_zeros(w1.shape[:2], dtype=torch.float32)
        bias = torch.cat([none if b is None else b.float() for b in (b1, b3)], 1)
    return torch.cat((w1, w3), 1), bias, False


def _check_slots(op, x, w13, experts, scores):
    if experts.dim() != 2 or experts.shape[0] != x.shape[0] or experts.dtype not in (torch.int32, torch.int64) or \
            experts.device != x.device:
        fail(op, "experts", f"expected int64 or int32 [{x.shape[0]}, k] on {x.device} to fit x of {list(x.shape)}, got "
             f"{describe(experts)}")
    if scores is not None and (scores.shape != experts.shape or scores.device != x.device or
                               not scores.is_floating_point()):
        fail(op, "scores", f"expected floating-point {list(experts.shape)} on {x.device} as experts, got "
             f"{describe(scores)}")
