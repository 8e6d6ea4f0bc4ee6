#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""moe8's published models beside Hugging Face's transformers, or exit status 1.

  compare_transformers.py PROGRAM MOE8         PROGRAM is test_pretrained_check, MOE8 the command
  compare_transformers.py --record FOLDER      small cases for pretrained_test.cpp

Tiny models of every family with random weights, in float32: logits and the gradients of all weights
agree within 1e-4 of the largest; every file that moe8 writes holds the tensors of the one it read, bit
for bit; and transformers computes the same bits from it. `moe8 generate` gives the tokens of its generate(),
with and without a cache, and `moe8 eval` its loss. Adapters that moe8 trained and exported are read by
PEFT, whose model gives the logits of the merged one within 1e-4 of the largest; weights exported in FP8 and
MXFP8 are decompressed by compressed-tensors to codes x scales, which moe8 reads as well, and transformers
those in FP8. Run by a Python that
has these libraries (./dev test --hf installs them).
"""
import argparse
import copy
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file

SEED = 16
BATCH, LENGTH = 2, 13


def shape(**other):
    return dict(dict(vocab_size=48, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
                     pad_token_id=None), **other)


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
EXPERTS = dict(num_experts=4, num_experts_per_tok=2)

# name: class of the config, its fields. The first of a family is recorded.
CASES = {
    "qwen3_moe": ("Qwen3Moe", shape(**EXPERTS, head_dim=16, moe_intermediate_size=24, norm_topk_prob=True)),
    "qwen3_moe_others": ("Qwen3Moe", shape(
        **EXPERTS, head_dim=8, moe_intermediate_size=24, intermediate_size=40, mlp_only_layers=[0],
        attention_bias=True, tie_word_embeddings=True, rope_parameters=LLAMA3)),
    "olmoe": ("Olmoe", shape(**EXPERTS, intermediate_size=24)),
    "olmoe_linear": ("Olmoe", shape(**EXPERTS, intermediate_size=24, norm_topk_prob=True, rope_parameters={
        "rope_type": "linear", "rope_theta": 100.0, "factor": 3.0})),
    "mixtral": ("Mixtral", shape(num_local_experts=4, num_experts_per_tok=2, intermediate_size=24)),
    "mixtral_window": ("Mixtral", shape(num_local_experts=4, num_experts_per_tok=2, intermediate_size=24,
                                        head_dim=16, sliding_window=5)),
    "gpt_oss": ("GptOss", shape(num_local_experts=4, num_experts_per_tok=2, head_dim=8, intermediate_size=24,
                                sliding_window=5, swiglu_limit=1.5, rope_parameters=dict(YARN, truncate=False))),
    "gpt_oss_others": ("GptOss", shape(
        num_local_experts=4, num_experts_per_tok=3, head_dim=8, intermediate_size=24, sliding_window=7,
        num_hidden_layers=3, layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        rope_parameters=dict(YARN, attention_factor=1.25))),
    "deepseek_v3": ("DeepseekV3", shape(
        num_key_value_heads=4, first_k_dense_replace=1, intermediate_size=40, moe_intermediate_size=24,
        n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=3, q_lora_rank=16, kv_lora_rank=16,
        qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8,
        rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=1.0))),
    "qwen3_moe_blocks": ("Qwen3Moe", shape(**EXPERTS, head_dim=16, moe_intermediate_size=64)),
    "deepseek_v3_others": ("DeepseekV3", shape(
        num_key_value_heads=4, first_k_dense_replace=0, intermediate_size=40, moe_intermediate_size=24,
        n_routed_experts=8, n_group=1, topk_group=1, num_experts_per_tok=3, q_lora_rank=None, kv_lora_rank=16,
        qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=16, n_shared_experts=2, norm_topk_prob=False,
        rope_interleave=False, rope_parameters=dict(YARN, mscale=0.7, mscale_all_dim=0.4))),
}


def random_model(kind, fields):
    torch.manual_seed(SEED)
    config = getattr(transformers, kind + "Config")(**fields)
    model = getattr(transformers, kind + "ForCausalLM")._from_config(
        config, attn_implementation="eager", dtype=torch.float32)
    model.set_experts_implementation("eager")
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.ndim > 1 or name.endswith(("bias", "sinks")):
                tensor.normal_(0, 0.2)
            elif name.endswith("norm.weight"):
                tensor.normal_(1, 0.2)
    return model.train()


def batch_of(model):
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(model.config.vocab_size, (2, BATCH, LENGTH), generator=generator)


def logits_of(model, tokens):
    return model(input_ids=tokens, use_cache=False).logits


def save(model, folder):
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def save_gradients(model, folder):
    """In the names of the weights' files: a copy of the model that has gradients for weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for own, source in zip(other.parameters(), model.parameters()):
            own.copy_(source.grad)
        for buffer in other.buffers():
            if buffer.is_floating_point():
                buffer.zero_()
    save(other, folder)


def save_case(model, folder):
    """folder/model, folder/gradients and folder/expected.safetensors. Returns the tokens."""
    tokens, targets = batch_of(model)
    logits = logits_of(model, tokens)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    save(model, folder / "model")
    save_gradients(model, folder / "gradients")
    save_file({"tokens": tokens.contiguous(), "targets": targets.contiguous(),
               "logits": logits.detach().contiguous()}, folder / "expected.safetensors")
    return tokens


def make(name, folder):
    model = random_model(*CASES[name])
    return model, save_case(model, folder)


def make_mxfp4(folder):
    """gpt-oss with the experts as they are published: MXFP4 blocks and scales."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors
    kind, fields = CASES["gpt_oss"]
    model = random_model(kind, dict(fields, intermediate_size=32))  # whole blocks
    sizes = dict(model.named_parameters())
    quantized = {}
    with torch.no_grad():
        for layer in range(model.config.num_hidden_layers):
            for name in ("gate_up_proj", "down_proj"):
                full = f"model.layers.{layer}.mlp.experts.{name}"
                experts, columns, rows = sizes[full].shape
                blocks = torch.randint(256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
                scales = torch.randint(122, 127, blocks.shape[:3], dtype=torch.uint8)
                sizes[full].copy_(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
                quantized |= {full + "_blocks": blocks, full + "_scales": scales}
    tokens = save_case(model, folder)
    whole = load_file(folder / "model/model.safetensors")
    packed = {name: tensor for name, tensor in whole.items() if name + "_blocks" not in quantized} | quantized
    (folder / "model/model.safetensors").unlink()
    # in two shards with an index, as published
    names = sorted(packed)
    halves = [names[::2], names[1::2]]
    files = [f"model-{i + 1:05}-of-00002.safetensors" for i in range(2)]
    for file, half in zip(files, halves):
        save_file({name: packed[name].contiguous() for name in half}, folder / "model" / file)
    index = {"metadata": {}, "weight_map": {name: file for file, half in zip(files, halves) for name in half}}
    (folder / "model/model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((folder / "model/config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "model/config.json").write_text(json.dumps(config, indent=2))
    return whole


def check(condition, message):
    if not condition:
        sys.exit(f"FAILED: {message}")


def same_files(first, second, name):
    check(sorted(first) == sorted(second),
          f"{name}: names differ: {sorted(set(first) ^ set(second))[:4]}")
    for key, tensor in first.items():
        same = tensor.dtype == second[key].dtype and torch.equal(tensor, second[key])
        check(same, f"{name}: {key} is not the same bits")


def run(program, folder):
    subprocess.run([program, folder], check=True)


def compare_generated(moe8, model, folder, name):
    """Greedy, past the windows: kept keys and values on both sides, then none on moe8's."""
    prompt = batch_of(model)[0][:1]
    with torch.no_grad():
        wanted = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=40,
                                use_cache=True, eos_token_id=None, pad_token_id=0)[0, prompt.shape[1]:].tolist()
    words = [moe8, "generate", folder / "model", "--prompt-tokens", ",".join(map(str, prompt[0].tolist())),
             "--max-tokens", "40", "--ignore-end"]
    for more in ([], ["--no-cache"]):
        got = subprocess.run(words + more, check=True, capture_output=True, text=True).stdout
        check([int(token) for token in got.split()] == wanted, f"{name}: generate {more}: {got} is not {wanted}")


def compare_losses(moe8, model, folder, name):
    """Windows of 30 of 700 tokens, each token but the first of them counted once."""
    length = 30
    tokens = torch.randint(model.config.vocab_size, (701,), generator=torch.Generator().manual_seed(SEED))
    tokens.to(torch.uint16).numpy().tofile(folder / "tokens.bin")
    nats = 0
    with torch.no_grad():
        for begin in range(0, 700, length):
            window = tokens[begin:begin + length + 1]
            logits = logits_of(model, window[None, :-1])[0]
            nats += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    words = [moe8, "eval", folder / "model", "--data", folder / "tokens.bin", "--tokens", "uint16",
             "--seq-len", str(length), "--json"]
    row, = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    check(row["tokens"] == 700 and abs(row["loss"] - nats / 700) < 1e-4,
          f"{name}: eval gives {row['loss']}, transformers {nats / 700}")


def tokens_file(model, folder):
    tokens = torch.randint(model.config.vocab_size, (4000,), generator=torch.Generator().manual_seed(SEED))
    tokens.to(torch.uint16).numpy().tofile(folder / "train.bin")


def train(moe8, model, folder, out, more):
    """A few steps from folder/model."""
    tokens_file(model, folder)
    (folder / f"{out}.toml").write_text(f"""
[model]
from = "{folder}/model"
[data]
files = ["{folder}/train.bin"]
tokens = "uint16"
[optimizer]
learning_rate = 3e-2
warmup_steps = 1
[training]
steps = 3
batch_size = 2
seq_len = 16
weights = "float32"
validation_batches = 1
device = "cpu"
[output]
folder = "{folder}/{out}"
{more}""")
    subprocess.run([moe8, "train", "--config", folder / f"{out}.toml"], check=True, capture_output=True)


def exported(moe8, folder, run, to, *words):
    subprocess.run([moe8, "export", folder / run, "--to", folder / to, *words], check=True, capture_output=True)
    return folder / to


def load(model, folder):
    made = type(model).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    made.set_experts_implementation("eager")
    return made.eval()


def compare_adapters(moe8, model, folder, name, tokens):
    """PEFT's model with the adapter, the merged one, and both are another than the one that they began with."""
    import peft
    dense = name.startswith(("deepseek", "qwen3_moe_others"))
    for out, targets in {
            "lora": "",
            "lora_some": """targets = ["re:.*\\\\.experts\\\\.w3", "layers.1.attention.wo.weight"%s]""" %
                         (""", "re:.*\\\\.(feed_forward|shared_experts)\\\\.w[12]\\\\.weight" """ if dense else "")}.items():
        train(moe8, model, folder, out, f"[lora]\nrank = 3\nalpha = 9\n{targets}")
        merged = logits_of(load(model, exported(moe8, folder, out, out + "_merged")), tokens)
        adapter = exported(moe8, folder, out, out + "_adapter", "--adapter")
        with_adapter = logits_of(peft.PeftModel.from_pretrained(load(model, folder / "model"), adapter).eval(), tokens)
        before = logits_of(load(model, folder / "model"), tokens)
        difference = ((with_adapter - merged).abs().max() / merged.abs().max()).item()
        change = ((before - merged).abs().max() / merged.abs().max()).item()
        check(difference <= 1e-4 and change > 1e-2,
              f"{name}: {out}: PEFT's model differs by {difference:.3g}, training changed {change:.3g}")
        print(f"  PEFT's model differs from the merged one by {difference:.2g}, which training changed by {change:.2g}")


def decompressed(folder):
    """Every tensor of the files, by compressed-tensors, and how many had scales."""
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import is_match
    config = QuantizationConfig.model_validate(json.loads((folder / "config.json").read_text())["quantization_config"])
    scheme, = config.config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(config.format)
    tensors, count = load_file(folder / "model.safetensors"), 0
    linear = torch.nn.Linear(1, 1)
    for name in [name for name in tensors if name.endswith(".weight_scale")]:
        module = name.removesuffix(".weight_scale")
        check(is_match(module, linear, scheme.targets, config.ignore), f"{module}: not what the config says")
        check(compressor.can_compress(type(linear), scheme), f"{config.format}: not the format of its scheme")
        state = {"weight": tensors.pop(module + ".weight"), "weight_scale": tensors.pop(name)}
        codes, scales = state["weight"].float(), state["weight_scale"]
        powers = scales.float() if scales.dtype != torch.uint8 else torch.exp2(scales.float() - 127)
        values = compressor.decompress(state, scheme)["weight"].float()
        wanted = (codes.unflatten(1, (powers.shape[1], -1)) * powers[..., None]).flatten(1)
        check(torch.equal(values, wanted), f"{module}: decompressed to other numbers")
        tensors[module + ".weight"] = values
        count += 1
    return tensors, count


def read_by_transformers(model, folder, tensors, tokens):
    """Whether transformers, with compressed-tensors, reads a quantized folder as the values of these tensors."""
    plain = folder.with_name(folder.name + "_values")
    plain.mkdir()
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config")
    (plain / "config.json").write_text(json.dumps(config))
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    wanted = load(model, plain).state_dict()
    made = type(model).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    made.set_experts_implementation("eager")
    with torch.no_grad():
        check(made(tokens).logits.isfinite().all(), f"{folder.name}: logits that are no numbers")  # decompresses
    got = made.state_dict()
    for key, tensor in wanted.items():
        check(torch.equal(got[key].float(), tensor), f"{folder.name}: transformers reads another {key}")


def compare_quantized(moe8, model, folder, name, tokens):
    if name.startswith("gpt_oss"):
        return  # its stacks are refused
    train(moe8, model, folder, "whole", "")
    plain = load_file(exported(moe8, folder, "whole", "plain") / "model.safetensors")
    blocks = all(weight.shape[1] % 32 == 0 for key, weight in plain.items()
                 if weight.ndim == 2 and ".layers." in key and not key.endswith("gate.weight"))
    for weights in ["fp8_rowwise"] + (["mxfp8_rceil", "mxfp8_floor"] if blocks else []):
        quantized = exported(moe8, folder, "whole", weights, "--weights", weights)
        got, count = decompressed(quantized)
        check(sorted(got) == sorted(plain) and count > 0, f"{name}: {weights}: other tensors")
        for key, tensor in plain.items():
            # 4 binary digits are left, fewer of the smallest; scales rounded down cut off an eighth
            part = 8 if weights == "mxfp8_floor" else 16
            near = tensor if torch.equal(got[key], tensor) else tensor.abs() / part + tensor.abs().max() / 512
            check(((got[key] - tensor).abs() <= near.abs()).all(), f"{name}: {weights}: {key} is another")
        as_well = ""
        if weights == "fp8_rowwise":  # its own reader of stacked experts multiplies by one scale a row
            read_by_transformers(model, quantized, got, tokens)
            as_well = ", which transformers reads as well"
        print(f"  {weights}: {count} matrices decompressed to codes x scales{as_well}")


def compare(program, moe8, name, folder):
    model, tokens = make(name, folder)
    run(program, folder)
    original = load_file(folder / "model/model.safetensors")
    same_files(original, load_file(folder / "exported/model.safetensors"), name)
    again = type(model).from_pretrained(folder / "exported", attn_implementation="eager", dtype=torch.float32)
    again.set_experts_implementation("eager")
    before, after = logits_of(model.eval(), tokens), logits_of(again.eval(), tokens)
    check(torch.equal(before, after), f"{name}: transformers computes other logits from the export")
    compare_generated(moe8, model, folder, name)
    compare_losses(moe8, model, folder, name)
    with torch.no_grad():
        compare_adapters(moe8, model, folder, name, tokens)
    compare_quantized(moe8, model, folder, name, tokens)
    print(f"{name}: {len(original)} tensors the same bits, transformers the same logits, tokens and loss",
          flush=True)


def record(folder):
    for name in CASES:
        if "_others" in name or name in ("olmoe_linear", "mixtral_window", "qwen3_moe_blocks"):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            made, case = pathlib.Path(temporary), folder / name
            make(name, made)
            shutil.rmtree(case, ignore_errors=True)
            case.mkdir(parents=True)
            shutil.copy(made / "model/config.json", case / "config.json")
            shutil.copy(made / "model/model.safetensors", case / "model.safetensors")
            shutil.copy(made / "gradients/model.safetensors", case / "gradients.safetensors")
            shutil.copy(made / "expected.safetensors", case / "expected.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", nargs="?")
    parser.add_argument("moe8", nargs="?")
    parser.add_argument("--record", type=pathlib.Path)
    parser.add_argument("--only")
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.use_deterministic_algorithms(True)
    if arguments.record:
        return record(arguments.record)
    for name in CASES:
        if arguments.only and arguments.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            compare(arguments.program, arguments.moe8, name, pathlib.Path(folder))
    if not arguments.only or arguments.only in "mxfp4":
        with tempfile.TemporaryDirectory() as folder:
            whole = make_mxfp4(pathlib.Path(folder))
            run(arguments.program, folder)
            # moe8 writes bf16 or float32, never MXFP4: the numbers are the same
            exported = load_file(pathlib.Path(folder) / "exported/model.safetensors")
            same_files(whole, exported, "mxfp4")
            print(f"gpt_oss in MXFP4: {len(whole)} tensors the same numbers", flush=True)
    print("all the same")


if __name__ == "__main__":
    main()
