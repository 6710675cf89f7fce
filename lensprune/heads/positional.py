"""Attention of heads to previous, duplicate and induction tokens and the first token; its entropy and distance."""

from __future__ import annotations

from collections import defaultdict

import torch
from einops import reduce
from jaxtyping import Float, Int

from lensprune.engine.patterns import read_patterns
from lensprune.errors import UserError
from lensprune.heads.registry import HeadScore, Measured, ScoreOptions, measured_by
from lensprune.heads.sequences import repeated_random_tokens
from lensprune.models.base import HookedModel
from lensprune.models.tokenizers import encode
from lensprune.precision import doubled

__all__ = ["ATTENTION_STATS", "POSITIONAL", "measure_attention_stats", "measure_positional"]

_ROWS = 4
"""Rows per forward pass: a pattern has rows × heads × positions² numbers."""


def measure_positional(model: HookedModel, options: ScoreOptions) -> Measured:
    """Mean attention to the previous, duplicate and induction token on repeated random tokens."""
    repeated = repeated_random_tokens(model, options.sequences, options.length, options.seed)
    size, start = repeated.length, repeated.prefix
    last = repeated.tokens.shape[1]
    # Attention to the first position is often a sink, so queries whose target key is there are left out.
    device = model.facts.device
    previous = torch.arange(2, last, device=device)
    second = torch.arange(max(start + size, size + 1), last, device=device)
    keys = {
        "previous_token": (previous, previous - 1),
        "duplicate_token": (second, second - size),
        "induction": (second, second - size + 1),
    }
    sums = {name: torch.zeros(model.facts.n_layers, model.facts.n_heads, dtype=torch.float64) for name in keys}

    def read(layer: int, pattern: Float[torch.Tensor, "row head query key"]) -> None:
        for name, (query, key) in keys.items():
            sums[name][layer] += doubled(pattern[:, :, query, key]).mean(-1).sum(0).cpu()

    for rows in repeated.tokens.split(_ROWS):
        read_patterns(model, rows, read)
    return {name: total / len(repeated.tokens) for name, total in sums.items()}


def measure_attention_stats(model: HookedModel, options: ScoreOptions) -> Measured:
    """Mean attention to the first token, entropy and distance, over all queries except the first."""
    sums: dict[str, torch.Tensor] = defaultdict(
        lambda: torch.zeros(model.facts.n_layers, model.facts.n_heads, dtype=torch.float64)
    )
    queries, over_keys = 0, "row head query key -> head"

    def read(layer: int, pattern: Float[torch.Tensor, "row head query key"]) -> None:
        attention = doubled(pattern[:, :, 1:])
        size = pattern.shape[-1]
        sums["attention_sink"][layer] += reduce(attention[..., 0], "row head query -> head", "sum").cpu()
        sums["attention_entropy"][layer] += reduce(torch.special.entr(attention), over_keys, "sum").cpu()
        places = torch.arange(size, device=pattern.device)
        distance = doubled((places[1:, None] - places[None]).clamp(min=0))
        sums["attention_distance"][layer] += reduce(attention * distance, over_keys, "sum").cpu()

    for rows in _texts(model, options):
        read_patterns(model, rows, read)
        queries += len(rows) * (rows.shape[1] - 1)
    return {name: total / queries for name, total in sums.items()}


def _texts(model: HookedModel, options: ScoreOptions) -> list[Int[torch.Tensor, "row pos"]]:
    if options.texts is None:
        tokens = repeated_random_tokens(model, options.sequences, options.length, options.seed).tokens
        return list(tokens.split(_ROWS))
    rows = [torch.tensor([encode(model, text)[: model.facts.n_ctx]]) for text in options.texts]
    rows = [row for row in rows if row.shape[1] > 1]
    if not rows:
        raise UserError("no text has two tokens, so there is no attention to measure: give longer texts")
    return rows


POSITIONAL: list[HeadScore] = measured_by(
    measure_positional,
    (
        "previous_token",
        "attention to position t − 1, mean over queries t ≥ 2 of random tokens repeated once",
        "Elhage et al. 2021, A Mathematical Framework for Transformer Circuits",
        "0 to 1",
    ),
    (
        "duplicate_token",
        "attention from the second occurrence of a random token to its first",
        "Wang et al. 2022, arXiv 2211.00593",
        "0 to 1",
    ),
    (
        "induction",
        "attention from the second occurrence of a random token to the token after its first (prefix matching)",
        "Olsson et al. 2022, arXiv 2209.11895",
        "0 to 1",
    ),
)
ATTENTION_STATS: list[HeadScore] = measured_by(
    measure_attention_stats,
    (
        "attention_sink",
        "attention to the first position, mean over all later queries",
        "Xiao et al. 2023, arXiv 2309.17453",
        "0 to 1",
    ),
    ("attention_entropy", "entropy of a query's attention, in nats, mean over queries", "Shannon 1948", "≥ 0"),
    (
        "attention_distance",
        "attention-weighted distance from query to key, in tokens, mean over queries",
        "Vig & Belinkov 2019, arXiv 1906.04284",
        "≥ 0",
    ),
)
