"""Retrieval heads: heads that attend to a token in the context at the step at which the model generates it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float

from lensprune.engine.generating import Generator
from lensprune.engine.patterns import pattern_hooks
from lensprune.errors import UserError
from lensprune.heads.registry import HeadScore, Measured, ScoreOptions, measured_by
from lensprune.heads.writing import logit_contributions
from lensprune.models.base import HookedModel
from lensprune.models.spans import encode_with_spans
from lensprune.precision import doubled
from lensprune.protocols import (
    GenerateRequest,
    GenerateResponse,
    ItemRequests,
    build_requests,
    score_items,
)
from lensprune.tasks import load_task

__all__ = ["RETRIEVAL", "Needle", "kv_needles", "measure_retrieval", "retrieval_scores"]

logger = logging.getLogger("lensprune")


@dataclass(frozen=True)
class Needle:
    """A prompt and the positions of the needle in it: the tokens that the answer repeats."""

    request: GenerateRequest
    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.positions:
            raise UserError("a needle has no token in its prompt: the prompt was cut, or does not contain the needle")


def retrieval_scores(
    model: HookedModel, needles: Sequence[Needle]
) -> tuple[Float[torch.Tensor, "needle layer head"], list[GenerateResponse]]:
    """Share of each needle's tokens that a head copies while the model generates greedily (arXiv 2404.15574).

    At a step that generates token w, a head copies w if the position it attends to most is part of the needle and
    contains w. The score is the number of needle positions copied divided by the number of needle positions; a position
    counts once.

    Returns:
        The scores of every needle, and the generated texts, so that the caller can judge which answers are right.
    """
    scores = torch.zeros(len(needles), model.facts.n_layers, model.facts.n_heads, dtype=torch.float64)
    responses = []
    for index, needle in enumerate(needles):
        copied = torch.zeros(model.facts.n_layers, model.facts.n_heads, len(needle.positions), dtype=torch.bool)
        responses.append(_generate(model, needle, copied))
        scores[index] = doubled(copied).mean(-1)
    return scores, responses


def _generate(model: HookedModel, needle: Needle, copied: torch.Tensor) -> GenerateResponse:
    """Generate greedily and mark in `copied` [layer, head, needle position] what each head copies."""
    request, device = needle.request, model.facts.device
    where = torch.tensor(needle.positions)
    held = torch.tensor(request.context_ids)[where]
    favourite = torch.zeros(model.facts.n_layers, model.facts.n_heads, dtype=torch.long)

    def read(layer: int, pattern: Float[torch.Tensor, "row head query key"]) -> None:
        favourite[layer] = pattern[0, :, -1].argmax(-1).cpu()

    generator = Generator(model)
    generation = generator.start(request)
    tokens = torch.tensor([request.context_ids], device=device)
    mask = torch.ones_like(tokens)
    positions = torch.arange(tokens.shape[1], device=device)[None]
    cache = model.new_cache()
    response = None
    with torch.inference_mode(), model.hooks(pattern_hooks(model, read)):
        while response is None:
            logits = model.forward(tokens, mask, positions, cache=cache, logits_to_keep=1)[:, -1]
            response = generation.add(int(generator.choose(logits, [generation])))
            copied |= (favourite[..., None] == where) & (held == generation.last)
            tokens = torch.tensor([[generation.last]], device=device)
            mask = torch.cat([mask, mask[:, :1]], dim=1)
            positions = positions[:, -1:] + 1
    return response


def measure_retrieval(model: HookedModel, options: ScoreOptions) -> Measured:
    """Measure `retrieval_scores` and `logit_contributions` on key-value retrieval, averaged over correctly answered
    items.

    If no item is answered correctly, all scores are NaN, with a warning.
    """
    loaded = load_task("kv_retrieval", limit=options.limit, shots=options.shots, seed=options.seed)
    item_requests = build_requests(model, loaded, "generate")
    needles = kv_needles(model, item_requests)
    scores, responses = retrieval_scores(model, needles)
    right = [outcome.correct for outcome in score_items(loaded, "generate", item_requests, responses)]
    if not any(right):
        logger.warning(
            "%s answers none of %d key-value items right: its retrieval scores are NaN", model.facts.name, len(right)
        )
        return dict.fromkeys(("retrieval", "logit_contribution"), torch.full(scores.shape[1:], torch.nan))
    answered = [pair for pair, is_right in zip(zip(needles, responses, strict=True), right, strict=True) if is_right]
    written = logit_contributions(
        model,
        [needle.request.context_ids for needle, _ in answered],
        [response.token_ids for _, response in answered],
        [needle.positions for needle, _ in answered],
    )
    return {"retrieval": scores[torch.tensor(right)].mean(0), "logit_contribution": written.nanmean(0)}


def kv_needles(model: HookedModel, item_requests: Sequence[ItemRequests]) -> list[Needle]:
    """The needles of key-value items: the tokens of the queried key's value in the item's JSON object.

    Args:
        item_requests: `ItemRequests` of kv_retrieval under ``generate``.
    """
    needles = []
    for item in item_requests:
        text, request = item.prompts[0].context, item.requests[0]
        if not isinstance(request, GenerateRequest):
            raise UserError("needles are made of items of kv_retrieval under generate")
        encoded = encode_with_spans(model, text)
        pair = f'"{item.item.doc["key"]}": "'
        start = text.rindex(pair + str(item.item.doc["value"])) + len(pair)
        positions = encoded.positions(start, start + len(str(item.item.doc["value"])))
        cut = item.truncated_tokens
        needles.append(Needle(request, tuple(p - cut for p in positions if p >= cut)))
    return needles


RETRIEVAL: list[HeadScore] = measured_by(
    measure_retrieval,
    (
        "retrieval",
        "share of the value's tokens at which the head attends most to the value when the model generates it, over "
        "right answers of kv_retrieval",
        "Wu et al. 2024, arXiv 2404.15574",
        "0 to 1",
    ),
    (
        "logit_contribution",
        "what the head writes towards a token of the value when the model generates it, from the value's positions "
        "minus from all others, over right answers of kv_retrieval",
        "after Gema et al. 2026, arXiv 2607.01002",
        "logits",
    ),
)
