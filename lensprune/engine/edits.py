"""A variant's ablations as edits of some rows of a flat batch, layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int

from lensprune.ablation.components import MLP, Attention, Head, KVGroup, Layer, heads_of
from lensprune.ablation.reference import ReferenceActivations, replacement
from lensprune.ablation.variants import Ablation, Variant
from lensprune.models.base import ModelFacts

__all__ = ["LayerEdits", "RowEdit", "Rows", "edits_by_layer", "first_layer"]

Rows = slice | torch.Tensor
ALL = slice(None)


def first_layer(variant: Variant, n_layers: int) -> int:
    """The lowest layer that a variant changes; `n_layers` for the clean model."""
    return min((a.component.layer for a in variant.ablations), default=n_layers)


@dataclass(frozen=True)
class RowEdit:
    """One ablation on some rows (tokens) of a flat batch."""

    rows: Rows
    ablation: Ablation
    reference: ReferenceActivations | None

    def write(
        self,
        activation: Float[torch.Tensor, "tok ..."],
        position_ids: Int[torch.Tensor, " tok"],
        heads: list[int] | None = None,
    ) -> None:
        """Replace, in place, the activation of the ablation's site on the rows; of z [tok, head, d_head], `heads`."""
        part = activation[self.rows]
        new = replacement(self.ablation, self.reference, position_ids[self.rows], part)
        if heads is None:
            activation[self.rows] = new
        elif isinstance(self.rows, slice):
            part[:, heads] = new[:, heads]
        else:
            activation[self.rows[:, None], torch.tensor(heads, device=self.rows.device)] = new[:, heads]


@dataclass
class LayerEdits:
    """Every edit at one layer, by site."""

    contribution: list[RowEdit] = field(default_factory=list)
    attention: list[RowEdit] = field(default_factory=list)
    mlp: list[RowEdit] = field(default_factory=list)
    heads: list[tuple[RowEdit, list[int]]] = field(default_factory=list)

    @property
    def bypass(self) -> bool:
        """Whether all rows take a contribution that does not depend on the block's own computation."""
        return any(edit.rows == ALL for edit in self.contribution if isinstance(edit.rows, slice))

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
            out[0, edit.rows] = before[0, edit.rows]
            if edit.ablation.kind not in ("skip", "zero"):
                here = before[0, edit.rows]
                out[0, edit.rows] += replacement(edit.ablation, edit.reference, position_ids[edit.rows], here)
        return out

    def edit_z(
        self, z: Float[torch.Tensor, "tok head d_head"], position_ids: Int[torch.Tensor, " tok"]
    ) -> Float[torch.Tensor, "tok head d_head"]:
        """Per-head results with the edited heads replaced."""
        if not self.heads:
            return z
        changed = z.clone()
        for edit, heads in self.heads:
            edit.write(changed, position_ids, heads)
        return changed

    def within(self, computed: np.ndarray) -> LayerEdits:
        """The edits of attention, MLP and heads on the tokens that are `computed`, whose rows move together.

        Rows must be slices with bounds.
        """
        before = np.cumsum(computed) - computed

        def moved(edit: RowEdit) -> RowEdit | None:
            assert isinstance(edit.rows, slice)
            size = int(computed[edit.rows].sum())
            start = int(before[edit.rows.start])
            return replace(edit, rows=slice(start, start + size)) if size else None

        return LayerEdits(
            attention=[new for edit in self.attention if (new := moved(edit))],
            mlp=[new for edit in self.mlp if (new := moved(edit))],
            heads=[(new, heads) for edit, heads in self.heads if (new := moved(edit))],
        )


def edits_by_layer(
    assigned: Iterable[tuple[Variant, Rows]], reference: ReferenceActivations | None, facts: ModelFacts
) -> dict[int, LayerEdits]:
    """Collect the edits of several variants, each on its own rows."""
    layers: dict[int, LayerEdits] = defaultdict(LayerEdits)
    for variant, rows in assigned:
        for ablation in variant.ablations:
            edit = RowEdit(rows, ablation, reference)
            layer = layers[ablation.component.layer]
            match ablation.component:
                case Layer():
                    layer.contribution.append(edit)
                case Attention():
                    layer.attention.append(edit)
                case MLP():
                    layer.mlp.append(edit)
                case Head() | KVGroup():
                    layer.heads.append((edit, heads_of(ablation.component, facts)))
    return dict(layers)
