"""Ablations against independent computations with plain transformers, on every family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lensprune.ablation import (
    Ablation,
    Attention,
    Head,
    KVGroup,
    Layer,
    Variant,
    layer_range,
)
from lensprune.models.base import HookedModel
from tests.helpers.families import FAMILIES, hf_model
from tests.helpers.logits import hooked_logits, plain_logits
from tests.helpers.tiny_models import tiny
from tests.helpers.tolerances import assert_tensors_agree, equal

TEXT = "Seven brave mice ran over the wall"


def under(model: HookedModel, variant: Variant) -> torch.Tensor:
    return hooked_logits(model, model.tokenizer.encode(TEXT), variant)


def plain(hf: Any, model: HookedModel) -> torch.Tensor:
    return plain_logits(hf, model.tokenizer.encode(TEXT))


def plain_model(family: str) -> tuple[Any, Sequence[torch.nn.Module]]:
    hf = hf_model(family)
    base = getattr(hf, "model", None) or getattr(hf, "transformer", None) or hf.gpt_neox
    return hf, base.h if hasattr(base, "h") else base.layers


def output_projection(layer: torch.nn.Module) -> torch.nn.Module:
    """The module that maps concatenated heads to the residual stream."""
    for path in ("self_attn.o_proj", "attn.c_proj", "attention.dense"):
        try:
            return layer.get_submodule(path)
        except AttributeError:
            continue
    raise AssertionError("no output projection found")


def zero_head_columns(layer: torch.nn.Module, heads: Sequence[int], d_head: int) -> None:
    projection = output_projection(layer)
    columns = torch.cat([torch.arange(h * d_head, (h + 1) * d_head) for h in heads])
    with torch.no_grad():
        if type(projection).__name__ == "Conv1D":
            projection.weight[columns, :] = 0
        else:
            projection.weight[:, columns] = 0


@pytest.mark.parametrize("family", FAMILIES)
def test_clean_equals_transformers(family: str) -> None:
    model = tiny(family)
    hf, _ = plain_model(family)
    assert_tensors_agree(under(model, Variant("clean")), plain(hf, model), torch.float32)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_skip_equals_bypassed_block(family: str, layer: int) -> None:
    model = tiny(family)
    hf, layers = plain_model(family)

    def bypass(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    clean = plain(hf, model)
    layers[layer].register_forward_hook(bypass, with_kwargs=True)
    expected = plain(hf, model)
    assert (expected - clean).abs().max() > 1e-2
    variant = Variant("skip", (Ablation(Layer(layer), "skip"),))
    assert_tensors_agree(under(model, variant), expected, torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_range_of_all_layers_leaves_the_embedding(family: str) -> None:
    model = tiny(family)
    hf, layers = plain_model(family)
    for layer in layers:
        layer.register_forward_hook(
            lambda module, args, kwargs, output: args[0] if args else kwargs["hidden_states"], with_kwargs=True
        )
    assert_tensors_agree(under(model, layer_range(model, 0, 2)), plain(hf, model), torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_zeroed_head_equals_zeroed_projection_columns(family: str) -> None:
    model = tiny(family)
    hf, layers = plain_model(family)
    clean = plain(hf, model)
    zero_head_columns(layers[1], [2], model.facts.d_head)
    expected = plain(hf, model)
    assert (expected - clean).abs().max() > 1e-3
    variant = Variant("head", (Ablation(Head(1, 2), "zero"),))
    assert_tensors_agree(under(model, variant), expected, torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_heads_zeroed_is_attention_zeroed_up_to_bias(family: str) -> None:
    model = tiny(family)
    hf, layers = plain_model(family)
    heads = Variant("heads", tuple(Ablation(Head(1, h), "zero") for h in range(model.facts.n_heads)))
    zero_head_columns(layers[1], range(model.facts.n_heads), model.facts.d_head)
    assert_tensors_agree(under(model, heads), plain(hf, model), torch.float32)
    bias = getattr(output_projection(layers[1]), "bias", None)
    if bias is not None:
        with torch.no_grad():
            bias.zero_()
    attention = Variant("attention", (Ablation(Attention(1), "zero"),))
    assert_tensors_agree(under(model, attention), plain(hf, model), torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_group_is_the_union_of_its_heads_which_differ_singly(family: str) -> None:
    model = tiny(family)
    size = model.facts.heads_per_group
    group = under(model, Variant("g", (Ablation(KVGroup(1, 1), "zero"),)))
    members = range(size, 2 * size)
    union = under(model, Variant("u", tuple(Ablation(Head(1, h), "zero") for h in members)))
    # The same values are set to zero in the same arithmetic.
    assert equal(group, union)
    assert group.any()
    single = [under(model, Variant("s", (Ablation(Head(1, h), "zero"),))) for h in members]
    for i, first in enumerate(single):
        for second in single[i + 1 :]:
            assert (first - second).abs().max() > 1e-4
