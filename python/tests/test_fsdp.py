# SPDX-License-Identifier: BSD-3-Clause
"""Two processes with FSDP2 on Gloo train as one does."""
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import moe8

WORLD = 2


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(4, 64, 32) * 0.1)
        self.linear = nn.Linear(64, 32)

    def forward(self, x):
        offs = torch.tensor([3, 3, 10, 16], dtype=torch.int32)
        return x + self.linear(torch._grouped_mm(x, self.w1.transpose(-2, -1), offs=offs))


def build():
    torch.manual_seed(3)
    model = nn.Sequential(Block(), Block()).bfloat16()
    moe8.quantize_(model, {"re:.*w1": "fp8_rowwise", "_default": "rowwise"}, unused="error")
    return model


def train(model, batches_of_step):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for batches in batches_of_step:
        loss = sum(model(x).float().square().mean() for x in batches) / len(batches)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def data():
    generator = torch.Generator().manual_seed(5)
    return [[torch.randn(16, 32, generator=generator).bfloat16() for _ in range(WORLD)] for _ in range(3)]


def worker(rank, port, path):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(WORLD))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    from torch.distributed.fsdp import fully_shard
    model = build()
    for block in model:
        fully_shard(block)
    fully_shard(model)
    train(model, [[batches[rank]] for batches in data()])
    assert not moe8.check_conversion(model).complaints()
    state = {name: value.full_tensor() for name, value in model.state_dict().items()}
    if rank == 0:
        torch.save(state, path)
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = tmp_path / "state.pt"
    mp.spawn(worker, (port, path), nprocs=WORLD)
    got = torch.load(path)
    torch.set_num_threads(1)
    model = build()
    train(model, data())
    assert list(got) == list(model.state_dict())
    for name, value in model.state_dict().items():
        # Gradients of bf16 are rounded before they are averaged, here and there in another order.
        assert torch.allclose(got[name].float(), value.float(), atol=2e-3, rtol=1.6e-2), name
