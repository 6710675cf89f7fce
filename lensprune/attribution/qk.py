"""QK attribution: why a head attends from one token to another, as contributions of what earlier parts wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float

from lensprune.ablation.components import Head, check_component
from lensprune.attribution.dla import check_attention, check_sum, head_writes
from lensprune.attribution.readout import tolerance_of
from lensprune.attribution.runs import edit_hook, run_hooked
from lensprune.engine.gradients import held_norms
from lensprune.errors import UserError
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel, HookedModel
from lensprune.models.tokenizers import encode
from lensprune.models.weights import block_of, frozen_norm

__all__ = ["QKAttribution", "mean_contributions", "qk_attribution"]

_SIDES = ("query", "key")
_WRITE_HOOKS = ("attn.hook_z", "hook_attn_out", "hook_mlp_out")
_MASKED = -1e4
"""Masked scores are far below this; real ones are above."""
_SATURATED = 0.9999
"""Share of the cap on scores up to which a capped score determines its uncapped value."""


@dataclass(frozen=True)
class QKAttribution:
    """Contributions of earlier writers to one attention score of `head`, from position `destination` to `source`.

    `score`: query · key before the softmax, scaled as the model does, before any cap. `relative`: the score minus the
    mean score of the other visible positions; attention depends on these differences alone. `attention`: the weight
    after the softmax.

    `table`: one row per (side, writer): side, writer, layer, head, value, relative. On side ``query`` a value is what
    the writer adds to the score at the destination, with the keys held; on side ``key`` what it adds at the source
    (`relative`: minus the mean of the other positions), with the query held. Writers are ``embed``, ``L3.H1``,
    ``L3.attention_bias``, ``L3.mlp``; ``bias`` (of the norm and the projection) and ``position`` (ALiBi: what is added
    to the score itself). The values of each side add up to `score`, and those of `relative` to `relative`.

    `pairs`: with ``pairs=True``, one row per (query_writer, key_writer) with the value of the product of the two, the
    largest magnitude first; together they are `score`.
    """

    head: Head
    destination: int
    source: int
    score: float
    relative: float
    attention: float
    table: pd.DataFrame
    pairs: pd.DataFrame | None = None


def qk_attribution(
    model: AnyModel,
    prompt: str | Sequence[int],
    head: Head,
    *,
    destination: int = -1,
    source: int | None = None,
    pairs: bool = False,
) -> QKAttribution:
    """Split a head's attention score between two tokens into contributions of everything written before the head.

    A score is bilinear in the residual streams at the two positions once the scales of the norms before and after the
    projections are held (rotation and scaling are linear; a cap is undone), and each residual stream is a sum of
    writes. So the split is exact up to the held scales; later changes of the scales are not included.

    Args:
        prompt: text, or token ids.
        destination, source: positions; negative ones count from the end. Without `source`: the position with the
            largest weight other than the first token, which many heads rest on.
        pairs: also split the score into products of a writer at the destination and one at the source.

    Raises:
        UserError: a head or position that does not exist, a source that the head can't see, or attention whose scores
            aren't bilinear in hooked projections of the residual stream (attention sinks; OPT, XGLM, GPT-Neo, AFMoE,
            Laguna, Llama 4).
        LensPruneError: the residual stream is not the sum of what the parts write.

    Examples:
        >>> from lensprune.attribution import qk_attribution
        >>> why = qk_attribution(model, "12 + 7 =", lp.Head(1, 0), source=0)
        >>> key_side = why.table[why.table["side"] == "key"]
        >>> bool(abs(key_side["value"].sum() - why.score) < 1e-3)
        True
    """
    hooked = as_hooked_model(model)
    check_component(head, hooked.facts)
    tokens = encode(hooked, prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
    destination = _position("destination", destination, len(tokens))
    seen = _observe(hooked, tokens, head, destination)
    source = _most_attended(seen) if source is None else _position("source", source, len(tokens))
    if source not in seen.visible:
        raise UserError(f"source {source} is not visible to {head.label} from position {destination}: expected one of "
                        f"{_ranges(seen.visible)}")  # fmt: skip
    return _Split(hooked, head, seen, destination, source).result(pairs=pairs)


def mean_contributions(attributions: Sequence[QKAttribution]) -> pd.DataFrame:
    """Mean contributions over prompts: side, writer, layer, head, value, relative, standard_error (of `relative`; NaN
    for a single prompt)."""
    keys = ["side", "writer", "layer", "head"]
    grouped = pd.concat([one.table for one in attributions]).groupby(keys, sort=False, dropna=False)
    means = grouped[["value", "relative"]].mean()
    return means.assign(standard_error=grouped["relative"].sem()).reset_index()


def _position(name: str, given: int, n: int) -> int:
    if not -n <= given < n:
        raise UserError(f"{name} {given} is not a position of a prompt of {n} tokens: expected {-n} to {n - 1}")
    return given % n


def _ranges(positions: Sequence[int]) -> str:
    """Positions without gaps, as attention windows have them."""
    return f"{positions[0]} to {positions[-1]}" if len(positions) > 1 else str(positions[0])


@dataclass(frozen=True)
class _Seen:
    """A forward pass up to one head's scores: what was written before it, and how its scores depend on q and k.

    `scores`: uncapped scores from the destination to the `visible` positions; the only tensor with a graph, which leads
    to `q` [1, pos, head, d_head] and `k` [1, pos, kv_head, d_head] before rotation and norms.
    """

    kept: dict[str, torch.Tensor]
    q: torch.Tensor
    k: torch.Tensor
    scores: Float[torch.Tensor, " visible"]
    attention: Float[torch.Tensor, " visible"]
    visible: list[int]


def _most_attended(seen: _Seen) -> int:
    others = [i for i, position in enumerate(seen.visible) if position > 0] or [0]
    return seen.visible[max(others, key=lambda i: float(seen.attention[i]))]


def _observe(model: HookedModel, tokens: Sequence[int], head: Head, destination: int) -> _Seen:
    kept: dict[str, torch.Tensor] = {}
    leaves: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[[torch.Tensor], None]:
        def look(activation: torch.Tensor) -> None:
            kept[name] = activation.detach()

        return look

    def leaf(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def begin(activation: torch.Tensor) -> torch.Tensor:
            leaves[name] = activation.detach().clone().requires_grad_()
            return leaves[name]

        return begin

    def end(scores: torch.Tensor) -> torch.Tensor:
        leaves["scores"] = scores
        return scores.detach()

    attention = f"blocks.{head.layer}.attn"
    names = ["blocks.0.hook_resid_pre", f"blocks.{head.layer}.hook_resid_pre", f"{attention}.hook_pattern"]
    for layer in range(head.layer):
        names += [f"blocks.{layer}.{hook}" for hook in _WRITE_HOOKS]
    hooks = [(name, edit_hook(keep(name))) for name in dict.fromkeys(names)]
    hooks += [(f"{attention}.hook_{name}", edit_hook(leaf(name))) for name in ("q", "k")]
    hooks.append((f"{attention}.hook_attn_scores", edit_hook(end)))
    row = torch.tensor([list(tokens)], device=model.facts.device)
    with torch.enable_grad(), held_norms(block_of(model, head.layer).attn):
        run_hooked(model, row, hooks)
    row_scores = leaves["scores"][0, head.head, destination] if "scores" in leaves else None
    if row_scores is None or not row_scores.requires_grad or "q" not in leaves or "k" not in leaves:
        raise _refusal(model, head, "its attention scores are not computed from hooked queries and keys")
    visible = (row_scores[: destination + 1].detach() > _MASKED).nonzero()[:, 0].tolist()
    weights = kept[f"{attention}.hook_pattern"][0, head.head, destination, visible]
    expected = row_scores[visible].detach().float().softmax(-1)
    if not torch.allclose(weights.float(), expected, atol=tolerance_of(weights.dtype)):
        raise _refusal(model, head, "its pattern is not the softmax of attn.hook_attn_scores")
    scores = _uncapped(model, head, row_scores[visible])
    return _Seen(kept, leaves["q"], leaves["k"], scores, weights, visible)


def _uncapped(model: HookedModel, head: Head, scores: torch.Tensor) -> torch.Tensor:
    module: Any = model.module
    config = getattr(getattr(module, "original_model", None), "config", None)
    declared = getattr(config, "attn_logit_softcapping", None) or getattr(module.cfg, "attn_scores_soft_cap", None)
    cap = max(0.0, float(declared or 0.0))
    if not cap:
        return scores
    if float(scores.detach().abs().max()) > _SATURATED * cap:
        raise _refusal(model, head, f"a score has reached its cap of {cap:g}, so that its uncapped value is unknown")
    return cap * torch.atanh(scores / cap)


def _refusal(model: HookedModel, head: Head, why: str) -> UserError:
    return UserError(f"{head.label} of {model.facts.architecture} can't be explained by queries and keys: {why}")


class _Split:
    """The contributions to one score. Positions are those that the head sees, in order."""

    def __init__(self, model: HookedModel, head: Head, seen: _Seen, destination: int, source: int) -> None:
        self._model, self._head, self._seen = model, head, seen
        self._places = seen.visible.index(destination), seen.visible.index(source)
        self._ends = destination, source
        block = block_of(model, head.layer)
        before = seen.kept[f"blocks.{head.layer}.hook_resid_pre"][0, seen.visible]
        self._before = before.to(torch.promote_types(before.dtype, torch.float32))
        self._norm = frozen_norm(block.ln1) if "ln1" in block._modules else None
        self._scale = self._before.new_ones(len(before), 1) if self._norm is None else self._norm.scale(self._before)
        self._projections = self._projection("q", seen.q), self._projection("k", seen.k)

    def _projection(
        self, name: str, hooked: Float[torch.Tensor, "row pos heads d_head"]
    ) -> tuple[Float[torch.Tensor, "d_model d_head"], Float[torch.Tensor, " d_head"], torch.Tensor]:
        """Weights and bias from the linear part of the norm to queries or keys, and those [visible, d_head] of the
        head, which they are checked against."""
        attention = block_of(self._model, self._head.layer).attn
        biases: torch.Tensor | None = getattr(attention, f"b_{name.upper()}", None)
        matrix = self._own(getattr(attention, f"W_{name.upper()}")).detach().to(self._before.dtype)
        bias = torch.zeros_like(matrix[0]) if biases is None else self._own(biases).detach().to(matrix.dtype)
        if self._norm is not None:
            bias = bias + self._norm.bias @ matrix
        values = self._own(hooked.detach()[0, self._seen.visible].transpose(0, 1)).to(matrix.dtype)
        expected = self._normed(self._before) @ matrix + bias
        error = float((values - expected).norm() / expected.norm().clamp(min=1e-30))
        if not error < tolerance_of(hooked.dtype):
            raise _refusal(
                self._model,
                self._head,
                f"attn.hook_{name} is not a projection of the normed residual stream (relative error {error:.2g})",
            )
        return matrix, bias, values

    def _own(self, of_heads: torch.Tensor) -> torch.Tensor:
        """The head's entry along the first axis, which counts query heads or key/value heads."""
        return of_heads[self._head.head * len(of_heads) // self._model.facts.n_heads]

    def _normed(self, x: Float[torch.Tensor, "*rows visible d_model"]) -> Float[torch.Tensor, "*rows visible d_model"]:
        """The linear part of the norm before attention, on summands of its input."""
        return x if self._norm is None else self._norm.apply(x, self._scale)

    def result(self, *, pairs: bool) -> QKAttribution:
        scores, source = self._seen.scores, self._places[1]
        others = [i for i in range(len(scores)) if i != source]
        targets = [scores[source], scores[source] - scores[others].mean() if others else scores[source] * 0]
        values = torch.tensor([float(target.detach()) for target in targets], dtype=torch.float64)
        gradients = [torch.autograd.grad(t, [self._seen.q, self._seen.k], retain_graph=True) for t in targets]
        names: list[tuple[str, int, int | None]] = []
        columns, rests = [], []
        for side, (matrix, bias, seen) in enumerate(self._projections):
            per_head = [of[side][0, self._seen.visible].transpose(0, 1) for of in gradients]
            towards = torch.stack([self._own(gradient) for gradient in per_head]).to(seen.dtype)
            directions = towards @ matrix.T
            if self._norm is not None:
                directions = self._norm.pull_back(directions, self._scale)
            names, written = self._written(directions)
            by_bias = einsum(towards, bias, "target visible d, d -> target").cpu().double()
            rests.append(values - einsum(towards, seen, "target visible d, visible d -> target").cpu().double())
            columns.append(torch.cat([written, by_bias[:, None], rests[side][:, None]], 1))
        size = float(self._seen.scores.detach().abs().max()) + 1
        if not float((rests[0] - rests[1]).abs().max()) < tolerance_of(self._seen.q.dtype) * size:
            raise _refusal(self._model, self._head, "its scores are not bilinear in queries and keys")
        named = [*names, ("bias", -1, None), ("position", -1, None)]
        frames = [
            pd.DataFrame(named, columns=["writer", "layer", "head"])
            .astype({"head": "Int64"})
            .assign(value=column[0].numpy(), relative=column[1].numpy())
            for column in columns
        ]
        table = pd.concat([frame.assign(side=side) for frame, side in zip(frames, _SIDES, strict=True)])
        return QKAttribution(
            self._head,
            destination=self._ends[0],
            source=self._ends[1],
            score=float(values[0]),
            relative=float(values[1]),
            attention=float(self._seen.attention[source]),
            table=table[["side", "writer", "layer", "head", "value", "relative"]].reset_index(drop=True),
            pairs=self._pairs([name for name, _, _ in names], float(rests[0][0])) if pairs else None,
        )

    def _written(
        self, directions: Float[torch.Tensor, "target visible d_model"]
    ) -> tuple[list[tuple[str, int, int | None]], Float[torch.Tensor, "target writer"]]:
        """Every writer, and its writes projected on `directions`, summed over positions."""
        names: list[tuple[str, int, int | None]] = []
        columns: list[torch.Tensor] = []
        total = torch.zeros_like(self._before)
        for name, layer, head, write in self._writes():
            names.append((name, layer, head))
            columns.append(einsum(directions, write, "target visible d, visible d -> target").cpu().double())
            total += write
        check_sum(total, self._before)
        return names, torch.stack(columns, 1)

    def _writes(self) -> Iterator[tuple[str, int, int | None, Float[torch.Tensor, "visible d_model"]]]:
        """What each part adds to the residual stream before the head: name, layer, head, write."""
        visible, kept, dtype = self._seen.visible, self._seen.kept, self._before.dtype
        yield "embed", -1, None, kept["blocks.0.hook_resid_pre"][0, visible].to(dtype)
        for layer in range(self._head.layer):
            z, attention, mlp = (kept[f"blocks.{layer}.{hook}"] for hook in _WRITE_HOOKS)
            check_attention(self._model, layer, attention, z)
            heads = head_writes(self._model, layer, z[0, visible].to(dtype)).detach()
            for head, write in enumerate(heads.unbind(1)):
                yield Head(layer, head).label, layer, head, write
            yield f"L{layer}.attention_bias", layer, None, attention[0, visible].to(dtype) - heads.sum(1)
            yield f"L{layer}.mlp", layer, None, mlp[0, visible].to(dtype)

    def _pairs(self, names: Sequence[str], rest: float) -> pd.DataFrame:
        """Products of what two writers put into the query and the key of the score."""
        destination, source = self._places
        (query_matrix, query_bias, _), (key_matrix, key_bias, _) = self._projections
        at_query, at_key = [], []
        for _, _, _, write in self._writes():
            normed = self._normed(write)
            at_query.append(normed[destination] @ query_matrix)
            at_key.append(normed[source] @ key_matrix)
        form = self._bilinear_form().to(query_bias.dtype)
        products = torch.stack([*at_query, query_bias]) @ form @ torch.stack([*at_key, key_bias]).T
        labels = [*names, "bias"]
        rows = [
            (query, key, value)
            for query, row in zip(labels, products.tolist(), strict=True)
            for key, value in zip(labels, row, strict=True)
        ]
        frame = pd.DataFrame([*rows, ("position", "position", rest)], columns=["query_writer", "key_writer", "value"])
        order = frame["value"].abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order].reset_index(drop=True)

    def _bilinear_form(self) -> Float[torch.Tensor, "d_head d_head"]:
        """The score's matrix between queries and keys: rotation, scaling, and norms on queries and keys."""
        seen, (destination, source) = self._seen, self._ends
        (gradient,) = torch.autograd.grad(seen.scores[self._places[1]], seen.q, create_graph=True)
        rows = [
            torch.autograd.grad(element, seen.k, retain_graph=True)[0][0, source]
            for element in self._own(gradient[0, destination])
        ]
        return torch.stack([self._own(row) for row in rows])
