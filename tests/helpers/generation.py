"""Prompts and variants that put shared prefixes, ragged ends and every way of ablation through generation."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from lensprune.ablation import (
    CLEAN,
    MLP,
    Ablation,
    Attention,
    Head,
    Layer,
    Variant,
    each_attention,
    each_head,
    each_kv_group,
    each_layer,
    each_mlp,
    layer_range,
)
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import GenerateRequest, Request

__all__ = ["REFERENCE_PROMPTS", "requests_for", "requests_for_windows", "variants_for"]

REFERENCE_PROMPTS = [[10, 11, 12, 13], [20, 21, 22], [30, 31, 32, 33, 34, 35]]
PREFIXES = (
    "The quick brown fox jumps over the lazy dog and then it runs. ",
    "Once upon a time there was a small cat, ",
)
ENDINGS = ("A", "What did it do", "Who?", "Why did the dog not see it coming at all")


def requests_for(model: HookedModel, new_tokens: int = 14) -> list[Request]:
    """Two shared prefixes, ragged rests, a prompt that is a prefix of another, one prompt asked twice, one alone."""
    encode = model.tokenizer.encode
    texts = [prefix + ending for prefix in PREFIXES for ending in ENDINGS] + [PREFIXES[0], "Alone"]
    requests = [GenerateRequest(tuple(encode(text)), ("\x00",), new_tokens - i % 4 * 3) for i, text in enumerate(texts)]
    return [*requests, replace(requests[2], max_new_tokens=2), replace(requests[2], until=("e", "\x00"))]


def requests_for_windows(new_tokens: int = 10) -> list[Request]:
    """Prompts of token ids: two shared prefixes, of 50 and 40 tokens, with 1 to 14 tokens after them, and one alone."""
    rng = Random(0)
    rests = [tuple(rng.randrange(60, 200) for _ in range(length)) for length in (1, 2, 3, 9, 14, 6)]
    prompts = [
        *(tuple(range(5, 55)) + rest for rest in rests[:5]),
        *(tuple(range(15, 55)) + rest for rest in rests[1:4]),
        rests[5],
    ]
    return [GenerateRequest(prompt, ("\x00",), new_tokens) for prompt in prompts]


def variants_for(model: HookedModel) -> list[Variant]:
    mixed = (
        Ablation(Head(0, 1), "zero"),
        Ablation(MLP(0), "zero"),
        Ablation(Head(1, 0), "resample"),
        Ablation(Layer(2), "mean"),
        Ablation(Attention(2), "zero"),
    )
    return [
        *each_layer(model),
        *each_layer(model, "mean"),
        *each_layer(model, "resample"),
        CLEAN,
        *each_attention(model),
        *each_attention(model, "mean"),
        *each_attention(model, "resample", [1]),
        *each_mlp(model),
        *each_mlp(model, "resample"),
        *each_head(model, layers=[0, 2], heads=[1, 3]),
        *each_head(model, "mean", [1], [0, 1]),
        *each_head(model, "resample", [2], [0]),
        *each_kv_group(model, "zero"),
        *each_kv_group(model, "mean", [1]),
        layer_range(model, 0, 1),
        layer_range(model, 1, 2),
        layer_range(model, 0, 2),
        Variant("mixed", mixed),
    ]
