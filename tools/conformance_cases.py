#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Writes data/conformance/: small cases for `moe8 conformance`.

The expected results are computed here from docs/numerics.md alone, in plain Python with doubles, so that
they do not come from the code that they check. Written as files that any other implementation can read.

  python3 tools/conformance_cases.py data/conformance
"""
import json
import math
import pathlib
import random
import struct
import sys

MX_BLOCK = 32
# name in a case: largest value, mantissa bits, exponent of the smallest normal and of the largest number, bits
FORMATS = {"float8_e4m3fn": (448.0, 3, -6, 8, 8), "float4_e2m1fn_x2": (6.0, 1, 0, 2, 4)}


# ---- numbers ----------------------------------------------------------------
def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def bf16_bits(x):
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def bf16(x):
    return struct.unpack("<f", struct.pack("<I", bf16_bits(x) << 16))[0]


def exponent(x):
    return math.frexp(x)[1] - 1


def cast(x, fmt):
    """To the nearest value of the format, ties to even, saturating; zeros keep their sign."""
    largest, mantissa, smallest, _, _ = FORMATS[fmt]
    magnitude = abs(x)
    if magnitude < largest and magnitude > 0:
        step = 2.0 ** (max(exponent(magnitude), smallest) - mantissa)
        magnitude = round(magnitude / step) * step
    return math.copysign(min(magnitude, largest), x)


def code(x, fmt):
    """The bits of a value of the format."""
    _, mantissa, smallest, _, bits = FORMATS[fmt]
    sign = (math.copysign(1, x) < 0) << (bits - 1)
    magnitude = abs(x)
    if magnitude == 0:
        return sign
    if magnitude < 2.0**smallest:
        return sign | int(magnitude / 2.0 ** (smallest - mantissa))
    e = exponent(magnitude)
    return sign | (e - smallest + 1) << mantissa | int((magnitude / 2.0**e - 1) * 2**mantissa)


# ---- docs/numerics.md, section 2 --------------------------------------------
def fp8_scale(values, pow2):
    scale = f32(448.0 / max(max((abs(v) for v in values), default=0.0), 1e-12))
    return 2.0 ** exponent(scale) if pow2 else scale


def fp8_codes(values, scale):
    return [cast(f32(v * scale), "float8_e4m3fn") for v in values]


def fp8_values(values):
    """With a power-of-two scale, as the recipe fp8_rowwise has it."""
    scale = fp8_scale(values, True)
    return [v / scale for v in fp8_codes(values, scale)]


# ---- docs/numerics.md, section 3 --------------------------------------------
def mx_scale(block, fmt, mode):
    largest, _, _, top, _ = FORMATS[fmt]
    amax = max(abs(v) for v in block)
    if amax == 0:
        return 0
    if mode == "floor":
        return max(exponent(amax) + 127 - top, 0)
    d = f32(amax * f32(1.0 / largest))
    return exponent(d) + 127 + (d != 2.0 ** exponent(d))


def mx_codes(values, fmt, mode):
    """(values before their scales, scale bytes) of a row."""
    codes, scales = [], []
    for begin in range(0, len(values), MX_BLOCK):
        block = values[begin : begin + MX_BLOCK]
        scales.append(mx_scale(block, fmt, mode))
        codes += [cast(v * 2.0 ** (127 - scales[-1]), fmt) for v in block]
    return codes, scales


def mx_values(values):
    """As the recipe mxfp8_rceil has it."""
    codes, scales = mx_codes(values, "float8_e4m3fn", "rceil")
    return [c * 2.0 ** (scales[i // MX_BLOCK] - 127) for i, c in enumerate(codes)]


# ---- products ---------------------------------------------------------------
def transposed(rows):
    return [list(column) for column in zip(*rows)]


def quantized(rows, values_of):
    return [values_of(row) for row in rows]


def product(left, right):
    """left (M, K) times right (N, K) transposed, in double."""
    return [[math.fsum(a * b for a, b in zip(x, y)) for y in right] for x in left]


def grouped_mm(a, weights, ends, grad_out, values_of):
    out, grad_a, grad_b = [], [], []
    begin = 0
    for weight, end in zip(weights, ends):
        rows, grads = a[begin:end], grad_out[begin:end]
        out += product(quantized(rows, values_of), quantized(weight, values_of))
        grad_a += product(quantized(grads, values_of), quantized(transposed(weight), values_of))
        if rows:
            grad_b.append(product(quantized(transposed(grads), values_of),
                                  quantized(transposed(rows), values_of)))
        else:
            grad_b.append([[0.0] * len(weight[0]) for _ in weight])
        begin = end
    return out, grad_a, grad_b


# ---- files ------------------------------------------------------------------
PACK = {"F32": lambda v: struct.pack("<f", v), "BF16": lambda v: struct.pack("<H", bf16_bits(v)),
        "U8": lambda v: struct.pack("<B", v), "I32": lambda v: struct.pack("<i", v)}


def flat(values):
    return [one for v in values for one in flat(v)] if isinstance(values, list) else [values]


def shape_of(values):
    return [len(values)] + (shape_of(values[0]) if isinstance(values[0], list) else [])


def write(folder, name, case, tensors):
    header, data = {"__metadata__": {"case": json.dumps(case, sort_keys=True)}}, b""
    for key, (dtype, values) in sorted(tensors.items()):
        packed = b"".join(PACK[dtype](v) for v in flat(values))
        header[key] = {"dtype": dtype, "shape": shape_of(values),
                       "data_offsets": [len(data), len(data) + len(packed)]}
        data += packed
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    (folder / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def normal(draw, rows, columns, spread):
    """bf16 numbers whose rows and columns differ in size."""
    return [[bf16(draw.gauss(0, 1) * 2.0 ** draw.uniform(-spread, spread)) for _ in range(columns)]
            for _ in range(rows)]


def quantizer_cases(folder, draw):
    x = normal(draw, 16, 96, 8)
    x[3] = [0.0] * 96
    for fmt, mode in (("float8_e4m3fn", "rceil"), ("float8_e4m3fn", "floor"), ("float4_e2m1fn_x2", "floor")):
        rows = [mx_codes(row, fmt, mode) for row in x]
        data = [[code(v, fmt) for v in codes] for codes, _ in rows]
        if fmt == "float4_e2m1fn_x2":
            data = [[row[i] | row[i + 1] << 4 for i in range(0, len(row), 2)] for row in data]
        write(folder, f"mx_quantize-{fmt}-{mode}",
              {"kind": "mx_quantize", "elem_dtype": fmt, "scale_calculation_mode": mode,
               "block_size": MX_BLOCK, "axis": -1},
              {"input": ("BF16", x), "data": ("U8", data), "scale": ("U8", [s for _, s in rows])})
    for pow2 in (True, False):
        scales = [fp8_scale(row, pow2) for row in x]
        data = [[code(v, "float8_e4m3fn") for v in fp8_codes(row, s)] for row, s in zip(x, scales)]
        write(folder, f"fp8_quantize-rows-{'pow2' if pow2 else 'exact'}",
              {"kind": "fp8_quantize", "granularity": "axiswise", "axis": 1,
               "round_scales_to_power_of_2": pow2, "elem_dtype": "float8_e4m3fn"},
              {"input": ("BF16", x), "data": ("U8", data), "scale": ("F32", [[s] for s in scales])})


def product_cases(folder, draw):
    sizes, features, outputs = [7, 0, 40, 18], 64, 48
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    a = normal(draw, ends[-1], features, 1)
    weights = [normal(draw, outputs, features, 1) for _ in sizes]
    grad_out = normal(draw, ends[-1], outputs, 1)
    for recipe, values_of in (("fp8_rowwise", fp8_values), ("mxfp8_rceil", mx_values)):
        out, grad_a, grad_b = grouped_mm(a, weights, ends, grad_out, values_of)
        write(folder, f"grouped_mm-{recipe}", {"kind": "grouped_mm", "recipe": recipe, "group_sizes": sizes},
              {"A": ("BF16", a), "B": ("BF16", weights), "offs": ("I32", ends),
               "grad_out": ("BF16", grad_out), "out": ("BF16", out), "grad_A": ("BF16", grad_a),
               "grad_B": ("BF16", grad_b)})


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    generator = random.Random(8)
    quantizer_cases(target, generator)
    product_cases(target, generator)
