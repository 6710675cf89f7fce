"""Rows of token ids to left-padded batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int

from lensprune.errors import UserError

__all__ = ["PaddedBatch", "batches_by_length", "pad_left"]


@dataclass(frozen=True)
class PaddedBatch:
    """Left-padded rows; `position_ids` counts from each row's first real token, padding has position 0."""

    input_ids: Int[torch.Tensor, "batch pos"]
    attention_mask: Int[torch.Tensor, "batch pos"]
    position_ids: Int[torch.Tensor, "batch pos"]


def pad_left(rows: Sequence[Sequence[int]], pad_id: int, device: str | torch.device) -> PaddedBatch:
    """Stack rows of unequal length, padded on the left, so that the last position holds every row's last token."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    steps = torch.arange(width)[None] - (width - lengths)[:, None]
    return PaddedBatch(ids.to(device), (steps >= 0).long().to(device), steps.clamp(min=0).to(device))


def batches_by_length(
    lengths: Sequence[int], max_tokens: int, labels: Sequence[Hashable] | None = None
) -> Iterator[list[int]]:
    """Group row indices, longest first, so that rows × longest length stays within `max_tokens`.

    A row longer than `max_tokens` forms a batch of its own. Rows with unequal `labels` are never in one batch.

    Raises:
        UserError: `max_tokens` is not positive.
    """
    if max_tokens <= 0:
        raise UserError(f"the batch budget must be a positive number of tokens, not {max_tokens}")
    labelled: dict[Hashable, list[int]] = defaultdict(list)
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        labelled[labels[index] if labels is not None else None].append(index)
    for indices in labelled.values():
        batch: list[int] = []
        for index in indices:
            if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
                yield batch
                batch = []
            batch.append(index)
        yield batch
