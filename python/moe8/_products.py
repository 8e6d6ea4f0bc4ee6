# SPDX-License-Identifier: BSD-3-Clause
"""The three products of a grouped linear with quantized operands: out = A W^T by group, and both gradients.
On a CPU values are multiplied by torch, as src/gemm/torch_gemm.cpp does; on a GPU one call of the library
quantizes and multiplies."""
import ctypes
import functools

import torch

from . import _native
from ._native import ask, fail
from ._quantize import values_float8, values_mx
from ._tensors import HIGH, MX, TENSORWISE, check_device, plain, pointer, stream_of, type_of
from .config import meaning

OUT, GRAD_INPUT, GRAD_WEIGHT = range(3)


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


def _values(x, form, axis, offs, dtype):
    """x as its quantized values along an axis."""
    kind, elem, how = form & 15, form >> 4 & 15, form >> 8 & 15
    if kind == HIGH:
        return x.to(dtype).contiguous()
    if kind == MX:
        return values_mx(x, elem, how, axis, offs, dtype)
    whole = how == TENSORWISE
    return values_float8(x, elem, form >> 12 & 1, None if whole else axis, None if whole else offs, dtype)


def _ends(offs, rows, op):
    if offs is None:
        return [rows]
    ends = offs.tolist()
    previous = 0
    for index, end in enumerate(ends):
        if end < previous:
            fail(op, "offs", f"expected non-decreasing end rows from 0 on, got {end} after {previous} at index {index}")
        previous = end
    if previous > rows:
        fail(op, "offs", f"expected end rows of at most {rows}, the rows there are, got {previous}")
    return ends


def _multiply_rows(a, b, ends):
    out = a.new_empty((a.shape[0], b.shape[2]))
    begin = 0
    for group, end in enumerate(ends):
        if end > begin:
            torch.mm(a[begin:end], b[group], out=out[begin:end])
        begin = end
    out[begin:].zero_()
    return out


def _multiply_groups(left, right, ends):
    out = left.new_empty((len(ends), left.shape[1], right.shape[1]))
    begin = 0
    for group, end in enumerate(ends):
        if end > begin:
            torch.mm(left[begin:end].t(), right[begin:end], out=out[group])
        else:
            out[group].zero_()
        begin = end
    return out


def _cpu_product(gemm, left, right, offs, ends, config, out_dtype):
    forms = meaning(config)
    left_form, right_form = forms.left[gemm], forms.right[gemm]
    bf16 = (out_dtype == torch.bfloat16 and _fits_bf16(left_form, left.dtype) and
            _fits_bf16(right_form, right.dtype) and _prefers_bf16())
    dtype = torch.bfloat16 if bf16 else torch.float32
    if gemm == GRAD_WEIGHT:
        values = (_values(left, left_form, 0, offs, dtype), _values(right, right_form, 0, offs, dtype))
        return _multiply_groups(*values, ends).to(out_dtype)
    a = _values(left, left_form, 1, None, dtype)
    b = _values(right, right_form, 2 if gemm == OUT else 1, None, dtype)
    return _multiply_rows(a, b.transpose(1, 2) if gemm == OUT else b, ends).to(out_dtype)


# ---- on a GPU -------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=64)
def _one_group(rows, device, _stream):
    """The offs of a product without groups."""
    return torch.full((1,), rows, dtype=torch.int32, device=device)


@functools.lru_cache(maxsize=None)
def _formats(config):
    forms = meaning(config)
    three = ctypes.c_int32 * 3
    return three(*forms.left), three(*forms.right), three(*forms.fast_accum)


def _request(A, W, offs, config):
    product = _native.Product()
    product.A, product.W = A.data_ptr(), W.data_ptr()
    product.M, product.K = A.shape
    product.E, product.N = W.shape[0], W.shape[1]
    product.a_type, product.w_type = type_of(A.dtype), type_of(W.dtype)
    product.has_tail = offs is not None
    product.stream = stream_of(A.device)
    if offs is None:
        capturing = torch.cuda.is_current_stream_capturing()
        make = _one_group.__wrapped__ if capturing else _one_group
        offs = make(A.shape[0], A.device, product.stream)
    product.offs = offs.data_ptr()
    product.left, product.right, product.fast_accum = _formats(config)
    return product, offs


def _launch(call, product, device):
    call(ctypes.byref(product))  # how much memory
    workspace = torch.empty(product.bytes, dtype=torch.uint8, device=device)
    product.workspace = workspace.data_ptr()
    call(ctypes.byref(product))


# ---- both -----------------------------------------------------------------------------------------------
def forward(op, A, W, offs, config, out_dtype):
    """A [M, K], W [E, N, K], offs [E] or None (E = 1) -> [M, N] out_dtype."""
    check_device(op, "A", A)
    A, W = plain(A), plain(W)
    offs = None if offs is None else offs.contiguous()
    if not A.is_cuda:
        return _cpu_product(OUT, A, W, offs, _ends(offs, A.shape[0], op), config, out_dtype)
    out = torch.empty((A.shape[0], W.shape[1]), dtype=out_dtype, device=A.device)
    if out.numel() == 0 or A.shape[1] == 0:
        return out.zero_()
    with torch.cuda.device(A.device):
        product, offs = _request(A, W, offs, config)
        product.out, product.out_type = out.data_ptr(), type_of(out_dtype)
        _launch(_native.cuda_forward, product, A.device)
    return out


def backward(op, grad_out, A, W, offs, config, needs_A, needs_W):
    """Gradients of A and W in their dtypes; one of no elements where it is not needed."""
    grad_out, A, W = plain(grad_out), plain(A), plain(W)
    offs = None if offs is None else offs.contiguous()
    if not A.is_cuda:
        ends = _ends(offs, A.shape[0], op)
        grad_A = _cpu_product(GRAD_INPUT, grad_out, W, offs, ends, config, A.dtype) if needs_A else A.new_empty(0)
        grad_W = _cpu_product(GRAD_WEIGHT, grad_out, A, offs, ends, config, W.dtype) if needs_W else W.new_empty(0)
        return grad_A, grad_W
    grad_A = torch.empty(A.shape if needs_A else (0,), dtype=A.dtype, device=A.device)
    grad_W = torch.empty(W.shape if needs_W else (0,), dtype=W.dtype, device=A.device)
    if grad_out.numel() == 0 or A.numel() == 0:
        return grad_A.zero_(), grad_W.zero_()
    with torch.cuda.device(A.device):
        product, offs = _request(A, W, offs, config)
        product.grad_out, product.out_type = grad_out.data_ptr(), type_of(grad_out.dtype)
        product.grad_A = grad_A.data_ptr() if needs_A else None
        product.grad_W = grad_W.data_ptr() if needs_W else None
        _launch(_native.cuda_backward, product, A.device)
    return grad_A, grad_W


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
