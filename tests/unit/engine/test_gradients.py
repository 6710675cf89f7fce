"""Gradient rules: the forward pass stays as it is, and gradients are those of a model that is written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import linear, silu
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lensprune.attribution.gradient import metric_gradients
from lensprune.engine.gradient_rules import GRADIENT_RULES
from lensprune.engine.gradients import gradient_rule
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from tests.helpers.tiny_models import double, tiny
from tests.helpers.tolerances import assert_tensors_agree, size_of

TOKENS = torch.tensor([[13, 5, 7, 11, 2, 9], [4, 6, 30, 41, 8, 77]])
LAST = 3
FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "phi3", "gpt2", "gpt_neox", "olmo2"]


def metric(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 100] - logits[:, 101]


def logits_of(model: HookedModel) -> torch.Tensor:
    positions = torch.arange(TOKENS.shape[1]).expand(len(TOKENS), -1)
    with torch.enable_grad():
        return model.forward(TOKENS, torch.ones_like(TOKENS), positions).detach()


def gradients(model: HookedModel, rule: str, names: list[str]) -> tuple[torch.Tensor, dict[str, Any], dict[str, Any]]:
    with gradient_rule(model, rule):
        return metric_gradients(model, TOKENS, metric, names)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rule_changes_no_logit_and_every_rule_has_gradients_of_its_own(family: str) -> None:
    model = tiny(family)
    clean = logits_of(model)
    found = []
    for rule in GRADIENT_RULES:
        with gradient_rule(model, rule):
            assert torch.equal(logits_of(model), clean)
        found.append(gradients(model, rule, ["blocks.0.hook_resid_post"])[2]["blocks.0.hook_resid_post"])
        assert bool(found[-1].isfinite().all())
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert float((found[one] - found[other]).abs().max()) > 1e-3 * float(found[0].abs().max())
    again = gradients(model, "plain", ["blocks.0.hook_resid_post"])[2]["blocks.0.hook_resid_post"]
    assert torch.equal(again, found[0])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "mistral", "olmo2"])
def test_relevance_is_conserved_where_there_are_no_biases(family: str) -> None:
    model = double(family)
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(LAST)] + ["blocks.0.hook_resid_pre"]
    value, activations, relevance = gradients(model, "relp", names)
    for name in names:
        total = (activations[name] * relevance[name]).sum((1, 2))
        assert_tensors_agree(total, value, torch.float32, size=size_of(activations[name] * relevance[name]), terms=64)
    # The plain gradient of what a norm reads has no component along it.
    _, activations, plain = gradients(model, "plain", names)
    last = f"blocks.{LAST - 1}.hook_resid_post"
    assert float((activations[last] * plain[last]).sum((1, 2)).abs().max()) < 1e-3 * float(value.abs().max())


@pytest.mark.parametrize("rule", ["relp", "gim"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_the_final_norm_is_held(family: str, rule: str) -> None:
    model = double(family)
    name = f"blocks.{LAST - 1}.hook_resid_post"
    value, activations, held = gradients(model, rule, [name])
    bias = None if family != "gpt2" else model.module.ln_final.bias.detach()
    weights: Any = model.module.W_U
    difference = weights[:, 100] - weights[:, 101]
    constant = 0.0 if bias is None else float(bias.double() @ difference.double())
    total = (activations[name] * held[name]).sum((1, 2))
    assert_tensors_agree(total, value - constant, torch.float32, size=size_of(activations[name] * held[name]), terms=64)


class Llama:
    """A Llama by hand, with gradients as a rule says, from the residual stream before the first block to the logits."""

    def __init__(self, model: HookedModel, rule: str) -> None:
        self.rule = rule
        module: Any = model.module
        self.hf: Any = module.original_model
        self.weights = dict(self.hf.named_parameters())
        self.facts = model.facts

    def weight(self, ending: str) -> torch.Tensor:
        """The one weight whose name, without what the bridge inserts, ends so."""
        [found] = [w for name, w in self.weights.items() if clean_name(name).endswith(ending)]
        return found.detach().double()

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self.hf.config.rms_norm_eps).sqrt()
        return x / (scale if self.rule == "plain" else scale.detach()) * self.weight(name)

    def attention(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        rows, size, _ = x.shape
        heads = [linear(x, self.weight(f"{layer}self_attn.{n}_proj.weight")).view(rows, size, -1, 8) for n in "qkv"]
        q, k, v = (h.transpose(1, 2) for h in heads)
        cos, sin = self.hf.model.rotary_emb(x, torch.arange(size)[None])
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
        scores = q @ k.transpose(-2, -1) / 8**0.5
        if self.rule == "gim":
            scores = halve(scores)
        scores = scores.masked_fill(torch.ones(size, size).triu(1).bool(), -1e30)
        pattern = scores.softmax(-1)
        if self.rule == "relp":
            pattern = pattern.detach()
        elif self.rule == "gim":
            softer = 2 * (scores / 2).softmax(-1)
            pattern = pattern.detach() + softer - softer.detach()
        z = pattern @ v
        if self.rule == "gim":
            z = halve(z)
        z = z.transpose(1, 2).reshape(rows, size, -1)
        return linear(z, self.weight(f"{layer}self_attn.o_proj.weight"))

    def mlp(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        gate, up = (linear(x, self.weight(f"{layer}mlp.{name}_proj.weight")) for name in ("gate", "up"))
        post = silu(gate) * up
        if self.rule == "relp":
            post = (gate * (silu(gate) / gate * up).detach() + up * silu(gate).detach()) / 2
        return linear(post, self.weight(f"{layer}mlp.down_proj.weight"))

    def __call__(self, residual: torch.Tensor) -> torch.Tensor:
        for number in range(self.facts.n_layers):
            layer = f"layers.{number}."
            residual = residual + self.attention(self.norm(residual, f"{layer}input_layernorm.weight"), layer)
            residual = residual + self.mlp(self.norm(residual, f"{layer}post_attention_layernorm.weight"), layer)
        return linear(self.norm(residual, "model.norm.weight"), self.weight("lm_head.weight"))


def clean_name(name: str) -> str:
    return name.replace("_original_component.", "").replace("original_component.", "")


def halve(x: torch.Tensor) -> torch.Tensor:
    return x / 2 + x.detach() / 2


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_gradients_are_those_of_a_llama_by_hand(rule: str) -> None:
    model = double("llama")
    start = "blocks.0.hook_resid_pre"
    value, activations, found = gradients(model, rule, [start])
    residual = activations[start].clone().requires_grad_()
    expected = metric(Llama(model, rule)(residual)[:, -1])
    assert_tensors_agree(expected.detach(), value, torch.float32)
    [gradient] = torch.autograd.grad(expected.sum(), [residual])
    assert_tensors_agree(found[start], gradient, torch.float32, terms=64)


def test_without_a_gate_an_activation_function_is_its_value_over_its_input() -> None:
    model = double("gpt2")
    pre, post = "blocks.1.mlp.hook_pre", "blocks.1.mlp.hook_post"
    _, activations, found = gradients(model, "relp", [pre, post])
    assert_tensors_agree(found[pre], found[post] * activations[post] / activations[pre], torch.float32)


@pytest.mark.parametrize(
    ("family", "rule", "message"),
    [
        (
            "mixtral",
            "relp",
            "gradient rule relp does not work with Mixtral.*hook_post is not an elementwise function of",
        ),
        (
            "gpt_neo",
            "relp",
            "gradient rule relp does not work with GPTNeo.*hook_pattern does not reach the logits; use rule",
        ),
        ("gpt_neo", "gim", "gradient rule gim does not work with GPTNeo.*hook_attn_scores never runs"),
        (
            "llama4",
            "gim",
            "gradient rule gim does not work with Llama4.*a norm of type Llama4TextL2Norm has no weight vector",
        ),
        ("gpt_oss", "gim", "gradient rule gim does not work with GptOss.*is not the softmax of"),
        ("llama", "relevance", "unknown gradient rule 'relevance'"),
    ],
)
def test_refusals(family: str, rule: str, message: str) -> None:
    with pytest.raises(UserError, match=message), gradient_rule(tiny(family), rule):
        raise AssertionError("was not refused")


def test_nothing_is_left_behind() -> None:
    model = tiny("llama")
    before = gradients(model, "plain", ["blocks.1.attn.hook_z"])[2]["blocks.1.attn.hook_z"]
    with pytest.raises(RuntimeError, match="stop"), gradient_rule(model, "gim"):
        raise RuntimeError("stop")
    after = gradients(model, "plain", ["blocks.1.attn.hook_z"])[2]["blocks.1.attn.hook_z"]
    assert torch.equal(before, after)
    assert float(before.abs().max()) > 0
