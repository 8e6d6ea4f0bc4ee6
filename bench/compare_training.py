#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Training steps on one GPU: `moe8 train` and Qwen3-MoE of Hugging Face transformers, in turns.

    bench/compare_training.py --moe8 build/cuda/apps/moe8/moe8 [--models 300m,4b] [--rounds 2] [--json FILE]

Each contender is a process of its own that trains 25 steps; a step's time is the median of the last
20. Rounds follow one another with all contenders in each, and the table has the median of the rounds.
Peak memory is that of tensors, by the allocator of PyTorch, which both use.

Hugging Face: random bytes as tokens, bf16 weights and moments, fused AdamW, clipping to norm 1, SDPA,
eager or under torch.compile (transformers 5 or later for grouped experts). moe8: random bytes as a text
file, weights = "master" (float32 masters and moments) and weights = "bf16". Models: see MODELS and
configs/; both have the same shapes, but for the shared experts and the dense first layer of
configs/300m.toml, which are left out here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS, SKIPPED = 25, 5

MODELS = {
    "300m": dict(dim=768, n_layers=12, n_heads=12, n_kv_heads=4, head_dim=64, n_experts=32, top_k=4,
                 hidden_dim=320, batch_size=16, seq_len=1024),
    "4b": dict(dim=2048, n_layers=12, n_heads=32, n_kv_heads=4, head_dim=128, n_experts=64, top_k=8,
               hidden_dim=768, batch_size=4, seq_len=4096),
}
CONTENDERS = ["hf-eager", "hf-compile"] + [
    f"moe8-{recipe}-{weights}" for weights in ("master", "bf16") for recipe in ("bf16", "fp8_rowwise")
]
# The same script of Hugging Face with the Python package of moe8, which must be installed (./dev wheel).
CONTENDERS_IN_PYTHON = ["hf-eager-fp8_rowwise", "hf-compile-fp8_rowwise"]


def train_hugging_face(name, compiled, recipe=None):
    """Prints the record of one run; a process of its own calls it. `recipe`: of moe8's experts."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    if recipe:
        import moe8
        import moe8.integrations.transformers
        moe8.integrations.transformers.register()

    m = MODELS[name]
    config = Qwen3MoeConfig(
        vocab_size=256, hidden_size=m["dim"], intermediate_size=4 * m["dim"],
        num_hidden_layers=m["n_layers"], num_attention_heads=m["n_heads"],
        num_key_value_heads=m["n_kv_heads"], head_dim=m["head_dim"], num_experts=m["n_experts"],
        num_experts_per_tok=m["top_k"], moe_intermediate_size=m["hidden_dim"],
        decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True,
        max_position_embeddings=m["seq_len"], tie_word_embeddings=False, use_cache=False)
    torch.manual_seed(1)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa",
            experts_implementation="moe8" if recipe else "grouped_mm")
    if recipe:
        moe8.quantize_(model, {"re:.*experts.*": recipe, "re:.*_proj.weight": "rowwise"}, unused="error")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward = torch.compile(model) if compiled else model

    # As moe8 measures: from the end of a step to that of the next, without waiting for either.
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(STEPS + 1)]
    ends[0].record()
    for step in range(STEPS):
        tokens = torch.randint(0, 256, (m["batch_size"], m["seq_len"]), device="cuda")
        loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ends[step + 1].record()
    torch.cuda.synchronize()
    seconds = [1e-3 * a.elapsed_time(b) for a, b in zip(ends, ends[1:])]
    print(json.dumps({"seconds": seconds, "peak_bytes": torch.cuda.max_memory_allocated(),
                      "loss": loss.item()}))


def config_of_moe8(name, recipe, weights, text, out, checkpointing):
    m = MODELS[name]
    shape = {k: m[k] for k in ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "n_experts",
                               "top_k", "hidden_dim")}
    sections = {
        "model": shape | {"max_seq_len": m["seq_len"], "n_dense_layers": 0, "n_shared_experts": 0,
                          "score_function": "softmax"},
        "data": {"files": [str(text)]},
        "optimizer": {"learning_rate": 1e-4, "min_learning_rate": 1e-4, "warmup_steps": 0},
        "training": {"steps": STEPS, "batch_size": m["batch_size"], "seq_len": m["seq_len"],
                     "weights": weights, "recipe": recipe, "validation_batches": 1,
                     "device": "cuda"},
        "checkpoint": {"interval": 0},
        "numerics": {"interval": 0},
        "output": {"folder": str(out), "checkpoint": False},
    }
    if checkpointing != "none":
        sections["training"]["activation_checkpointing"] = checkpointing
    lines = []
    for section, keys in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def train_moe8(program, name, recipe, weights, checkpointing):
    m = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        text, config, out = (Path(folder) / part for part in ("text", "run.toml", "run"))
        text.write_bytes(os.urandom(40 * m["batch_size"] * (m["seq_len"] + 1)))
        config.write_text(config_of_moe8(name, recipe, weights, text, out, checkpointing))
        ran = subprocess.run([program, "train", "--config", config], capture_output=True, text=True)
        if ran.returncode != 0:
            raise RuntimeError((ran.stderr or ran.stdout).strip().splitlines()[-1])
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "kind" not in line]
    tokens = m["batch_size"] * m["seq_len"]
    return {"seconds": [tokens / step["tokens_per_s"] for step in steps],
            "peak_bytes": steps[-1]["gpu_memory"]["peak_bytes"], "loss": steps[-1]["loss"]}


def train(contender, name, arguments):
    kind, *rest = contender.split("-")
    if kind == "moe8":
        return train_moe8(arguments.moe8, name, *rest, arguments.checkpointing)
    command = [sys.executable, __file__, "--worker", name, *rest]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        raise RuntimeError((ran.stderr or "it failed").strip().splitlines()[-1])
    return json.loads(ran.stdout.strip().splitlines()[-1])


def measure(arguments):
    """{(model, contender): [record of each round]}; a contender that fails says why, once."""
    records, failed = {}, set()
    for round_number in range(arguments.rounds):
        for name in arguments.models.split(","):
            for contender in arguments.contenders.split(","):
                key = (name, contender)
                if key in failed:
                    continue
                try:
                    record = train(contender, name, arguments)
                    records.setdefault(key, []).append(record)
                    print(f"round {round_number + 1}: {name} {contender}", file=sys.stderr)
                except (RuntimeError, OSError) as error:
                    failed.add(key)
                    print(f"{name} {contender}: {error}", file=sys.stderr)
    return records


def row_of(name, contender, rounds):
    tokens = MODELS[name]["batch_size"] * MODELS[name]["seq_len"]
    seconds = statistics.median(statistics.median(r["seconds"][SKIPPED:]) for r in rounds)
    return {"model": name, "contender": contender, "ms": 1e3 * seconds, "tokens_per_s": tokens / seconds,
            "peak_gib": max(r["peak_bytes"] for r in rounds) / 2**30, "loss": rounds[-1]["loss"],
            "rounds": len(rounds)}


def print_table(rows):
    best = {}  # the fastest of the others, by model
    for row in rows:
        if row["contender"] in ("hf-eager", "hf-compile"):
            best[row["model"]] = max(best.get(row["model"], 0), row["tokens_per_s"])
    print("| model | contender | ms a step | tokens/s | x best of Hugging Face | peak GiB |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        other = best.get(row["model"])
        ratio = f"{row['tokens_per_s'] / other:.2f}" if other else "-"
        print(f"| {row['model']} | {row['contender']} | {row['ms']:.1f} | {row['tokens_per_s']:,.0f} "
              f"| {ratio} | {row['peak_gib']:.1f} |")


def main():
    if sys.argv[1:2] == ["--worker"]:
        train_hugging_face(sys.argv[2], sys.argv[3] == "compile", *sys.argv[4:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--moe8", default=str(ROOT / "build/cuda/apps/moe8/moe8"))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--checkpointing", default="none", help="of moe8: none, selective or full")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    for name in arguments.models.split(","):
        if name not in MODELS:
            parser.error(f"expected one of {', '.join(MODELS)}, got the model '{name}'")
    for contender in arguments.contenders.split(","):
        if contender not in CONTENDERS + CONTENDERS_IN_PYTHON:
            parser.error(f"expected one of {', '.join(CONTENDERS + CONTENDERS_IN_PYTHON)}, got the contender '{contender}'")
    rows = [row_of(*key, rounds) for key, rounds in measure(arguments).items()]
    print_table(rows)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
