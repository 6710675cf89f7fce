"""Runs of the edge graph: every writer's output, and exact runs in which chosen edges carry other values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int

from lensprune.attribution.dla import check_sum
from lensprune.attribution.graph import EdgeGraph, ReaderGroup
from lensprune.attribution.runs import Edit, edge_inputs, edit_hook, run_hooked
from lensprune.models.base import HookedModel, NamedHook
from lensprune.models.weights import output_weights

__all__ = ["Writes", "check_additive", "replace_edges", "writer_hooks", "writes_of"]

Writes = Float[torch.Tensor, "writer row pos d_model"]
"""What every writer adds to the residual stream; attention's output bias belongs to no writer."""


def writer_hooks(model: HookedModel, graph: EdgeGraph, put: Callable[[int, torch.Tensor], None]) -> list[NamedHook]:
    """Hooks that pass writers' outputs to `put`: index of the first writer, [writers, row, pos, d_model]."""

    def look(first: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
        def edit(activation: torch.Tensor) -> None:
            put(first, change(activation))

        return edit

    hooks: list[NamedHook] = [("blocks.0.hook_resid_pre", edit_hook(look(0, lambda x: x[None])))]
    for layer in range(graph.n_layers):
        weights = output_weights(model, layer).detach()

        def heads(z: torch.Tensor, weights: torch.Tensor = weights) -> torch.Tensor:
            return einsum(z, weights.to(z.dtype), "row pos head d_head, head d_head d_model -> head row pos d_model")

        first = graph.first_writer(layer)
        hooks.append((f"blocks.{layer}.attn.hook_z", edit_hook(look(first, heads))))
        hooks.append((f"blocks.{layer}.hook_mlp_out", edit_hook(look(first + graph.n_heads, lambda x: x[None]))))
    return hooks


def writes_of(
    model: HookedModel, graph: EdgeGraph, tokens: Int[torch.Tensor, "row pos"]
) -> tuple[Float[torch.Tensor, "row d_vocab"], Writes, Float[torch.Tensor, "row pos d_model"]]:
    """Last logits, every writer's contribution, and the final residual stream of the unchanged model."""
    kept: dict[int, torch.Tensor] = {}
    final: list[torch.Tensor] = []

    def look(activation: torch.Tensor) -> None:
        final.append(activation.detach().clone())

    hooks = writer_hooks(model, graph, lambda first, value: kept.__setitem__(first, value.detach().clone()))
    hooks.append((f"blocks.{graph.n_layers - 1}.hook_resid_post", edit_hook(look)))
    with torch.no_grad():
        logits = run_hooked(model, tokens, hooks)
    return logits, torch.cat([kept[first] for first in sorted(kept)]), final[0]


def check_additive(difference: Writes, residual_difference: Float[torch.Tensor, "row pos d_model"]) -> None:
    """Raise `LensPruneError` unless the difference of two runs' residual streams is the sum of their writers'
    differences."""
    check_sum(difference.sum(0), residual_difference)


def replace_edges(
    model: HookedModel,
    graph: EdgeGraph,
    tokens: Int[torch.Tensor, "row pos"],
    removed: Bool[torch.Tensor, "#row writer reader"],
    replacement: Writes,
) -> Float[torch.Tensor, "row d_vocab"]:
    """Last logits of a run in which removed edges carry `replacement` instead of what their writer writes now.

    Every reader's input is rebuilt: the residual stream, plus (replacement − current) of each writer whose edge to it
    is removed. All edges removed: every reader sees the replacement run. This is exact, not linearised.

    Args:
        removed: one mask for all rows, or one per row.
    """
    current = torch.zeros_like(replacement)
    masks = removed.to(replacement.device, replacement.dtype)

    def put(first: int, value: torch.Tensor) -> None:
        current[first : first + len(value)] = value.detach()

    def rebuild(group: ReaderGroup) -> Edit:
        mask = masks[:, : group.writers, group.start : group.stop]
        if not bool(mask.any()):
            return lambda activation: None

        def edit(activation: torch.Tensor) -> torch.Tensor:
            change = replacement[: group.writers] - current[: group.writers]
            each = mask.expand(change.shape[1], -1, -1)
            added = einsum(each, change, "row writer reader, writer row pos d_model -> row pos reader d_model")
            return activation + (added if group.per_head else added[:, :, 0])

        return edit

    hooks: list[NamedHook] = writer_hooks(model, graph, put)
    hooks += [(group.hook, edit_hook(rebuild(group))) for group in graph.groups]
    with torch.no_grad(), edge_inputs(model):
        return run_hooked(model, tokens, hooks)
