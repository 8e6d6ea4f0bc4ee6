#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Whole runs of several GPUs of one machine beside one of them: `moe8 train`, one after the other.

    bench/compare_ranks.py --moe8 build/cuda/apps/moe8/moe8 [--ranks 2] [--splits data,expert]

Each GPU has the batch of the config, so that several have as many times more; a GPU's rate beside
that of one GPU alone is what sending costs. A run is 25 steps on random bytes without validation,
numerics or checkpoints; its rate is the median of the last 20, and the table has the median of the
rounds. torchrun comes from PATH. --profile adds a run of each split whose table of kernels and
Chrome trace (of rank 0) stay in the folder that it names. Where NVLink multicast does not work, set
NCCL_NVLS_ENABLE=0.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS, SKIPPED = 25, 5
PARTS = ["forward", "backward", "optimizer"]


def command_of(arguments, split, out, text):
    """One run: of one GPU for the split "one"."""
    ranks = 1 if split == "one" else arguments.ranks
    batch = tomllib.loads(Path(arguments.config).read_text())["training"]["batch_size"]
    settings = [f"training.steps={STEPS}", f"training.batch_size={ranks * batch}",
                "training.validation_interval=0", "numerics.interval=0", "checkpoint.interval=0",
                "output.checkpoint=false"]
    if split in ("expert", "tensor"):
        settings.append(f"parallel.{split}={ranks}")
    command = [arguments.moe8, "train", "--config", arguments.config, "--data", text]
    command += ["--out", str(out)]
    for setting in settings + arguments.set:
        command += ["--set", setting]
    if ranks > 1:
        command = ["torchrun", "--no-python", "--nproc-per-node", str(ranks)] + command
    return command


def run(arguments, split, out, text, more=()):
    environment = dict(os.environ)
    if split == "one":
        environment.setdefault("CUDA_VISIBLE_DEVICES", "0")
    done = subprocess.run(command_of(arguments, split, out, text) + list(more), env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{split}: {done.stdout[-2000:]}")


def measure(arguments, split, text):
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run(arguments, split, out, text)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "tokens_per_s" in line][SKIPPED:]
    record = {part: statistics.median(step["ms"][part] for step in steps) for part in PARTS}
    record["tokens_per_s"] = statistics.median(step["tokens_per_s"] for step in steps)
    record["peak_bytes"] = max(step.get("gpu_memory", {}).get("peak_bytes", 0) for step in steps)
    record["loss"] = steps[-1]["loss"]
    return record


def row_of(split, rounds):
    record = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    return {"split": split, **record}


def print_table(rows, ranks):
    alone = next((row["tokens_per_s"] for row in rows if row["split"] == "one"), None)
    print("| | tokens/s | of one GPU's rate, each | forward, backward, optimizer, ms "
          "| peak GiB of a GPU | loss |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        several = row["split"] != "one" and alone
        each = f"{row['tokens_per_s'] / alone / ranks:.3f}" if several else ""
        parts = ", ".join(f"{row[part]:.0f}" for part in PARTS)
        print(f"| {row['split']} | {row['tokens_per_s']:,.0f} | {each} | {parts} "
              f"| {row['peak_bytes'] / 2**30:.1f} | {row['loss']:.4f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--moe8", default=str(ROOT / "build/cuda/apps/moe8/moe8"))
    parser.add_argument("--config", default=str(ROOT / "configs/4b_bench.toml"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--splits", default="data,expert", help="of data, expert, tensor")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="as of moe8 train")
    parser.add_argument("--profile", metavar="DIR")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    if not shutil.which("torchrun"):
        sys.exit("torchrun: not in PATH; it comes with Python's torch")
    splits = ["one"] + arguments.splits.split(",")
    unknown = set(splits) - {"one", "data", "expert", "tensor"}
    if unknown:
        sys.exit(f"--splits: expected data, expert and tensor, got {', '.join(sorted(unknown))}")
    with tempfile.NamedTemporaryFile() as text:
        text.write(os.urandom(1 << 24))
        text.flush()
        measured = {split: [] for split in splits}
        for number in range(arguments.rounds):
            for split in splits:
                measured[split].append(measure(arguments, split, text.name))
                rate = measured[split][-1]["tokens_per_s"]
                print(f"round {number + 1}, {split}: {rate:,.0f} tokens/s", file=sys.stderr)
        rows = [row_of(split, rounds) for split, rounds in measured.items()]
        print_table(rows, arguments.ranks)
        for split in splits[1:] if arguments.profile else []:
            out = Path(arguments.profile) / split
            run(arguments, split, out, text.name, ["--overwrite", "--profile", "5"])
            print(f"\n{split}: {out}/profile.txt, trace.json\n{(out / 'profile.txt').read_text()}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
