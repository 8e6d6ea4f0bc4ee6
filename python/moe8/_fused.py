# SPDX-License-Identifier: BSD-3-Clause
"""The layer of experts on a GPU by the kernels of src/cuda/experts/ (python/native/experts.cpp): one call of the
library for a forward, one for a backward. What autograd and biases add stands in _experts.py.

T tokens, k experts each, R = T k rows in the order of experts; W13 (E, 2h, d), W2 (E, d, h)."""
import functools
import struct

import torch

from . import _native
from ._native import ask
from ._tensors import plain, type_of
from .config import meaning

is_wanted = True  # False: the layer is computed by _experts.py, so that tests can compare


# ---- which calls -----------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=None)
def _decision(config13, config2, x, w13, w2, hidden):
    """Why the kernels do not take tensors of these dtypes, or None; and whether codes of x are kept for backward."""
    of13, of2 = meaning(config13), meaning(config2)
    dtypes = {name: str(dtype).removeprefix("torch.") for name, dtype in
              (("x", x), ("w13", w13), ("w2", w2), ("hidden", hidden))}
    said = ask("fused_experts", left13=of13.left, right13=of13.right, left2=of2.left, right2=of2.right, **dtypes)
    return said["refusal"], said["keeps_codes"]


@functools.lru_cache(maxsize=64)
def _is_cuda(device):
    return device.type == "cuda"  # a string that is made anew each time


def refusal(device, x, w13, w2, hidden, o):
    """Why these kernels do not compute a layer with tokens and weights of these dtypes; None: they do. Another GPU than
    Hopper is an error, here as in _experts.py."""
    if not _is_cuda(device):
        return "tokens are not on a GPU"
    if not is_wanted:
        return "moe8._fused.is_wanted is False"
    return _decision(o.config13, o.config2, x, w13, w2, hidden)[0]


def keeps_codes(x, w13, w2, hidden, o):
    """Whether forward can keep codes of x for the gradient of W13, instead of x."""
    return _decision(o.config13, o.config2, x, w13, w2, hidden)[1]


def layout(tokens, top_k, columns, experts, codes):
    """KeptLayout of python/native/fused_experts.h: where slot_of_row, row_of_slot and offs begin, and all bytes."""
    rows = tokens * top_k
    of_rows = (rows + 3) // 4 * 16
    begin = 0
    if codes:
        begin = tokens * ((columns + 15) // 16 * 16) + (tokens + 3) // 4 * 16 + (experts * columns + 3) // 4 * 16
    return begin, begin + of_rows, begin + 2 * of_rows, begin + 2 * of_rows + (experts + 3) // 4 * 16


# ---- requests --------------------------------------------------------------------------------------------
_HEAD = struct.Struct("@20P4i")  # of Moe8Experts: what differs from call to call
_TAIL = struct.Struct("@6q9i2f18i4x0q")
_ALIGNED = 16  # a pointer to ask for sizes with


class _Plan:
    """What calls with tensors of the same shapes and dtypes have in common."""

    def __init__(self, o, x, shape, w13, w13_shape, w2, experts, top_k):
        of13, of2 = meaning(o.config13), meaning(o.config2)
        (self.T, self.d), self.k, (self.E, width, _) = shape, top_k, w13_shape
        self.h = width // 2
        self.rows = self.T * self.k
        row_dtype = of2.out_dtype or torch.bfloat16
        self.layouts = [layout(self.T, self.k, self.d, self.E, codes) for codes in (False, True)]
        self.tails = [
            _TAIL.pack(self.T, self.k, self.d, self.h, self.E, self.layouts[codes][-1], type_of(x), type_of(w13),
                       type_of(w2), type_of(row_dtype), int(experts == torch.int64), codes, o.interleaved, o.clamped,
                       o.scores_on_input, o.alpha, o.limit, *of13.left, *of13.right, *of13.fast_accum, *of2.left,
                       *of2.right, *of2.fast_accum) for codes in (False, True)]
        self.is_empty = 0 in (self.rows, self.d, self.h)
        self._sizes = {}

    def sizes(self, call, pointers, forms, numbers, codes):
        """Bytes of the workspace and of the forms of W13 and of W2: they follow from which tensors there are. forms:
        whether those of either weight are kept, or are made to be kept."""
        key = (call, *[pointer > 0 for pointer in pointers], *forms, *numbers, codes)
        sizes = self._sizes.get(key)
        if sizes is None:
            some = [_ALIGNED if there else 0 for there in (*pointers, 0, *forms, 0)]
            said = _native.ExpertsBytes()
            call(_HEAD.pack(*some, *numbers) + self.tails[codes], said)
            sizes = self._sizes[key] = said.workspace, said.kept13, said.kept2
        return sizes


_plan = functools.lru_cache(maxsize=256)(_Plan)


def _placed(x):
    """The tensor as the kernels read it: contiguous, from a multiple of 16 bytes on."""
    if x is None:
        return None
    x = plain(x)
    return x.clone() if x.data_ptr() % _ALIGNED else x


def _address(x):
    return 0 if x is None else x.data_ptr()


class _Call:
    """Launches of one request: with forms of weights that are kept, or are made to be kept."""
    __slots__ = "_call", "_plan", "_codes", "_device", "_index", "_configs", "_kept", "_forms"

    def __init__(self, call, plan, codes, device, configs, kept):
        self._call, self._plan, self._codes, self._device = call, plan, codes, device
        self._index, self._configs, self._kept = device.index, configs, kept
        self._forms = [part and part.find(config) for part, config in zip(kept, configs)]

    def launch(self, pointers, part, workspace=None, last_part=None):
        """pointers: the first 16 of Moe8Experts. workspace: that of the part before. last_part: the one that will have
        the workspace last. Returns the workspace."""
        plan, device, index, forms = self._plan, self._device, self._index, self._forms
        kept13, kept2 = self._kept
        are_kept = kept13 is not None, kept2 is not None
        numbers = forms[0] is not None, forms[1] is not None, part, index
        needed, *bytes_kept = plan.sizes(self._call, pointers, are_kept, numbers, self._codes)
        if last_part is not None:
            needed = plan.sizes(self._call, pointers, are_kept, (*numbers[:2], last_part, index), self._codes)[0]
        made = [i for i in (0, 1) if are_kept[i] and not numbers[i]]
        for i in made:
            forms[i] = torch.empty(bytes_kept[i], dtype=torch.uint8, device=device)
        if workspace is None:
            workspace = torch.empty(needed, dtype=torch.uint8, device=device)
        self._call(_HEAD.pack(*pointers, workspace.data_ptr(), _address(forms[0]), _address(forms[1]),
                              torch._C._cuda_getCurrentRawStream(index), *numbers) + plan.tails[self._codes], None)
        for i in made:
            if bytes_kept[i]:
                self._kept[i].keep(forms[i], self._configs[i])
            else:
                forms[i] = None
        return workspace


def forward(x, w13, w2, experts, scores, b13, b2, o, kept, keeps):
    """out [T, d], H [R, 2h] and what backward reads beside them, uint8. keeps: None: there will be no backward; else
    whether codes of x are to be among it."""
    x, w13, w2, experts, scores, b13, b2 = map(_placed, (x, w13, w2, experts, scores, b13, b2))
    plan = _plan(o, x.dtype, x.shape, w13.dtype, w13.shape, w2.dtype, experts.dtype, experts.shape[1])
    device = x.device
    out = torch.empty(x.shape, dtype=x.dtype, device=device)
    hidden = torch.empty((plan.rows, 2 * plan.h), dtype=torch.bfloat16, device=device)
    codes = bool(keeps)
    saved = torch.empty(0 if keeps is None else plan.layouts[codes][-1], dtype=torch.uint8, device=device)
    if plan.is_empty:
        return out.zero_(), hidden, saved
    pointers = (x.data_ptr(), w13.data_ptr(), w2.data_ptr(), experts.data_ptr(), _address(scores), _address(b13),
                _address(b2), 0, out.data_ptr(), hidden.data_ptr(), 0 if keeps is None else saved.data_ptr(), 0, 0, 0,
                0, 0)
    call = _Call(_native.cuda_experts_forward, plan, codes, device, (o.config13, o.config2), kept)
    call.launch(pointers, 0)
    return out, hidden, saved


def backward(grad_out, x, w13, w2, experts, scores, b13, hidden, saved, o, needs, kept, between=None):
    """Gradients of x, w13, w2 and scores, None where `needs` does not name one. Those of scores are without what b2
    adds. x: None where `saved` holds its codes. between: called with dA [R, h] as soon as that is computed."""
    grad_out, x, w13, w2, experts, scores, b13, hidden = map(
        _placed, (grad_out, x, w13, w2, experts, scores, b13, hidden))
    plan = _plan(o, grad_out.dtype, grad_out.shape, w13.dtype, w13.shape, w2.dtype, experts.dtype, experts.shape[1])
    device = grad_out.device
    wanted = [torch.empty(like.shape, dtype=like.dtype, device=device) if name in needs else None
              for name, like in (("x", grad_out), ("w13", w13), ("w2", w2), ("scores", scores))]
    if plan.is_empty:
        if between is not None:
            between(torch.zeros((plan.rows, plan.h), dtype=torch.bfloat16, device=device))
        return [grad if grad is None else grad.zero_() for grad in wanted]
    codes = saved.numel() == plan.layouts[True][-1]
    # Forms of a weight that this backward does not multiply by are not asked for, and not made.
    reads13, reads2 = "x" in needs, between is not None or bool(needs - {"w2"})
    call = _Call(_native.cuda_experts_backward, plan, codes, device, (o.config13, o.config2),
                 (kept[0] if reads13 else None, kept[1] if reads2 else None))

    def pointers(dA):
        return (_address(x), w13.data_ptr(), w2.data_ptr(), experts.data_ptr(), _address(scores), _address(b13), 0,
                grad_out.data_ptr(), 0, hidden.data_ptr(), saved.data_ptr(), *map(_address, wanted), _address(dA))
    if between is None:
        call.launch(pointers(None), 0)
        return wanted
    dA = torch.empty((plan.rows, plan.h), dtype=torch.bfloat16, device=device)
    workspace = call.launch(pointers(dA), 1, last_part=2 if needs else 1)
    between(dA)
    if needs:
        call.launch(pointers(dA), 2, workspace)
    return wanted
