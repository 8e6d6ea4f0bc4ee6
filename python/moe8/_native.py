# SPDX-License-Identifier: BSD-3-Clause
"""The library beside this file, called through ctypes (python/native/interface.h): kernels and decisions of
moe8. Pointers, sizes and streams go in; no torch is linked, so one file serves every torch."""
import ctypes
import json
import pathlib
import warnings

from ctypes import c_char_p, c_int, c_int32, c_int64, c_void_p


class Error(ValueError):
    """What a caller can mend: "[op] argument: expected ..., got ... . Hint."."""


def fail(op, argument, message):
    raise Error(f"[{op}] {argument + ': ' if argument else ''}{message}")


class Bytes(ctypes.Structure):
    """Moe8Bytes of interface.h."""
    _fields_ = [("workspace", c_int64), ("kept", c_int64)]


class ExpertsBytes(ctypes.Structure):
    """Moe8ExpertsBytes of interface.h."""
    _fields_ = [("workspace", c_int64), ("kept13", c_int64), ("kept2", c_int64)]


class Quantize(ctypes.Structure):
    """Moe8Quantize of interface.h."""
    _fields_ = [("x", c_void_p), ("rows", c_int64), ("columns", c_int64), ("offs", c_void_p), ("groups", c_int64),
                ("type", c_int32), ("elem", c_int32), ("mode", c_int32), ("power_of_2", c_int32),
                ("along_columns", c_int32), ("tensorwise", c_int32), ("values_type", c_int32),
                ("codes", c_void_p), ("scale", c_void_p), ("scale_rows", c_int64), ("values", c_void_p),
                ("width", c_int64), ("padding", c_int64),
                ("workspace", c_void_p), ("bytes", c_int64), ("stream", c_void_p)]


_SHAPE = [c_int64, c_int64, c_int64, c_void_p, c_int64]  # outer, length, inner, ends, groups
_ARGUMENTS = {
    "moe8_ask": [c_char_p, c_char_p, ctypes.POINTER(c_char_p)],
    "moe8_cpu_mx": [c_int, c_int, c_void_p, c_int, *_SHAPE, c_void_p, c_void_p, c_int64, c_void_p, c_int, c_int],
    "moe8_cpu_mx_decode": [c_int, c_void_p, c_void_p, *_SHAPE, c_int64, c_void_p, c_int, c_int],
    "moe8_cpu_float8": [c_int, c_int, c_int, c_void_p, c_int, *_SHAPE, c_void_p, c_void_p, c_void_p, c_int, c_int],
    "moe8_cpu_float8_decode": [c_int, c_int, c_void_p, c_void_p, *_SHAPE, c_void_p, c_int, c_int],
    "moe8_cuda_available": [c_int],
    "moe8_cpu_values": [c_void_p, c_int, c_int],
    # requests as bytes: struct.pack fills them fastest
    "moe8_cuda_forward": [c_char_p, ctypes.POINTER(Bytes)],
    "moe8_cuda_backward": [c_char_p, ctypes.POINTER(Bytes)],
    "moe8_cuda_experts_forward": [c_char_p, ctypes.POINTER(ExpertsBytes)],
    "moe8_cuda_experts_backward": [c_char_p, ctypes.POINTER(ExpertsBytes)],
    "moe8_cuda_mx": [ctypes.POINTER(Quantize)],
    "moe8_cuda_float8": [ctypes.POINTER(Quantize)],
}


def _load():
    path = pathlib.Path(__file__).with_name("libmoe8_native.so")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(f"moe8: its library could not be loaded ({error}). Install the wheel of this platform, or "
                          "build it from a checkout: ./dev wheel") from error
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int
    library.moe8_error.restype = c_char_p
    return library


_library = _load()


def _checked(name):
    function = getattr(_library, name)

    def call(*arguments):
        if function(*arguments):
            raise Error(_library.moe8_error().decode())
    return call


cpu_mx = _checked("moe8_cpu_mx")
cpu_mx_decode = _checked("moe8_cpu_mx_decode")
cpu_float8 = _checked("moe8_cpu_float8")
cpu_float8_decode = _checked("moe8_cpu_float8_decode")
cpu_values = _checked("moe8_cpu_values")
cuda_available = _checked("moe8_cuda_available")
cuda_forward = _checked("moe8_cuda_forward")
cuda_backward = _checked("moe8_cuda_backward")
cuda_experts_forward = _checked("moe8_cuda_experts_forward")
cuda_experts_backward = _checked("moe8_cuda_experts_backward")
cuda_mx = _checked("moe8_cuda_mx")
cuda_float8 = _checked("moe8_cuda_float8")
_ask = _checked("moe8_ask")


def ask(question, **request):
    """The answer of python/native/text.cpp; what it warns of is shown as a warning of Python's."""
    said = c_char_p()
    _ask(question.encode(), json.dumps(request).encode(), ctypes.byref(said))
    both = json.loads(said.value)
    for message in both["warnings"]:
        warnings.warn(message, stacklevel=3)
    return both["answer"]
