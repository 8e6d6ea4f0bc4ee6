# SPDX-License-Identifier: BSD-3-Clause
"""Two processes on Gloo, with FSDP2 or DDP, train as one does, and keep quantized weights no longer than is right."""
import os
import socket

import pytest
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
        for x in batches:
            (model(x).float().square().mean() / len(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()


def data(micro_batches):
    """Of the steps: the batches of all ranks."""
    generator = torch.Generator().manual_seed(5)
    return [[torch.randn(16, 32, generator=generator).bfloat16() for _ in range(WORLD * micro_batches)]
            for _ in range(3)]


def share(rank, micro_batches):
    return [batches[rank::WORLD] for batches in data(micro_batches)]


def sharded(model, **options):
    from torch.distributed.fsdp import fully_shard
    for block in model:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def fsdp(model):
    return sharded(model)


def fsdp_that_stays_gathered(model):
    """Between forward and backward, and between the micro-batches of a step."""
    sharded(model, reshard_after_forward=False)
    return model


def ddp(model):
    return nn.parallel.DistributedDataParallel(model)


def hits_of(kind, model, rank):
    """Trains three steps of two micro-batches; hits of the cache."""
    before = moe8.weight_cache_use()["hits"]
    if kind is fsdp_that_stays_gathered:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for batches in share(rank, 2):
            for number, x in enumerate(batches):
                model.set_reshard_after_backward(number == 1)
                (model(x).float().square().mean() / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
    else:
        train(model, share(rank, 2))
    return moe8.weight_cache_use()["hits"] - before


# A micro-batch asks for four weights in forward and for three in backward, as the data need no gradient.
HITS = {
    fsdp: 0,                              # everything is freed after each use
    fsdp_that_stays_gathered: 2 * 7 + 4,  # the second micro-batches'; in the first step those of the second block, which
                                          # was gathered after the first had made moe8 listen to FSDP2
    ddp: 2 * 7,                           # the same without the first step, before which no optimizer was seen
}


def worker(rank, port, path, kind):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(WORLD))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = build()
    outer = kind(model)
    hits = hits_of(kind, outer, rank)
    assert not moe8.check_conversion(model).complaints()
    state = {name: value.full_tensor() if hasattr(value, "full_tensor") else value
             for name, value in model.state_dict().items()}
    if rank == 0:
        torch.save({"state": state, "hits": hits}, path)
    dist.barrier()
    dist.destroy_process_group()
    # After FSDP2 threads are left that nothing joins: Gloo's, as caches of DTensor keep the mesh and so the group, and
    # autograd's. One that asks for the lock of an interpreter that is ending takes the process down with it.
    os._exit(0)


@pytest.mark.parametrize("kind", HITS)
def test_two_processes_are_one(tmp_path, kind):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = tmp_path / "result.pt"
    mp.spawn(worker, (port, path, kind), nprocs=WORLD)
    result = torch.load(path)
    torch.set_num_threads(1)
    model = build()
    train(model, data(2))
    got = result["state"]
    assert list(got) == list(model.state_dict())
    for name, value in model.state_dict().items():
        # Gradients of bf16 are rounded before they are averaged, here and there in another order.
        assert torch.allclose(got[name].float(), value.float(), atol=2e-3, rtol=1.6e-2), name
    assert result["hits"] == HITS[kind]
