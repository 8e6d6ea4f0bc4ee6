# SPDX-License-Identifier: BSD-3-Clause
"""transformers' models with experts_implementation="moe8": logits and gradients beside eager experts in float32."""
import copy

import pytest
import torch
from conftest import sqnr

import moe8
import moe8.integrations.transformers as moe8_transformers

transformers = pytest.importorskip("transformers")

SHAPE = dict(vocab_size=128, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=None)
EXPERTS = dict(num_experts=8, num_experts_per_tok=2)
FAMILIES = {
    "Qwen3Moe": dict(SHAPE, **EXPERTS, head_dim=16, moe_intermediate_size=48, norm_topk_prob=True),
    "Olmoe": dict(SHAPE, **EXPERTS, intermediate_size=48),
    "Mixtral": dict(SHAPE, num_local_experts=8, num_experts_per_tok=2, intermediate_size=48),
    "GptOss": dict(SHAPE, num_local_experts=8, num_experts_per_tok=2, head_dim=16, intermediate_size=64),
    "DeepseekV3": dict(SHAPE, num_key_value_heads=4, first_k_dense_replace=1, intermediate_size=64,
                       moe_intermediate_size=48, n_routed_experts=8, num_experts_per_tok=2, n_group=2, topk_group=1,
                       q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16,
                       n_shared_experts=1),
}
IDS = torch.randint(0, 128, (2, 32), generator=torch.Generator(torch.get_default_device()).manual_seed(1))


@pytest.fixture(autouse=True)
def registered():
    moe8_transformers.register()


def build(family, implementation="moe8"):
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    config._attn_implementation = "eager"
    config._experts_implementation = implementation
    return getattr(transformers, f"{family}ForCausalLM")(config).float()


def experts_of(model):
    return next(m for m in model.modules() if isinstance(getattr(m, "gate_up_proj", None), torch.Tensor))


def result(layer, x, index, weights, grad):
    x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x, index, weights)
    y.backward(grad)
    return [y, x.grad, weights.grad] + [p.grad for _, p in sorted(layer.named_parameters())]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", ["fp8_rowwise", "mxfp8_rceil"])
def test_layer_within_the_bars(family, recipe):
    plain = experts_of(build(family, "eager"))
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    layer = copy.deepcopy(plain)
    layer.config = copy.deepcopy(plain.config)
    layer.config._experts_implementation = "moe8"
    moe8.quantize_(layer, {"": recipe}, unused="error")
    x, grad = torch.randn(96, 64), torch.randn(96, 64)
    weights, index = torch.randn(96, 8).softmax(-1).topk(2)
    for expected, got in zip(result(plain, x, index, weights, grad), result(layer, x, index, weights, grad)):
        assert expected.shape == got.shape and expected.dtype == got.dtype
        assert sqnr(expected, got) > 22, family  # docs/numerics.md, section 6: a layer has 23 dB
    assert not moe8.check_conversion(layer).complaints()


@pytest.mark.parametrize("implementation", ["moe8", "eager", "grouped_mm", "batched_mm"])
def test_model_trains(implementation):
    reference = build("Qwen3Moe", "eager")
    model = copy.deepcopy(reference)
    model.config._experts_implementation = implementation
    names = list(model.state_dict())
    report = moe8.quantize_(model, {"re:.*experts.*": "fp8_rowwise", "re:.*_proj.weight": "rowwise"}, unused="error")
    assert len(report.converted()) == 12 and list(model.state_dict()) == names
    expected, got = (m(IDS, labels=IDS) for m in (reference, model))
    assert sqnr(expected.logits, got.logits) > 23
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert not moe8.check_conversion(model).complaints()


def test_compiled_model_is_eager():
    model = build("Qwen3Moe")
    model.config.use_cache = False
    moe8.quantize_(model, {"re:.*experts.*": "fp8_rowwise", "re:.*_proj.weight": "rowwise"}, unused="error")
    results = []
    torch._dynamo.reset()
    for function in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        out = function(input_ids=IDS, labels=IDS)
        out.loss.backward()
        results.append([out.logits.detach()] + [p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_files(tmp_path):
    model = build("Qwen3Moe")
    moe8.quantize_(model, {"re:.*experts.*": "fp8_rowwise"})
    expected = model(IDS).logits
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="moe8",
                                                              attn_implementation="eager", dtype=torch.float32)
    moe8.quantize_(again, {"re:.*experts.*": "fp8_rowwise"})
    assert torch.equal(again(IDS).logits, expected)


def test_recipe_of_register():
    model = build("Qwen3Moe")
    with pytest.raises(moe8.Error, match="expected a converted weight of Qwen3MoeExperts, got a plain one"):
        model(IDS)
    moe8_transformers.register("mxfp8_rceil")
    got = model(IDS).logits
    moe8_transformers.register()
    moe8.quantize_(model, {"re:.*experts.*": "mxfp8_rceil"})
    assert torch.equal(model(IDS).logits, got)


@pytest.mark.parametrize("converts", [True, False])
def test_other_activations_run_between_the_products(converts):
    plain = experts_of(build("Qwen3Moe", "eager"))
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    plain.act_fn = torch.nn.GELU()
    layer = copy.deepcopy(plain)
    layer.config = copy.deepcopy(plain.config)
    layer.config._experts_implementation = "moe8"
    if converts:
        moe8.quantize_(layer, {"": "fp8_rowwise"}, unused="error")
    else:
        moe8_transformers.register("fp8_rowwise")
    x, grad = torch.randn(96, 64), torch.randn(96, 64)
    weights, index = torch.randn(96, 8).softmax(-1).topk(2)
    index[5] = 8  # of no expert, as with expert parallelism
    eager = result(plain, x, index, weights, grad)
    for expected, got in zip(eager, result(layer, x, index, weights, grad)):
        assert expected.shape == got.shape and expected.dtype == got.dtype
        assert 22 < sqnr(expected, got) < 60
    torch._dynamo.reset()
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, index, weights)
    assert torch.equal(y, layer(x, index, weights))


def test_norms_of_experts():
    layer = experts_of(build("Qwen3Moe"))
    moe8.quantize_(layer, {"": "fp8_rowwise"}, unused="error")
    layer.act_fn, norm = torch.nn.GELU(), torch.nn.RMSNorm(64)
    x, index, one = torch.randn(96, 64), torch.randint(0, 8, (96, 1)), torch.ones(96, 1)
    expected = norm(layer(x, index, one))
    layer.has_post_expert_norm, layer.post_expert_norm = True, norm
    assert torch.equal(layer(x, index, one), expected)
