"""The last layer, computed only for wanted tokens: its keys and values need all tokens, everything else does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import torch
from jaxtyping import Float, Int

from lensprune.engine.attention import (
    AttentionSettings,
    attend_in_few_calls,
    levels_that_branch,
    merge_into,
    partial_attention,
)
from lensprune.engine.kernels import Packed, is_recent_gpu
from lensprune.engine.layers import FlatBatch, LayerStack
from lensprune.engine.tree import PrefixTree
from lensprune.engine.windows import Run, WindowedRuns
from lensprune.precision import accumulation_dtype

__all__ = ["KeysAndValues", "TreeQueries", "keys_and_values", "packed_blocks", "runs_of"]

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
        self._longest = max(tree.positions) + 1
        self._packed: tuple[Packed, list[Packed]] | None = None
        self._windowed: WindowedRuns | None = None
        if is_recent_gpu(self._device):
            within, *levels = [blocks for blocks in packed_blocks(tree, wanted) if blocks]
            self._packed = Packed.of(within, self._device), [Packed.of(blocks, self._device) for blocks in levels]
            self._windowed = WindowedRuns(tree, runs_of(tree, wanted), self._device)
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
        window = settings.window if settings.window is None or settings.window < self._longest else None
        if self._packed is not None and self._windowed is not None and settings.softcap is None:
            flat = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
            if window is None:
                z = attend_in_few_calls(*self._packed, *flat, settings.scaling)
            else:
                z = self._windowed.attend(*flat, settings.scaling, window)
            if z is not None:
                return z
        wide = accumulation_dtype(q.dtype)
        out = torch.zeros(q.shape, dtype=wide, device=q.device)
        lse = torch.full(q.shape[:2], -torch.inf, dtype=wide, device=q.device)
        for (rows, keys, _), allowed in zip(self._blocks, self._allowed(window), strict=True):
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


def runs_of(tree: PrefixTree, wanted: Int[torch.Tensor, " wanted"]) -> list[Run]:
    """`wanted` as runs of neighbours in a node, in order."""
    flat = wanted.tolist()
    node_of = torch.searchsorted(torch.tensor([node.end for node in tree.nodes]), wanted, right=True).tolist()
    begins = [i for i in range(len(flat)) if not i or node_of[i] != node_of[i - 1] or flat[i] != flat[i - 1] + 1]
    return [
        (slice(low, high), slice(flat[low], flat[high - 1] + 1), node_of[low])
        for low, high in zip(begins, [*begins[1:], len(flat)], strict=True)
    ]


def packed_blocks(tree: PrefixTree, wanted: Int[torch.Tensor, " wanted"]) -> Iterator[list[tuple[slice, slice]]]:
    """Blocks (wanted tokens, keys) of the calls that give the attention of `wanted`: every run of neighbours in a node
    against itself, which is causal, then against what precedes it in the node, then what is below a node that branches
    against that node, by depth."""
    runs = [(queries, keys, tree.nodes[node].start) for queries, keys, node in runs_of(tree, wanted)]
    yield [(queries, keys) for queries, keys, _ in runs]
    yield [(queries, slice(start, keys.start)) for queries, keys, start in runs if start < keys.start]
    for nodes in levels_that_branch(tree):
        bounds = torch.tensor([[node.end, node.subtree_end] for node in nodes])
        below = torch.searchsorted(wanted, bounds).tolist()
        yield [
            (slice(low, high), slice(node.start, node.end))
            for node, (low, high) in zip(nodes, below, strict=True)
            if low < high
        ]


def _merge_first(out: torch.Tensor, lse: torch.Tensor, part_out: torch.Tensor, part_lse: torch.Tensor) -> None:
    """Merge in place, also where neither part has seen a key yet."""
    blind = torch.isneginf(lse) & torch.isneginf(part_lse)
    merge_into((out, lse), (part_out, part_lse.masked_fill(blind, 0.0)))
    lse.masked_fill_(blind, -torch.inf)
