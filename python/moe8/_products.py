# SPDX-License-Identifier: BSD-3-Clause
"""The three products of a grouped linear with quantized operands: out = A W^T by group, and both gradients.
On a CPU values are multiplied by torch, as src/gemm/torch_gemm.cpp does; on a GPU one call of the library
quantizes and multiplies. Requests are packed as the structs of python/native/interface.h; what follows from a
config and dtypes is worked out once (docs/python.md has what a call costs)."""
import ctypes
import functools
import math
import struct

import torch

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


_OPERAND = struct.Struct("@2P3qPq3i4x")  # Moe8Operand
_WORDS = _OPERAND.size // 8
_ENDS = 5  # the word of Moe8Operand that points to the ends of groups
_SMALL = 1 << 15  # bytes of values in memory that serves one call after the other: to allocate costs more than to fill
_ROUNDED = {torch.bfloat16: torch.Tensor.bfloat16, torch.float32: torch.Tensor.float}  # to() costs 5 us more
_A, _W, _GRAD_OUT = range(3)  # the tensors that operands are made of
_OPERANDS = ((_A, _W), (_GRAD_OUT, _W), (_GRAD_OUT, _A))  # left and right of OUT, GRAD_INPUT, GRAD_WEIGHT


class _Operand:
    """One operand of a product: what does not differ from call to call. axes: what is before, along and after the one
    that is quantized. is_ready: the library need not make its values, as they are kept or not quantized."""

    def __init__(self, source, form, x, axes, ends, is_turned):
        self.source, self.form, self.axes, self.ends, self.is_turned = source, form, axes, ends, is_turned
        self.dtype, self.shape = x
        self.is_low = form & 15 != HIGH
        self.is_ready = not self.is_low

    def factor(self, values):
        """The values as mm takes them."""
        return values.transpose(-2, -1) if self.is_turned else values

    def request(self, values, dtype):
        """Moe8Operand, but for the address of what is quantized and of the ends of its groups."""
        return _OPERAND.pack(0, values.data_ptr(), *self.axes, 0, self.ends or 0, self.form, type_of(self.dtype),
                             type_of(dtype))


class _Plan:
    """One of the three products, of tensors of given shapes and dtypes: what does not differ from call to call.
    tensors: (dtype, shape) of A, W and grad_out; groups: None where there are no offs."""

    def __init__(self, gemm, config, tensors, out, groups, is_kept):
        forms = meaning(config)
        self.gemm, self.groups = gemm, groups
        (left, right), form, right_form = _OPERANDS[gemm], forms.left[gemm], forms.right[gemm]
        bf16 = (out == torch.bfloat16 and _fits_bf16(form, tensors[left][0]) and
                _fits_bf16(right_form, tensors[right][0]) and _prefers_bf16())
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        self.round = None if self.dtype == out else _ROUNDED[out]
        rows, columns = tensors[left][1]
        size, (height, width) = math.prod(tensors[right][1]), tensors[right][1][-2:]
        if gemm == GRAD_WEIGHT:
            axes, right_axes, shape = (1, rows, columns), (1, rows, width), (columns, width)
        elif gemm == OUT:
            axes, right_axes, shape = (rows, columns, 1), (size // max(width, 1), width, 1), (rows, height)
        else:
            axes, right_axes, shape = (rows, columns, 1), (size // max(height * width, 1), height, width), (rows, width)
        ends = groups if gemm == GRAD_WEIGHT else None
        self.left = _Operand(left, form, tensors[left], axes, ends, gemm == GRAD_WEIGHT)
        self.right = _Operand(right, right_form, tensors[right], right_axes, ends, gemm == OUT)
        self.right.is_ready |= is_kept and right == _W
        self.product_shape = shape if self.round and groups is None else None
        whole = 16 // self.dtype.itemsize  # torch._grouped_mm takes rows of whole 16 bytes
        self.is_one_call = (self.left.is_low and self.right.is_low and bool(groups) and rows * columns * size > 0 and
                            columns % whole == width % whole == 0)
        self.is_small = (rows * columns + size + math.prod(shape)) * 4 <= _SMALL

    def kept_weight(self, W, kept):
        """The values of a weight that are kept, made where there are none yet."""
        operand, key = self.right, (self.right.form, self.gemm, self.dtype)
        values = kept.find(*key)
        if values is None:
            W = plain(W)
            values = torch.empty_like(W, dtype=self.dtype)
            request = (ctypes.c_int64 * _WORDS).from_buffer_copy(operand.request(values, self.dtype))
            request[0] = W.data_ptr()
            _native.cpu_values(request, 1, _threads())
            kept.keep(values, *key)
        return values

    def multiply(self, a, b, memory, offs, ends):
        """The product of both factors in the dtype that is asked for; memory: for it before it is rounded, or None."""
        if self.groups is not None:
            product = self._of_groups(a, b, offs, ends)
        elif memory is None:
            product = torch.mm(a, b)
        else:
            product = torch.mm(a, b, out=memory)
        return product if self.round is None else self.round(product)

    def _of_groups(self, a, b, offs, ends):
        if self.gemm == GRAD_WEIGHT:
            return torch._grouped_mm(a, b, offs=offs) if self.is_one_call else _multiply_groups(a.t(), b, ends)
        if not self.is_one_call:
            return _multiply_rows(a, b, ends)
        product = torch._grouped_mm(a, b, offs=offs)
        if ends[-1] < a.shape[0]:
            product[ends[-1]:].zero_()
        return product


class _Memory:
    """Of one call of a _Pass: the request to the library, and for each product its factors, where they are what the
    library writes, and the product before it is rounded."""
    __slots__ = ("request", "parts")

    @torch.inference_mode(False)  # it may serve calls outside of it as well
    def __init__(self, plans):
        requests, self.parts = [], []
        for plan in plans:
            factors = []
            for operand in (plan.left, plan.right):
                factors.append(None)
                if not operand.is_ready:
                    values = torch.empty(operand.shape, dtype=plan.dtype, device="cpu")
                    requests.append(operand.request(values, plan.dtype))
                    factors[-1] = operand.factor(values)
            product = plan.product_shape and torch.empty(plan.product_shape, dtype=plan.dtype, device="cpu")
            self.parts.append((plan, *factors, product))
        self.request = (ctypes.c_int64 * (_WORDS * len(requests))).from_buffer_copy(b"".join(requests))


class _Pass:
    """Products that are computed together: all their operands are quantized in one call of the library."""

    def __init__(self, plans):
        self._plans = plans
        operands = [x for plan in plans for x in (plan.left, plan.right) if not x.is_ready]
        self._count = len(operands)
        self._sources = [(_WORDS * i, x.source) for i, x in enumerate(operands)]
        self._ends = [_WORDS * i + _ENDS for i, x in enumerate(operands) if x.ends]
        self._is_small = all(plan.is_small for plan in plans)
        self._memories = []  # that no call uses

    def __call__(self, tensors, offs, ends, kept):
        """The products of A, W and grad_out, of which W alone need not be plain."""
        try:
            memory = self._memories.pop()
        except IndexError:
            memory = _Memory(self._plans)
        request = memory.request
        for word, source in self._sources:
            request[word] = tensors[source].data_ptr()
        for word in self._ends:
            request[word] = offs.data_ptr()
        if self._count:
            _native.cpu_values(request, self._count, _threads())
        products = []
        for plan, a, b, product in memory.parts:
            if a is None:
                a = plan.left.factor(tensors[plan.left.source].to(plan.dtype))
            if b is None:
                right = tensors[plan.right.source]
                values = plan.kept_weight(right, kept) if plan.right.is_low else right.to(plan.dtype)
                b = plan.right.factor(values)
            products.append(plan.multiply(a, b, product, offs, ends))
        if self._is_small:
            self._memories.append(memory)
        return products


class _Products:
    """The passes of a forward and its backward, of tensors of given dtypes and shapes."""

    def __init__(self, config, A, A_shape, W, W_shape, out, groups):
        self._config, self._groups = config, groups
        self._tensors = (A, A_shape), (W, W_shape), (out, (A_shape[0], W_shape[-2]))
        self._forward, self._backward = {}, {}

    def _plan(self, gemm, out, is_kept=False):
        return _Plan(gemm, self._config, self._tensors, out, self._groups, is_kept)

    def forward(self, is_kept):
        run = self._forward.get(is_kept)
        if run is None:
            run = self._forward[is_kept] = _Pass([self._plan(OUT, self._tensors[_GRAD_OUT][0], is_kept)])
        return run

    def backward(self, *needs):
        """needs: of A, of W, whether W's values may be kept. One pass of both products where they are small; else one
        after the other, which takes less memory."""
        passes = self._backward.get(needs)
        if passes is None:
            needs_A, needs_W, is_kept = needs
            plans = [self._plan(GRAD_INPUT, self._tensors[_A][0], is_kept)] if needs_A else []
            if needs_W:
                plans.append(self._plan(GRAD_WEIGHT, self._tensors[_W][0]))
            are_small = all(plan.is_small for plan in plans)
            passes = self._backward[needs] = [_Pass(plans)] if are_small else [_Pass([plan]) for plan in plans]
        return passes


_products_of = functools.lru_cache(maxsize=1024)(_Products)


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
    """Each group's rows of a times its matrix (k, n): torch._grouped_mm for sizes that it does not take."""
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
    """Each group's rows: left^T right; as well."""
    out = left.new_empty((len(ends), left.shape[1], right.shape[1]))
    sizes = _sizes(ends, left.shape[0])
    for x, y, product in zip(left.split(sizes), right.split(sizes), out.unbind()):
        if x.shape[0]:
            torch.mm(x.t(), y, out=product)
        else:
            product.zero_()
    return out


def _groups(op, A, offs):
    """The ends of groups, and how many they are; None where there are no offs."""
    if offs is None:
        return None, None
    ends = _ends(offs, A.shape[0], op)
    return ends, len(ends)


def _cpu_forward(op, A, W, offs, config, out_dtype, kept, ctx):
    ends, groups = _groups(op, A, offs)
    products = _products_of(config, A.dtype, A.shape, W.dtype, W.shape, out_dtype, groups)
    if ctx is not None:
        ctx.products, ctx.ends = products, ends
    is_kept = kept is not None
    return products.forward(is_kept)((A, W if is_kept else plain(W)), offs, ends, kept)[0]


def _cpu_backward(op, grad_out, A, W, offs, config, needs_A, needs_W, kept, ctx):
    if ctx is None:
        ends, groups = _groups(op, A, offs)
        products = _products_of(config, A.dtype, A.shape, W.dtype, W.shape, grad_out.dtype, groups)
    else:
        ends, products = ctx.ends, ctx.products
    is_kept = kept is not None
    tensors = A, W if is_kept else plain(W), grad_out
    passes = products.backward(needs_A, needs_W, is_kept)
    grads = passes[0](tensors, offs, ends, kept)
    for run in passes[1:]:
        grads += run(tensors, offs, ends, kept)
    if needs_A and needs_W:
        return grads
    return (grads[0], None) if needs_A else (None, grads[0] if needs_W else None)


# ---- on a GPU -------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=64)
def _one_group(rows, device, _stream):
    """The offs of a product without groups."""
    return torch.full((1,), rows, dtype=torch.int32, device=device)


_POINTERS, _NUMBERS = struct.Struct("@10P"), struct.Struct("@4q15i0q")  # Moe8Product: what differs by call; the rest


class _Request:
    """The requests of products of tensors of given dtypes and shapes: what does not differ from call to call."""

    def __init__(self, config, A, A_shape, W, W_shape, out, has_groups, device):
        forms = meaning(config)
        self.rows, columns = A_shape
        self.out_shape = (self.rows, W_shape[-2])
        self.is_empty = 0 in (self.rows, columns, W_shape[-2])
        numbers = (self.rows, *W_shape[-2:], W_shape[0] if has_groups else 1, type_of(A), type_of(W), type_of(out),
                   has_groups, device.index)
        self._numbers = [_NUMBERS.pack(*numbers, is_made, *forms.left, *forms.right, *forms.fast_accum)
                         for is_made in (False, True)]
        self._config, self._device, self._has_groups, self._sizes = config, device, has_groups, {}

    def _bytes(self, call, *pointers, is_kept, is_made):
        """How much memory a launch needs: of its own, and for the forms of its weight where they are kept. Of pointers
        it matters which there are, and their alignment."""
        a, w, grad_out, grad_A, grad_W = (pointer and 16 | pointer & 15 for pointer in pointers)
        sizes = _native.Bytes()
        call(_POINTERS.pack(a, w, grad_out, 16, 16, grad_A, grad_W, 0, 16 if is_kept else 0, 0) +
             self._numbers[is_made], sizes)
        return sizes.workspace, sizes.kept

    def launch(self, call, a, w, grad_out, offs, out, grad_A, grad_W, kept):
        device, config = self._device, self._config
        stream = torch._C._cuda_getCurrentRawStream(device.index)
        if not self._has_groups:
            make = _one_group.__wrapped__ if torch.cuda.is_current_stream_capturing() else _one_group
            offs = make(self.rows, device, stream)
        is_kept = kept is not None
        forms = kept.find(config) if is_kept else None
        is_made = forms is not None
        key = (call, a & 15, w & 15, grad_out & 15, grad_A > 0, grad_W > 0, is_kept, is_made)
        sizes = self._sizes.get(key)
        if sizes is None:
            sizes = self._sizes[key] = self._bytes(call, a, w, grad_out, grad_A, grad_W, is_kept=is_kept,
                                                   is_made=is_made)
        if is_kept and not is_made:
            forms = torch.empty(sizes[1], dtype=torch.uint8, device=device)
        workspace = torch.empty(sizes[0], dtype=torch.uint8, device=device)
        call(_POINTERS.pack(a, w, grad_out, offs.data_ptr(), out, grad_A, grad_W, workspace.data_ptr(),
                            forms.data_ptr() if is_kept else 0, stream) + self._numbers[is_made], None)
        if is_kept and not is_made:
            kept.keep(forms, config)


_request = functools.lru_cache(maxsize=1024)(_Request)


def _gpu_forward(A, W, offs, config, out_dtype, kept):
    device = A.device
    request = _request(config, A.dtype, A.shape, W.dtype, W.shape, out_dtype, offs is not None, device)
    out = torch.empty(request.out_shape, dtype=out_dtype, device=device)
    if request.is_empty:
        return out.zero_()
    request.launch(_native.cuda_forward, A.data_ptr(), W.data_ptr(), 0, offs, out.data_ptr(), 0, 0, kept)
    return out


def _gpu_backward(grad_out, A, W, offs, config, needs_A, needs_W, kept):
    device, of_A, of_W = A.device, A.shape, W.shape
    request = _request(config, A.dtype, of_A, W.dtype, of_W, grad_out.dtype, offs is not None, device)
    grad_A = torch.empty(of_A, dtype=A.dtype, device=device) if needs_A else None
    grad_W = torch.empty(of_W, dtype=W.dtype, device=device) if needs_W else None
    if request.is_empty:
        return grad_A.zero_() if needs_A else None, grad_W.zero_() if needs_W else None
    request.launch(_native.cuda_backward, A.data_ptr(), W.data_ptr(), grad_out.data_ptr(), offs, 0,
                   grad_A.data_ptr() if needs_A else 0, grad_W.data_ptr() if needs_W else 0, kept if needs_A else None)
    return grad_A, grad_W


# ---- both -----------------------------------------------------------------------------------------------
@outside_autocast
def forward(op, A, W, offs, config, out_dtype, kept=None, ctx=None):
    """A [M, K], W [E, N, K], offs [E]; or W [N, K] and offs None -> [M, N] out_dtype. kept: a _kept.Part of W. ctx: of
    the autograd.Function that calls, where what the backward has to know is left."""
    A = plain(A)
    offs = None if offs is None else offs.contiguous()
    if A.is_cpu:
        return _cpu_forward(op, A, W, offs, config, out_dtype, kept, ctx)
    check_device(op, "A", A)
    return _gpu_forward(A, plain(W), offs, config, out_dtype, kept)


@outside_autocast
def backward(op, grad_out, A, W, offs, config, needs_A, needs_W, kept=None, ctx=None):
    """Gradients of A and W in their dtypes; None where one is not needed. ctx: that of forward."""
    grad_out, A = plain(grad_out), plain(A)
    offs = None if offs is None else offs.contiguous()
    if A.is_cpu:
        return _cpu_backward(op, grad_out, A, W, offs, config, needs_A, needs_W, kept, ctx)
    return _gpu_backward(grad_out, A, plain(W), offs, config, needs_A, needs_W, kept)


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
