"""Direct logit attribution: the direct contribution of every part of the model to the logit difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from einops import einsum, repeat
from jaxtyping import Float

from lensprune.ablation.components import Head
from lensprune.attribution.mean_se import MeanSE
from lensprune.attribution.pairs import PairBatch, PromptPair, pair_batches
from lensprune.attribution.readout import linear_read_out, tolerance_of
from lensprune.attribution.runs import capture
from lensprune.errors import LensPruneError, UserError, unknown_name
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel, HookedModel, ModelFacts
from lensprune.models.weights import FrozenNorm, block_of, final_norm, frozen_norm, output_weights, unembedding

__all__ = ["DirectAttribution", "direct_logit_attribution", "source_attribution"]

Unit = Literal["head", "component", "layer"]
_BATCH = 8
_SOURCE_HOOKS = (
    "attn.hook_pattern",
    "attn.hook_v",
    "attn.hook_z",
    "hook_attn_out",
    "hook_mlp_out",
    "hook_resid_pre",
    "hook_resid_post",
)


@dataclass(frozen=True)
class DirectAttribution:
    """Contributions to the logit difference.

    `parts`: part, layer, head of every row of `values` (``embed``, ``L3.H1``, ``L3.attention_bias``, ``L3.mlp``,
    ``bias``: biases of the final norm and the unembedding). `values[p, i]`: contribution of part p on pair i, in
    logits;
    positive: for the answer. `logit_difference[i]`: what they add up to.
    """

    parts: pd.DataFrame
    values: Float[torch.Tensor, "part pair"]
    logit_difference: Float[torch.Tensor, " pair"]

    def table(self, unit: Unit = "head") -> pd.DataFrame:
        """Mean contribution over the pairs: part, layer, head, value, standard_error; in the model's order.

        Args:
            unit: ``head``; ``component``: attention and MLP branches; ``layer``: whole blocks.

        Raises:
            UserError: an unknown unit.
        """
        if unit not in ("head", "component", "layer"):
            raise unknown_name("unit", str(unit), ["head", "component", "layer"])
        names = self.parts["part"]
        inside = self.parts["layer"] >= 0
        if unit != "head":
            names = names.where(~inside, "L" + self.parts["layer"].astype(str))
        if unit == "component":
            is_mlp = self.parts["part"].str.endswith(".mlp")
            names = names.where(~inside | is_mlp, names + ".attention").where(~is_mlp, self.parts["part"])
        codes, distinct = pd.factorize(names)
        sums = torch.zeros(len(distinct), self.values.shape[1], dtype=torch.float64)
        sums.index_add_(0, torch.from_numpy(codes), self.values.cpu().double())
        means = MeanSE(len(distinct))
        means.add(sums)
        first = self.parts[~names.duplicated()].reset_index(drop=True)
        heads = first["head"] if unit == "head" else pd.Series(pd.NA, index=first.index, dtype="Int64")
        frame = first.assign(part=distinct, head=heads)
        return frame.assign(value=means.mean, standard_error=means.standard_error)


def direct_logit_attribution(
    model: AnyModel, pairs: Sequence[PromptPair], *, which: Literal["clean", "corrupt"] = "clean"
) -> DirectAttribution:
    """Split each pair's logit difference into the contributions of all parts, with the final norm's scale held fixed.

    The logits are linear in the final residual once the final norm's scale is fixed, and the final residual is a sum. A
    norm after attention (Gemma) is held at its scale too. Factors on branches (Granite) and logits (Granite, Cohere)
    are included in the contributions; a cap on logits (Gemma 2) is not: the sum is the difference before the cap. A
    part's indirect effect through later parts is not included.

    Args:
        which: whether to attribute on the clean or the corrupt prompts.

    Raises:
        LensPruneError: the residual stream is not the sum of its parts, attention is not its heads and a bias, or the
            logits are not linear in the normed residual up to a cap, so there is nothing to split.
    """
    hooked = as_hooked_model(model)
    if which not in ("clean", "corrupt"):
        raise unknown_name("prompts", str(which), ["clean", "corrupt"])
    columns: dict[int, torch.Tensor] = {}
    totals: dict[int, torch.Tensor] = {}
    for batch in pair_batches(pairs, hooked.facts.device, _BATCH):
        values, total = _attribute(hooked, batch, batch.clean if which == "clean" else batch.corrupt)
        for column, index in enumerate(batch.index):
            columns[index], totals[index] = values[:, column], total[column]
    order = range(len(pairs))
    return DirectAttribution(
        _parts(hooked), torch.stack([columns[i] for i in order], 1), torch.stack([totals[i] for i in order])
    )


def _parts(model: HookedModel) -> pd.DataFrame:
    rows: list[tuple[str, int, int | None]] = [("embed", -1, None)]
    for layer in range(model.facts.n_layers):
        rows += [(Head(layer, head).label, layer, head) for head in range(model.facts.n_heads)]
        rows += [(f"L{layer}.attention_bias", layer, None), (f"L{layer}.mlp", layer, None)]
    frame = pd.DataFrame([*rows, ("bias", -1, None)], columns=["part", "layer", "head"])
    return frame.astype({"head": "Int64"})


def _names(model: HookedModel) -> list[str]:
    names = ["blocks.0.hook_resid_pre", f"blocks.{model.facts.n_layers - 1}.hook_resid_post"]
    for layer in range(model.facts.n_layers):
        names += [f"blocks.{layer}.{hook}" for hook in ("attn.hook_z", "hook_attn_out", "hook_mlp_out")]
    return names


def _attribute(model: HookedModel, batch: PairBatch, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Contributions [part, pair] and their sum, in the order of `_parts`."""
    logits, kept = capture(model, tokens, _names(model))
    last = {name: activation[:, -1] for name, activation in kept.items()}
    norm = final_norm(model)
    final = last[f"blocks.{model.facts.n_layers - 1}.hook_resid_post"]
    factor, raw = linear_read_out(model, final, logits)
    direction = factor * _direction(model, batch)
    writes = [last["blocks.0.hook_resid_pre"]]
    with torch.no_grad():
        for layer in range(model.facts.n_layers):
            attention, z = (kept[f"blocks.{layer}.{hook}"] for hook in ("hook_attn_out", "attn.hook_z"))
            check_attention(model, layer, attention, z)
            heads = head_writes(model, layer, z[:, -1])
            writes += [*heads.unbind(1), attention[:, -1] - heads.sum(1), last[f"blocks.{layer}.hook_mlp_out"]]
        check_sum(torch.stack(writes).sum(0), final)
        scale = norm.scale(final)
        values = torch.stack([_project(norm, write, scale, direction) for write in writes])
        bias = direction @ norm.bias + factor * _unembedding_bias(model, batch)
        values = torch.cat([values, bias[None]])
    total = values.sum(0)
    raw = raw.to(total)
    error = float((total - batch.metric(raw)).abs().max() / raw.abs().max().clamp(min=1e-30))
    if not error < tolerance_of(logits.dtype):
        raise LensPruneError(
            f"the contributions of the parts of {model.facts.architecture} do not add up to the logit difference "
            f"(off by {error:.2g} of the largest logit), so it can't be attributed"
        )
    return values, total


def check_attention(
    model: HookedModel,
    layer: int,
    attention: Float[torch.Tensor, "row pos d_model"],
    z: Float[torch.Tensor, "row pos head d_head"],
) -> None:
    """Raise `LensPruneError` unless attention's output is the sum of its heads' writes and one bias.

    A bias is the same at all positions: it is compared at the first and the last token of every row.
    """
    ends = [0, -1]
    with torch.no_grad():
        rest = attention[:, ends] - head_writes(model, layer, z[:, ends]).sum(-2)
    error = float((rest - rest.mean((0, 1))).norm() / attention[:, ends].norm().clamp(min=1e-30))
    if not error < tolerance_of(attention.dtype):
        raise LensPruneError(
            f"attention of layer {layer} of {model.facts.architecture} is not the sum of its heads and a bias "
            f"(relative error {error:.2g}), so it can't be attributed to heads"
        )


def head_writes(
    model: HookedModel, layer: int, z: Float[torch.Tensor, "*rows head d_head"]
) -> Float[torch.Tensor, "*rows head d_model"]:
    """What each head adds to the residual stream; a norm after attention is held at the scale of this input."""
    weights = output_weights(model, layer).to(z.dtype)
    heads = einsum(z, weights, "... head d_head, head d_head d_model -> ... head d_model")
    block = block_of(model, layer)
    if "ln1_post" not in block._modules:
        return heads
    norm = frozen_norm(block.ln1_post)
    return norm.apply(heads, norm.scale(heads.sum(-2))[..., None, :])


def check_sum(total: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise `LensPruneError` if the parts do not add up to the model's residual stream."""
    error = float((total - expected).norm() / expected.norm().clamp(min=1e-30))
    if not error < tolerance_of(expected.dtype):
        raise LensPruneError(
            f"the residual stream is not the sum of its parts (relative error {error:.2g}), so it can't be attributed"
        )


def _direction(model: HookedModel, batch: PairBatch) -> Float[torch.Tensor, "pair d_model"]:
    weights = unembedding(model)
    dtype = torch.promote_types(weights.dtype, torch.float32)
    return (weights[:, batch.answer].to(dtype) - weights[:, batch.wrong].to(dtype)).T.detach()


def _unembedding_bias(model: HookedModel, batch: PairBatch) -> Float[torch.Tensor, " pair"]:
    module: Any = model.module
    return (module.b_U[batch.answer] - module.b_U[batch.wrong]).detach()


def _project(norm: FrozenNorm, write: torch.Tensor, scale: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    return (norm.apply(write, scale) * direction).sum(-1)


def source_attribution(
    model: AnyModel, pair: PromptPair, heads: Sequence[tuple[int, int]] | None = None
) -> pd.DataFrame:
    """Split what each head adds to the logit difference by the token it attends to, on the clean prompt of one pair.

    A head's output is the sum over source positions of attention × value, so its contribution is a sum over them too.

    Args:
        heads: (layer, head) pairs; ``None`` takes all.

    Returns:
        layer, head, position, token (text), value.

    Raises:
        UserError: a head that the model lacks, or norms after attention.
        LensPruneError: attention × values does not equal the heads' output, a layer's write is not the sum of its
            heads, a bias and its MLP, or the logits are not linear in the normed residual up to a cap.
    """
    hooked = as_hooked_model(model)
    chosen = _existing_heads(hooked.facts, heads)
    layers = sorted({layer for layer, _ in chosen})
    final_name = f"blocks.{hooked.facts.n_layers - 1}.hook_resid_post"
    names = [f"blocks.{layer}.{hook}" for layer in layers for hook in _SOURCE_HOOKS]
    (batch,) = pair_batches([pair], hooked.facts.device, 1)
    logits, kept = capture(hooked, batch.clean, dict.fromkeys([*names, final_name]))
    final = kept[final_name][:, -1]
    factor, _ = linear_read_out(hooked, final, logits)
    norm, direction = final_norm(hooked), factor * _direction(hooked, batch)[0]
    scale = norm.scale(final[0])
    texts = [str(hooked.tokenizer.decode([token])) for token in pair.clean]
    rows = []
    for layer in layers:
        written = _writes_by_source(hooked, layer, [kept[f"blocks.{layer}.{hook}"] for hook in _SOURCE_HOOKS])
        by_position = (norm.apply(written, scale) * direction).sum(-1).tolist()
        for head in (head for place, head in chosen if place == layer):
            rows += [(layer, head, p, texts[p], value) for p, value in enumerate(by_position[head])]
    return pd.DataFrame(rows, columns=["layer", "head", "position", "token", "value"])


def _existing_heads(facts: ModelFacts, heads: Sequence[tuple[int, int]] | None) -> list[tuple[int, int]]:
    """These (layer, head) pairs, or all of the model's."""
    places = [(layer, head) for layer in range(facts.n_layers) for head in range(facts.n_heads)]
    for place in heads or []:
        if tuple(place) not in places:
            raise UserError(f"head {place} does not exist: {facts.name} has {facts.n_layers} × {facts.n_heads}")
    return places if heads is None else [(layer, head) for layer, head in heads]


def _writes_by_source(
    model: HookedModel, layer: int, kept: Sequence[torch.Tensor]
) -> Float[torch.Tensor, "head key d_model"]:
    """What each head writes at the last position from each position that it reads; `kept`: the layer's
    `_SOURCE_HOOKS`."""
    if "ln1_post" in block_of(model, layer)._modules:
        raise UserError(f"{model.facts.architecture} norms the sum of its heads: it can't be split by source token")
    pattern, v, z, attention, mlp, before, after = kept
    values = repeat(v[0], "key kv_head d_head -> key (kv_head group) d_head", group=model.facts.heads_per_group)
    weighted = einsum(pattern[0, :, -1], values, "head key, key head d_head -> head key d_head")
    check_sum(weighted.sum(1), z[0, -1])
    check_sum(before + attention + mlp, after)
    check_attention(model, layer, attention, z)
    weights = output_weights(model, layer).detach()
    return einsum(weighted, weights, "head key d_head, head d_head d_model -> head key d_model")
