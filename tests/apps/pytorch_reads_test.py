#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""PyTorch's distributed checkpoint reads what several ranks of `moe8 train` wrote, bit for bit.

  pytorch_reads_test.py MOE8      exit status 77: this Python cannot import what PyTorch's reader needs
"""
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

try:
    import safetensors.torch
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageReader
except (ImportError, OSError) as error:
    print(f"skipped: {error}")
    sys.exit(77)

CONFIG = """
[model]
dim = 64
n_layers = 2
n_heads = 2
n_kv_heads = 1
max_seq_len = 32
dense_hidden_dim = 128
hidden_dim = 64
n_experts = 32
top_k = 2
[training]
steps = 2
batch_size = 2
seq_len = 32
accumulation = 4
threads = 1
device = "cpu"
[checkpoint]
interval = 2
[output]
checkpoint = true
"""


def train(moe8, folder, ranks, settings):
    """As torchrun starts it; rank 0 serves the store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        environment = dict(os.environ, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks),
                           LOCAL_WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        processes.append(subprocess.Popen(
            [moe8, "train", "--config", folder / "run.toml", "--data", folder / "text.txt",
             "--out", folder / "run"] + [word for setting in settings for word in ("--set", setting)],
            env=environment))
    assert all(process.wait() == 0 for process in processes)


def check(moe8, what, settings):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "run.toml").write_text(CONFIG)
        (folder / "text.txt").write_text("the cat sat on the mat and the dog lay on the log. " * 400)
        train(moe8, folder, 2, settings)
        step = folder / "run" / "checkpoints" / "step-00000002"
        shards = sorted(file.name for file in step.glob("shard-*-model-*.safetensors"))
        assert shards == [f"shard-0000{i}-model-00001-of-00001.safetensors" for i in (1, 2)], shards

        reader = HuggingFaceStorageReader(str(step))
        whole = safetensors.torch.load_file(folder / "run" / "model.safetensors")
        found = reader.read_metadata().state_dict_metadata
        cut = sum(len(found[key].chunks) > 1 for key in whole)
        assert cut > 0, "no tensor is in two files"
        state = {key: torch.zeros_like(tensor) for key, tensor in whole.items()}
        for key in whole:  # the optimizer's tensors likewise
            for moment in ("master.", "exp_avg.", "exp_avg_sq."):
                if moment + key in found:
                    state[moment + key] = torch.full(whole[key].shape, torch.nan)
        dcp.load(state, storage_reader=HuggingFaceStorageReader(str(step)))
        for key, tensor in whole.items():
            assert torch.equal(state[key].view(torch.uint8), tensor.view(torch.uint8)), key
            if "master." + key in state:
                assert torch.equal(state["master." + key].to(tensor.dtype), tensor), key
        assert not any(tensor.isnan().any() for tensor in state.values())
        print(f"PyTorch {torch.__version__} read {len(state)} tensors, {cut} weights of them cut ({what})")


def main(moe8):
    check(moe8, "data parallel", [])
    check(moe8, "experts over two ranks", ["parallel.expert=2"])
    check(moe8, "dense weights over two ranks", ["parallel.tensor=2", "model.n_kv_heads=2"])


if __name__ == "__main__":
    main(sys.argv[1])
