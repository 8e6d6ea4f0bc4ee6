#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The same mixture-of-experts layers through PyTorch, torchao, SonicMoE and moe8, in one call, on one GPU.

    python3 bench/compare_layers.py [--bench build/cuda/bench/moe_layer_cuda_bench] [--layers dsv3,gpt-oss]
                                    [--routing balanced,ragged,zipf]

What is not installed is left out and said. Each layer has a process: they compile and tune side by side, then
measure one after the other. In a layer all take turns, round by round; moe8's turn is a program of its own. A
time is a step, forward + backward with the router, in milliseconds: the median over all rounds, with the host
waiting after each step, as moe8's benchmark waits. Memory is the peak above what was there before the step
(weights and input), gradients counted. Ratios are to torch.compile.

Balanced: each router, fresh, chooses. Ragged and Zipf-skewed: all get the same experts, whose scores are those of
their routers.
"""
import argparse
import json
import multiprocessing
import os
import pathlib
import re
import statistics
import subprocess
import tempfile
import threading
import time

# Name to T, d, h, E, k: the rows of kGpuExpertLayerShapes in bench/shapes.h.
LAYERS = {name: tuple(map(int, sizes.split(",")))
          for name, sizes in re.findall(r'\{"([a-z][\w-]+)", ([\d, ]+)\}',
                                        pathlib.Path(__file__).with_name("shapes.h").read_text())}


def chosen_experts(routing, shape):
    """[T, k] on the GPU, in shuffled order, with shares by the rule of moe_layer_cuda_bench.cpp; None: the router's."""
    import torch

    if routing == "balanced":
        return None
    tokens, _, _, experts, top_k = shape
    ranks = torch.arange(experts)
    weights = 0.5 + (ranks * 619 + 7) % 1000 / 1000.0
    if routing == "zipf":
        weights[(5 * ranks + 3) % experts] = 1.0 / (ranks + 1)
    ends = (weights.double().cumsum(0) / weights.double().sum() * tokens * top_k).floor()
    chosen = torch.searchsorted(ends, torch.arange(tokens * top_k).double(), right=True).clamp_max(experts - 1)
    shuffled = chosen[torch.randperm(tokens * top_k, generator=torch.Generator().manual_seed(1))]
    return shuffled.view(tokens, top_k).cuda()


def torch_layer(shape):
    """Router, experts through torch._grouped_mm and a weighted sum, as torchtitan writes them; bf16."""
    import torch
    from torch import nn
    from torch.nn import functional

    _, dim, hidden, experts, top_k = shape
    make = {"device": "cuda", "dtype": torch.bfloat16}

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.chosen = None  # None: the router chooses
            self.gate = nn.Linear(dim, experts, bias=False, **make)
            self.w1 = nn.Parameter(torch.randn(experts, hidden, dim, **make) / dim**0.5)
            self.w3 = nn.Parameter(torch.randn(experts, hidden, dim, **make) / dim**0.5)
            self.w2 = nn.Parameter(torch.randn(experts, dim, hidden, **make) / hidden**0.5)

        def forward(self, x):
            scores = functional.softmax(self.gate(x).float(), -1)
            scores, chosen = (scores.topk(top_k, -1) if self.chosen is None
                              else (scores.gather(-1, self.chosen), self.chosen))
            flat = chosen.flatten()
            order = flat.argsort(stable=True)
            ends = torch.histc(flat.float(), bins=experts, min=0, max=experts - 1)
            offs = ends.cumsum(0).to(torch.int32)
            rows = order // top_k
            routed = x[rows]
            gate = torch._grouped_mm(routed, self.w1.transpose(-2, -1), offs=offs)
            up = torch._grouped_mm(routed, self.w3.transpose(-2, -1), offs=offs)
            out = torch._grouped_mm(functional.silu(gate) * up, self.w2.transpose(-2, -1), offs=offs)
            out = (out.float() * scores.flatten()[order].unsqueeze(-1)).to(x.dtype)
            return torch.zeros_like(x).index_add(0, rows, out)

    return Layer()


def compiled_layer(shape):
    import torch

    torch._dynamo.reset()
    return torch.compile(torch_layer(shape))


def torchao_layer(shape):
    """The layer of above after torchao's conversion; its fp8_rowwise asks for padded groups on Hopper."""
    import torch
    from torchao.prototype.moe_training.config import MXFP8TrainingOpConfig, MXFP8TrainingRecipe
    from torchao.quantization import quantize_

    layer = torch_layer(shape)
    config = MXFP8TrainingOpConfig.from_recipe(MXFP8TrainingRecipe("mxfp8_emulated_rceil"))
    quantize_(layer, config, filter_fn=lambda module, name: isinstance(module, type(layer)))
    torch._dynamo.reset()
    return layer


def few_sonic_tiles(epilogue=None, tune_coop=True):
    """The tiles that won on these layers; SonicMoE's tuner compiles 44 for each of six products otherwise."""
    from quack.gemm_config import GemmConfig

    pingpong = [(128, 128), (128, 160), (128, 192), (192, 128)]
    mixed = [(128, 192), (128, 128)]
    tiles = [(m, n, True) for m, n in (mixed if tune_coop and epilogue != "dgated" else pingpong)]
    if tune_coop and epilogue != "dgated":
        tiles += [(128, 256, False), (256, 128, False)]
    return [GemmConfig(tile_m=m, tile_n=n, pingpong=alternate, cluster_m=2, cluster_n=1, swap_ab=False,
                       device_capacity=9, is_dynamic_persistent=False, use_tma_gather=False)
            for m, n, alternate in tiles]


def sonic_layer(shape):
    import quack.gemm_config
    import torch

    quack.gemm_config._get_sm90_configs = few_sonic_tiles  # before sonicmoe asks for them
    from sonicmoe import MoE, functional
    from sonicmoe.enums import ActivationType

    _, dim, hidden, experts, top_k = shape
    layer = MoE(experts, top_k, dim, hidden, ActivationType.SWIGLU, False, 0.02)
    layer.chosen = None
    own = functional.TC_Softmax_Topk_Router_Function

    class Router:
        """SonicMoE's router, or in its place the experts that are given."""

        @staticmethod
        def apply(logits, *options):
            if layer.chosen is None:
                return own.apply(logits, *options)
            return torch.softmax(logits.float(), -1).gather(-1, layer.chosen), layer.chosen.int()

    functional.TC_Softmax_Topk_Router_Function = Router
    return layer.to("cuda", torch.bfloat16)


PEERS = {"torch bf16": torch_layer, "torch bf16, compiled": compiled_layer,
         "torchao mxfp8": torchao_layer, "SonicMoE bf16": sonic_layer}


class Peer:
    """One library's layer: a step, its memory."""

    def __init__(self, make, shape):
        import torch

        self.torch = torch
        self.layer = make(shape)
        bf16 = {"device": "cuda", "dtype": torch.bfloat16}
        self.x = torch.randn(shape[0], shape[1], **bf16).requires_grad_()
        self.grad = torch.randn(shape[0], shape[1], **bf16)

    def route(self, chosen):
        """From now on to these experts; None: as its router chooses."""
        getattr(self.layer, "_orig_mod", self.layer).chosen = chosen

    def step(self):
        out = self.layer(self.x)
        out = out[0] if isinstance(out, tuple) else out
        out.backward(self.grad)
        self.x.grad = None
        for parameter in self.layer.parameters():
            parameter.grad = None

    def peak(self):
        cuda = self.torch.cuda
        cuda.synchronize()
        before = cuda.memory_allocated()
        cuda.reset_peak_memory_stats()
        self.step()
        cuda.synchronize()
        return (cuda.max_memory_allocated() - before) / 2**30

    def times(self, repeats):
        self.torch.cuda.synchronize()
        measured = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.step()
            self.torch.cuda.synchronize()
            measured.append((time.perf_counter() - start) * 1e3)
        return measured


def moe8_times(bench, layer, routing, chosen, repeats):
    """Recipe and op to milliseconds, and recipe to what the program says of memory."""
    with tempfile.TemporaryDirectory() as folder:
        report, experts = os.path.join(folder, "report.json"), os.path.join(folder, "experts")
        environment = {**os.environ, "MOE8_BENCH_SHAPES": layer, "MOE8_BENCH_LOADS": routing}
        if chosen is not None:
            chosen.cpu().numpy().tofile(experts)
            environment["MOE8_BENCH_EXPERTS"] = experts
        told = subprocess.run([bench, "--rounds", str(repeats), "--json", report], env=environment,
                              check=True, stdout=subprocess.PIPE, text=True).stdout
        with open(report, encoding="utf-8") as file:
            rows = json.load(file)["rows"]
    times = {f"moe8 {row['recipe']}{row['op'].removeprefix('layer')}": row["median_s"] * 1e3 for row in rows}
    said = re.findall(r"(\w+) +saved for backward [\d.]+ GiB, peak ([\d.]+) GiB +\(layer(.*)\)", told)
    peaks = {f"moe8 {recipe}{op}": float(peak) for recipe, peak, op in said}
    return times, peaks


def prepared(layer, routings):
    """The peers that take this layer, compiled and tuned; the peak memory of each by routing; the routings."""
    peers, peaks = {}, {routing: {} for routing in routings}
    chosen = {routing: chosen_experts(routing, LAYERS[layer]) for routing in routings}
    for name, make in PEERS.items():
        try:
            peer = Peer(make, LAYERS[layer])
            for routing in routings:
                peer.route(chosen[routing])
                peer.step()  # compiles and tunes
                peer.step()
                peaks[routing][name] = peer.peak()
            peers[name] = peer
        except Exception as error:  # what is not installed, or refuses the shape or routing: others go on
            print(f"{layer}: {name} left out: {type(error).__name__}: {str(error)[:200]}".splitlines()[0], flush=True)
    return peers, peaks, chosen


def measured(layer, routing, peers, peaks, chosen, options):
    """Prints the rows of a layer."""
    times = {name: [] for name in peers}
    for peer in peers.values():
        peer.route(chosen)
    for _ in range(options.rounds):
        for name, peer in peers.items():
            times[name] += peer.times(options.repeats)
        if options.bench:
            ours, memory = moe8_times(options.bench, layer, routing, chosen, options.repeats)
            peaks |= memory
            for name, milliseconds in ours.items():
                times.setdefault(name, []).append(milliseconds)
    base = times.get("torch bf16, compiled")
    for name, all_times in times.items():
        median = statistics.median(all_times)
        ratio = f"{statistics.median(base) / median:.2f}" if base else "-"
        peak = f"{peaks[name]:.2f}" if name in peaks else "-"
        print(f"| {layer} | {routing} | {name} | {median:.3f} | {ratio} | {peak} |", flush=True)


def compare(layer, options, all_ready, gpu):
    """One layer, in a process of its own. all_ready: nobody measures while somebody compiles."""
    routings = options.routing.split(",")
    peers, peaks, chosen = prepared(layer, routings)
    try:
        all_ready.wait(options.patience)
    except threading.BrokenBarrierError:
        print(f"{layer}: measured although other layers still compile", flush=True)
    with gpu:
        for routing in routings:
            measured(layer, routing, peers, peaks[routing], chosen[routing], options)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", default="build/cuda/bench/moe_layer_cuda_bench", help="empty: peers alone")
    parser.add_argument("--layers", default=",".join(LAYERS), help="e.g. dsv3,gpt-oss")
    parser.add_argument("--routing", default="balanced", help="of balanced,ragged,zipf")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--repeats", type=int, default=7, help="steps timed in a turn")
    parser.add_argument("--patience", type=float, default=600, help="seconds a layer waits for others to compile")
    options = parser.parse_args()
    print("| layer | routing | who | ms | x torch compiled | peak GiB |")
    print("|---|---|---|---|---|---|")
    layers = options.layers.split(",")
    unknown = set(options.routing.split(",")) - {"balanced", "ragged", "zipf"}
    if unknown:
        parser.error(f"--routing: expected balanced, ragged or zipf, got {', '.join(sorted(unknown))}")
    spawn = multiprocessing.get_context("spawn")
    all_ready, gpu = spawn.Barrier(len(layers)), spawn.Lock()
    processes = [spawn.Process(target=compare, args=(layer, options, all_ready, gpu)) for layer in layers]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    raise SystemExit(any(process.exitcode for process in processes))


if __name__ == "__main__":
    main()
