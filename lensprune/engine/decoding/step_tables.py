"""What a decode step's attention needs to know of rows and histories: which group, prompt and columns each sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int

from lensprune.engine.decoding.prompts import PromptSet
from lensprune.engine.decoding.steps import sent_at_once

__all__ = ["DivergedRows", "HistoriesByPrompt", "LayerTokens", "Table", "shared_spans", "table_arrays"]


@dataclass(frozen=True)
class Table:
    """Members of groups, padded to the largest group with member 0.

    `group` and `place` say where each of `members`, which ascend, is in `index`.
    """

    index: Int[torch.Tensor, "group place"]
    group: Int[torch.Tensor, " member"]
    place: Int[torch.Tensor, " member"]
    members: Int[torch.Tensor, " member"]

    def __bool__(self) -> bool:
        return len(self.members) > 0


def table_arrays(group_of: np.ndarray, n_groups: int, members: np.ndarray) -> list[np.ndarray]:
    """The fields of a `Table`, of ascending members."""
    order = np.argsort(group_of, kind="stable")
    counts = np.bincount(group_of, minlength=n_groups)
    place = np.empty_like(group_of)
    place[order] = np.arange(len(group_of)) - np.repeat(np.cumsum(counts) - counts, counts)
    index = np.zeros((n_groups, counts.max(initial=0)), dtype=np.int64)
    index[group_of, place] = members
    return [index, group_of, place, members]


def shared_spans(prompts: PromptSet) -> Int[np.ndarray, "prompt 4"]:
    """Of each prompt: the first column and the length of its shared prefix, among all of them one after another; the
    prompt's length, and that of the longest prompt with the same prefix. A prompt without one has a prefix of length
    0."""
    lengths = prompts.lengths.numpy()
    spans = np.zeros((len(prompts), 4), dtype=np.int64)
    spans[:, 2] = spans[:, 3] = lengths
    for prefix, columns in zip(prompts.prefixes, prompts.shared_columns, strict=True):
        own = slice(prefix.first, prefix.last)
        spans[own, 0], spans[own, 1], spans[own, 3] = columns.start, columns.stop - columns.start, lengths[own].max()
    return spans


@dataclass(frozen=True)
class DivergedRows:
    """Describes the rows of one layer's `VariantKV`; valid until rows are dropped from it.

    `real`, by block, marks the columns that are not padding (``None``: no padding), and `begins` is the first such
    column; `prefixes` holds, for each shared prefix, its rows by variant, and `queries` the tables' indices on the
    host; `variant` is the place of a row's variant in `VariantKV.shared`; `spans` are the `shared_spans` of its prompt.
    """

    real: list[Bool[torch.Tensor, "row width+generated"] | None]
    begins: list[Int[torch.Tensor, " row"] | None]
    prefixes: list[Table]
    queries: list[Int[np.ndarray, "group place"]]
    variant: Int[torch.Tensor, " row"]
    spans: Int[torch.Tensor, "row 4"]

    @classmethod
    def of(
        cls,
        prompts: PromptSet,
        prompt: Int[np.ndarray, " row"],
        variant: Int[np.ndarray, " row"],
        most: int,
        device: torch.device,
    ) -> DivergedRows:
        """Of rows sorted by block, each with its prompt and the number of its variant, and room for `most` tokens."""
        block = prompts.block_of[prompt]
        n_variants = int(variant.max(initial=-1)) + 1
        members = [np.flatnonzero((prompt >= p.first) & (prompt < p.last)) for p in prompts.prefixes]
        tables = [table_arrays(variant[rows], n_variants, rows) for rows in members]
        (variants, spans), *sent = sent_at_once([[variant, shared_spans(prompts)[prompt]], *tables], device)
        real = [
            _real_columns(prompts, prompt[block == number], width, most) for number, width in enumerate(prompts.widths)
        ]
        begins = [None if mask is None else (~mask).sum(1).to(device) for mask in real]
        real = [None if mask is None else mask.to(device) for mask in real]
        return cls(real, begins, [Table(*of) for of in sent], [index for index, *_ in tables], variants, spans)

    @property
    def lengths(self) -> Int[torch.Tensor, " row"]:
        """Of the rows' prompts."""
        return self.spans[:, 2]


def _real_columns(
    prompts: PromptSet, prompt: np.ndarray, width: int, most: int
) -> Bool[torch.Tensor, "row width+generated"] | None:
    """Which columns of a block are not padding, by its rows' prompts; ``None`` if there is no padding."""
    real = prompts.real[torch.from_numpy(prompt), -width:]
    if bool(real.all()):
        return None
    return torch.cat([real, real.new_ones(len(real), most)], dim=1)


@dataclass
class LayerTokens:
    """Describes the tokens of one layer's call: histories first, then diverged rows, then rows about to diverge.

    `histories`: the places, in the layer's `HistoryKV`, of the step's histories that are needed here; `diverged`: place
    of each diverged row in the layer's `VariantKV`; `starting`: for each row whose variant changes at this very layer,
    the history (by its number among `histories`) whose attention it takes over. If rows attend by a kernel, `blocks`
    says which of the diverged rows are in each block of the `VariantKV`, and their places there, and `queries` which of
    them are in each place of the tables of shared prefixes (any, where the row has ended).
    """

    layer: int
    diverged: Int[torch.Tensor, " diverged"]
    starting: Int[torch.Tensor, " starting"]
    histories: Int[torch.Tensor, " history"]
    blocks: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
    queries: Sequence[Int[torch.Tensor, "group place"]] = ()

    @property
    def diverged_range(self) -> tuple[int, int]:
        """Where the diverged rows begin and end among the tokens."""
        n = len(self.histories)
        return n, n + len(self.diverged)


@dataclass(frozen=True)
class HistoriesByPrompt:
    """Histories grouped by prompt and by shared prefix, with their prompts and these prompts' `shared_spans`."""

    rest: Table
    prefixes: list[Table]
    prompts: Int[torch.Tensor, " history"]
    spans: Int[torch.Tensor, "history 4"]

    @staticmethod
    def arrays(prompts: PromptSet, spans: np.ndarray, of: Int[np.ndarray, " history"]) -> list[np.ndarray]:
        """What `sent` takes, for histories of these prompts."""
        arrays = [of, spans[of], *table_arrays(of, len(prompts), np.arange(len(of)))]
        for prefix in prompts.prefixes:
            members = np.flatnonzero((of >= prefix.first) & (of < prefix.last))
            arrays += table_arrays(np.zeros(len(members), dtype=np.int64), 1, members)
        return arrays

    @classmethod
    def sent(cls, tensors: Sequence[torch.Tensor]) -> HistoriesByPrompt:
        """From the `arrays`, on the device."""
        prompts, spans, *fields = tensors
        rest, *prefixes = (Table(*fields[i : i + 4]) for i in range(0, len(fields), 4))
        return cls(rest, prefixes, prompts, spans)

    @property
    def lengths(self) -> Int[torch.Tensor, " history"]:
        """Of the histories' prompts."""
        return self.spans[:, 2]
