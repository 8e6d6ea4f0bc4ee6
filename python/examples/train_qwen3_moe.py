#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Trains a small Qwen3-MoE of transformers on text, byte by byte, in a recipe of moe8.

  train_qwen3_moe.py [--text FILE] [--recipe NAME|none] [--steps N] [--compile]

Needs moe8, torch and transformers; runs on a CPU and on a Hopper GPU."""
import argparse
import pathlib
import time

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import moe8
import moe8.integrations.transformers

LENGTH, BATCH = 128, 8


def build(implementation):
    config = Qwen3MoeConfig(vocab_size=256, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
                            num_key_value_heads=2, head_dim=32, moe_intermediate_size=96, num_experts=8,
                            num_experts_per_tok=2, norm_topk_prob=True, max_position_embeddings=LENGTH)
    config._experts_implementation = implementation
    return Qwen3MoeForCausalLM(config)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=pathlib.Path, default=pathlib.Path(__file__))
    parser.add_argument("--recipe", default="fp8_rowwise", help="of the experts; none: transformers' own products")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = torch.frombuffer(bytearray(args.text.read_bytes()), dtype=torch.uint8).long()
    moe8.integrations.transformers.register()
    model = build("eager" if args.recipe == "none" else "moe8").to(device)
    if args.recipe != "none":
        print(moe8.quantize_(model, {"re:.*experts.*": args.recipe, "re:.*_proj.weight": "rowwise"}, unused="error"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    step = torch.compile(model) if args.compile else model
    for number in range(args.steps):
        begin = time.perf_counter()
        starts = torch.randint(0, len(text) - LENGTH, (BATCH,)).tolist()
        ids = torch.stack([text[at:at + LENGTH] for at in starts]).to(device)
        loss = step(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {number + 1:3}  loss {loss.item():.3f}  {time.perf_counter() - begin:.2f} s", flush=True)


if __name__ == "__main__":
    main()
