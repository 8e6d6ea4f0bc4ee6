# SPDX-License-Identifier: BSD-3-Clause
"""The three products of a grouped linear with quantized operands: out = A W^T by group, and both gradients.
On a CPU values are multiplied by torch, as src/gemm/torch_gemm.cpp does; on a GPU one call of the library
quantizes and multiplies. Requests are packed as the structs of python/native/interface.h; what follows from a
config and dtypes is worked out once (docs/python.md has what a call costs)."""
import functools
import struct

import torch
import torch.nn.functional as F

from . import _native
from ._native import ask, fail
from ._tensors import HIGH, MX, check_device, outside_autocast, plain, type_of
from .config import meaning

OUT, GRAD_INPUT, GRAD_WEIGHT = range(3)
_threads = torch.get_num_threads


# ---- on a CPU -------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=None)
def _prefers_bf16():
    return ask("about")["bf16_products"]


def _fits_bf16(form, dtype):
    """Whether the values of an operand are bf16 numbers (values_fit_bf16 of src/operand/operand_format.h)."""
    kind = form & 15
    if kind == HIGH:
        return dtype == torch.bfloat16
    return kind == MX or bool(form >> 12 & 1)


class _Plan:
    """How one product on a CPU is computed: the dtype of its operands' values, their formats, their types."""
    __slots__ = ("dtype", "type", "left", "right", "left_type", "right_type", "is_low")

    def __init__(self, gemm, config, left, right, out):
        forms = meaning(config)
        self.left, self.right = forms.left[gemm], forms.right[gemm]
        self.left_type, self.right_type = type_of(left), type_of(right)
        bf16 = (out == torch.bfloat16 and _fits_bf16(self.left, left) and _fits_bf16(self.right, right) and
                _prefers_bf16())
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        self.type = type_of(self.dtype)
        self.is_low = self.left & 15 != HIGH and self.right & 15 != HIGH


_plan = functools.lru_cache(maxsize=None)(_Plan)
_ONE = struct.Struct("@2P3qPq2i")  # Moe8Operand
_TWO = struct.Struct(_ONE.format + _ONE.format[1:])


def _values(x, axes, ends, form, type_, plan):
    """x as its quantized values; axes: what is before, along and after the quantized one."""
    if form & 15 == HIGH:
        return x.to(plan.dtype)
    values = torch.empty_like(x, dtype=plan.dtype)
    _native.cpu_values(_ONE.pack(x.data_ptr(), values.data_ptr(), *axes, *ends, form, type_), 1, plan.type, _threads())
    return values


def _both(plan, left, left_axes, right, right_axes, ends=(0, 0)):
    """The values of two operands, in one call of the library where both are quantized."""
    if not plan.is_low:
        return (_values(left, left_axes, ends, plan.left, plan.left_type, plan),
                _values(right, right_axes, ends, plan.right, plan.right_type, plan))
    dtype = plan.dtype
    a, b = torch.empty_like(left, dtype=dtype), torch.empty_like(right, dtype=dtype)
    _native.cpu_values(_TWO.pack(left.data_ptr(), a.data_ptr(), *left_axes, *ends, plan.left, plan.left_type,
                                 right.data_ptr(), b.data_ptr(), *right_axes, *ends, plan.right, plan.right_type),
                       2, plan.type, _threads())
    return a, b


def _with_weight(plan, left, left_axes, W, weight_axes, kept, axis):
    """The same of an operand and a weight, whose values may be kept."""
    if kept is None or plan.right & 15 == HIGH:
        return _both(plan, left, left_axes, plain(W), weight_axes)
    right = kept.find(plan.right, axis, plan.dtype)
    if right is None:
        right = kept.keep(_values(plain(W), weight_axes, (0, 0), plan.right, plan.right_type, plan), plan.right, axis,
                          plan.dtype)
    return _values(left, left_axes, (0, 0), plan.left, plan.left_type, plan), right


def _ends(offs, rows, op):
    ends = offs.tolist()
    if ends and (ends[0] < 0 or ends[-1] > rows or ends != sorted(ends)):
        previous = 0
        for index, end in enumerate(ends):
            if end < previous:
                fail(op, "offs", f"expected non-decreasing end rows from 0 on, got {end} after {previous} at index "
                     f"{index}")
            previous = end
        fail(op, "offs", f"expected end rows of at most {rows}, the rows there are, got {previous}")
    return ends


def _sizes(ends, rows):
    """Of the groups, and of what is in none."""
    return [end - begin for begin, end in zip([0, *ends], [*ends, rows])]


def _multiply_rows(a, matrices, ends):
    """Each group's rows of a times its matrix (k, n)."""
    rows = a.shape[0]
    out = a.new_empty((rows, matrices.shape[2]))
    sizes = _sizes(ends, rows)
    for x, matrix, y in zip(a.split(sizes), matrices.unbind(), out.split(sizes)):
        if x.shape[0]:
            torch.mm(x, matrix, out=y)
    if sizes[-1]:
        out[rows - sizes[-1]:].zero_()
    return out


def _multiply_groups(left, right, ends):
    """Each group's rows: left^T right."""
    out = left.new_empty((len(ends), left.shape[1], right.shape[1]))
    sizes = _sizes(ends, left.shape[0])
    for x, y, product in zip(left.split(sizes), right.split(sizes), out.unbind()):
        if x.shape[0]:
            torch.mm(x.t(), y, out=product)
        else:
            product.zero_()
    return out


_ROUNDED = {torch.bfloat16: torch.Tensor.bfloat16, torch.float32: torch.Tensor.float}  # to() costs 5 us more


def _rounded(x, dtype):
    return x if x.dtype is dtype else _ROUNDED[dtype](x)


def _cpu_forward(A, W, offs, ends, config, out_dtype, kept):
    plan = _plan(OUT, config, A.dtype, W.dtype, out_dtype)
    rows, k = A.shape
    values, weights = _with_weight(plan, A, (rows, k, 1), W, (W.numel() // k if k else 0, k, 1), kept, 1)
    if offs is None:
        return _rounded(F.linear(values, weights), out_dtype)
    return _rounded(_multiply_rows(values, weights.transpose(1, 2), ends), out_dtype)


def _cpu_grad_input(grad_out, W, offs, ends, config, dtype, kept):
    plan = _plan(GRAD_INPUT, config, grad_out.dtype, W.dtype, dtype)
    rows, n = grad_out.shape
    k = W.shape[-1]
    values, weights = _with_weight(plan, grad_out, (rows, n, 1), W, (W.numel() // (n * k) if n * k else 0, n, k), kept,
                                   0)
    product = torch.mm(values, weights) if offs is None else _multiply_rows(values, weights, ends)
    return _rounded(product, dtype)


def _cpu_grad_weight(grad_out, A, offs, ends, config, dtype):
    plan = _plan(GRAD_WEIGHT, config, grad_out.dtype, A.dtype, dtype)
    rows, n = grad_out.shape
    groups = (0, 0) if offs is None else (offs.data_ptr(), len(ends))
    left, right = _both(plan, grad_out, (1, rows, n), A, (1, rows, A.shape[1]), groups)
    product = torch.mm(left.t(), right) if offs is None else _multiply_groups(left, right, ends)
    return _rounded(product, dtype)


# ---- on a GPU -------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=64)
def _one_group(rows, device, _stream):
    """The offs of a product without groups."""
    return torch.full((1,), rows, dtype=torch.int32, device=device)


_PRODUCT = struct.Struct("@10P4q15i0q")  # Moe8Product


@functools.lru_cache(maxsize=None)
def _formats(config):
    forms = meaning(config)
    return (*forms.left, *forms.right, *forms.fast_accum)


@functools.lru_cache(maxsize=4096)
def _gpu_bytes(call, *request):
    """How much memory a request needs: of its own, and for the forms of its weight where they are kept."""
    sizes = _native.Bytes()
    call(_PRODUCT.pack(*request), sizes)
    return sizes.workspace, sizes.kept


def _like(pointer):
    """A pointer of the same alignment, to ask for sizes with."""
    return 16 | pointer & 15


def _launch(call, A, W, offs, pointers, types, config, kept):
    """pointers: A, W, grad_out, out, grad_A, grad_W; types: of A, W and the output."""
    device = A.device
    index = device.index
    stream = torch._C._cuda_getCurrentRawStream(index)
    has_tail = offs is not None
    if offs is None:
        make = _one_group.__wrapped__ if torch.cuda.is_current_stream_capturing() else _one_group
        offs = make(A.shape[0], device, stream)
    forms = None if kept is None else kept.find(config)
    numbers = (A.shape[0], W.shape[-2], W.shape[-1], W.shape[0] if W.dim() == 3 else 1, *types, has_tail, index,
               forms is not None, *_formats(config))
    a, w, grad_out, out, grad_A, grad_W = pointers
    needed, size = _gpu_bytes(call, _like(a), _like(w), _like(grad_out), 16, 16, 16 if grad_A else 0,
                              16 if grad_W else 0, 0, 0 if kept is None else 16, 0, *numbers)
    if kept is not None and forms is None:
        forms = torch.empty(size, dtype=torch.uint8, device=device)
    workspace = torch.empty(needed, dtype=torch.uint8, device=device)
    call(_PRODUCT.pack(a, w, grad_out, offs.data_ptr(), out, grad_A, grad_W, workspace.data_ptr(),
                       0 if forms is None else forms.data_ptr(), stream, *numbers), None)
    if forms is not None and not numbers[9]:
        kept.keep(forms, config)


def _gpu_forward(A, W, offs, config, out_dtype, kept):
    n = W.shape[-2]
    out = torch.empty((A.shape[0], n), dtype=out_dtype, device=A.device)
    if out.numel() == 0 or A.shape[1] == 0:
        return out.zero_()
    _launch(_native.cuda_forward, A, W, offs, (A.data_ptr(), W.data_ptr(), 0, out.data_ptr(), 0, 0),
            (type_of(A.dtype), type_of(W.dtype), type_of(out_dtype)), config, kept)
    return out


def _gpu_backward(grad_out, A, W, offs, config, needs_A, needs_W, kept):
    grad_A = torch.empty(A.shape, dtype=A.dtype, device=A.device) if needs_A else None
    grad_W = torch.empty(W.shape, dtype=W.dtype, device=A.device) if needs_W else None
    if grad_out.numel() == 0 or A.numel() == 0:
        return grad_A.zero_() if needs_A else None, grad_W.zero_() if needs_W else None
    _launch(_native.cuda_backward, A, W, offs,
            (A.data_ptr(), W.data_ptr(), grad_out.data_ptr(), 0, grad_A.data_ptr() if needs_A else 0,
             grad_W.data_ptr() if needs_W else 0),
            (type_of(A.dtype), type_of(W.dtype), type_of(grad_out.dtype)), config, kept if needs_A else None)
    return grad_A, grad_W


# ---- both -----------------------------------------------------------------------------------------------
@outside_autocast
def forward(op, A, W, offs, config, out_dtype, kept=None):
    """A [M, K], W [E, N, K], offs [E]; or W [N, K] and offs None -> [M, N] out_dtype. kept: a _kept.Part of W."""
    A = plain(A)
    offs = None if offs is None else offs.contiguous()
    if A.is_cpu:
        ends = None if offs is None else _ends(offs, A.shape[0], op)
        return _cpu_forward(A, W, offs, ends, config, out_dtype, kept)
    check_device(op, "A", A)
    return _gpu_forward(A, plain(W), offs, config, out_dtype, kept)


@outside_autocast
def backward(op, grad_out, A, W, offs, config, needs_A, needs_W, kept=None):
    """Gradients of A and W in their dtypes; None where one is not needed."""
    grad_out, A = plain(grad_out), plain(A)
    offs = None if offs is None else offs.contiguous()
    if not A.is_cpu:
        return _gpu_backward(grad_out, A, plain(W), offs, config, needs_A, needs_W, kept)
    ends = None if offs is None else _ends(offs, A.shape[0], op)
    return (_cpu_grad_input(grad_out, W, offs, ends, config, A.dtype, kept) if needs_A else None,
            _cpu_grad_weight(grad_out, A, offs, ends, config, W.dtype) if needs_W else None)


# ---- bias -----------------------------------------------------------------------------------------------
_PIECE_ROWS = 256


def _bounds(offs, rows, device):
    if offs is None:
        return torch.tensor([0, rows], device=device)
    return torch.nn.functional.pad(offs.long().clamp(0, rows).cummax(0).values, (1, 0))


def add_bias(out, bias, offs):
    """out += bias[group of the row], in place; rows of no group stay."""
    row = torch.arange(out.shape[0], device=out.device)
    group = torch.searchsorted(_bounds(offs, out.shape[0], out.device)[1:], row, right=True)
    return out.add_(torch.nn.functional.pad(bias.to(out.dtype), (0, 0, 0, 1)).index_select(0, group))


def _sums_between(x, bounds):
    return torch.segment_reduce(x, "sum", offsets=bounds, axis=0, unsafe=True)


def group_sums(x, offs, groups):
    """float32 [groups, N]: the sum of each group's rows, in a fixed order (src/autograd/group_bias.cpp)."""
    rows = x.shape[0]
    if groups == 0 or x.numel() == 0:
        return x.new_zeros((groups, x.shape[1]), dtype=torch.float32)
    bounds = _bounds(offs, rows, x.device)
    cuts = torch.cat((torch.arange(0, rows, _PIECE_ROWS, device=x.device), bounds)).sort().values
    pieces = _sums_between(x.float().contiguous(), cuts)
    return _sums_between(pieces, torch.searchsorted(cuts, bounds))
