#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The same expert layers through an installed torchao and through moe8, in one call, on one GPU.

    pip install torchao
    python3 bench/compare_torchao.py [--bench build/cuda/bench/grouped_mm_cuda_bench] [--shapes S1,S3]

torchao and moe8 take turns, shape by shape and round by round, each round a process of its own for
moe8. Groups are ragged; for torchao's fp8_rowwise, which cannot pad them, they are cut to multiples of
16, an advantage. Every time is forward + backward in milliseconds, the median over all rounds; ratios are to
LibTorch's bf16 grouped product as the same side measured it.
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import tempfile

# Name to M, N, K, E: the rows S1, S2, ... of bench/shapes.h.
SHAPES = {name: tuple(map(int, sizes.split(",")))
          for name, sizes in re.findall(r'\{"(S\d)", ([\d, ]+)\}',
                                        pathlib.Path(__file__).with_name("shapes.h").read_text())}
RECIPES = ("bf16", "fp8_rowwise", "mxfp8_rceil")


def ragged_ends(rows, experts, multiple=1):
    """End rows by the rule of grouped_mm_cuda_bench.cpp, down to a multiple."""
    weights = [0.5 + (e * 619 + 7) % 1000 / 1000 for e in range(experts)]
    ends, so_far = [], 0.0
    for weight in weights:
        so_far += weight
        ends.append(int(rows * (so_far / sum(weights))) // multiple * multiple)
    ends[-1] = rows
    return ends


def torchao_times(shape, rounds):
    """Milliseconds of each recipe, a list a round; absent where torchao cannot run it here."""
    import torch
    from torchao.prototype.moe_training import (
        _to_fp8_rowwise_then_scaled_grouped_mm,
        _to_mxfp8_then_scaled_grouped_mm,
    )
    from torchao.quantization.quantize_.common import KernelPreference

    m, n, k, experts = SHAPES[shape]
    make = {"device": "cuda", "dtype": torch.bfloat16}
    a = torch.randn(m, k, **make, requires_grad=True)
    w = (torch.randn(experts, n, k, **make) / k**0.5).requires_grad_()
    grad = torch.randn(m, n, **make)
    # FP8 rowwise does not pad groups itself, and needs them to be multiples of 16.
    offs, aligned = (
        torch.tensor(ragged_ends(m, experts, multiple), dtype=torch.int32, device="cuda")
        for multiple in (1, 16)
    )

    def forward(recipe):
        b_t = w.transpose(-2, -1)
        if recipe == "bf16":
            return torch._grouped_mm(a, b_t, offs=offs)
        if recipe == "fp8_rowwise":
            return _to_fp8_rowwise_then_scaled_grouped_mm(
                a, b_t, aligned, pad_token_groups_for_grouped_mm=False
            )
        return _to_mxfp8_then_scaled_grouped_mm(
            a,
            b_t,
            offs,
            kernel_preference=KernelPreference.EMULATED,
            pad_token_groups_for_grouped_mm=True,
        )

    def seconds(recipe):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.autograd.grad(forward(recipe), (a, w), grad)
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)

    times = {}
    for recipe in RECIPES:
        try:
            seconds(recipe)  # compiles and tunes
            times[recipe] = [seconds(recipe) for _ in range(rounds)]
        except Exception as error:  # what torchao raises differs by version and GPU
            print(f"torchao {shape} {recipe}: {type(error).__name__}: {error}".splitlines()[0])
    return times


def moe8_times(bench, shape, rounds):
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        subprocess.run(
            [bench, "--rounds", str(rounds), "--json", report],
            env={**os.environ, "MOE8_BENCH_SHAPES": shape},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with open(report, encoding="utf-8") as file:
            rows = json.load(file)["rows"]
    return {
        row["recipe"]: row["median_s"] * 1e3
        for row in rows
        if row["shape"] == f"{shape} ragged"
        and row["op"].endswith("forward + backward")
        and row["recipe"] in RECIPES
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", default="build/cuda/bench/grouped_mm_cuda_bench")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--repeats", type=int, default=10, help="steps timed in a turn")
    options = parser.parse_args()

    print("| shape | recipe | torchao ms | x bf16 | moe8 ms | x bf16 | moe8 faster by |")
    print("|---|---|---|---|---|---|---|")
    for shape in options.shapes.split(","):
        theirs = {recipe: [] for recipe in RECIPES}
        ours = {recipe: [] for recipe in RECIPES}
        for _ in range(options.rounds):
            for recipe, times in torchao_times(shape, options.repeats).items():
                theirs[recipe] += times
            for recipe, time in moe8_times(options.bench, shape, options.repeats).items():
                ours[recipe].append(time)
        median = {
            side: {recipe: statistics.median(times) for recipe, times in table.items() if times}
            for side, table in (("torchao", theirs), ("moe8", ours))
        }
        for recipe in RECIPES:
            cells = []
            for side in ("torchao", "moe8"):
                time = median[side].get(recipe)
                bf16 = median[side].get("bf16")
                cells += ["-", "-"] if time is None else [f"{time:.2f}", f"{bf16 / time:.2f}"]
            both = all(recipe in median[side] for side in median)
            gain = f"{median['torchao'][recipe] / median['moe8'][recipe]:.2f}" if both else "-"
            print(f"| {shape} | {recipe} | {' | '.join(cells)} | {gain} |", flush=True)


if __name__ == "__main__":
    main()
