# SPDX-License-Identifier: BSD-3-Clause
"""Quantizers on tensors: check, allocate, launch. What they compute: include/moe8/mx.h and float8.h."""
import ctypes

import torch
import torch.nn.functional as F

from . import _native
from ._native import fail
from ._tensors import (ELEMS, MODES, MX_BLOCK, around, check_axis, check_device, check_dtype, check_offs, choice, plain,
                       pointer, stream_of, threads, type_of)

_STORAGE = {0: torch.float8_e4m3fn, 1: torch.float8_e5m2, 4: torch.float4_e2m1fn_x2}


# ---- codes as tensors ---------------------------------------------------------------------------------
def _pack(codes, elem):
    """Codes one a byte -> the public tensor: two of E2M1 a byte, the first in the low bits."""
    if elem == ELEMS["e2m1"]:
        even = codes if codes.shape[-1] % 2 == 0 else F.pad(codes, (0, 1))
        codes = even[..., 0::2] | (even[..., 1::2] << 4)
    return codes.view(_STORAGE.get(elem, torch.uint8))


def _unpack(data, elem, shape):
    codes = data.contiguous().view(torch.uint8)
    if elem != ELEMS["e2m1"]:
        return codes
    return torch.stack((codes & 15, codes >> 4), -1).flatten(-2)[..., :shape[-1]].contiguous()


def packed_shape(shape, elem):
    shape = list(shape)
    if elem == ELEMS["e2m1"]:
        shape[-1] = (shape[-1] + 1) // 2
    return shape, _STORAGE.get(elem, torch.uint8)


def _check(op, x, axis, offs):
    check_dtype(op, "x", x)
    check_device(op, "x", x)
    if axis is None:
        if offs is not None:
            fail(op, "offs", "expected none with tensorwise scaling")
        return None
    axis = check_axis(op, x, axis)
    if offs is not None:
        if x.dim() != 2 or axis != 0:
            fail(op, "offs", f"expected groups along axis 0 of a 2-D tensor, got {list(x.shape)} along axis {axis}")
        check_offs(op, offs, None, x.device)
    return axis


def _ends(offs):
    return None if offs is None else offs.contiguous()


def _groups(offs):
    return 0 if offs is None else offs.shape[0]


# ---- on a GPU -----------------------------------------------------------------------------------------
def _request(x, axis, offs):
    """What of Moe8Quantize follows from x: its rows and which of them belong together."""
    outer, length, inner = around(x, axis)
    request = _native.Quantize()
    request.x, request.type = x.data_ptr(), type_of(x.dtype)
    request.along_columns = not (inner == 1 and offs is None)
    if not request.along_columns:
        request.rows, request.columns, request.groups = outer, length, 1
    else:
        request.rows, request.columns = outer * length, inner
        request.groups = outer if offs is None else offs.shape[0]
    request.offs = pointer(offs)
    request.stream = stream_of(x.device)
    return request


def _launch(call, request, x):
    """Asks for the workspace, makes it, launches."""
    with torch.cuda.device(x.device):
        call(ctypes.byref(request))
        workspace = torch.empty(max(request.bytes, 1), dtype=torch.uint8, device=x.device)
        request.workspace = workspace.data_ptr()
        call(ctypes.byref(request))


def _gpu_mx(x, elem, mode, axis, offs, data, scale, values):
    request = _request(x, axis, offs)
    if request.rows == 0 or request.columns == 0:
        return
    request.elem, request.mode = elem, mode
    request.codes, request.scale, request.values = pointer(data), pointer(scale), pointer(values)
    if values is not None:
        request.values_type = type_of(values.dtype)
    if scale is not None and request.along_columns:
        request.scale_rows = scale.numel() // request.columns
    _launch(_native.cuda_mx, request, x)


def _gpu_float8(x, elem, power_of_2, axis, offs):
    """Codes one a byte, and scales of their public shape."""
    request = _request(x.reshape(1, -1) if axis is None else x, 1 if axis is None else axis, offs)
    request.elem, request.power_of_2, request.tensorwise = elem, power_of_2, axis is None
    empty = lambda *shape, dtype: torch.empty(shape, dtype=dtype, device=x.device)
    columns = request.columns
    scale_shape = list(scale_shape_float8(x, axis, offs))
    scale = empty(*scale_shape, dtype=torch.float32)
    request.scale = scale.data_ptr()
    if not request.along_columns:
        codes = empty(request.rows, (columns + 15) // 16 * 16, dtype=torch.uint8)
        request.codes = codes.data_ptr()
        if x.numel() > 0:
            _launch(_native.cuda_float8, request, x)
        return codes[:, :columns].contiguous().view(x.shape), scale
    with torch.cuda.device(x.device):
        _native.cuda_float8(ctypes.byref(request))  # tells the width
    slices = 1 if offs is not None else request.groups
    transposed = empty(slices, columns, request.width, dtype=torch.uint8)
    request.codes = transposed.data_ptr()
    if x.numel() > 0:
        _launch(_native.cuda_float8, request, x)
    if offs is None:
        return transposed[:, :, :around(x, axis)[1]].transpose(1, 2).reshape(x.shape), scale
    return _rows_of_groups(transposed[0], offs, x.shape[0], request.padding), scale


def _rows_of_groups(transposed, offs, rows, padding):
    """Turns codes back: a row lies at the padded start of its group and on from there; rows of no group are 0."""
    row = torch.arange(rows, device=offs.device)
    ends = offs.long()
    group = torch.searchsorted(ends, row, right=True)
    begins = F.pad(ends, (1, 0))
    sizes = ends - begins[:-1]
    starts = F.pad(torch.cumsum((sizes + padding - 1) // padding * padding, 0), (1, 0))
    column = (starts[group] + row - begins[group]).clamp_max(max(transposed.shape[1] - 1, 0))
    codes = transposed.index_select(1, column).t().contiguous()
    return codes.masked_fill(group.eq(offs.shape[0]).unsqueeze(1), 0)


# ---- MX -----------------------------------------------------------------------------------------------
def scale_shape_mx(x, axis, offs):
    shape = list(x.shape)
    shape[axis] = (shape[axis] + (MX_BLOCK - 1) * (1 if offs is None else offs.shape[0])) // MX_BLOCK
    return shape


def quantize_mx(x, elem, mode, axis, offs):
    op = "quantize_mx"
    axis = _check(op, x, axis, offs)
    elem, mode = choice(op, "elem", elem, ELEMS), choice(op, "mode", mode, MODES)
    x, ends = plain(x), _ends(offs)
    data = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    scale = torch.empty(scale_shape_mx(x, axis, offs), dtype=torch.uint8, device=x.device)
    if x.is_cuda:
        _gpu_mx(x, elem, mode, axis, ends, data, scale, None)
    else:
        _native.cpu_mx(elem, mode, x.data_ptr(), type_of(x.dtype), *around(x, axis), pointer(ends), _groups(offs),
                       data.data_ptr(), scale.data_ptr(), scale.shape[axis], None, 0, threads())
    return _pack(data, elem), scale.view(torch.float8_e8m0fnu)


def values_mx(x, elem, mode, axis, offs, dtype):
    """elem and mode by number; x and offs plain."""
    values = torch.empty(x.shape, dtype=dtype, device=x.device)
    if x.is_cuda:
        _gpu_mx(x, elem, mode, axis, offs, None, None, values)
    else:
        _native.cpu_mx(elem, mode, x.data_ptr(), type_of(x.dtype), *around(x, axis), pointer(offs), _groups(offs), None,
                       None, scale_shape_mx(x, axis, offs)[axis], values.data_ptr(), type_of(dtype), threads())
    return values


def fake_quantize_mx(x, elem, mode, axis, offs, dtype):
    op = "fake_quantize_mx"
    axis = _check(op, x, axis, offs)
    dtype = _check_out(op, dtype or x.dtype)
    return values_mx(plain(x), choice(op, "elem", elem, ELEMS), choice(op, "mode", mode, MODES), axis, _ends(offs),
                     dtype)


def _check_out(op, dtype):
    if dtype not in (torch.bfloat16, torch.float32):
        fail(op, "dtype", f"expected bfloat16 or float32, got {str(dtype).removeprefix('torch.')}")
    return dtype


def dequantize_mx(data, scale, elem, shape, axis, offs, dtype):
    op = "dequantize_mx"
    elem = choice(op, "elem", elem, ELEMS)
    _check_out(op, dtype)
    expected, _ = packed_shape(shape, elem)
    if data.element_size() != 1 or list(data.shape) != expected:
        fail(op, "data", f"expected {expected} of one byte each, got {list(data.shape)} of {data.dtype}")
    like = torch.empty(shape, device="meta")
    axis = check_axis(op, like, axis)
    if scale.element_size() != 1 or list(scale.shape) != scale_shape_mx(like, axis, offs):
        fail(op, "scale", f"expected {scale_shape_mx(like, axis, offs)} of one byte each, got {list(scale.shape)} of "
             f"{scale.dtype}")
    codes = _unpack(data, elem, shape)
    home = codes.device
    # Nothing in training decodes: a GPU's tensors are decoded on the host.
    codes, scales, ends = codes.cpu(), scale.contiguous().view(torch.uint8).cpu(), _ends(offs)
    ends = None if ends is None else ends.cpu()
    values = torch.empty(shape, dtype=dtype)
    _native.cpu_mx_decode(elem, codes.data_ptr(), scales.data_ptr(), *around(values, axis), pointer(ends),
                          _groups(offs), scales.shape[axis], values.data_ptr(), type_of(dtype), threads())
    return values.to(home)


# ---- FP8 ----------------------------------------------------------------------------------------------
def scale_shape_float8(x, axis, offs):
    if axis is None:
        return []
    if offs is not None:
        return [offs.shape[0], x.shape[1]]
    shape = list(x.shape)
    shape[axis] = 1
    return shape


def _elem_float8(op, elem):
    number = choice(op, "elem", elem, ELEMS)
    if number > 1:
        fail(op, "elem", f"expected float8_e4m3fn or float8_e5m2, got {elem}")
    return number


def _cpu_float8(x, elem, power_of_2, axis, offs, data, scale, values):
    shape = (1, x.numel(), 1) if axis is None else around(x, axis)
    _native.cpu_float8(elem, power_of_2, axis is None, x.data_ptr(), type_of(x.dtype), *shape, pointer(offs),
                       _groups(offs), pointer(data), scale.data_ptr(), pointer(values),
                       0 if values is None else type_of(values.dtype), threads())


def quantize_float8(x, elem, power_of_2, axis, offs):
    op = "quantize_float8"
    axis = _check(op, x, axis, offs)
    elem = _elem_float8(op, elem)
    x, ends = plain(x), _ends(offs)
    if x.is_cuda:
        codes, scale = _gpu_float8(x, elem, power_of_2, axis, ends)
        return _pack(codes, elem), scale
    codes = torch.empty(x.shape, dtype=torch.uint8)
    scale = torch.empty(scale_shape_float8(x, axis, offs), dtype=torch.float32)
    _cpu_float8(x, elem, power_of_2, axis, ends, codes, scale, None)
    return _pack(codes, elem), scale


def values_float8(x, elem, power_of_2, axis, offs, dtype):
    """elem by number; x and offs plain; on a CPU."""
    values = torch.empty(x.shape, dtype=dtype)
    scale = torch.empty(scale_shape_float8(x, axis, offs), dtype=torch.float32)
    _cpu_float8(x, elem, power_of_2, axis, offs, None, scale, values)
    return values


def fake_quantize_float8(x, elem, power_of_2, axis, offs, dtype):
    op = "fake_quantize_float8"
    dtype = _check_out(op, dtype or x.dtype)
    if x.is_cuda:
        codes, scale = quantize_float8(x, elem, power_of_2, axis, offs)
        return dequantize_float8(codes, scale, elem, axis, offs, dtype)
    axis = _check(op, x, axis, offs)
    return values_float8(plain(x), _elem_float8(op, elem), power_of_2, axis, _ends(offs), dtype)


def dequantize_float8(data, scale, elem, axis, offs, dtype):
    op = "dequantize_float8"
    elem = _elem_float8(op, elem)
    _check_out(op, dtype)
    if axis is not None:
        axis = check_axis(op, data, axis)
    expected = scale_shape_float8(data, axis, offs)
    if scale.dtype != torch.float32 or list(scale.shape) != expected:
        fail(op, "scale", f"expected float32 {expected} for data {list(data.shape)}, got {scale.dtype} "
             f"{list(scale.shape)}")
    home = data.device
    codes, scales = data.contiguous().view(torch.uint8).cpu(), scale.contiguous().cpu()
    ends = None if offs is None else offs.contiguous().cpu()
    values = torch.empty(data.shape, dtype=dtype)
    shape = (1, data.numel(), 1) if axis is None else around(data, axis)
    _native.cpu_float8_decode(elem, axis is None, codes.data_ptr(), scales.data_ptr(), *shape, pointer(ends),
                              _groups(offs), values.data_ptr(), type_of(dtype), threads())
    return values.to(home)
