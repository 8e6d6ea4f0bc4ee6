#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The Python package on a GPU: results beside those of the CPU, time of the host per operation, speed.

  bench/python_on_gpu.py [PART...]  exit status 1 where a result differs or a part breaks off, 2 without such a GPU

PART: the beginning of a part's title; by default all. Needs the wheel of a build with CUDA (./dev wheel) and a Hopper
GPU; takes about two minutes. Quantizers must give the CPU's bits; products and layers, which add up in another order,
at least 40 dB. The fused layer of experts is compared with the one of moe8's products and torch's operations: hidden
rows must have its bits, what follows the activation at least 40 dB. "refused": an error that says so, as docs/python.md
tells of some formats on a GPU.
"""
import contextlib
import itertools
import sys
import time
import traceback

import torch

import moe8
from moe8 import _experts, _fused, _products
from moe8.config import config_text, meaning
from moe8._tensors import gpu_refusal

OPS = torch.ops.moe8
BAR_DB = 40
failures = []


def judge(what, good):
    if not good:
        failures.append(what)
        print(f"DIFFERS: {what}", flush=True)


def row(name, *cells):
    print(f"  {str(name):42}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


def shown(least):
    return "same bits" if least == float("inf") else f"{least:.1f} dB"


def decibels(reference, got):
    reference, got = reference.double().cpu(), got.double().cpu()
    if torch.equal(reference, got):
        return float("inf")
    if not (reference.isfinite() & got.isfinite()).all():
        return float("-inf")  # not nan, which no comparison of numbers minds
    return (20 * torch.log10(reference.norm() / (reference - got).norm())).item()


# ---- results ----------------------------------------------------------------------------------------------
def same_bits(a, b):
    def of(x):
        return x.cpu().contiguous().view(-1).view(torch.uint8)  # the scale of a whole tensor has no axes
    return all(p.shape == q.shape and torch.equal(of(p), of(q)) for p, q in zip(a, b, strict=True))


def quantizers():
    counts = {}
    for dtype in (torch.bfloat16, torch.float32):
        for shape in ((100, 72), (257, 130), (128, 256)):
            x = (torch.randn(shape) * torch.randn(shape).exp()).to(dtype)
            offs = torch.tensor([5, 5, 70, shape[0] - 4], dtype=torch.int32)
            calls = [(OPS.quantize_mx, (elem, mode, axis), groups)
                     for elem in ("e4m3", "e5m2", "e2m3", "e3m2", "float4_e2m1fn_x2")
                     for mode in ("floor", "rceil", "ceil", "even")
                     for axis, groups in ((1, None), (0, None), (0, offs))]
            calls += [(OPS.quantize_float8, (elem, power_of_2, axis), groups) for elem in ("e4m3", "e5m2")
                      for power_of_2 in (False, True)
                      for axis, groups in ((None, None), (1, None), (0, None), (0, offs))]
            for op, arguments, groups in calls:
                on_gpu = None if groups is None else groups.cuda()
                good = same_bits(op(x, *arguments, groups), op(x.cuda(), *arguments, on_gpu))
                judge(f"{op} {dtype} {shape} {arguments}{' in groups' if on_gpu is not None else ''}", good)
                same, count = counts.get(op, (0, 0))
                counts[op] = same + good, count + 1
    for op, (same, count) in counts.items():
        row(op, f"{same} of {count}")


def on_both(tensors, function):
    """Results and gradients of function(tensors), on the CPU and on the GPU: the least decibels among them."""
    results = []
    for device in ("cpu", "cuda"):
        leaves = [t.to(device).detach().requires_grad_(t.is_floating_point()) for t in tensors]
        out = function(*leaves)
        generator = torch.Generator().manual_seed(3)
        out.backward(torch.randn(out.shape, generator=generator).to(out.dtype).to(device))
        results.append([out.detach()] + [t.grad for t in leaves if t.grad is not None])
    return min(decibels(a, b) for a, b in zip(*results, strict=True))


SHAPES = ((83, 72, 40), (500, 256, 384), (64, 33, 17))


def product(recipe, dtype, M, K, N):
    if recipe["applies_to"] == "experts":
        offs = torch.tensor([M // 3, M // 3, M // 2, M - 3], dtype=torch.int32)
        tensors = (torch.randn(M, K).to(dtype), torch.randn(4, N, K).to(dtype), offs, torch.randn(4, N))
        return on_both(tensors, lambda A, W, o, b: moe8.grouped_mm(A, W.transpose(1, 2), o, recipe["name"], b))
    tensors = (torch.randn(2, M, K).to(dtype), torch.randn(N, K).to(dtype), torch.randn(N).to(dtype))
    return on_both(tensors, lambda x, w, b: moe8.linear(x, w, b, recipe["name"]))


def products():
    row("M, K, N", *(", ".join(map(str, shape)) for shape in SHAPES))
    reasons = {}
    for recipe in moe8.recipes():
        for dtype in (torch.bfloat16, torch.float32):
            name, cells = f"{recipe['name']}, {str(dtype).removeprefix('torch.')}", []
            for shape in SHAPES:
                try:
                    least = product(recipe, dtype, *shape)
                except moe8.Error as error:
                    cells.append("refused")
                    reasons.setdefault(str(error), name)
                else:
                    cells.append(shown(least))
                    judge(f"{name} {shape}: {least:.1f} dB", least >= BAR_DB)
            row(name, *cells)
    for reason, name in reasons.items():
        print(f"  refused, {name} the first: {reason}", flush=True)


def layers():
    T, d, h, E, k = 300, 256, 192, 8, 3
    for recipe in ("fp8_rowwise", "mxfp8_rceil"):
        for options in ({}, {"gate_up": "interleaved", "activation": "clamped_swiglu"}):
            tensors = (torch.randn(T, d).bfloat16(), (torch.randn(E, 2 * h, d) * 0.1).bfloat16(),
                       (torch.randn(E, d, h) * 0.1).bfloat16(), torch.rand(T, k), torch.randint(0, E + 1, (T, k)))
            least = on_both(tensors, lambda x, w1, w2, s, e: moe8.moe_experts(x, w1, None, w2, e, s, config=recipe,
                                                                             **options))
            name = f"moe_experts, {recipe}{', clamped' if options else ''}"
            row(name, shown(least))
            judge(f"{name}: {least:.1f} dB", least >= BAR_DB - 15)  # two products in a row


def graph():
    A = torch.randn(512, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    W = torch.randn(4, 384, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    offs = torch.tensor([100, 100, 300, 500], device="cuda", dtype=torch.int32)

    def step():
        A.grad = W.grad = None
        out = moe8.grouped_mm(A, W.transpose(1, 2), offs)
        out.backward(torch.ones_like(out))
        return out
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
        expected, grad = step(), W.grad.clone()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        out = step()
    captured.replay()
    torch.cuda.synchronize()
    good = torch.equal(out, expected) and torch.equal(W.grad, grad)
    row("a captured step", "same bits" if good else "differs")
    judge("a captured step", good)


# ---- the fused layer of experts -----------------------------------------------------------------------------
@contextlib.contextmanager
def by_operations():
    """The layer as moe8's products with torch's operations between them. Codes along columns are made of what those
    along rows stand for, as the fused kernels make them."""
    plain = _products.backward

    def backward(op, grad_out, A, W, offs, config, needs_A, needs_W, *rest):
        if not needs_W or meaning(config).left[_products.GRAD_WEIGHT] & 15 != 2:  # FLOAT8 of _tensors.py
            return plain(op, grad_out, A, W, offs, config, needs_A, needs_W, *rest)
        grad_A = plain(op, grad_out, A, W, offs, config, needs_A, False, *rest)[0]
        values = [OPS.fake_quantize_float8(x, "e4m3", True, 1, dtype=x.dtype) for x in (grad_out, A)]
        return grad_A, plain(op, *values, W, offs, config, False, True, *rest)[1]
    _fused.is_wanted, _products.backward = False, backward
    try:
        yield
    finally:
        _fused.is_wanted, _products.backward = True, plain


def experts_problem(T, d, h, E, k, seed=0, biases=False, scores=True, ragged=True):
    generator = torch.Generator("cuda").manual_seed(seed)

    def random(*shape, scale=1.0, dtype=torch.bfloat16):
        return (torch.randn(shape, device="cuda", generator=generator) * scale).to(dtype)
    experts = torch.rand(T, E, device="cuda", generator=generator)
    if ragged:  # expert 1 gets no tokens, the last ones few; some slots have no expert
        experts *= torch.linspace(2, 0.5, E, device="cuda")
        experts[:, 1 % E] = -1 if E > k else experts[:, 1 % E]
    experts = experts.topk(k, dim=1).indices
    if ragged and T > 4:
        experts[T // 2, 0], experts[-1, -1] = -1, E
    return {"x": random(T, d), "w13": random(E, 2 * h, d, scale=d ** -0.5), "w2": random(E, d, h, scale=h ** -0.5),
            "experts": experts, "scores": torch.rand(T, k, device="cuda", generator=generator) if scores else None,
            "b13": random(E, 2 * h, scale=0.3, dtype=torch.float32) if biases else None,
            "b2": random(E, d, scale=0.3, dtype=torch.float32) if biases else None, "grad": random(T, d)}


LEAVES = ("x", "w13", "w2", "scores", "b13", "b2")


def whole_layer(p, o, needs=LEAVES):
    """out, H and the gradients, of _experts.py as ops.py calls it."""
    tensors = [p[name] for name in ("x", "w13", "w2", "experts", "scores", "b13", "b2")]
    keeps = _experts.keeps_codes(*tensors[:3], o) and "w13" in needs
    out, hidden, saved = _experts.forward(*tensors, o, (None, None), keeps)
    is_fused = saved.numel() > 0
    x = None if keeps else p["x"]
    wanted = {name for name in needs if p[name] is not None}
    grads = _experts.backward(p["grad"], x, *tensors[1:], hidden, saved, o, wanted)
    found = {f"d{name}": getattr(grads, name) for name in LEAVES if name in wanted}
    return is_fused, {"out": out, "H": hidden, **found}


FUSED_RECIPES = ("none", "fp8_rowwise", "mxfp8_rceil", "mxfp8_floor", "mxfp8_rceil_wgrad_with_hp")


def options_of(recipe, recipe2=None, interleaved=False, clamped=False, on_input=False):
    text = config_text(recipe)
    return _experts.Options(text, config_text(recipe2 or recipe), interleaved, clamped, 1.702, 7.0, on_input)


def compare_layers(name, p, o, needs=LEAVES):
    is_fused, got = whole_layer(p, o, needs)
    _, again = whole_layer(p, o, needs)
    with by_operations():
        _, expected = whole_layer(p, o, needs)
    judge(f"{name}: it is not fused", is_fused)
    judge(f"{name}: results are not those of operations: {[*got]}, {[*expected]}", [*got] == [*expected])
    judge(f"{name}: a second call gives other bits", all(torch.equal(got[key], again[key]) for key in got))
    judge(f"{name}: H has other bits", torch.equal(got["H"], expected["H"]))
    reached = {key: decibels(expected[key], got[key]) for key in got if key != "H"}
    least = min(reached, key=reached.get)
    judge(f"{name}: {least} {reached[least]:.1f} dB of {', '.join(f'{k} {v:.1f}' for k, v in reached.items())}",
          reached[least] >= BAR_DB)
    return reached


def fused():
    shapes = ((300, 256, 192, 8, 3), (64, 72, 40, 4, 2), (500, 100, 90, 5, 1), (17, 64, 96, 33, 8))
    row("T, d, h, E, k", *(", ".join(map(str, shape)) for shape in shapes))
    for recipe in FUSED_RECIPES:
        for interleaved, clamped, on_input, biases in itertools.product((False, True), repeat=4):
            o = options_of(recipe, None, interleaved, clamped, on_input)
            words = [word for word, is_so in (("interleaved", interleaved), ("clamped", clamped), ("input", on_input),
                                              ("biases", biases)) if is_so]
            cells = []
            for seed, shape in enumerate(shapes):
                p = experts_problem(*shape, seed=seed, biases=biases)
                reached = compare_layers(f"{recipe} {', '.join(words)} {shape}", p, o)
                least = min(reached, key=reached.get)
                cells.append(f"{shown(reached[least])} {least}")
            row(f"{recipe}, {' '.join(words)}", *cells)


def fused_parts():
    """Two configs; some of the gradients; without scores; tokens in float32; addresses that are no multiple of 16."""
    shape = (300, 256, 192, 8, 3)
    for pair in (("fp8_rowwise", "mxfp8_rceil"), ("mxfp8_rceil", "fp8_rowwise"), ("none", "fp8_rowwise"),
                 ("mxfp8_rceil", "mxfp8_floor")):
        reached = compare_layers(f"{pair}", experts_problem(*shape, biases=True), options_of(*pair))
        row(f"{pair[0]} and {pair[1]}", shown(min(reached.values())))
    for recipe in FUSED_RECIPES[:3]:
        for needs in (("x",), ("w13",), ("w2",), ("scores",), ("b13",), ("b2",), ("x", "w2"), ("w13", "scores"),
                      ("w2", "b13"), ("b13", "b2")):
            p = experts_problem(*shape, biases=True)
            reached = compare_layers(f"{recipe}, gradients of {needs}", p, options_of(recipe), needs)
        p = experts_problem(*shape, scores=False)
        reached = compare_layers(f"{recipe}, without scores", p, options_of(recipe))
        p = experts_problem(*shape)
        p["x"] = torch.cat((p["x"].flatten(), p["x"].new_zeros(1)))[1:].view(p["x"].shape)
        p["experts"] = p["experts"].int()
        reached = compare_layers(f"{recipe}, x at an odd address", p, options_of(recipe))
        row(f"{recipe}, in parts", shown(min(reached.values())))
    for recipe in FUSED_RECIPES[1:3]:
        p = experts_problem(*shape)
        for name in ("x", "w13", "w2", "grad"):
            p[name] = p[name].float()
        reached = compare_layers(f"{recipe}, float32", p, options_of(recipe))
        row(f"{recipe}, float32", shown(min(reached.values())))


def leaves_of(p):
    return [None if p[name] is None else p[name].clone().requires_grad_(True) for name in LEAVES]


def public_layer(p, leaves, recipe, experts=None):
    x, w13, w2, scores, b13, b2 = leaves
    return moe8.moe_experts(x, w13, None, w2, p["experts"] if experts is None else experts, scores, config=recipe,
                            b1=b13, b2=b2)


def fused_by_torch():
    """The function that people call: eager, compiled, with kept weights, captured with another routing."""
    shape = (256, 256, 192, 8, 2)
    for recipe in ("none", "fp8_rowwise", "mxfp8_rceil"):
        p, other = experts_problem(*shape, biases=True), experts_problem(*shape, seed=5)["experts"]

        def step(function, leaves, experts):
            for leaf in leaves:
                leaf.grad = None
            out = function(p, leaves, recipe, experts)
            out.backward(p["grad"])
            return [out.detach()] + [leaf.grad for leaf in leaves]
        eager = step(public_layer, leaves_of(p), p["experts"])
        torch._dynamo.reset()
        compiled = step(torch.compile(public_layer, fullgraph=True), leaves_of(p), p["experts"])
        good = all(torch.equal(a, b) for a, b in zip(eager, compiled))
        row(f"{recipe}, compiled", "same bits" if good else "differs")
        judge(f"{recipe}: compiled", good)

        leaves, experts = leaves_of(p), p["experts"].clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                step(public_layer, leaves, experts)
        torch.cuda.current_stream().wait_stream(stream)
        for leaf in leaves:
            leaf.grad = None
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            replayed = step(public_layer, leaves, experts)
        good = True
        for routing in (other, p["experts"]):
            experts.copy_(routing)
            captured.replay()
            torch.cuda.synchronize()
            expected = step(public_layer, leaves_of(p), routing)
            good &= all(torch.equal(a, b) for a, b in zip(expected, replayed))
        row(f"{recipe}, replayed with another routing", "same bits" if good else "differs")
        judge(f"{recipe}: a captured layer", good)

    class Experts(torch.nn.Module):
        def __init__(self, p):
            super().__init__()
            self.w13, self.w2 = torch.nn.Parameter(p["w13"].clone()), torch.nn.Parameter(p["w2"].clone())

        def forward(self, x):
            config = moe8.conversion.converted_config(self, "w13")
            return moe8.moe_experts(x, self.w13, None, self.w2, p["experts"], p["scores"], config=config)
    results = []
    for mode in ("off", "on"):
        moe8.set_weight_cache(mode)
        model = Experts(p)
        moe8.quantize_(model, {"re:.*": "fp8_rowwise"}, unused="ignore")  # moe_experts keeps no records
        before, found = moe8.weight_cache_use(), []
        for _ in range(3):  # micro-batches of one step
            x = p["x"].clone().requires_grad_(True)
            out = model(x)
            out.backward(p["grad"])
            found += [out.detach(), x.grad]
        parameters = dict(model.named_parameters())
        results.append(found + [parameters["w13"].grad, parameters["w2"].grad])
        hits = moe8.weight_cache_use()["hits"] - before["hits"]
        judge(f"kept weights, {mode}: {hits} forms were found", hits > 0 if mode == "on" else hits == 0)
    moe8.set_weight_cache("auto")
    good = all(torch.equal(a, b) for a, b in zip(*results))
    row("kept weights", "same bits" if good else "differs", f"{hits} found")
    judge("kept weights", good)


# ---- time -------------------------------------------------------------------------------------------------
def host_us(function, calls=300):
    for _ in range(20):
        function()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    spent = time.perf_counter() - begin
    torch.cuda.synchronize()
    return spent / calls * 1e6


def overhead():
    x, w = (torch.randn(64, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    W = torch.randn(4, 128, 128, device="cuda", dtype=torch.bfloat16)
    offs = torch.tensor([16, 32, 48, 64], device="cuda", dtype=torch.int32)
    row("", "torch", "moe8")
    for grad in (False, True):
        w.requires_grad_(grad)
        W.requires_grad_(grad)
        gradients = "with gradients" if grad else "without gradients"
        row(f"linear, {gradients}", *(f"{host_us(call):.1f}" for call in (
            lambda: torch.nn.functional.linear(x, w), lambda: moe8.linear(x, w))))
        row(f"grouped_mm, {gradients}", *(f"{host_us(call):.1f}" for call in (
            lambda: torch._grouped_mm(x, W.transpose(1, 2), offs=offs),
            lambda: moe8.grouped_mm(x, W.transpose(1, 2), offs))))


def gpu_ms(function, calls=5):
    for _ in range(2):
        function()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / calls


def speed():
    row("M, K, N, E", "torch", "fp8_rowwise", "mxfp8_rceil")
    for M, K, N, E in ((16384, 2048, 1536, 64), (16384, 5120, 8192, 8)):
        A = torch.randn(M, K, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        W = torch.randn(E, N, K, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        offs = (torch.arange(1, E + 1, device="cuda") * (M // E)).int()
        grad = torch.randn(M, N, device="cuda", dtype=torch.bfloat16)

        def both(product):
            A.grad = W.grad = None
            product(A, W.transpose(1, 2)).backward(grad)
        times = [gpu_ms(lambda: both(lambda a, b: torch._grouped_mm(a, b, offs=offs)))]
        for recipe in ("fp8_rowwise", "mxfp8_rceil"):
            times.append(gpu_ms(lambda: both(lambda a, b: moe8.grouped_mm(a, b, offs, recipe))))
        row(f"{M}, {K}, {N}, {E}", *(f"{ms:.3f}" for ms in times))


# T, d, h, E, k
LAYERS = {"Llama 4 Scout": (131072, 5120, 8192, 8, 1), "DeepSeek-V3, 8 of its experts": (16384, 7168, 2048, 8, 8),
          "Qwen3-30B-A3B": (8192, 2048, 768, 128, 8), "GPT-OSS 20B": (8192, 2880, 2880, 32, 4)}


def layer_speed():
    """Forward and backward of all gradients, with weights that are quantized anew. Most memory: of one call."""
    row("T, d, h, E, k", "fused ms", "before ms", "gain", "fused GiB", "before GiB")
    for name, shape in LAYERS.items():
        gpt_oss = name.startswith("GPT")
        for recipe in ("none", "fp8_rowwise", "mxfp8_rceil"):
            p = experts_problem(*shape, biases=gpt_oss, ragged=False)
            o = options_of(recipe, None, gpt_oss, gpt_oss)
            needs = ("x", "w13", "w2", "scores") + (("b2",) if gpt_oss else ())
            ms, memory = [], []
            for path in (contextlib.nullcontext, unfused):
                with path():
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                    try:
                        ms.append(gpu_ms(lambda: whole_layer(p, o, needs)))
                    except torch.OutOfMemoryError:
                        ms.append(float("nan"))
                    memory.append((torch.cuda.max_memory_allocated() - before) / 2 ** 30)
            row(f"{name}, {recipe}", *(f"{x:.3f}" for x in ms), f"{ms[1] / ms[0]:.2f}", *(f"{x:.2f}" for x in memory))
            del p


@contextlib.contextmanager
def unfused():
    """The layer as it is where the fused kernels refuse."""
    _fused.is_wanted = False
    try:
        yield
    finally:
        _fused.is_wanted = True


def layer_overhead():
    """Of a layer so small that the host is what takes time; two operations, a forward and a backward."""
    p = experts_problem(64, 128, 64, 4, 2)
    row("", "forward", "with gradients", "and backward")
    for recipe in ("none", "fp8_rowwise", "mxfp8_rceil"):
        leaves = leaves_of(p)

        def forward():
            return public_layer(p, leaves, recipe)

        def both():
            forward().backward(p["grad"])
        with torch.no_grad():
            cells = [host_us(forward)]
        row(f"moe_experts, {recipe}", *(f"{us:.1f}" for us in cells + [host_us(forward), host_us(both)]))


PARTS = {"quantizers, of them with the CPU's bits": quantizers, "products and gradients, beside the CPU's": products,
         "the layer of experts": layers, "fused experts beside operations": fused,
         "fused experts in parts": fused_parts, "fused experts by torch": fused_by_torch,
         "CUDA graphs": graph, "us of the host per forward": overhead, "us of the host per layer": layer_overhead,
         "ms of forward and backward": speed, "ms of layers, forward and backward": layer_speed}


def main():
    refusal = gpu_refusal(0) if torch.cuda.is_available() else "torch sees no GPU"
    if refusal:
        print(f"python_on_gpu: expected a Hopper GPU and a moe8 built with CUDA: {refusal}", file=sys.stderr)
        return 2
    unknown = [name for name in sys.argv[1:] if not any(title.startswith(name) for title in PARTS)]
    if unknown:
        print(f"python_on_gpu: expected beginnings of {'; '.join(PARTS)}, got {unknown}", file=sys.stderr)
        return 2
    torch.manual_seed(1)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
    for title, part in PARTS.items():
        if sys.argv[1:] and not any(title.startswith(beginning) for beginning in sys.argv[1:]):
            continue
        print(title, flush=True)
        try:
            part()
        except Exception as error:  # the other parts have something to say as well
            traceback.print_exc()
            judge(f"{title}: broke off: {type(error).__name__}: {error}", False)
    print(f"{len(failures)} differ" + "".join(f"\n  {what}" for what in failures), flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
