"""The methods of ``lensprune attribute``: their options, tables, notes and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lensprune.ablation.components import Head
from lensprune.attribution import (
    PromptPair,
    activation_patching,
    attribution_patching,
    direct_and_total_effects,
    direct_logit_attribution,
    edge_attribution,
    faithfulness_curve,
    logit_lens,
    path_patching,
    qk_attribution,
)
from lensprune.attribution.faithfulness import MIB_FRACTIONS
from lensprune.attribution.figures.faithfulness import faithfulness_figure
from lensprune.attribution.figures.writers import writers_figure
from lensprune.attribution.graph import EdgeGraph
from lensprune.attribution.qk import mean_contributions
from lensprune.engine.base import ProgressCallback
from lensprune.engine.gradient_rules import check_rule
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import HookedModel
from lensprune.output.drawing.heatmap import head_heatmaps
from lensprune.registry import in_words

__all__ = ["METHODS", "AttributionOptions", "MethodResult", "passes"]

_PATCHED = ["part", "effect", "standard_error", "share"]


_PLACES = 4


_OWNERS = {
    "receiver": ("path", "qk"),
    "total": ("path",),
    "steps": ("eap-ig",),
    "curve": ("eap-ig",),
    "rule": ("atp", "eap-ig"),
    "destination": ("qk",),
    "source": ("qk",),
}


@dataclass(frozen=True)
class AttributionOptions:
    """Options of the methods: `receiver` of ``path``, whether it also patches every head for its total effect; `steps`
    of ``eap-ig``, whether it also draws a curve; the gradient `rule` of ``atp`` and ``eap-ig``; `receiver`, a head, and
    the `destination` and `source` positions of ``qk``."""

    receiver: str = "logits"
    total: bool = False
    steps: int = 5
    curve: bool = True
    rule: str = "plain"
    destination: int = -1
    source: int | None = None

    def check(self, method: str) -> None:
        """Reject an option that the method does not have.

        Raises:
            UserError: the option belongs to other methods, which the message names; or the rule is unknown.
        """
        plain = AttributionOptions()
        for name, owners in _OWNERS.items():
            if method not in owners and getattr(self, name) != getattr(plain, name):
                raise UserError(f"{name} is an option of method {in_words(owners)}, not of {method}: leave it out")
        check_rule(self.rule)


@dataclass(frozen=True)
class MethodResult:
    """A method's tables by file name (the first one is printed), a note, and what to draw."""

    tables: dict[str, pd.DataFrame]
    note: str
    draw: Callable[[str], Axes] | None = None
    rank_by: str | None = None
    shown: list[str] = field(default_factory=list)


def _map(frame: pd.DataFrame, value: str, name: str) -> Callable[[str], Axes]:
    shown = frame.assign(kind=name) if "site" in frame else frame[frame["head"] >= 0].assign(kind=name)
    return lambda title: head_heatmaps(shown, by="kind", value=value, title=title, label="logits")[0]


def _dla(
    model: HookedModel, pairs: Sequence[PromptPair], options: AttributionOptions, progress: ProgressCallback
) -> MethodResult:
    dla = direct_logit_attribution(model, pairs)
    tables = {unit: dla.table(unit) for unit in ("head", "component", "layer")}
    note = f"contributions to the logit difference, which is {float(dla.logit_difference.mean()):+.3f} on average"
    return MethodResult(
        {f"dla_{unit}": table for unit, table in tables.items()},
        note,
        _map(tables["head"], "value", "direct logit attribution"),
        "value",
        ["part", "value", "standard_error"],
    )


def _lens(
    model: HookedModel, pairs: Sequence[PromptPair], options: AttributionOptions, progress: ProgressCallback
) -> MethodResult:
    return MethodResult({"logit_lens": logit_lens(model, pairs)}, "readout of the residual stream after each layer")


def _patch(
    model: HookedModel, pairs: Sequence[PromptPair], options: AttributionOptions, progress: ProgressCallback
) -> MethodResult:
    frame = activation_patching(model, pairs, ["head", "mlp"], progress=progress)
    note = "change of the logit difference with the corrupt activation (negative: needed)"
    return MethodResult({"patching": frame}, note, _map(frame, "effect", "patching"), "effect", _PATCHED)


def _atp(
    model: HookedModel, pairs: Sequence[PromptPair], options: AttributionOptions, progress: ProgressCallback
) -> MethodResult:
    frame = attribution_patching(model, pairs, ["head", "mlp"], rule=options.rule)
    note = f"first-order estimate of the change with the corrupt activation (negative: needed){_by(options.rule)}"
    return MethodResult(
        {"attribution_patching": frame}, note, _map(frame, "effect", "attribution patching"), "effect", _PATCHED
    )


def _path(
    model: HookedModel, pairs: Sequence[PromptPair], options: AttributionOptions, progress: ProgressCallback
) -> MethodResult:
    frame = path_patching(model, pairs, options.receiver, progress=progress)
    tables = {"path_patching": frame}
    note = f"exact effect of each component's corrupt output on {options.receiver} alone (negative: needed)"
    if options.total:
        tables["direct_and_total"] = direct_and_total_effects(model, pairs, progress=progress)
    name = f"path to {options.receiver}"
    return MethodResult(
        tables, note, _map(frame, "effect", name), "effect", ["sender", "receiver", "effect", "standard_error"]
    )


def _eap(
    model: HookedModel, pairs: Sequence[PromptPair], options: AttributionOptions, progress: ProgressCallback
) -> MethodResult:
    half = _scored(len(pairs), options)
    scores = edge_attribution(model, pairs[:half], steps=options.steps, rule=options.rule, progress=progress)
    tables = {"edges": scores.table()}
    note = f"estimated effect of corrupting each of {scores.graph.n_edges} edges, on {half} pairs (negative: needed)"
    note += _by(options.rule)
    if half == len(pairs):
        return MethodResult(tables, note, None, "effect")
    curve = faithfulness_curve(model, pairs[half:], scores, progress=progress)
    tables["faithfulness"] = curve.table
    note += f"\ngreedy circuits on the other {len(pairs) - half} pairs: CPR {curve.cpr:.3f}, CMD {curve.cmd:.3f}"
    return MethodResult(tables, note, lambda title: faithfulness_figure(curve.table, title=title), "effect")


def _qk(
    model: HookedModel, pairs: Sequence[PromptPair], options: AttributionOptions, progress: ProgressCallback
) -> MethodResult:
    facts = model.facts
    heads = {
        Head(layer, head).label: Head(layer, head) for layer in range(facts.n_layers) for head in range(facts.n_heads)
    }
    if options.receiver == "logits":
        first, last = next(iter(heads)), next(reversed(heads))
        raise UserError(f"method qk explains one head's attention: give the head as receiver, from {first} to {last}")
    if options.receiver not in heads:
        raise unknown_name("head to explain", options.receiver, heads)
    results = []
    for pair in pairs:
        results.append(
            qk_attribution(
                model, pair.clean, heads[options.receiver], destination=options.destination, source=options.source
            )
        )
        progress(1)
    frame = mean_contributions(results)
    places = sorted({(one.destination, one.source) for one in results})
    score, relative, attention = (
        float(np.mean([getattr(one, name) for one in results])) for name in ("score", "relative", "attention")
    )
    more = f" and {len(places) - _PLACES} more" if len(places) > _PLACES else ""
    note = (
        f"what earlier parts add to the score with which {options.receiver} attends, clean prompts (relative: minus "
        f"the mean of the other tokens)\nscore {score:+.3f}, relative {relative:+.3f}, attention {attention:.3f}, "
        f"from → to {', '.join(f'{here} → {there}' for here, there in places[:_PLACES])}{more}"
    )
    return MethodResult(
        {"qk": frame},
        note,
        lambda title: writers_figure(frame, title=f"{title}: {options.receiver}")[0],
        "relative",
        ["side", "writer", "relative", "standard_error", "value"],
    )


def _by(rule: str) -> str:
    return "" if rule == "plain" else f", by gradient rule {rule}"


def _scored(n: int, options: AttributionOptions) -> int:
    """How many of the `n` pairs are used to score edges; the others are used for the curve."""
    return (n + 1) // 2 if options.curve and n > 1 else n


def passes(method: str, model: HookedModel, n: int, options: AttributionOptions) -> int | None:
    """The total of a method's progress bar on `n` pairs; ``None`` if it needs only a few passes."""
    facts = model.facts
    heads = facts.n_layers * facts.n_heads
    if method == "qk":
        return n
    if method == "patch":
        return n * (heads + facts.n_layers)
    if method == "eap-ig":
        scored = _scored(n, options)
        return scored * options.steps + (n - scored) * len(MIB_FRACTIONS)
    if method == "path":
        graph = EdgeGraph.of(facts)

        def read(receiver: str) -> int:
            return int(graph.edges[:, graph.reader(receiver)].sum())

        return n * (read(options.receiver) + (heads + read("logits") if options.total else 0))
    return None


METHODS: dict[
    str, Callable[[HookedModel, Sequence[PromptPair], AttributionOptions, ProgressCallback], MethodResult]
] = {
    "dla": _dla,
    "lens": _lens,
    "patch": _patch,
    "atp": _atp,
    "path": _path,
    "eap-ig": _eap,
    "qk": _qk,
}
"""The command line's ``--method`` names."""
