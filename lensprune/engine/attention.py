"""Attention in parts: blocks of queries against blocks of keys, combined exactly by their log-sum-exp.

Softmax over keys in several blocks equals the blocks' outputs weighted by exp(lse_block − lse_total), so rows attend to
a shared prefix in place, without a copy per row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from transformers import AttentionInterface

from lensprune.engine.kernels import Packed, Partial, flash_packed, fused_attention, is_recent_gpu
from lensprune.engine.tree import Node, PrefixTree
from lensprune.engine.windows import WindowedRuns
from lensprune.precision import accumulation_dtype, widened

__all__ = [
    "ATTENTION_NAME",
    "AttentionPlan",
    "AttentionSettings",
    "TreeAttention",
    "attend_in_few_calls",
    "levels_that_branch",
    "merge_into",
    "partial_attention",
]

ATTENTION_NAME = "lensprune_forked"


class AttentionSettings:
    """What a layer's attention module passes besides q, k and v.

    `scaling` multiplies scores; `window` limits a query to that many most recent keys, itself included; `softcap` is
    Gemma 2's tanh cap on scores; `sinks`: whether there are learned attention sinks, which no plan computes.
    """

    __slots__ = ("scaling", "sinks", "softcap", "window")

    def __init__(self, scaling: float, window: int | None, softcap: float | None, *, sinks: bool = False) -> None:
        self.scaling = scaling
        self.window = window
        self.softcap = softcap
        self.sinks = sinks


class AttentionPlan(Protocol):
    """Passed in place of the attention mask to a decoder layer, and computes that layer's attention."""

    def attend(
        self,
        q: Float[torch.Tensor, "head tok d_head"],
        k: Float[torch.Tensor, "kv_head tok d_head"],
        v: Float[torch.Tensor, "kv_head tok d_head"],
        settings: AttentionSettings,
    ) -> Float[torch.Tensor, "tok head d_head"]: ...


def _attend_with_plan(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: AttentionPlan,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    sinks = kwargs.get("s_aux") is not None
    settings = AttentionSettings(scaling, kwargs.get("sliding_window") or None, kwargs.get("softcap"), sinks=sinks)
    # Contiguous, as from transformers' own functions: AFMoE takes a view of it.
    return attention_mask.attend(query[0], key[0], value[0], settings)[None].contiguous(), None


AttentionInterface.register(ATTENTION_NAME, _attend_with_plan)


def partial_attention(
    q: Float[torch.Tensor, "batch head query d_head"],
    k: Float[torch.Tensor, "batch kv_head key d_head"],
    v: Float[torch.Tensor, "batch kv_head key d_head"],
    settings: AttentionSettings,
    *,
    causal: bool = False,
    allowed: Bool[torch.Tensor, "#batch #query key"] | None = None,
) -> Partial:
    """Softmax attention over these keys only, and its log-sum-exp.

    Args:
        causal: query t sees keys 0 to t (needs as many queries as keys).
        allowed: which query sees which key; a query that sees none gets output 0 and log-sum-exp −∞.

    Returns:
        Output [batch, head, query, d_head] in q's dtype and log-sum-exp [batch, head, query] in its accumulation dtype.
    """
    batch, n_heads, n_queries, d_head = q.shape
    n_kv = k.shape[1]
    repeat = n_heads // n_kv
    if settings.softcap is None:
        fused = fused_attention(q, k, v, settings.scaling, causal=causal, allowed=allowed)
        if fused is not None:
            return fused
    grouped = q.reshape(batch, n_kv, repeat, n_queries, d_head)
    scores = widened(torch.einsum("bgrqd,bgkd->bgrqk", grouped, k)) * settings.scaling
    if settings.softcap is not None:
        scores = settings.softcap * torch.tanh(scores / settings.softcap)
    if causal:
        seen = torch.ones(n_queries, k.shape[2], dtype=torch.bool, device=q.device).tril()
        allowed = seen if allowed is None else allowed & seen
    if allowed is not None:
        if allowed.ndim == 3:
            allowed = allowed[:, None, None]
        scores = scores.masked_fill(~allowed, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.clamp(min=torch.finfo(lse.dtype).min)[..., None])
    out = torch.einsum("bgrqk,bgkd->bgrqd", weights.to(v.dtype), v)
    return out.reshape(q.shape), lse.reshape(batch, n_heads, n_queries)


def merge_into(total: Partial, part: Partial) -> None:
    """Add a partial attention over further keys into `total`, in place.

    Both are (output [..., query, d_head], log-sum-exp [..., query]) of the same queries; at least one of the two must
    have seen a key for each query.
    """
    out, lse = total
    part_out, part_lse = part
    combined = torch.logaddexp(lse, part_lse)
    out.mul_(torch.exp(lse - combined)[..., None])
    out.add_(part_out * torch.exp(part_lse - combined)[..., None])
    lse.copy_(combined)


class TreeAttention:
    """Attention of all tokens of a prefix tree at once: each token sees its own node causally and all its ancestors.

    `saved` returns an earlier result instead of computing; `keep_kv` receives each layer's keys and values.
    """

    SMALL = 64
    """Nodes shorter than this are padded and batched together."""

    def __init__(self, tree: PrefixTree, device: str | torch.device) -> None:
        self._large = [node for node in tree.nodes if node.length >= self.SMALL]
        self._buckets = [
            _Bucket.of(nodes, device) for nodes in _by_length([n for n in tree.nodes if n.length < self.SMALL])
        ]
        self._branches = [node for node in tree.nodes if node.descendants]
        self._positions = tree.position_ids(device)[0]
        self._longest = max(tree.positions) + 1
        self._packed: tuple[Packed, list[Packed]] | None = None
        self._windowed: WindowedRuns | None = None
        if is_recent_gpu(torch.device(device)):
            within = Packed.of([(slice(n.start, n.end), slice(n.start, n.end)) for n in tree.nodes], device)
            levels = [
                [(slice(n.end, n.subtree_end), slice(n.start, n.end)) for n in nodes]
                for nodes in levels_that_branch(tree)
            ]
            self._packed = within, [Packed.of(blocks, device) for blocks in levels]
            spans = [slice(n.start, n.end) for n in tree.nodes]
            self._windowed = WindowedRuns(tree, [(span, span, node) for node, span in enumerate(spans)], device)
        self.saved: torch.Tensor | None = None
        self.save = False
        self.keep_kv: Callable[[torch.Tensor, torch.Tensor], None] | None = None

    def attend(
        self,
        q: Float[torch.Tensor, "head tok d_head"],
        k: Float[torch.Tensor, "kv_head tok d_head"],
        v: Float[torch.Tensor, "kv_head tok d_head"],
        settings: AttentionSettings,
    ) -> Float[torch.Tensor, "tok head d_head"]:
        if self.keep_kv is not None:
            self.keep_kv(k, v)
        if self.saved is not None and not self.save:
            return self.saved
        z = self._compute(q, k, v, settings)
        if self.save:
            self.saved = z
        return z

    def _compute(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, settings: AttentionSettings) -> torch.Tensor:
        window = settings.window
        if window is not None and self._longest <= window:
            window = None
        if self._packed is not None and self._windowed is not None and settings.softcap is None:
            flat = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
            if window is None:
                z = attend_in_few_calls(*self._packed, *flat, settings.scaling)
            else:
                z = self._windowed.attend(*flat, settings.scaling, window)
            if z is not None:
                return z
        wide = accumulation_dtype(q.dtype)
        out = torch.empty(q.shape, dtype=wide, device=q.device)
        lse = torch.empty(q.shape[:2], dtype=wide, device=q.device)
        for node in self._large:
            span = slice(node.start, node.end)
            allowed = _own_window(node.length, window, q.device)
            part = partial_attention(
                q[None, :, span], k[None, :, span], v[None, :, span], settings, causal=True, allowed=allowed
            )
            out[:, span], lse[:, span] = part[0][0], part[1][0]
        for bucket in self._buckets:
            q_rows, k_rows, v_rows = (t[:, bucket.index].transpose(0, 1) for t in (q, k, v))
            allowed = _own_window(bucket.index.shape[1], window, q.device)
            part_out, part_lse = partial_attention(q_rows, k_rows, v_rows, settings, causal=True, allowed=allowed)
            out[:, bucket.target] = part_out.transpose(0, 1)[:, bucket.node, bucket.token].to(wide)
            lse[:, bucket.target] = part_lse.transpose(0, 1)[:, bucket.node, bucket.token]
        for node in self._branches:
            span, below = slice(node.start, node.end), slice(node.end, node.subtree_end)
            allowed = None
            if window is not None:
                allowed = (self._positions[below, None] - self._positions[None, span] < window)[None]
            part = partial_attention(q[None, :, below], k[None, :, span], v[None, :, span], settings, allowed=allowed)
            merge_into((out[:, below], lse[:, below]), (part[0][0].to(wide), part[1][0]))
        return out.to(q.dtype).transpose(0, 1)


def attend_in_few_calls(
    within: Packed, levels: Sequence[Packed], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float
) -> Float[torch.Tensor, "tok head d_head"] | None:
    """Attention of queries whose keys lie in several blocks: one causal call for `within`, which has every query in
    order, and one for each of `levels`, none of which has a query twice; ``None`` if there is no kernel."""
    result = flash_packed(q, k, v, within, scaling, causal=True)
    if result is None:
        return None
    out, lse = widened(result[0]), result[1].contiguous()
    for level in levels:
        part = flash_packed(q, k, v, level, scaling)
        assert part is not None
        here = out[level.queries], lse[level.queries]
        merge_into(here, (widened(part[0]), part[1]))
        out[level.queries], lse[level.queries] = here
    return out.to(q.dtype)


def _own_window(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    if window is None or length <= window:
        return None
    steps = torch.arange(length, device=device)
    return (steps[:, None] - steps[None] < window)[None]


def _by_length(nodes: Sequence[Node]) -> list[list[Node]]:
    """Group short nodes so that padding costs at most a third of a group's tokens."""
    buckets: list[list[Node]] = []
    for node in sorted(nodes, key=lambda n: n.length):
        if buckets and node.length <= 1.34 * buckets[-1][0].length + 1:
            buckets[-1].append(node)
        else:
            buckets.append([node])
    return buckets


def levels_that_branch(tree: PrefixTree) -> list[list[Node]]:
    """Nodes that branch, grouped by depth; no token is below two nodes of a group."""
    depth: list[int] = []
    levels: list[list[Node]] = []
    for node in tree.nodes:
        depth.append(0 if node.parent < 0 else depth[node.parent] + 1)
        if node.descendants:
            while len(levels) <= depth[-1]:
                levels.append([])
            levels[depth[-1]].append(node)
    return levels


@dataclass(frozen=True)
class _Bucket:
    """Short nodes as rows: flat index of each token, padded on the right with the node's last.

    `node` and `token` index the entries that are not padding, `target` holds their flat indices.
    """

    index: Int[torch.Tensor, "node token"]
    node: Int[torch.Tensor, " real"]
    token: Int[torch.Tensor, " real"]
    target: Int[torch.Tensor, " real"]

    @classmethod
    def of(cls, nodes: Sequence[Node], device: str | torch.device) -> _Bucket:
        starts = torch.tensor([node.start for node in nodes])[:, None]
        lengths = torch.tensor([node.length for node in nodes])[:, None]
        steps = torch.arange(int(lengths.max()))[None]
        index = starts + torch.minimum(steps, lengths - 1)
        node, token = (steps < lengths).nonzero(as_tuple=True)
        return cls(*(t.to(device) for t in (index, node, token, index[node, token])))
