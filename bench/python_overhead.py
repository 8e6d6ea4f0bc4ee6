#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What an operation of the Python package costs the host beside its kernels, on tiny shapes.

  bench/python_overhead.py [--device cpu|cuda] [--json FILE]

One operation is one dispatch of torch.ops.moe8: linear, grouped_mm; a backward is one more, linear_backward or
grouped_mm_backward, of two products. Eager code computes the same four without the dispatcher.

Its overhead is the time that it takes more than its kernels alone: the library's functions on requests made before,
and the products of torch that the operation runs. With gradients the kernels are called by a bare autograd.Function,
which saves its inputs and does nothing else, as torch asks such a function of whoever writes an operation in Python.
All in us of the processor per call, the least of forty rounds that take turns, so that other programs on the machine
matter little. Beside them torch's own operation. On a GPU kernels are launched and not waited for.
"""
import argparse
import json
import time

import torch
import torch.nn.functional as F

import moe8
from moe8 import _native
from moe8.config import config_text

ROWS, N, K, EXPERTS = 4, 32, 32, 2
OPS = torch.ops.moe8


def us(functions, calls=300, rounds=40):
    """The least time of each of the functions, by name."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            for _ in range(20):
                function()
            begin = time.process_time()
            for _ in range(calls):
                function()
            best[name] = min(best[name], (time.process_time() - begin) / calls * 1e6)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
    return best


class Kernels:
    """The library's calls and torch's products of an operation, recorded while it runs once, to be made again on the
    same memory. A call gives as many results as the operation, of its dtypes."""
    WATCHED = ((_native, "cpu_values"), (_native, "cuda_forward"), (_native, "cuda_backward"), (torch, "mm"),
               (torch, "_grouped_mm"))

    def __init__(self, operation):
        self.calls, self.made = [], []  # requests point into what was made
        watched = [(place, name, getattr(place, name)) for place, name in self.WATCHED]
        empty = torch.empty
        try:
            torch.empty = lambda *arguments, **named: self._keep(empty(*arguments, **named))
            for place, name, call in watched:
                setattr(place, name, self._recording(call))
            self.results = [x for x in operation() if x is not None]
        finally:
            torch.empty = empty
            for place, name, call in watched:
                setattr(place, name, call)

    def _keep(self, x):
        self.made.append(x)
        return x

    def _recording(self, call):
        def record(*arguments, **named):
            if not isinstance(arguments[-1], _native.Bytes):  # a question for sizes
                self.calls.append((call, arguments, named))
            return self._keep(call(*arguments, **named))
        return record

    def __call__(self):
        products = []
        for call, arguments, named in self.calls:
            product = call(*arguments, **named)
            if product is not None:
                products.append(product.bfloat16() if product.dtype == torch.float32 else product)
        return products or [torch.empty_like(x) for x in self.results]  # on a GPU the library wrote them


def bare(forward, backward, given):
    """A differentiable function that calls kernels, and does nothing else. given: the weight as it is passed."""
    class Bare(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return forward()[0]

        @staticmethod
        def backward(ctx, grad_out):
            x, w = ctx.saved_tensors
            grad_x, grad_w = backward()
            return grad_x, given(grad_w)
    return super(torch.autograd.Function, Bare).apply  # without what it does for function transforms


class Case:
    """One operation, with gradients and without, and the same kernels alone."""

    def __init__(self, name, device):
        self.name, grouped = name, name == "grouped_mm"
        bf16 = dict(dtype=torch.bfloat16, device=device)
        self.x, self.grad = torch.randn(ROWS, K, **bf16), torch.randn(ROWS, N, **bf16)
        self.w = torch.randn(EXPERTS, N, K, **bf16) if grouped else torch.randn(N, K, **bf16)
        self.given = (lambda w: w.transpose(1, 2)) if grouped else (lambda w: w)
        if grouped:
            offs = torch.tensor([ROWS // 2, ROWS], dtype=torch.int32, device=device)
            config = config_text("fp8_rowwise")
            self.ours = lambda x, b: moe8.grouped_mm(x, b, offs)
            self.dispatched = lambda x, b: OPS.grouped_mm(x, b.transpose(1, 2), offs, None, config, torch.bfloat16)
            self.torchs = lambda x, b: torch._grouped_mm(x, b, offs=offs)
        else:
            config = config_text("rowwise")
            self.ours, self.torchs = moe8.linear, F.linear
            self.dispatched = lambda x, w: OPS.linear(x, w, config)

    def measure(self):
        x, w, given = self.x.clone().requires_grad_(), self.w.clone().requires_grad_(), self.given

        def plain(function):
            return lambda: function(self.x, given(self.w))

        def recorded(function):
            return lambda: function(x, given(w))

        def step(function):
            def call():
                x.grad = w.grad = None
                function(x, given(w)).backward(self.grad)
            return call
        forward = Kernels(lambda: [plain(self.ours)()])
        out = recorded(self.ours)()
        backward = Kernels(lambda: torch.autograd.grad(out, (x, w), self.grad))
        kernels = bare(forward, backward, given)
        spent = us({"forward": plain(self.ours), "kernels of forward": plain(lambda x, w: forward()),
                    "torch's forward": plain(self.torchs), "dispatched forward": plain(self.dispatched),
                    "recorded forward": recorded(self.ours), "kernels of recorded forward": recorded(kernels),
                    "step": step(self.ours), "kernels of step": step(kernels),
                    "torch's step": step(self.torchs), "dispatched step": step(self.dispatched)})
        for what in ("forward", "recorded forward", "step"):
            spent[f"overhead of {what}"] = spent[what] - spent[f"kernels of {what}"]
        spent["overhead of backward"] = spent["overhead of step"] - spent["overhead of recorded forward"]
        return spent


def report(name, spent):
    print(f"{name}, {(ROWS, N, K)}" + (f" x {EXPERTS} groups" if name == "grouped_mm" else ""))
    print("                                  us   kernels  overhead  torch's own  by the dispatcher")
    for what, row, torchs in (("forward without gradients", "forward", "forward"),
                              ("forward with gradients", "recorded forward", None),
                              ("forward and backward", "step", "step")):
        others = f"{spent[f'torch{chr(39)}s {torchs}']:13.1f}{spent[f'dispatched {torchs}']:19.1f}" if torchs else ""
        print(f"  {what:26}{spent[row]:10.1f}{spent[f'kernels of {row}']:10.1f}"
              f"{spent[f'overhead of {row}']:10.1f}{others}")
    print(f"  {'backward, the difference':46}{spent['overhead of backward']:10.1f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = {}
    for name in ("linear", "grouped_mm"):
        rows[name] = Case(name, args.device).measure()
        report(name, rows[name])
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
