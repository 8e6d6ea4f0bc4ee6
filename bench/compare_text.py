#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What moe8 does before and around training, beside the Python tools, in one run on one machine.

  compare_text.py MOE8 [--before MOE8] [--tokenizer FILE] [--text FILE] [--rounds N] [--only-models]

Each row is a whole process, from its start to its end, of the command and of Python, in turn; the median of
the rounds. tokenize: a text of documents to a file of ids, on one core and on all of them, with the
`tokenizers` library and numpy. start: the command, or Python with torch and transformers, to the first
token of a tiny model. read: the same of a model of a gigabyte, less the start. --before: another build of the
command, in the same turns. Run by a Python that has torch,
transformers and tokenizers (./dev test --hf installs them), with MOE8's libraries where it finds them.
"""
import argparse
import gzip
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent

TOKENIZE = """
import sys, numpy
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
documents = open(sys.argv[2], encoding="utf-8").read().split("\\n\\n")
with open(sys.argv[3], "wb") as out:
    for begin in range(0, len(documents), 1024):
        for encoded in tokenizer.encode_batch_fast(documents[begin:begin + 1024]):
            numpy.array(encoded.ids, dtype=numpy.uint32).tofile(out)
"""

GENERATE = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
prompt = torch.tensor([[1, 2, 3]])
print(model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=1,
                     eos_token_id=None, pad_token_id=0)[0, 3:].tolist())
"""


def seconds(words, env=None):
    """Wall and processor seconds of a process and its children, and their most memory so far."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    subprocess.run([str(word) for word in words], check=True, capture_output=True, env={**os.environ, **(env or {})})
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def medians(rounds, calls):
    """Of each call the median of wall and processor seconds, all calls in turn."""
    taken = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(call())
    return {name: [statistics.median(column) for column in zip(*rows)] for name, rows in taken.items()}


def make_tokenizer(path, text):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=16000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.save(str(path))


def make_model(folder, layers, width, experts):
    import torch
    import transformers
    config = transformers.Qwen3MoeConfig(
        vocab_size=32000, hidden_size=width, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=4,
        head_dim=width // 8, moe_intermediate_size=width // 2, num_experts=experts, num_experts_per_tok=2,
        max_position_embeddings=512, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    torch.manual_seed(1)
    transformers.Qwen3MoeForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("moe8", type=pathlib.Path)
    parser.add_argument("--before", type=pathlib.Path)
    parser.add_argument("--only-models", action="store_true")
    parser.add_argument("--tokenizer", type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        text = options.text or folder / "kjv.txt"
        if not options.text:
            verses = gzip.decompress((ROOT / "data/kjv.txt.gz").read_bytes()).decode().splitlines()
            text.write_text("\n\n".join("\n".join(verses[i:i + 20]) for i in range(0, len(verses), 20)))
        tokenizer = options.tokenizer or folder / "tokenizer.json"
        if not options.tokenizer:
            make_tokenizer(tokenizer, text.read_text()[:1_000_000])
        script, megabytes = folder / "their_tokenize.py", text.stat().st_size / 1e6
        script.write_text(TOKENIZE)
        generate = folder / "their_generate.py"
        generate.write_text(GENERATE)

        def ours(threads):
            out = folder / f"ours-{time.perf_counter_ns()}"
            return seconds([options.moe8, "tokenize", text, "--tokenizer", tokenizer, "--separator", "\\n\\n",
                            "--end-token", "none", "--threads", threads, "--out", out])

        def theirs(threads):
            return seconds([sys.executable, script, tokenizer, text, folder / "theirs.bin"],
                           {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"})

        cores = os.cpu_count()
        print(f"{cores} cores, load {os.getloadavg()[0]:.1f}; {megabytes:.1f} MB of text", flush=True)
        for threads in sorted({1, cores}) if not options.only_models else ():
            both = medians(options.rounds, {"moe8": lambda: ours(threads), "tokenizers": lambda: theirs(threads)})
            for name, (wall, cpu) in both.items():
                print(f"tokenize, {threads} threads  {name:12} {wall:7.2f} s ({megabytes / wall:6.1f} MB/s), "
                      f"{cpu:7.2f} s of processors ({megabytes / cpu:6.1f} MB/s)", flush=True)
        small, large = folder / "small", folder / "large"
        make_model(small, 2, 64, 4)
        size = make_model(large, 8, 1024, 32) / 1e9
        start = {}
        for which, model in (("start", small), ("read", large)):
            def first_token(command):
                return lambda: seconds([command, "generate", model, "--prompt-tokens", "1,2,3", "--max-tokens", "1",
                                        "--ignore-end"])

            calls = {"moe8": first_token(options.moe8),
                     "transformers": lambda: seconds([sys.executable, generate, model], {"HF_HUB_OFFLINE": "1"})}
            if options.before:
                calls = {"before": first_token(options.before), **calls}
            for name, (wall, cpu) in medians(options.rounds, calls).items():
                more = ""
                if which == "start":
                    start[name] = wall, cpu
                else:
                    wall, cpu = wall - start[name][0], cpu - start[name][1]
                    more = f", {size / wall:.2f} GB/s"
                print(f"{which:21} {name:12} {wall:7.2f} s{more}, {cpu:7.2f} s of processors", flush=True)


if __name__ == "__main__":
    main()
