"""A variant's ablations as edits of some rows of a flat batch, layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

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

    def branch(
        self, activation: Float[torch.Tensor, "tok d_model"], position_ids: Int[torch.Tensor, " tok"]
    ) -> Float[torch.Tensor, "tok d_model"]:
        """Replace a branch's output on the rows."""
        changed = activation.clone()
        changed[self.rows] = replacement(self.ablation, self.reference, position_ids[self.rows], activation[self.rows])
        return changed

    def heads(
        self, z: Float[torch.Tensor, "tok head d_head"], position_ids: Int[torch.Tensor, " tok"], heads: list[int]
    ) -> Float[torch.Tensor, "tok head d_head"]:
        """Replace some heads' z on the rows."""
        changed = z.clone()
        part = z[self.rows]
        new = part.clone()
        new[:, heads] = replacement(self.ablation, self.reference, position_ids[self.rows], part)[:, heads]
        changed[self.rows] = new
        return changed


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

    def edit_z(
        self, z: Float[torch.Tensor, "tok head d_head"], position_ids: Int[torch.Tensor, " tok"]
    ) -> Float[torch.Tensor, "tok head d_head"]:
        for edit, heads in self.heads:
            z = edit.heads(z, position_ids, heads)
        return z


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
