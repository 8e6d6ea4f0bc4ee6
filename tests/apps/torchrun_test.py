#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""torchrun starts `moe8 train`, ranks are killed, torchrun starts all again: the run ends up as one that
nobody killed.

  torchrun_test.py MOE8 [KILLS]      exit status 77: this Python has no torchrun that works
"""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

RANKS = 2
CONFIG = """
[model]
dim = 64
n_layers = 2
n_heads = 2
n_kv_heads = 2
max_seq_len = 32
dense_hidden_dim = 128
hidden_dim = 64
n_experts = 8
top_k = 2
[training]
steps = 24
batch_size = 2
seq_len = 32
accumulation = 4
threads = 1
device = "cpu"
recipe = "fp8_rowwise"
validation_interval = 6
[parallel]
expert = 2
[checkpoint]
interval = 3
"""


def start(moe8, folder, name):
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS),
               "--max-restarts", "1000", "--monitor-interval", "0.1", "--no-python", moe8, "train",
               "--config", folder / "run.toml", "--data", folder / "text.txt", "--out", folder / name, "--resume"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL,
                            stderr=open(folder / f"{name}.err", "w"))


def ranks_of(torchrun):
    """Processes that torchrun has started, by rank."""
    found = []
    for child in pathlib.Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
        try:
            arguments = pathlib.Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if b"train" in arguments:
                found.append(int(child))
        except OSError:
            pass  # it has ended
    return sorted(found)


def steps_of(run):
    """The lines of metrics.jsonl that are steps, without times."""
    steps = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        step = json.loads(line)
        if "step" not in step or "loss" not in step:
            continue
        for key in ("tokens_per_s", "tokens_per_cpu_s", "ms", "gpu_memory", "mfu"):
            step.pop(key, None)
        steps.append(step)
    return steps


def main(moe8, kills_wanted):
    can = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--help"], stdout=subprocess.DEVNULL,
                         stderr=subprocess.PIPE, text=True)
    if can.returncode != 0:
        print("skipped: no torchrun: " + can.stderr.strip().splitlines()[-1])
        sys.exit(77)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "run.toml").write_text(CONFIG)
        (folder / "text.txt").write_text("the cat sat on the mat and the dog lay on the log. " * 400)
        begin = time.monotonic()
        assert start(moe8, folder, "unbroken").wait() == 0, (folder / "unbroken.err").read_text()
        took = time.monotonic() - begin
        expected = steps_of(folder / "unbroken")
        assert len(expected) == 24, expected
        kills = runs = 0
        while kills < kills_wanted:
            run = f"run-{runs}"
            runs += 1
            torchrun = start(moe8, folder, run)
            while torchrun.poll() is None:
                time.sleep(random.uniform(0, took))
                ranks = ranks_of(torchrun) if torchrun.poll() is None else []
                if ranks and kills < kills_wanted:
                    os.kill(random.choice(ranks), signal.SIGKILL)
                    kills += 1
            assert torchrun.returncode == 0, (folder / f"{run}.err").read_text()
            assert steps_of(folder / run) == expected, run
            same = [(folder / one / "model.safetensors").read_bytes() for one in ("unbroken", run)]
            assert same[0] == same[1], f"{run}: other weights"
        print(f"torchrun: {kills} kills in {runs} runs of {RANKS} ranks: the metrics and weights of an unbroken run")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1)
