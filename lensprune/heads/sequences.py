"""Random tokens, repeated once: a model can predict the repeat only with its attention heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int

from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.models.tokenizers import encode

__all__ = ["RepeatedTokens", "repeated_random_tokens"]

_LONGEST = 50


@dataclass(frozen=True)
class RepeatedTokens:
    """Rows ``prefix, r, r``: `prefix` special tokens, then `length` distinct random tokens, twice."""

    tokens: Int[torch.Tensor, "row pos"]
    prefix: int
    length: int


def repeated_random_tokens(
    model: HookedModel, sequences: int = 8, length: int | None = None, seed: int = 0
) -> RepeatedTokens:
    """Draw rows of distinct ordinary tokens and repeat each once, after the BOS token where the policy adds one.

    Args:
        length: tokens drawn for each row; ``None`` takes 50, or as many as context and vocabulary allow.

    Raises:
        UserError: fewer than one row, fewer than two tokens, or more than the context or vocabulary allows.
    """
    if sequences < 1:
        raise UserError(f"sequences {sequences} is not a number of rows: expected 1 or more")
    special = set(model.tokenizer.all_special_ids)
    pool = torch.tensor([i for i in range(min(model.facts.d_vocab, len(model.tokenizer))) if i not in special])
    prefix = encode(model, "")
    most = min(len(pool), (model.facts.n_ctx - len(prefix)) // 2)
    length = min(_LONGEST, most) if length is None else length
    if not 2 <= length <= most:
        raise UserError(
            f"length {length} of the repeated random tokens is out of range: {model.facts.name} allows 2 to {most} "
            f"({len(pool)} ordinary tokens, context {model.facts.n_ctx})"
        )
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(sequences):
        drawn = pool[torch.randperm(len(pool), generator=generator)[:length]]
        rows.append(torch.cat([torch.tensor(prefix, dtype=torch.long), drawn, drawn]))
    return RepeatedTokens(torch.stack(rows), len(prefix), length)
