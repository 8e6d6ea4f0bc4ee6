# SPDX-License-Identifier: BSD-3-Clause
"""The layer of experts on plain tensors, forward and backward: src/experts/fused.cpp with the stages of
src/experts/composite_stages.cpp, in the same order of roundings (docs/numerics.md, section 6). On a GPU the kernels of
_fused.py compute what they do not refuse; what is here is their definition, and computes the rest.

T tokens, k experts each, R = T k rows in the order of experts; W13 (E, 2h, d), W2 (E, d, h)."""
import dataclasses
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F

from . import _fused, _products
from ._tensors import check_device, outside_autocast
from .config import meaning

_OP = "moe_experts"


class Options(NamedTuple):
    """What a call has beside tensors."""
    config13: str
    config2: str
    interleaved: bool
    clamped: bool
    alpha: float
    limit: float
    scores_on_input: bool


class Order:
    """The order of rows by expert (moe8/routing.h). Slots of no expert come after those of the last one."""

    def __init__(self, experts, count):
        self.experts, self.count = experts, count
        flat = experts.reshape(-1).long()
        here = flat.ge(0) & flat.lt(count)
        ordered, slots = torch.sort(torch.where(here, flat, count), stable=True)
        rows = torch.arange(flat.numel(), device=flat.device)
        self.slot_of_row = slots
        self.row_of_slot = torch.empty_like(rows).scatter_(0, slots, rows)
        self.offs = torch.searchsorted(ordered, torch.arange(count, device=flat.device), right=True).int()
        end = self.offs[-1:]
        on_host = end.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_host and end.item() == flat.numel():
            self.outside = None
        else:
            self.outside = rows.ge(end)
        self.slots_outside = ~here.view(experts.shape)

    @classmethod
    def of_saved(cls, experts, count, saved, columns):
        """The same of what a forward of _fused.py saved; without row_of_slot."""
        tokens, k = experts.shape
        codes = saved.numel() == _fused.layout(tokens, k, columns, count, True)[-1]
        slots, _, offs, _ = _fused.layout(tokens, k, columns, count, codes)
        order = cls.__new__(cls)
        order.experts, order.count = experts, count
        order.slot_of_row = saved[slots:slots + 4 * experts.numel()].view(torch.int32).long()
        order.offs = saved[offs:offs + 4 * count].view(torch.int32)
        order.outside = torch.arange(experts.numel(), device=saved.device).ge(order.offs[-1:])
        order.slots_outside = experts.lt(0) | experts.ge(count)
        return order

    def tokens(self, x):
        """x[slot_of_row / k], 0 in rows of no group."""
        rows = x.index_select(0, self.slot_of_row // self.experts.shape[1])
        return rows if self.outside is None else rows.masked_fill(self.outside.unsqueeze(1), 0)

    def slots(self, of_slots):
        rows = of_slots.reshape(-1).index_select(0, self.slot_of_row)
        return rows if self.outside is None else rows.masked_fill(self.outside, 0)

    def to_slots(self, of_rows):
        out = of_rows.new_zeros(self.experts.numel())
        return out.index_copy(0, self.slot_of_row, of_rows).view(self.experts.shape)

    def group_of_rows(self):
        row = torch.arange(self.slot_of_row.numel(), device=self.offs.device)
        return torch.searchsorted(self.offs.long(), row, right=True)

    def sums(self, rows, scores, dtype):
        """Per token the sum of its rows times its scores, in float32, slot after slot, rounded once."""
        tokens, k = self.experts.shape
        if k == 0:
            return rows.new_zeros((tokens, rows.shape[1]), dtype=dtype)
        row_of_slot = self.row_of_slot.view(tokens, k)
        weights = None if scores is None else scores.masked_fill(self.slots_outside, 0)
        total = None
        for j in range(k):
            term = rows.index_select(0, row_of_slot[:, j]).float()
            if weights is not None:
                term = term * weights[:, j:j + 1]
            total = term if total is None else total.add_(term)
        return total.to(dtype)


# ---- the gated activation, in float32 --------------------------------------------------------------------
def _parts(x, interleaved):
    if interleaved:
        pairs = x.view(x.shape[0], -1, 2)
        return pairs[:, :, 0], pairs[:, :, 1]
    h = x.shape[1] // 2
    return x[:, :h], x[:, h:]


def _hidden(H, row_scores, bias, order, o):
    """h' [R, 2h]"""
    x = H.float()
    if row_scores is not None and o.scores_on_input:
        x = x * row_scores.unsqueeze(1)
    if bias is not None:
        x = x + F.pad(bias, (0, 0, 0, 1)).index_select(0, order.group_of_rows())
    return x


def _value(hidden, o):
    gate, up = _parts(hidden, o.interleaved)
    if not o.clamped:
        return F.silu(gate).mul_(up)
    gate = gate.clamp_max(o.limit)
    return up.clamp(-o.limit, o.limit).add_(1).mul_(gate).mul_((gate * o.alpha).sigmoid_())


def _value_and_slopes(hidden, o):
    """A, dA/dgate, dA/dup"""
    gate, up = _parts(hidden, o.interleaved)
    if not o.clamped:
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        return silu * up, (1 - sigmoid).mul_(gate).add_(1).mul_(sigmoid).mul_(up), silu
    cut_gate, cut_up = gate.clamp_max(o.limit), up.clamp(-o.limit, o.limit).add_(1)
    sigmoid = (cut_gate * o.alpha).sigmoid_()
    glu = cut_gate * sigmoid
    to_gate = (1 - sigmoid).mul_(cut_gate).mul_(o.alpha).add_(1).mul_(sigmoid).mul_(cut_up)
    return cut_up * glu, to_gate.mul_(gate.le(o.limit)), glu * up.abs().le(o.limit)


# ---- dtypes ----------------------------------------------------------------------------------------------
def hidden_dtype(x, o):
    return meaning(o.config13).out_dtype or x.dtype


def row_dtype(x, o):
    return meaning(o.config2).out_dtype or hidden_dtype(x, o)


# ---- forward and backward ----------------------------------------------------------------------------------
def fused_refusal(x, w13, w2, o):
    """Why the layer is computed here; None: _fused.py computes it."""
    return _fused.refusal(x.device, x.dtype, w13.dtype, w2.dtype, hidden_dtype(x, o), o)


def keeps_codes(x, w13, w2, o):
    """Whether a forward keeps codes of x, from which the gradient of w13 is computed, instead of x."""
    return fused_refusal(x, w13, w2, o) is None and _fused.keeps_codes(x.dtype, w13.dtype, w2.dtype,
                                                                      hidden_dtype(x, o), o)


def saved_bytes(x, w13, w2, experts, o):
    """Of the third result of a forward that keeps all it can."""
    if fused_refusal(x, w13, w2, o) is not None:
        return 0
    return _fused.layout(x.shape[0], experts.shape[1], x.shape[1], w13.shape[0], keeps_codes(x, w13, w2, o))[-1]


@outside_autocast
def forward(x, w13, w2, experts, scores, b13, b2, o, kept=(None, None), keeps=None):
    """out [T, d], and what backward reads: H [R, 2h], and bytes (of none where they are computed here). scores and
    biases are float32. kept: _kept.Parts of w13, w2. keeps: None: there will be no backward; else whether codes of x
    may be kept, as keeps_codes() says."""
    if fused_refusal(x, w13, w2, o) is None:
        check_device(_OP, "x", x)
        return _fused.forward(x, w13, w2, experts, scores, b13, b2, o, kept, keeps)
    order = Order(experts, w13.shape[0])
    H = _products.forward(_OP, order.tokens(x), w13, order.offs, o.config13, hidden_dtype(x, o), kept[0])
    row_scores = None if scores is None else order.slots(scores)
    A = _value(_hidden(H, row_scores, b13, order, o), o).to(H.dtype)
    Y = _products.forward(_OP, A, w2, order.offs, o.config2, row_dtype(x, o), kept[1])
    if b2 is not None:
        Y = _products.add_bias(Y.float() if Y.dtype != torch.float32 else Y.clone(), b2, order.offs)
    out = order.sums(Y, None if o.scores_on_input else scores, x.dtype)
    return out, H, torch.empty(0, dtype=torch.uint8, device=x.device)


def _bias2_grad(order, grad_out, scores):
    experts = order.experts
    every = torch.arange(order.count, device=experts.device, dtype=experts.dtype)
    shares = torch.zeros((experts.shape[0], order.count), device=experts.device)
    for j in range(experts.shape[1]):
        score = 1.0 if scores is None else scores[:, j:j + 1]
        shares.add_(torch.where(experts[:, j:j + 1].eq(every), score, 0.0))
    return shares.t() @ grad_out.float()


def _bias2_scores_grad(order, grad_out, b2):
    of_all = grad_out.float() @ b2.t()
    chosen = of_all.gather(1, order.experts.long().clamp(0, order.count - 1))
    return chosen.masked_fill(order.slots_outside, 0)


def _hidden_grad(dA, to_gate, to_up, row_scores, o):
    """dh' [R, 2h] from dA, in float32"""
    on_output = row_scores is not None and not o.scores_on_input
    dact = dA * row_scores.unsqueeze(1) if on_output else dA
    dh = torch.empty((dA.shape[0], 2 * dA.shape[1]), device=dA.device)
    gate, up = _parts(dh, o.interleaved)
    torch.mul(dact, to_gate, out=gate)
    torch.mul(dact, to_up, out=up)
    return dh


@dataclasses.dataclass
class Gradients:
    x: Optional[torch.Tensor] = None
    w13: Optional[torch.Tensor] = None
    w2: Optional[torch.Tensor] = None
    scores: Optional[torch.Tensor] = None
    b13: Optional[torch.Tensor] = None
    b2: Optional[torch.Tensor] = None


@outside_autocast
def backward(grad_out, x, w13, w2, experts, scores, b13, b2, H, saved, o, needs, kept=(None, None)):
    """Gradients of what `needs` names ("x", "w13", ...); scores' and biases' are float32. x: None where forward kept
    its codes."""
    grad_out = grad_out.contiguous()
    on_output = scores is not None and not o.scores_on_input
    is_fused = saved.numel() > 0
    if is_fused:
        order = None
        if {"b13", "b2"} & needs or "scores" in needs and b2 is not None and on_output:
            order = Order.of_saved(experts, w13.shape[0], saved, grad_out.shape[1])
    else:
        order = Order(experts, w13.shape[0])
    grads = Gradients()
    if "b2" in needs:
        grads.b2 = _bias2_grad(order, grad_out, scores if on_output else None)
    if needs - {"b2"}:
        layer = _fused_backward if is_fused else _backward
        layer(grads, order, grad_out, x, w13, w2, experts, scores, b13, H, saved, o, needs - {"b2"}, kept)
    if "scores" in needs and b2 is not None and on_output:
        grads.scores = grads.scores + _bias2_scores_grad(order, grad_out, b2)
    return grads


def _fused_backward(grads, order, grad_out, x, w13, w2, experts, scores, b13, H, saved, o, needs, kept):
    def bias(dA):
        row_scores = None if scores is None else order.slots(scores)
        _, to_gate, to_up = _value_and_slopes(_hidden(H, row_scores, b13, order, o), o)
        dh = _hidden_grad(dA.float(), to_gate, to_up, row_scores, o)
        grads.b13 = _products.group_sums(dh, order.offs, order.count)
    grads.x, grads.w13, grads.w2, grads.scores = _fused.backward(
        grad_out, x, w13, w2, experts, scores, b13, H, saved, o, needs - {"b13"}, kept,
        bias if "b13" in needs else None)


def _backward(grads, order, grad_out, x, w13, w2, _experts, scores, b13, H, _saved, o, needs, kept):
    on_output = scores is not None and not o.scores_on_input
    row_scores = None if scores is None else order.slots(scores)
    value, to_gate, to_up = _value_and_slopes(_hidden(H, row_scores, b13, order, o), o)
    weighted = value * row_scores.unsqueeze(1) if on_output else value
    A = weighted.to(H.dtype)
    needs_dH = bool({"x", "w13"} & needs)
    needs_dA = needs_dH or "b13" in needs or "scores" in needs
    dA, dW2 = _products.backward(_OP, order.tokens(grad_out), A, w2, order.offs, o.config2, needs_dA, "w2" in needs,
                                 kept[1])
    if "w2" in needs:
        grads.w2 = dW2
    if not needs_dA:
        return
    dA = dA.float()
    dh = _hidden_grad(dA, to_gate, to_up, row_scores, o)
    if "scores" in needs:
        grads.scores = order.to_slots((dA * value).sum(1) if on_output else (dh * H.float()).sum(1))
    if "b13" in needs:
        grads.b13 = _products.group_sums(dh, order.offs, order.count)
    if needs_dH:
        dH = (dh * row_scores.unsqueeze(1) if row_scores is not None and o.scores_on_input else dh).to(H.dtype)
        dX, dW13 = _products.backward(_OP, dH, order.tokens(x), w13, order.offs, o.config13, "x" in needs,
                                      "w13" in needs, kept[0])
        if "x" in needs:
            grads.x = order.sums(dX, None, x.dtype)
        if "w13" in needs:
            grads.w13 = dW13
