#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The Python package on a GPU: results beside those of the CPU, time of the host per operation, speed.

  bench/python_on_gpu.py            exit status 1 where a result differs or a part breaks off, 2 without such a GPU

Needs the wheel of a build with CUDA (./dev wheel) and a Hopper GPU; takes about half a minute. Quantizers must give
the CPU's bits; products and layers, which add up in another order, at least 40 dB. "refused": an error that says so,
as docs/python.md tells of some formats on a GPU.
"""
import sys
import time
import traceback

import torch

import moe8
from moe8._tensors import gpu_refusal

OPS = torch.ops.moe8
BAR_DB = 40
failures = []


def judge(what, good):
    if not good:
        failures.append(what)
        print(f"DIFFERS: {what}", flush=True)


def row(name, *cells):
    print(f"  {str(name):42}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


def shown(least):
    return "same bits" if least == float("inf") else f"{least:.1f} dB"


def decibels(reference, got):
    reference, got = reference.double().cpu(), got.double().cpu()
    if torch.equal(reference, got):
        return float("inf")
    if not (reference.isfinite() & got.isfinite()).all():
        return float("-inf")  # not nan, which no comparison of numbers minds
    return (20 * torch.log10(reference.norm() / (reference - got).norm())).item()


# ---- results ----------------------------------------------------------------------------------------------
def same_bits(a, b):
    def of(x):
        return x.cpu().contiguous().view(-1).view(torch.uint8)  # the scale of a whole tensor has no axes
    return all(p.shape == q.shape and torch.equal(of(p), of(q)) for p, q in zip(a, b, strict=True))


def quantizers():
    counts = {}
    for dtype in (torch.bfloat16, torch.float32):
        for shape in ((100, 72), (257, 130), (128, 256)):
            x = (torch.randn(shape) * torch.randn(shape).exp()).to(dtype)
            offs = torch.tensor([5, 5, 70, shape[0] - 4], dtype=torch.int32)
            calls = [(OPS.quantize_mx, (elem, mode, axis), groups)
                     for elem in ("e4m3", "e5m2", "e2m3", "e3m2", "float4_e2m1fn_x2")
                     for mode in ("floor", "rceil", "ceil", "even")
                     for axis, groups in ((1, None), (0, None), (0, offs))]
            calls += [(OPS.quantize_float8, (elem, power_of_2, axis), groups) for elem in ("e4m3", "e5m2")
                      for power_of_2 in (False, True)
                      for axis, groups in ((None, None), (1, None), (0, None), (0, offs))]
            for op, arguments, groups in calls:
                on_gpu = None if groups is None else groups.cuda()
                good = same_bits(op(x, *arguments, groups), op(x.cuda(), *arguments, on_gpu))
                judge(f"{op} {dtype} {shape} {arguments}{' in groups' if on_gpu is not None else ''}", good)
                same, count = counts.get(op, (0, 0))
                counts[op] = same + good, count + 1
    for op, (same, count) in counts.items():
        row(op, f"{same} of {count}")


def on_both(tensors, function):
    """Results and gradients of function(tensors), on the CPU and on the GPU: the least decibels among them."""
    results = []
    for device in ("cpu", "cuda"):
        leaves = [t.to(device).detach().requires_grad_(t.is_floating_point()) for t in tensors]
        out = function(*leaves)
        generator = torch.Generator().manual_seed(3)
        out.backward(torch.randn(out.shape, generator=generator).to(out.dtype).to(device))
        results.append([out.detach()] + [t.grad for t in leaves if t.grad is not None])
    return min(decibels(a, b) for a, b in zip(*results, strict=True))


SHAPES = ((83, 72, 40), (500, 256, 384), (64, 33, 17))


def product(recipe, dtype, M, K, N):
    if recipe["applies_to"] == "experts":
        offs = torch.tensor([M // 3, M // 3, M // 2, M - 3], dtype=torch.int32)
        tensors = (torch.randn(M, K).to(dtype), torch.randn(4, N, K).to(dtype), offs, torch.randn(4, N))
        return on_both(tensors, lambda A, W, o, b: moe8.grouped_mm(A, W.transpose(1, 2), o, recipe["name"], b))
    tensors = (torch.randn(2, M, K).to(dtype), torch.randn(N, K).to(dtype), torch.randn(N).to(dtype))
    return on_both(tensors, lambda x, w, b: moe8.linear(x, w, b, recipe["name"]))


def products():
    row("M, K, N", *(", ".join(map(str, shape)) for shape in SHAPES))
    reasons = {}
    for recipe in moe8.recipes():
        for dtype in (torch.bfloat16, torch.float32):
            name, cells = f"{recipe['name']}, {str(dtype).removeprefix('torch.')}", []
            for shape in SHAPES:
                try:
                    least = product(recipe, dtype, *shape)
                except moe8.Error as error:
                    cells.append("refused")
                    reasons.setdefault(str(error), name)
                else:
                    cells.append(shown(least))
                    judge(f"{name} {shape}: {least:.1f} dB", least >= BAR_DB)
            row(name, *cells)
    for reason, name in reasons.items():
        print(f"  refused, {name} the first: {reason}", flush=True)


def layers():
    T, d, h, E, k = 300, 256, 192, 8, 3
    for recipe in ("fp8_rowwise", "mxfp8_rceil"):
        for options in ({}, {"gate_up": "interleaved", "activation": "clamped_swiglu"}):
            tensors = (torch.randn(T, d).bfloat16(), (torch.randn(E, 2 * h, d) * 0.1).bfloat16(),
                       (torch.randn(E, d, h) * 0.1).bfloat16(), torch.rand(T, k), torch.randint(0, E + 1, (T, k)))
            least = on_both(tensors, lambda x, w1, w2, s, e: moe8.moe_experts(x, w1, None, w2, e, s, config=recipe,
                                                                             **options))
            name = f"moe_experts, {recipe}{', clamped' if options else ''}"
            row(name, shown(least))
            judge(f"{name}: {least:.1f} dB", least >= BAR_DB - 15)  # two products in a row


def graph():
    A = torch.randn(512, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    W = torch.randn(4, 384, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    offs = torch.tensor([100, 100, 300, 500], device="cuda", dtype=torch.int32)

    def step():
        A.grad = W.grad = None
        out = moe8.grouped_mm(A, W.transpose(1, 2), offs)
        out.backward(torch.ones_like(out))
        return out
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
        expected, grad = step(), W.grad.clone()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        out = step()
    captured.replay()
    torch.cuda.synchronize()
    good = torch.equal(out, expected) and torch.equal(W.grad, grad)
    row("a captured step", "same bits" if good else "differs")
    judge("a captured step", good)


# ---- time -------------------------------------------------------------------------------------------------
def host_us(function, calls=300):
    for _ in range(20):
        function()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    spent = time.perf_counter() - begin
    torch.cuda.synchronize()
    return spent / calls * 1e6


def overhead():
    x, w = (torch.randn(64, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    W = torch.randn(4, 128, 128, device="cuda", dtype=torch.bfloat16)
    offs = torch.tensor([16, 32, 48, 64], device="cuda", dtype=torch.int32)
    row("", "torch", "moe8")
    for grad in (False, True):
        w.requires_grad_(grad)
        W.requires_grad_(grad)
        gradients = "with gradients" if grad else "without gradients"
        row(f"linear, {gradients}", *(f"{host_us(call):.1f}" for call in (
            lambda: torch.nn.functional.linear(x, w), lambda: moe8.linear(x, w))))
        row(f"grouped_mm, {gradients}", *(f"{host_us(call):.1f}" for call in (
            lambda: torch._grouped_mm(x, W.transpose(1, 2), offs=offs),
            lambda: moe8.grouped_mm(x, W.transpose(1, 2), offs))))


def gpu_ms(function, calls=5):
    for _ in range(2):
        function()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / calls


def speed():
    row("M, K, N, E", "torch", "fp8_rowwise", "mxfp8_rceil")
    for M, K, N, E in ((16384, 2048, 1536, 64), (16384, 5120, 8192, 8)):
        A = torch.randn(M, K, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        W = torch.randn(E, N, K, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        offs = (torch.arange(1, E + 1, device="cuda") * (M // E)).int()
        grad = torch.randn(M, N, device="cuda", dtype=torch.bfloat16)

        def both(product):
            A.grad = W.grad = None
            product(A, W.transpose(1, 2)).backward(grad)
        times = [gpu_ms(lambda: both(lambda a, b: torch._grouped_mm(a, b, offs=offs)))]
        for recipe in ("fp8_rowwise", "mxfp8_rceil"):
            times.append(gpu_ms(lambda: both(lambda a, b: moe8.grouped_mm(a, b, offs, recipe))))
        row(f"{M}, {K}, {N}, {E}", *(f"{ms:.3f}" for ms in times))


PARTS = {"quantizers, of them with the CPU's bits": quantizers, "products and gradients, beside the CPU's": products,
         "the layer of experts": layers, "CUDA graphs": graph, "us of the host per forward": overhead,
         "ms of forward and backward": speed}


def main():
    refusal = gpu_refusal(0) if torch.cuda.is_available() else "torch sees no GPU"
    if refusal:
        print(f"python_on_gpu: expected a Hopper GPU and a moe8 built with CUDA: {refusal}", file=sys.stderr)
        return 2
    torch.manual_seed(1)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
    for title, part in PARTS.items():
        print(title, flush=True)
        try:
            part()
        except Exception as error:  # the other parts have something to say as well
            traceback.print_exc()
            judge(f"{title}: broke off: {type(error).__name__}: {error}", False)
    print(f"{len(failures)} differ" + "".join(f"\n  {what}" for what in failures), flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
