"""Keys and values to decode from: the clean model's once for all variants, each variant's own above its first change.

Generated tokens' keys and values follow each prompt's rest in the same buffer, so a decode step attends to a shared
prefix, and to everything else of a row in one block. Where a variant still equals the clean model, the rows that have
the same prompt and the same generated tokens share one history, whatever their variant.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int

from lensprune.engine.prompts import PromptSet

__all__ = ["CleanKV", "HistoryKV", "OwnKV", "PromptKV"]

GROWTH = 32
"""Columns for generated tokens are added so many at a time."""

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass
class PromptKV:
    """One model's keys and values of a prompt set at one layer.

    `rest`: [prompt, kv_head, width, d_head] each, zero where padded; `prefixes`: [kv_head, length, d_head] each.
    """

    rest: Pair
    prefixes: list[Pair]

    @classmethod
    def of(cls, prompts: PromptSet, k: torch.Tensor, v: torch.Tensor) -> PromptKV:
        """From flat keys and values [kv_head, tok, d_head]."""
        index = prompts.rest.to(k.device)
        padded = ~prompts.real.to(k.device)[:, None, :, None]
        rest = tuple(t[:, index].transpose(0, 1).masked_fill(padded, 0) for t in (k, v))
        spans = [slice(prefix.start, prefix.end) for prefix in prompts.prefixes]
        return cls((rest[0], rest[1]), [(k[:, span].clone(), v[:, span].clone()) for span in spans])


CleanKV = dict[int, PromptKV]
"""By layer."""


@dataclass
class OwnKV:
    """Keys and values, at one layer, of the rows whose variant already differs from the clean model below it.

    Rows are those of `variants`, one after the other. `rest` is [row, kv_head, width + generated, d_head];
    `prefixes` [variant, kv_head, length, d_head].
    """

    width: int
    rest: Pair
    prefixes: list[Pair] = field(default_factory=list)

    @classmethod
    def empty(cls, like: PromptKV, n_variants: int, n_requests: int, columns: int) -> OwnKV:
        """Room for the prompts of so many variants, one row a request, and for `columns` generated tokens."""
        first = like.rest[0]
        _, n_kv, width, d_head = first.shape
        shape = (n_variants * n_requests, n_kv, width + columns, d_head)
        prefixes = [(k.new_zeros(n_variants, *k.shape), v.new_zeros(n_variants, *v.shape)) for k, v in like.prefixes]
        return cls(width, (first.new_zeros(shape), first.new_zeros(shape)), prefixes)

    def fill(self, variant: int, part: PromptKV, prompt_of: Int[torch.Tensor, " request"]) -> None:
        """Write one variant's prompts, in its place among the variants."""
        n = len(prompt_of)
        for whole, mine in zip(self.rest, part.rest, strict=True):
            whole[variant * n : (variant + 1) * n, :, : self.width] = mine[prompt_of]
        for whole_prefix, own in zip(self.prefixes, part.prefixes, strict=True):
            for whole, mine in zip(whole_prefix, own, strict=True):
                whole[variant] = mine

    def __len__(self) -> int:
        return self.rest[0].shape[0]

    def keep(
        self, rows: Int[torch.Tensor, " row"] | None, variants: Int[torch.Tensor, " variant"] | None, columns: int
    ) -> None:
        """Keep only these rows and variants (``None``: all), with room for `columns` generated tokens."""
        self.rest = _kept(self.rest, rows, self.width + columns)
        if variants is not None:
            self.prefixes = [(k[variants], v[variants]) for k, v in self.prefixes]

    def write(
        self,
        rows: Int[torch.Tensor, " row"],
        step: int,
        k: Float[torch.Tensor, "row kv_head d_head"],
        v: Float[torch.Tensor, "row kv_head d_head"],
    ) -> None:
        """Set the keys and values of generated token `step`."""
        self.rest[0][rows, :, self.width + step] = k
        self.rest[1][rows, :, self.width + step] = v


@dataclass
class HistoryKV:
    """The clean model's keys and values of generated tokens at one layer: [history, kv_head, generated, d_head]."""

    pair: Pair

    @classmethod
    def empty(cls, like: torch.Tensor, histories: int, columns: int) -> HistoryKV:
        """Room for so many histories; `like` is any [*, kv_head, *, d_head]."""
        shape = (histories, like.shape[1], columns, like.shape[3])
        return cls((like.new_zeros(shape), like.new_zeros(shape)))

    def __len__(self) -> int:
        return self.pair[0].shape[0]

    def resize(self, histories: int, columns: int) -> None:
        """Make room for so many histories and generated tokens."""
        grown = []
        for old in self.pair:
            new = old.new_zeros(histories, old.shape[1], columns, old.shape[3])
            new[: len(old), :, : old.shape[2]] = old
            grown.append(new)
        self.pair = grown[0], grown[1]

    def keep(self, histories: Int[torch.Tensor, " history"], columns: int) -> None:
        """Keep only these histories, with room for `columns` generated tokens."""
        self.pair = _kept(self.pair, histories, columns)

    def copy(self, source: torch.Tensor, target: torch.Tensor, steps: int) -> None:
        """Let the histories `target` begin with the first `steps` tokens of `source`."""
        for tensor in self.pair:
            tensor[target, :, :steps] = tensor[source, :, :steps]

    def write(self, histories: torch.Tensor, step: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Set the keys and values [history, kv_head, d_head] of generated token `step`."""
        self.pair[0][histories, :, step] = k
        self.pair[1][histories, :, step] = v


def _kept(pair: Pair, rows: torch.Tensor | None, columns: int) -> Pair:
    kept = []
    for old in pair:
        n_rows = old.shape[0] if rows is None else len(rows)
        if rows is None and columns == old.shape[2]:
            kept.append(old)
            continue
        new = old.new_zeros(n_rows, old.shape[1], columns, old.shape[3])
        shared = min(columns, old.shape[2])
        new[:, :, :shared] = old[:, :, :shared] if rows is None else old[rows, :, :shared]
        kept.append(new)
    return kept[0], kept[1]
