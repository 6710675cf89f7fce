"""The work of ``lensprune attribute``: build counterfactual pairs, run a method, write its tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lensprune.ablation.components import Head
from lensprune.attribution import (
    PromptPair,
    activation_patching,
    attribution_patching,
    counterfactual_pairs,
    direct_and_total_effects,
    direct_logit_attribution,
    edge_attribution,
    faithfulness_curve,
    logit_lens,
    pair_from_texts,
    path_patching,
    qk_attribution,
)
from lensprune.attribution.faithfulness import MIB_FRACTIONS
from lensprune.attribution.figures.faithfulness import faithfulness_figure
from lensprune.attribution.figures.writers import writers_figure
from lensprune.attribution.graph import EdgeGraph
from lensprune.attribution.pairs import pair_batches
from lensprune.attribution.qk import mean_contributions
from lensprune.attribution.runs import last_logits
from lensprune.engine.base import ProgressCallback
from lensprune.engine.gradient_rules import check_rule
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import HookedModel, ModelOrName
from lensprune.models.load import open_model
from lensprune.output.drawing.heatmap import head_heatmaps
from lensprune.output.plain_text import for_terminal
from lensprune.output.results_folder import write_results
from lensprune.output.tables import aligned, frame_json, of_how_many
from lensprune.registry import in_words
from lensprune.terminal import progress_bar, stage

__all__ = ["METHODS", "AttributionOptions", "PairTexts", "attribution_report", "passes"]

_Pairs = Sequence[PromptPair]
_PAIRS = 8
_PATCHED = ["part", "effect", "standard_error", "share"]
_PLACES = 4
_UNSIGNED = ("standard_error", "answer_rank")
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
class PairTexts:
    """A counterfactual pair as text: two prompts, and the continuation of each."""

    clean: str
    corrupt: str
    answer: str
    wrong: str

    def pair(self, model: HookedModel) -> PromptPair:
        """The pair in the model's tokens.

        Raises:
            UserError: as `pair_from_texts`, or prompts longer than the model's context.
        """
        pair = pair_from_texts(model, self.clean, self.corrupt, self.answer, self.wrong)
        if len(pair.clean) > model.facts.n_ctx:
            raise UserError(
                f"the clean prompt has {len(pair.clean)} tokens, but the context of {model.facts.name} is "
                f"{model.facts.n_ctx}"
            )
        return pair


@dataclass(frozen=True)
class _MethodResult:
    """A method's tables by file name (the first one is printed), a note, and what to draw."""

    tables: dict[str, pd.DataFrame]
    note: str
    draw: Callable[[str], Axes] | None = None
    rank_by: str | None = None
    shown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Preference:
    """How much a model prefers the right answer on the pairs: mean logit difference and its standard error."""

    clean: float
    clean_error: float
    corrupt: float
    corrupt_error: float
    moved: float
    moved_error: float

    @classmethod
    def of(cls, model: HookedModel, pairs: Sequence[PromptPair]) -> _Preference:
        clean, corrupt = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
        for batch in pair_batches(pairs, model.facts.device, _PAIRS):
            rows = list(batch.index)
            clean[rows] = batch.metric(last_logits(model, batch.clean)).double().cpu().numpy()
            corrupt[rows] = batch.metric(last_logits(model, batch.corrupt)).double().cpu().numpy()
        numbers = []
        for values in (clean, corrupt, clean - corrupt):
            error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            numbers += [float(values.mean()), float(error)]
        return cls(*numbers)

    @property
    def resolved(self) -> bool:
        """Whether the answer is preferred, because of the clean prompt: by more than two standard errors, or, for a
        single pair, by more than 0."""
        if np.isnan(self.clean_error):
            return self.clean > 0 and self.moved > 0
        return self.clean > 2 * self.clean_error and self.moved > 2 * self.moved_error

    def __str__(self) -> str:
        if np.isnan(self.clean_error):
            text = f"logit difference of the answer: clean {self.clean:+.3f}, corrupt {self.corrupt:+.3f} (one pair)"
        else:
            text = (
                f"logit difference of the answer: clean {self.clean:+.3f} ± {self.clean_error:.3f}, corrupt "
                f"{self.corrupt:+.3f} ± {self.corrupt_error:.3f} (mean ± standard error over pairs)"
            )
        if self.resolved:
            return text
        return (
            f"{text}\nthe model does not clearly prefer the right answer on these pairs, so effects don't explain its "
            "answers; shares, CPR and CMD are left out"
        )


def _map(frame: pd.DataFrame, value: str, name: str) -> Callable[[str], Axes]:
    shown = frame.assign(kind=name) if "site" in frame else frame[frame["head"] >= 0].assign(kind=name)
    return lambda title: head_heatmaps(shown, by="kind", value=value, title=title, label="logits")[0]


def _dla(
    model: HookedModel, pairs: Sequence[PromptPair], options: AttributionOptions, progress: ProgressCallback
) -> _MethodResult:
    dla = direct_logit_attribution(model, pairs)
    tables = {unit: dla.table(unit) for unit in ("head", "component", "layer")}
    note = f"contributions to the logit difference, which is {float(dla.logit_difference.mean()):+.3f} on average"
    return _MethodResult(
        {f"dla_{unit}": table for unit, table in tables.items()},
        note,
        _map(tables["head"], "value", "direct logit attribution"),
        "value",
        ["part", "value", "standard_error"],
    )


def _lens(
    model: HookedModel, pairs: Sequence[PromptPair], options: AttributionOptions, progress: ProgressCallback
) -> _MethodResult:
    return _MethodResult({"logit_lens": logit_lens(model, pairs)}, "readout of the residual stream after each layer")


def _patch(
    model: HookedModel, pairs: Sequence[PromptPair], options: AttributionOptions, progress: ProgressCallback
) -> _MethodResult:
    frame = activation_patching(model, pairs, ["head", "mlp"], progress=progress)
    note = "change of the logit difference with the corrupt activation (negative: needed)"
    return _MethodResult({"patching": frame}, note, _map(frame, "effect", "patching"), "effect", _PATCHED)


def _atp(
    model: HookedModel, pairs: Sequence[PromptPair], options: AttributionOptions, progress: ProgressCallback
) -> _MethodResult:
    frame = attribution_patching(model, pairs, ["head", "mlp"], rule=options.rule)
    note = f"first-order estimate of the change with the corrupt activation (negative: needed){_by(options.rule)}"
    return _MethodResult(
        {"attribution_patching": frame}, note, _map(frame, "effect", "attribution patching"), "effect", _PATCHED
    )


def _path(
    model: HookedModel, pairs: Sequence[PromptPair], options: AttributionOptions, progress: ProgressCallback
) -> _MethodResult:
    frame = path_patching(model, pairs, options.receiver, progress=progress)
    tables = {"path_patching": frame}
    note = f"exact effect of each component's corrupt output on {options.receiver} alone (negative: needed)"
    if options.total:
        tables["direct_and_total"] = direct_and_total_effects(model, pairs, progress=progress)
    name = f"path to {options.receiver}"
    return _MethodResult(
        tables, note, _map(frame, "effect", name), "effect", ["sender", "receiver", "effect", "standard_error"]
    )


def _eap(
    model: HookedModel, pairs: Sequence[PromptPair], options: AttributionOptions, progress: ProgressCallback
) -> _MethodResult:
    half = _scored(len(pairs), options)
    scores = edge_attribution(model, pairs[:half], steps=options.steps, rule=options.rule, progress=progress)
    tables = {"edges": scores.table()}
    note = f"estimated effect of corrupting each of {scores.graph.n_edges} edges, on {half} pairs (negative: needed)"
    note += _by(options.rule)
    if half == len(pairs):
        return _MethodResult(tables, note, None, "effect")
    curve = faithfulness_curve(model, pairs[half:], scores, progress=progress)
    tables["faithfulness"] = curve.table
    note += f"\ngreedy circuits on the other {len(pairs) - half} pairs: CPR {curve.cpr:.3f}, CMD {curve.cmd:.3f}"
    return _MethodResult(tables, note, lambda title: faithfulness_figure(curve.table, title=title), "effect")


def _qk(
    model: HookedModel, pairs: Sequence[PromptPair], options: AttributionOptions, progress: ProgressCallback
) -> _MethodResult:
    facts = model.facts
    heads = {
        Head(layer, head).label: Head(layer, head) for layer in range(facts.n_layers) for head in range(facts.n_heads)
    }
    if options.receiver == "logits":
        first, last = next(iter(heads)), next(reversed(heads))
        raise UserError(f"method qk explains one head's attention: give the head as receiver, from {first} to {last}")
    if options.receiver not in heads:
        raise unknown_name("head to explain", options.receiver, heads)
    found = []
    for pair in pairs:
        found.append(
            qk_attribution(
                model, pair.clean, heads[options.receiver], destination=options.destination, source=options.source
            )
        )
        progress(1)
    frame = mean_contributions(found)
    places = sorted({(one.destination, one.source) for one in found})
    score, relative, attention = (
        float(np.mean([getattr(one, name) for one in found])) for name in ("score", "relative", "attention")
    )
    more = f" and {len(places) - _PLACES} more" if len(places) > _PLACES else ""
    note = (
        f"what earlier parts add to the score with which {options.receiver} attends, clean prompts (relative: minus "
        f"the mean of the other tokens)\nscore {score:+.3f}, relative {relative:+.3f}, attention {attention:.3f}, "
        f"from → to {', '.join(f'{here} → {there}' for here, there in places[:_PLACES])}{more}"
    )
    return _MethodResult(
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
    str, Callable[[HookedModel, Sequence[PromptPair], AttributionOptions, ProgressCallback], _MethodResult]
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


def attribution_report(
    model: ModelOrName,
    method: str,
    task: str = "kv_retrieval",
    out: str | Path | None = None,
    *,
    texts: Sequence[PairTexts] | None = None,
    limit: int = 10,
    shots: int | None = None,
    seed: int = 0,
    options: AttributionOptions | None = None,
    dtype: str | None = None,
    device: str | None = None,
    bos: str | None = None,
    most: int = 10,
    progress: bool = True,
    as_json: bool = False,
) -> str:
    """Attribute a task's answers, write tables and a figure to `out`, and return the lines to print.

    Args:
        model: a name or path for `load_model`, or a loaded model.
        method: ``dla``, ``lens``, ``patch``, ``atp``, ``path``, ``eap-ig`` or ``qk``.
        task: a task with counterfactual pairs (`counterfactual_pairs`).
        texts: custom pairs instead of a task's.
        out: folder for CSV files and ``figures/<method>.png``.
        limit, shots, seed: choose the task's items.
        options: options of the method.
        dtype, device, bos: for `load_model`, when `model` is a name.
        most: rows to print.
        progress: show a bar of the passes done.
        as_json: return the method's first table, whole, as JSON.

    Raises:
        UserError: an unknown method, task or receiver, or a file that cannot be written.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    options = options or AttributionOptions()
    options.check(method)
    if most < 1 or limit < 1:
        raise UserError("limit and the number of rows to print must be 1 or more")
    with stage("loading the model", shown=progress):
        hooked = open_model(model, dtype=dtype, device=device, bos=bos)
    if texts is None:
        pairs, of = counterfactual_pairs(hooked, task, limit=limit, shots=shots, seed=seed), task
    else:
        pairs, of = [text.pair(hooked) for text in texts], "your own"
    with stage(f"answers to {len(pairs)} pairs", shown=progress):
        preference = _Preference.of(hooked, pairs)
    if not preference.resolved:
        options = replace(options, curve=False)
    total = passes(method, hooked, len(pairs), options)
    shown = progress and total is not None
    with progress_bar(shown=shown, total=total, unit="pass", description=method) as bar:
        result = METHODS[method](hooked, pairs, options, bar.update)
    if not preference.resolved:
        for table in result.tables.values():
            if "share" in table:
                table["share"] = float("nan")
    title = f"{hooked.facts.name}: {method} on {len(pairs)} pair{'s' if len(pairs) > 1 else ''} of {of}"
    lines = [for_terminal(title), str(preference), result.note, _shown(result, most)]
    if out is not None:
        tables = {f"{name}.csv": table for name, table in result.tables.items()}
        draw = {} if result.draw is None else {method: partial(result.draw, title)}
        lines.append("\n".join(str(path) for path in write_results(Path(out), tables, draw)))
    return frame_json(next(iter(result.tables.values()))) if as_json else "\n\n".join(lines)


def _shown(result: _MethodResult, most: int) -> str:
    frame = next(iter(result.tables.values()))
    if "site" in frame:
        places = zip(frame["site"], frame["layer"], frame["head"], strict=True)
        frame = frame.assign(part=[_part(*place) for place in places])
    total = len(frame)
    if result.rank_by is not None:
        frame = frame.loc[frame[result.rank_by].abs().sort_values(ascending=False, kind="stable").index].head(most)
    columns = result.shown or list(frame.columns)
    rows = [[_cell(column, row[column]) for column in columns] for row in frame.to_dict("records")]
    name = next(iter(result.tables))
    left = of_how_many(len(frame), total, f"rows, largest {str(result.rank_by).replace('_', ' ')} first", f"{name}.csv")
    return "\n".join(filter(None, [aligned([columns, *rows]), left]))


def _part(site: str, layer: int, head: int) -> str:
    return f"L{layer}.{site}" if pd.isna(head) else Head(layer, head).label


def _cell(column: str, value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return "-" if np.isnan(value) else f"{value:.3f}" if column in _UNSIGNED else f"{value:+.3f}"
