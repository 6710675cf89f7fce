"""The calls of a decode step, one per layer: the tokens of all groups, and their attention group by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from lensprune.engine.attention import AttentionSettings
from lensprune.engine.decoding.row_group import RowGroup
from lensprune.engine.decoding.step_attention import DecodeAttention
from lensprune.engine.edits import LayerEdits

__all__ = ["JoinedAttention", "LayerCall"]


@dataclass(frozen=True)
class LayerCall:
    """The tokens of one layer's call: of all groups, the histories that are needed there, and then the rows that are
    changed there or below.

    Groups follow each other by the layers that they change, so these are the last of all histories and the first of all
    rows: `tokens` is their range, and what belongs to them need not be gathered.

    `is_computed`: the tokens whose contribution is not replaced as a whole; `sizes`: by group, the numbers of histories
    and of computed rows; `edits` of all tokens, and `inner` of the computed ones. The first `n_staying` tokens are the
    last ones of the layer below, and rows that change at this very layer follow, each `entering` from a token of the
    layer below, its history.
    """

    tokens: slice
    is_computed: Bool[np.ndarray, " tok"]
    sizes: list[tuple[int, int]]
    n_below: int
    entering: Int[np.ndarray, " entering"]
    edits: LayerEdits | None
    inner: LayerEdits | None

    @classmethod
    def of(cls, groups: Sequence[RowGroup], layer: int, history_of: np.ndarray, below: slice) -> LayerCall:
        """Args:
        history_of: of each row, but for those that are changed below.
        below: the `tokens` of the layer below.
        """
        steps = [group.now for group in groups]
        n_histories = sum(int(step.n_histories[layer]) for step in steps)
        n_all = sum(len(step.histories) for step in steps)
        of_rows = [group.computed(layer) for group in groups]
        sizes = [(int(step.n_histories[layer]), int(own.sum())) for step, own in zip(steps, of_rows, strict=True)]
        starts = np.cumsum([n_histories, *map(len, of_rows)])
        edits = [
            (group.edits[layer], int(at)) for group, at in zip(groups, starts, strict=False) if layer in group.edits
        ]
        whole = LayerEdits.joined(edits) if edits else None
        is_computed = np.concatenate([np.ones(n_histories, dtype=bool), *of_rows])
        n_entering = sum(int(step.n_rows[layer] - (step.n_rows[layer - 1] if layer else 0)) for step in steps)
        return cls(
            slice(n_all - n_histories, n_all + len(is_computed) - n_histories),
            is_computed,
            sizes,
            below.stop - below.start,
            history_of[:n_entering] - below.start,
            whole,
            whole if whole is None or is_computed.all() else whole.within(is_computed),
        )

    @property
    def n_histories(self) -> int:
        return sum(n_histories for n_histories, _ in self.sizes)

    @property
    def n_first(self) -> int | None:
        """How many tokens are computed, if they are the first ones."""
        n = int(self.is_computed.sum())
        return n if self.is_computed[:n].all() else None

    @property
    def n_staying(self) -> int:
        return len(self.is_computed) - len(self.entering)

    @property
    def entering_apart(self) -> bool:
        """Whether no row enters that is computed, so that there is nothing to put together before the layer."""
        only_replaced = self.edits is None or self.edits.only_replaces
        return not len(self.entering) or (only_replaced and self.n_first == self.n_staying)

    def arrays(self, n_heads: int) -> list[np.ndarray]:
        """What the device needs: the tokens of the layer below that are taken from it, which are `entering` if those
        come apart, or else all; the computed tokens; and the heads that are zeroed."""
        taken = self.entering
        if not self.entering_apart:
            taken = np.concatenate([np.arange(self.n_below - self.n_staying, self.n_below), taken])
        zeroed = self.entering[:0] if self.inner is None else self.inner.zeros_apart(n_heads)
        return [taken, np.flatnonzero(self.is_computed), zeroed]


@dataclass(frozen=True)
class JoinedAttention:
    """Attention of each group's tokens by itself; `parts`: the groups' plans, and how many histories and rows each has.

    The tokens are all groups' histories, and then all groups' rows.
    """

    parts: Sequence[tuple[DecodeAttention, int, int]]

    def attend(
        self,
        q: Float[torch.Tensor, "head tok d_head"],
        k: Float[torch.Tensor, "kv_head tok d_head"],
        v: Float[torch.Tensor, "kv_head tok d_head"],
        settings: AttentionSettings,
    ) -> Float[torch.Tensor, "tok head d_head"]:
        history, row = 0, sum(n_histories for _, n_histories, _ in self.parts)
        of_histories, of_rows = [], []
        for plan, n_histories, n_rows in self.parts:
            spans = [slice(history, history + n_histories), slice(row, row + n_rows)]
            spans = [span for span in spans if span.stop > span.start]
            own_q, own_k, own_v = (_joined([t[:, span] for span in spans]) for t in (q, k, v))
            z = plan.attend(own_q, own_k, own_v, settings)
            of_histories.append(z[:n_histories])
            of_rows.append(z[n_histories:])
            history, row = history + n_histories, row + n_rows
        return torch.cat([*of_histories, *of_rows])


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
