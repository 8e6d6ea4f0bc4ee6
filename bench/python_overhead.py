#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What an operation of the Python package costs the host beside its kernels, on tiny shapes.

  bench/python_overhead.py [--device cpu|cuda] [--json FILE]

us of the processor per call, the least of nine rounds, so that other programs on the machine matter little. kernels:
the library's functions and the products of torch that the operation runs, on memory and requests made before.
overhead: the difference. Beside it torch's own operation and its gradients, for a measure of the machine: what an
operation of C++ with gradients in C++ costs there. On a GPU kernels are launched and not waited for.
"""
import argparse
import json
import time

import torch
import torch.nn.functional as F

import moe8
from moe8 import _native, _products
from moe8.config import config_text

ROWS, N, K, EXPERTS = 4, 32, 32, 2


def us(function, calls=1000, rounds=9):
    for _ in range(50):
        function()
    best = float("inf")
    for _ in range(rounds):
        begin = time.process_time()
        for _ in range(calls):
            function()
        best = min(best, time.process_time() - begin)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return best / calls * 1e6


class Recorded:
    """The library's calls of an operation, recorded while it runs once, to be made again with the same requests."""
    NAMES = ("cpu_values", "cuda_forward", "cuda_backward")

    def __init__(self, function):
        self.calls = []
        before = {name: getattr(_native, name) for name in self.NAMES}
        made, empty_like, empty = [], torch.empty_like, torch.empty

        def keep(make):
            def call(*arguments, **named):
                made.append(make(*arguments, **named))  # requests point into it
                return made[-1]
            return call
        try:
            torch.empty_like, torch.empty = keep(empty_like), keep(empty)
            for name, call in before.items():
                setattr(_native, name, self._recording(call))
            function()
        finally:
            torch.empty_like, torch.empty = empty_like, empty
            for name, call in before.items():
                setattr(_native, name, call)
        self.made = made

    def _recording(self, call):
        def record(*arguments):
            if not (len(arguments) == 2 and arguments[1] is not None):  # not a question for sizes
                self.calls.append((call, arguments))
            return call(*arguments)
        return record

    def __call__(self):
        for call, arguments in self.calls:
            call(*arguments)


def rounded(product):
    return product.bfloat16() if product.dtype == torch.float32 else product


class Case:
    """One operation, its gradients, and the same kernels alone."""

    def __init__(self, name, device):
        self.name, grouped = name, name == "grouped_mm"
        bf16 = dict(dtype=torch.bfloat16, device=device)
        self.x, self.grad = torch.randn(ROWS, K, **bf16), torch.randn(ROWS, N, **bf16)
        self.w = torch.randn(EXPERTS, N, K, **bf16) if grouped else torch.randn(N, K, **bf16)
        self.offs = torch.tensor([ROWS // 2, ROWS], dtype=torch.int32, device=device) if grouped else None
        if grouped:
            self.ours = lambda x, w: moe8.grouped_mm(x, w.transpose(1, 2), self.offs)
            self.torchs = lambda x, w: torch._grouped_mm(x, w.transpose(1, 2), offs=self.offs)
        else:
            self.ours, self.torchs = moe8.linear, F.linear
        self.groups = EXPERTS if grouped else 1

    def both_ways(self, function):
        x, w = self.x.clone().requires_grad_(), self.w.clone().requires_grad_()

        def call():
            x.grad = w.grad = None
            function(x, w).backward(self.grad)
        return call

    def products(self, backward):
        """torch's products of values on a CPU; on a GPU they are the library's."""
        if self.x.is_cuda:
            return lambda: None
        dtype = torch.bfloat16 if _products._prefers_bf16() else torch.float32
        rows = ROWS // self.groups
        x, g = torch.randn(rows, K).to(dtype), torch.randn(rows, N).to(dtype)
        w = torch.randn(N, K).to(dtype)

        def call():
            for _ in range(self.groups):
                F.linear(x, w)
                if backward:
                    torch.mm(g, w)
                    torch.mm(g.t(), x)
            for _ in range(3 if backward else 1):
                rounded(x)
        return call

    def measure(self):
        forward, training = lambda: self.ours(self.x, self.w), self.both_ways(self.ours)
        row = {"forward": us(forward), "forward and backward": us(training)}
        for what, function, backward in (("forward", forward, False), ("forward and backward", training, True)):
            calls, products = Recorded(function), self.products(backward)

            def kernels():
                calls()
                products()
            row[f"kernels of {what}"] = us(kernels)
        row["torch forward"] = us(lambda: self.torchs(self.x, self.w))
        row["torch forward and backward"] = us(self.both_ways(self.torchs))
        return row


def report(name, row):
    print(f"{name}, {(ROWS, N, K)}" + (f" x {EXPERTS} groups" if name == "grouped_mm" else ""))
    for what in ("forward", "forward and backward"):
        overhead = row[what] - row[f"kernels of {what}"]
        own = row["torch forward and backward"] if what != "forward" else 0
        beyond = f", {overhead - own:.1f} beyond torch's own with its gradients" if own else ""
        print(f"  {what}: {row[what]:.1f} us, of it kernels {row[f'kernels of {what}']:.1f}, overhead {overhead:.1f}"
              f"{beyond}; torch's own operation {row[f'torch {what}']:.1f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config_text("fp8_rowwise")
    rows = {}
    for name in ("linear", "grouped_mm"):
        rows[name] = Case(name, args.device).measure()
        report(name, rows[name])
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
