#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Everything that only several GPUs of one machine can show, in one call of at most 15 minutes on eight.

    bench/eight_gpus.py [--gpus 8] [--parts bytes,layers,train,kill] [--out DIR]

bytes   what ranks send each other beside NCCL alone (parallel_bench)
layers  the layers of DeepSeek-V3 and Qwen3-30B-A3B over 2, 4, ... of the GPUs, each at its rate alone
train   20 steps of a model whose experts are spread over all GPUs, with each recipe: tokens/s, model
        TFLOP/s of a GPU, peak memory beside `moe8 plan --world`, the share of NCCL in GPU time, what
        ranks waited, and the rows of experts of the busiest rank
kill    a run one of whose ranks is killed; the others must end with one line that names it, and half as
        many ranks must go on to the end

The exit status is 1 where a bar of BARS is missed or a part failed. Ranks are started with the variables
that torchrun sets. On CPUs (--device cpu) `train` and `kill` work, for a try with a small --config. Where
NVLink multicast does not work, set NCCL_NVLS_ENABLE=0.
"""

import argparse
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS, PROFILED, SETTLED = 20, 3, 10  # steps from SETTLED on are counted
KILLED_STEPS = 30
BARS = {
    "fp8_rowwise beside bf16, tokens/s": (">=", 1.3),
    "bf16, model TFLOP/s of a GPU": (">=", 300.0),
    "dsv3 layer, rate of a GPU over 8": (">=", 0.80),
    "qwen3-30b layer, rate of a GPU over 8": (">=", 0.70),
    "peak memory beside the plan": ("within", 0.03),
}


class Bars:
    """Measured values beside their bars."""

    def __init__(self):
        self.rows, self.failed = [], []

    def hold(self, bar, what, value):
        kind, wanted = BARS[bar]
        met = abs(value - 1) <= wanted if kind == "within" else value >= wanted
        self.rows.append((f"{bar}{what}", value, f"{kind} {wanted}", "met" if met else "MISSED"))
        if not met:
            self.failed.append(bar + what)

    def show(self):
        for row in self.rows:
            print("| %s | %.3f | %s | %s |" % row)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(command, ranks, out, variables=None):
    """A process for each rank, with its output in `out`/rank-N.txt."""
    out.mkdir(parents=True, exist_ok=True)
    port, threads = free_port(), max(1, os.cpu_count() // ranks)
    processes = []
    for rank in range(ranks):
        environment = dict(os.environ, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks),
                           LOCAL_WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), **(variables or {}))
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        with open(out / f"rank-{rank}.txt", "w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log,
                                              stderr=subprocess.STDOUT))
    return processes


def wait_for(processes, out, seconds):
    """Exit statuses; what still runs after `seconds` is killed."""
    end = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            for one in processes:
                one.kill()
            sys.exit(f"not ended within {seconds} s; {tail(out, 0)}")
    return [process.returncode for process in processes]


def tail(out, rank, size=1500):
    return f"{out}/rank-{rank}.txt: {(out / f'rank-{rank}.txt').read_text(errors='replace')[-size:]}"


def command_of(arguments, verb, settings):
    """Of moe8, with these settings and those of the command line after them."""
    command = [arguments.moe8, verb, "--config", arguments.config]
    for one in [f"{key}={value}" for key, value in settings.items()] + arguments.set:
        command += ["--set", one]
    return command


def train_command(arguments, out, settings):
    settings = {**settings, "training.device": arguments.device}
    return command_of(arguments, "train", settings) + ["--data", arguments.text, "--out", str(out)]


def steps_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "step" in line and "loss" in line]


# ---- train ----------------------------------------------------------------------
def plan_of(arguments, settings):
    command = command_of(arguments, "plan", settings)
    command += ["--json", "--device", arguments.device, "--world", str(arguments.gpus)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def share_of_exchanges(run):
    """Of a step's time on rank 0's GPU, by the profile; nothing on CPUs."""
    found = re.search(r"([\d.]+) %\s+\S+\s+exchanges of ranks", (run / "profile.txt").read_text())
    return float(found.group(1)) / 100 if found else None


def train_recipe(arguments, recipe, bars):
    run = arguments.out / f"train-{recipe}"
    settings = {"training.recipe": recipe, "training.steps": STEPS, "parallel.expert": arguments.gpus,
                "training.batch_size": arguments.gpus * arguments.batch, "training.accumulation": 1,
                "training.validation_interval": 0, "numerics.interval": 0, "checkpoint.interval": 0,
                "output.checkpoint": "false"}
    plan = plan_of(arguments, settings)
    command = train_command(arguments, run / "run", settings) + ["--profile", str(PROFILED)]
    ranks = start(command, arguments.gpus, run)
    statuses = wait_for(ranks, run, arguments.limit)
    if any(statuses):
        bars.failed.append(f"train, {recipe}")
        print(f"{recipe}: ranks ended with {statuses}; {tail(run, statuses.index(next(filter(None, statuses))))}")
        return None
    steps = steps_of(run / "run")
    used = json.loads((run / "run/result.json").read_text())["ranks"]
    rate = statistics.median(step["tokens_per_s"] for step in steps if step["step"] > SETTLED)
    peak = max(rank["peak_memory_bytes"] for rank in used)
    rows = [rank["expert_rows"] for rank in used]
    row = {"recipe": recipe, "tokens_per_s": rate, "loss": steps[-1]["loss"],
           "tflops": rate * plan["flops_a_token"] / arguments.gpus / 1e12,
           "peak": peak, "planned": plan["rank"]["peak"],
           "exchanges": share_of_exchanges(run / "run"),
           "waited": sum(rank["waited_seconds"] for rank in used) / sum(rank["step_seconds"] for rank in used),
           "busiest": max(rows) / statistics.mean(rows) if sum(rows) else 1}
    if arguments.device == "cuda":
        bars.hold("peak memory beside the plan", f", {recipe}", peak / row["planned"])
    return row


def train(arguments, bars):
    rows = [row for recipe in arguments.recipes.split(",") if (row := train_recipe(arguments, recipe, bars))]
    print(f"\n{Path(arguments.config).name}, experts over {arguments.gpus} ranks, {arguments.batch} sequences each\n")
    print("| recipe | tokens/s | model TFLOP/s of a GPU | peak GiB of a rank / planned | NCCL, of GPU time "
          "| ranks waited | busiest rank's rows | loss |\n|---|---|---|---|---|---|---|---|")
    for row in rows:
        share = "" if row["exchanges"] is None else f"{row['exchanges']:.1%}"
        print(f"| {row['recipe']} | {row['tokens_per_s']:,.0f} | {row['tflops']:.1f} "
              f"| {row['peak'] / 2**30:.2f} / {row['planned'] / 2**30:.2f} | {share} | {row['waited']:.1%} "
              f"| {row['busiest']:.2f} x mean | {row['loss']:.4f} |")
    by_recipe = {row["recipe"]: row for row in rows}
    if arguments.device == "cuda" and "bf16" in by_recipe:
        bars.hold("bf16, model TFLOP/s of a GPU", "", by_recipe["bf16"]["tflops"])
        if "fp8_rowwise" in by_recipe:
            bars.hold("fp8_rowwise beside bf16, tokens/s", "",
                      by_recipe["fp8_rowwise"]["tokens_per_s"] / by_recipe["bf16"]["tokens_per_s"])
    return rows


# ---- layers, bytes ---------------------------------------------------------------
def bench(arguments, ranks, variables, bars):
    out = arguments.out / "-".join(["bench", str(ranks), *variables.values()]).replace(",", "+")
    table = out / "rows.json"
    command = [arguments.bench, "--rounds", "5", "--json", str(table)]
    statuses = wait_for(start(command, ranks, out, variables), out, arguments.limit)
    if any(statuses):
        bars.failed.append(f"parallel_bench over {ranks}")
    print(f"\n{ranks} ranks\n{(out / 'rank-0.txt').read_text(errors='replace')}")
    return json.loads(table.read_text())["rows"] if table.exists() else []


def worlds(gpus):
    return [world for world in (2, 4, 8, 16) if world <= gpus]


def layers(arguments, bars):
    found = []
    for world in worlds(arguments.gpus):
        for shape in ("dsv3", "qwen3-30b"):
            rows = bench(arguments, world, {"MOE8_BENCH_TABLES": "layer", "MOE8_BENCH_SHAPES": shape,
                                            "MOE8_BENCH_RECIPES": arguments.recipes}, bars)
            found += [dict(row, world=world, ms=1e3 * row["median_s"]) for row in rows]
    print("| layer | recipe | ranks | ms on one GPU | ms | rate of each beside one GPU |\n|---|---|---|---|---|---|")
    alone = {(row["world"], row["shape"], row["recipe"]): row["ms"] for row in found if "one GPU" in row["op"]}
    for row in found:
        if "one GPU" in row["op"]:
            continue
        one = alone[row["world"], row["shape"], row["recipe"]]
        print(f"| {row['shape']} | {row['recipe']} | {row['world']} | {one:.3f} | {row['ms']:.3f} "
              f"| {one / row['ms']:.3f} |")
        if row["world"] == 8:
            bars.hold(f"{row['shape']} layer, rate of a GPU over 8", f", {row['recipe']}", one / row["ms"])
    return found


def bytes_sent(arguments, bars):
    for world in worlds(arguments.gpus):
        bench(arguments, world, {"MOE8_BENCH_TABLES": "bytes"}, bars)


# ---- kill ----------------------------------------------------------------------
def kill(arguments, bars):
    """One rank is killed, the others say so, half as many go on."""
    run, ranks = arguments.out / "kill", arguments.gpus
    small = argparse.Namespace(**{**vars(arguments), "config": arguments.kill_config})
    settings = {"training.steps": KILLED_STEPS, "parallel.expert": ranks, "checkpoint.interval": 5,
                "training.batch_size": ranks, "training.accumulation": 1, "numerics.interval": 0,
                "training.validation_interval": 0}
    processes = start(train_command(small, run / "run", settings), ranks, run)
    end = time.monotonic() + arguments.limit
    while not list((run / "run/checkpoints").glob("step-*[0-9]")):
        if time.monotonic() > end or any(process.poll() is not None for process in processes):
            for process in processes:
                process.kill()
            sys.exit(f"kill: no checkpoint; {tail(run, 0)}")
        time.sleep(0.05)
    victim = random.randrange(1, ranks)
    began = time.monotonic()
    processes[victim].send_signal(signal.SIGKILL)
    statuses = wait_for(processes, run, 120)
    took = time.monotonic() - began
    others = [rank for rank in range(ranks) if rank != victim]
    named = [rank for rank in others
             if re.search(rf"rank {victim}\b", (run / f"rank-{rank}.txt").read_text(errors="replace"))]
    print(f"\nkill: rank {victim} of {ranks} was killed at step {steps_of(run / 'run')[-1]['step']}; the others "
          f"ended within {took:.1f} s, {len(named)} of {len(others)} name it")
    if any(statuses[rank] == 0 for rank in others) or not named:
        bars.failed.append("a killed rank ends the others with a line that names it")
    half = max(1, ranks // 2)
    settings["parallel.expert"] = half
    again = start(train_command(small, run / "run", settings) + ["--resume"], half, run / "again")
    statuses = wait_for(again, run / "again", arguments.limit)
    steps = [step["step"] for step in steps_of(run / "run")]
    whole = not any(statuses) and steps == list(range(1, KILLED_STEPS + 1))
    print(f"kill: {half} ranks went on: {'all steps there, once' if whole else 'FAILED'}, "
          f"last loss {steps_of(run / 'run')[-1]['loss']:.4f}")
    if not whole:
        bars.failed.append("half of the ranks go on")
        print(tail(run / "again", 0))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--moe8", default=str(ROOT / "build/cuda/apps/moe8/moe8"))
    parser.add_argument("--bench", default=str(ROOT / "build/cuda/bench/parallel_bench"))
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--parts", default="bytes,layers,train,kill")
    parser.add_argument("--recipes", default="bf16,fp8_rowwise,mxfp8_rceil")
    parser.add_argument("--config", default=str(ROOT / "configs/qwen3_30b_a3b.toml"))
    parser.add_argument("--kill-config", default=str(ROOT / "configs/300m.toml"))
    parser.add_argument("--batch", type=int, default=1, help="sequences of a rank")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of moe8 train")
    parser.add_argument("--limit", type=float, default=240, help="seconds for one run")
    parser.add_argument("--out", type=Path, help="where runs and logs stay; otherwise they are deleted")
    arguments = parser.parse_args()
    known = {"bytes": bytes_sent, "layers": layers, "train": train, "kill": kill}
    parts = arguments.parts.split(",")
    if unknown := set(parts) - set(known):
        sys.exit(f"--parts: expected {', '.join(known)}, got {', '.join(sorted(unknown))}")
    if arguments.gpus < 2:
        sys.exit(f"--gpus: expected at least 2, got {arguments.gpus}")
    bars, found = Bars(), {}
    with tempfile.TemporaryDirectory() as scratch:
        arguments.out = (arguments.out or Path(scratch)).resolve()
        arguments.out.mkdir(parents=True, exist_ok=True)
        arguments.text = str(Path(scratch) / "text.txt")
        Path(arguments.text).write_bytes(os.urandom(1 << 23))
        for part in parts:
            began = time.monotonic()
            found[part] = known[part](arguments, bars)
            print(f"[{part}: {time.monotonic() - began:.0f} s]", flush=True)
        (arguments.out / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    print("\n| bar | measured | wanted | |\n|---|---|---|---|")
    bars.show()
    if bars.failed:
        sys.exit("missed: " + "; ".join(bars.failed))


if __name__ == "__main__":
    main()
