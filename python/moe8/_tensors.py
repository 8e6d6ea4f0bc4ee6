# SPDX-License-Identifier: BSD-3-Clause
"""Between tensors and the library: checks, memory, pointers."""
import functools

import torch

from . import _native
from ._native import fail

ELEMS = {"float8_e4m3fn": 0, "float8_e5m2": 1, "float6_e2m3": 2, "float6_e3m2": 3, "float4_e2m1fn_x2": 4,
         "e4m3": 0, "e5m2": 1, "e2m3": 2, "e3m2": 3, "e2m1": 4, "fp6_e2m3": 2, "fp6_e3m2": 3}
MODES = {"floor": 0, "rceil": 1, "ceil": 2, "even": 3}
MX_BLOCK = 32
HIGH, MX, FLOAT8 = 0, 1, 2
TENSORWISE = 0
_TYPES = {torch.bfloat16: 0, torch.float32: 1}


def describe(x):
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} on {x.device}"


def check_dtype(op, argument, x):
    if x.dtype not in _TYPES:
        fail(op, argument, f"expected bfloat16 or float32, got {describe(x)}")
    if x.layout is not torch.strided:
        fail(op, argument, f"expected a dense tensor, got one of layout {x.layout}. Call to_dense() first")


def type_of(dtype):
    return _TYPES[dtype]


def choice(op, argument, value, table):
    number = table.get(value)
    if number is None:
        fail(op, argument, f"expected one of {', '.join(table)}, got '{value}'")
    return number


def check_axis(op, x, axis):
    if x.dim() < 1:
        fail(op, "x", f"expected at least one dimension, got {describe(x)}")
    if not -x.dim() <= axis < x.dim():
        fail(op, "axis", f"expected {-x.dim()} to {x.dim() - 1} for {describe(x)}, got {axis}")
    return axis % x.dim()


def check_offs(op, offs, groups, device):
    if offs.dtype != torch.int32 or offs.dim() != 1:
        fail(op, "offs", f"expected 1-D int32 end rows, got {describe(offs)}. cumsum() gives int64: call "
             ".to(torch.int32)")
    if offs.device != device:
        fail(op, "offs", f"expected on {device}, got {describe(offs)}")
    if groups is not None and offs.shape[0] != groups:
        fail(op, "offs", f"expected {groups} end rows, one an expert, got {offs.shape[0]}")


def around(x, axis):
    """x as [outer, length, inner] around an axis."""
    outer = inner = 1
    for size in x.shape[:axis]:
        outer *= size
    for size in x.shape[axis + 1:]:
        inner *= size
    return outer, x.shape[axis], inner


def plain(x):
    """Its values in memory, contiguous."""
    return (x.resolve_neg() if x.is_neg() else x).contiguous()


def outside_autocast(function):
    """What a kernel computes is decided: autocast, in which it may be called, has no say in its products."""
    @functools.wraps(function)
    def call(*arguments):
        if torch._C._is_any_autocast_enabled():
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    with torch.autocast(kind, enabled=False):
                        return call(*arguments)
        return function(*arguments)
    return call


def pointer(x):
    return None if x is None else x.data_ptr()


@functools.lru_cache(maxsize=None)
def gpu_refusal(index):
    """Why moe8's kernels do not run on a GPU; None where they do."""
    with torch.cuda.device(index):
        try:
            _native.cuda_available(index)
        except _native.Error as error:
            return str(error)
    return None


def check_device(op, argument, x):
    if x.is_cpu:
        return
    if not x.is_cuda:
        fail(op, argument, f"expected a tensor on a CPU or a CUDA device, got {describe(x)}")
    if refusal := gpu_refusal(x.get_device()):
        fail(op, argument, f"expected a device with kernels of moe8, got {x.device}. {refusal}")


def threads():
    return torch.get_num_threads()


def stream_of(device):
    return torch.cuda.current_stream(device).cuda_stream
