"""A variant's ablations as edits of some rows of a flat batch, layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, assert_never

import numpy as np
import torch
from jaxtyping import Float, Int

from lensprune.ablation.components import Slot, part_of
from lensprune.ablation.positions import ALL as EVERYWHERE
from lensprune.ablation.reference import ReferenceActivations, replacement
from lensprune.ablation.variants import Ablation, Variant
from lensprune.errors import LensPruneError
from lensprune.models.base import ModelFacts

__all__ = [
    "Edit",
    "LayerEdits",
    "RowEdit",
    "RowReader",
    "RowValues",
    "Rows",
    "RowsAt",
    "edits_by_layer",
    "first_layer",
]

Rows = slice | torch.Tensor
ALL = slice(None)
RowsAt = Callable[[str, Rows], Rows | None]
"""Which of some rows a selector of positions chooses; ``None``: none of them."""


def first_layer(variant: Variant, n_layers: int) -> int:
    """The lowest layer that a variant changes; `n_layers` for the clean model."""
    return min((a.component.layer for a in variant.ablations), default=n_layers)


class Edit(Protocol):
    """A change of one activation of some rows (tokens) of a flat batch."""

    def write(self, activation: Float[torch.Tensor, "tok ..."], position_ids: Int[torch.Tensor, " tok"]) -> None:
        """Change the activation in place."""

    def among(self, tokens: Int[torch.Tensor, " taken"]) -> Edit | None:
        """The edit as it applies to `tokens` alone, flat indices in ascending order, which become the rows; ``None``:
        to none of them."""


@dataclass(frozen=True)
class RowEdit:
    """One ablation on some rows (tokens) of a flat batch; `selected`: heads or dimensions of each (``None``: all)."""

    rows: Rows
    ablation: Ablation
    reference: ReferenceActivations | None
    selected: list[int] | None = None

    @property
    def skips(self) -> bool:
        """Whether it leaves the residual as it was before the block."""
        return self.ablation.adds_nothing and self.ablation.replaces_block

    def write(self, activation: Float[torch.Tensor, "tok ..."], position_ids: Int[torch.Tensor, " tok"]) -> None:
        """Replace, in place, the activation of the ablation's site on the rows."""
        part = activation[self.rows]
        new = replacement(self.ablation, self.reference, position_ids[self.rows], part)
        if self.selected is None:
            activation[self.rows] = new
            return
        selected = _index(self.selected, activation.device)
        if isinstance(self.rows, slice):
            part[:, selected] = new[:, selected]
        elif isinstance(selected, slice):
            activation[self.rows, selected] = new[:, selected]
        else:
            activation[self.rows[:, None], selected] = new[:, selected]

    def among(self, tokens: Int[torch.Tensor, " taken"]) -> RowEdit | None:
        """As `Edit.among`; rows must be all, or indices."""
        if isinstance(self.rows, slice):
            assert self.rows == ALL
            return self
        rows = torch.isin(tokens, self.rows).nonzero()[:, 0]
        return replace(self, rows=rows) if len(rows) else None


@dataclass(frozen=True)
class RowValues:
    """Given values at `rows`, of one head or of the whole activation (``None``)."""

    rows: Int[torch.Tensor, " row"]
    values: Float[torch.Tensor, "row d"]
    head: int | None = None

    def write(self, activation: Float[torch.Tensor, "tok ..."], position_ids: Int[torch.Tensor, " tok"]) -> None:
        """Write the values."""
        if self.head is None:
            activation[self.rows] = self.values
        else:
            activation[self.rows, self.head] = self.values

    def among(self, tokens: Int[torch.Tensor, " taken"]) -> RowValues | None:
        """As `Edit.among`."""
        inside = torch.isin(self.rows, tokens)
        if not bool(inside.any()):
            return None
        return RowValues(torch.searchsorted(tokens, self.rows[inside]), self.values[inside], self.head)


@dataclass(frozen=True)
class RowReader:
    """Keeps the activation of `rows` in `kept` under `name`, and changes nothing."""

    rows: Int[torch.Tensor, " row"]
    name: Hashable
    kept: dict[Hashable, torch.Tensor]

    def write(self, activation: Float[torch.Tensor, "tok ..."], position_ids: Int[torch.Tensor, " tok"]) -> None:
        """Keep a copy."""
        self.kept[self.name] = activation[self.rows]

    def among(self, tokens: Int[torch.Tensor, " taken"]) -> RowReader:
        """As `Edit.among`; `tokens` must hold all rows."""
        assert bool(torch.isin(self.rows, tokens).all())
        return replace(self, rows=torch.searchsorted(tokens, self.rows))


def _index(selected: Sequence[int], device: torch.device) -> slice | torch.Tensor:
    """A slice where possible: sending an index to the device makes the host wait."""
    first, step = selected[0], selected[1] - selected[0] if len(selected) > 1 else 1
    if step > 0 and list(selected) == list(range(first, first + step * len(selected), step)):
        return slice(first, selected[-1] + 1, step)
    return torch.tensor(selected, device=device)


@dataclass
class LayerEdits:
    """Every edit at one layer, by site.

    `zeroed`: heads that are set to zero at once, instead of by edits one after another, numbered token × heads + head
    (see `zeros_apart`).
    """

    contribution: list[RowEdit] = field(default_factory=list)
    attention: list[Edit] = field(default_factory=list)
    mlp: list[Edit] = field(default_factory=list)
    heads: list[Edit] = field(default_factory=list)
    zeroed: Int[torch.Tensor, " head"] | None = None

    @property
    def branches(self) -> dict[Slot, list[Edit]]:
        """The edits of what attention and MLP add to the residual stream, by slot."""
        return {Slot.ATTENTION: self.attention, Slot.MLP: self.mlp}

    @property
    def bypass(self) -> bool:
        """Whether every row's contribution is replaced by one that does not depend on the block's own computation."""
        return any(isinstance(edit.rows, slice) and edit.rows == ALL for edit in self.replaced)

    @property
    def replaced(self) -> list[RowEdit]:
        """Edits of the contribution that do not depend on the block's own computation."""
        return [edit for edit in self.contribution if edit.ablation.replaces_block]

    @property
    def only_replaces(self) -> bool:
        """Whether every edit of the contribution is among `replaced`."""
        return len(self.replaced) == len(self.contribution)

    def contribute(
        self,
        before: Float[torch.Tensor, "1 tok d_model"],
        after: Float[torch.Tensor, "1 tok d_model"],
        position_ids: Int[torch.Tensor, " tok"],
    ) -> Float[torch.Tensor, "1 tok d_model"]:
        """The residual after the layer, given the one before it and the unedited one after it."""
        if not self.contribution:
            return after
        out = after.clone()
        for edit in self.contribution:
            residual = before[0, edit.rows]
            if edit.skips:
                out[0, edit.rows] = residual
            else:
                contribution = out[0, edit.rows] - residual
                replace(edit, rows=ALL).write(contribution, position_ids[edit.rows])
                out[0, edit.rows] = residual + contribution
        return out

    def add_replacements(
        self, residual: Float[torch.Tensor, "1 tok d_model"], position_ids: Int[torch.Tensor, " tok"]
    ) -> None:
        """Add, in place, what replaces the block's contribution, to a residual that is the one before the block where
        an edit applies; every edit of the contribution must replace it."""
        for edit in self.contribution:
            if not edit.skips:
                part = residual[0, edit.rows]
                part += replacement(edit.ablation, edit.reference, position_ids[edit.rows], part)

    def edit_z(
        self, z: Float[torch.Tensor, "tok head d_head"], position_ids: Int[torch.Tensor, " tok"]
    ) -> Float[torch.Tensor, "tok head d_head"]:
        """Per-head results with the edited heads replaced; `zeroed` ones are replaced in `z` itself."""
        if self.zeroed is not None:
            return z.flatten(0, 1).index_fill_(0, self.zeroed, 0.0).view(z.shape)
        if not self.heads:
            return z
        changed = z.clone()
        for edit in self.heads:
            edit.write(changed, position_ids)
        return changed

    def zeros_apart(self, n_heads: int) -> Int[np.ndarray, " head"]:
        """The heads to set to zero, as in `zeroed`, if that is all that the edits of heads do; else none.

        All must be ablations, on rows that are slices with bounds.
        """
        heads = [np.empty(0, dtype=np.int64)]
        for edit in self.heads:
            assert isinstance(edit, RowEdit)
            assert isinstance(edit.rows, slice)
            if not edit.ablation.adds_nothing:
                return heads[0]
            selected = np.arange(n_heads) if edit.selected is None else np.array(edit.selected)
            heads.append((np.arange(edit.rows.start, edit.rows.stop)[:, None] * n_heads + selected).reshape(-1))
        return np.concatenate(heads)

    def among(self, tokens: Int[torch.Tensor, " taken"]) -> LayerEdits:
        """The edits as they apply to `tokens` alone, as `Edit.among`."""

        def moved(edits: Sequence[Edit]) -> list[Edit]:
            return [new for edit in edits if (new := edit.among(tokens)) is not None]

        contribution = [new for edit in self.contribution if (new := edit.among(tokens)) is not None]
        return LayerEdits(contribution, moved(self.attention), moved(self.mlp), moved(self.heads))

    @classmethod
    def joined(cls, parts: Iterable[tuple[LayerEdits, int]]) -> LayerEdits:
        """The edits of several parts of a flat batch, each with the token at which the part begins.

        All must be ablations, on rows that are slices with bounds.
        """

        def moved(edit: Edit, begin: int) -> RowEdit:
            assert isinstance(edit, RowEdit)
            assert isinstance(edit.rows, slice)
            return replace(edit, rows=slice(edit.rows.start + begin, edit.rows.stop + begin))

        whole = cls()
        for edits, begin in parts:
            whole.contribution += [moved(edit, begin) for edit in edits.contribution]
            whole.attention += [moved(edit, begin) for edit in edits.attention]
            whole.mlp += [moved(edit, begin) for edit in edits.mlp]
            whole.heads += [moved(edit, begin) for edit in edits.heads]
        return whole

    def within(self, computed: np.ndarray) -> LayerEdits:
        """The edits of attention, MLP and heads, restricted to the `computed` tokens and renumbered to match.

        All must be ablations, on rows that are slices with bounds.
        """
        before = np.cumsum(computed) - computed

        def moved(edit: Edit) -> Edit | None:
            assert isinstance(edit, RowEdit)
            assert isinstance(edit.rows, slice)
            size = int(computed[edit.rows].sum())
            start = int(before[edit.rows.start])
            return replace(edit, rows=slice(start, start + size)) if size else None

        return LayerEdits(
            attention=[new for edit in self.attention if (new := moved(edit))],
            mlp=[new for edit in self.mlp if (new := moved(edit))],
            heads=[new for edit in self.heads if (new := moved(edit))],
        )


def edits_by_layer(
    assigned: Iterable[tuple[Variant, Rows]],
    reference: ReferenceActivations | None,
    facts: ModelFacts,
    at: RowsAt | None = None,
) -> dict[int, LayerEdits]:
    """Collect the edits of several variants, each on its own rows.

    Args:
        at: narrows a variant's rows to those that a selector of positions chooses.

    Raises:
        LensPruneError: a variant has positions, and `at` is missing; or it cuts attention edges.
        UserError: a component's part is not registered (its ablation would silently change nothing).
    """
    layers: dict[int, LayerEdits] = defaultdict(LayerEdits)
    for variant, rows in assigned:
        for ablation in variant.ablations:
            component = ablation.component
            part = part_of(component)
            if ablation.definition.cuts_edges:
                raise LensPruneError(f"{ablation.name}: only hooks can cut attention edges")
            edited: Rows | None = rows
            if ablation.at != EVERYWHERE:
                if at is None:
                    raise LensPruneError(f"{ablation.name}: it is not known which rows are at {ablation.at!r}")
                edited = at(ablation.at, rows)
            if edited is None:
                continue
            edit = RowEdit(edited, ablation, reference, component.selected(facts))
            layer = layers[component.layer]
            match part.slot:
                case Slot.CONTRIBUTION:
                    layer.contribution.append(edit)
                case Slot.ATTENTION:
                    layer.attention.append(edit)
                case Slot.MLP:
                    layer.mlp.append(edit)
                case Slot.HEADS:
                    layer.heads.append(edit)
                case unknown:
                    assert_never(unknown)
    return dict(layers)
