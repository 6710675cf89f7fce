"""The last layer, computed only for wanted tokens: its keys and values need all tokens, everything else does not."""

from __future__ import annotations

from contextlib import suppress

import torch
from jaxtyping import Float, Int

from lensprune.engine.attention import AttentionSettings, merge_into, partial_attention
from lensprune.engine.layers import FlatBatch, LayerStack
from lensprune.engine.tree import PrefixTree
from lensprune.precision import accumulation_dtype

__all__ = ["KeysAndValues", "TreeQueries", "keys_and_values"]

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


class _Captured(Exception):
    """Raised in the middle of a layer, once its keys and values are known."""


class _Capture:
    """An attention plan that takes keys and values and ends the layer's call there."""

    def __init__(self) -> None:
        self.kept: KeysAndValues | None = None

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, settings: AttentionSettings
    ) -> Float[torch.Tensor, "tok head d_head"]:
        self.kept = k, v
        raise _Captured


def keys_and_values(
    stack: LayerStack, layer: int, hidden: Float[torch.Tensor, "1 tok d_model"], batch: FlatBatch
) -> KeysAndValues:
    """A layer's keys and values [kv_head, tok, d_head], without the rest of the layer."""
    capture = _Capture()
    with suppress(_Captured):
        stack.run_layer(layer, hidden, batch, capture)
    assert capture.kept is not None
    return capture.kept


class TreeQueries:
    """Attention of some tokens of a prefix tree, given the keys and values of all its tokens.

    `wanted` are flat indices in ascending order. Set `keys_values`, or `saved` to an earlier result.
    """

    def __init__(self, tree: PrefixTree, wanted: Int[torch.Tensor, " wanted"]) -> None:
        self._device = wanted.device
        wanted = wanted.cpu()
        positions = tree.position_ids("cpu")[0]
        self._blocks: list[tuple[slice, slice, torch.Tensor]] = []
        """(wanted tokens, keys, distance back): tokens in or below a node see the node's keys that precede them."""
        bounds = torch.tensor([[n.start, n.end, n.subtree_end] for n in tree.nodes])
        starts, _, ends = torch.searchsorted(wanted, bounds).T.tolist()
        for node, low, high in zip(tree.nodes, starts, ends, strict=True):
            if low < high:
                keys = slice(node.start, node.end)
                back = positions[wanted[low:high], None] - positions[None, keys]
                self._blocks.append((slice(low, high), keys, back))
        self._masks: dict[int | None, list[torch.Tensor | None]] = {}
        self.keys_values: KeysAndValues | None = None
        self.saved: torch.Tensor | None = None

    def attend(
        self,
        q: Float[torch.Tensor, "head wanted d_head"],
        k: Float[torch.Tensor, "kv_head wanted d_head"],
        v: Float[torch.Tensor, "kv_head wanted d_head"],
        settings: AttentionSettings,
    ) -> Float[torch.Tensor, "wanted head d_head"]:
        if self.saved is None:
            self.saved = self._compute(q, settings)
        return self.saved

    def _compute(self, q: torch.Tensor, settings: AttentionSettings) -> torch.Tensor:
        assert self.keys_values is not None
        k, v = self.keys_values
        wide = accumulation_dtype(q.dtype)
        out = torch.zeros(q.shape, dtype=wide, device=q.device)
        lse = torch.full(q.shape[:2], -torch.inf, dtype=wide, device=q.device)
        for (rows, keys, _), allowed in zip(self._blocks, self._allowed(settings.window), strict=True):
            part_out, part_lse = partial_attention(
                q[None, :, rows],
                k[None, :, keys],
                v[None, :, keys],
                settings,
                allowed=allowed,
            )
            _merge_first(out[:, rows], lse[:, rows], part_out[0].to(wide), part_lse[0])
        return out.to(q.dtype).transpose(0, 1)

    def _allowed(self, window: int | None) -> list[torch.Tensor | None]:
        """Which keys of each block its tokens see, [1, wanted, key]; ``None``: all. Identical for every variant."""
        if window not in self._masks:
            masks = [back >= 0 if window is None else (back >= 0) & (back < window) for _, _, back in self._blocks]
            self._masks[window] = [None if bool(mask.all()) else mask[None].to(self._device) for mask in masks]
        return self._masks[window]


def _merge_first(out: torch.Tensor, lse: torch.Tensor, part_out: torch.Tensor, part_lse: torch.Tensor) -> None:
    """Merge in place, also where neither part has seen a key yet."""
    blind = torch.isneginf(lse) & torch.isneginf(part_lse)
    merge_into((out, lse), (part_out, part_lse.masked_fill(blind, 0.0)))
    lse.masked_fill_(blind, -torch.inf)
