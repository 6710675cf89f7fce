"""The work of ``lensprune attribute``: build counterfactual pairs, run a method, write its tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from lensprune.ablation.components import Head
from lensprune.attribution import (
    PromptPair,
    counterfactual_pairs,
    pair_from_texts,
)
from lensprune.attribution.methods import METHODS, AttributionOptions, MethodResult, passes
from lensprune.attribution.pairs import pair_batches
from lensprune.attribution.runs import last_logits
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import HookedModel, ModelOrName
from lensprune.models.load import open_model
from lensprune.output.plain_text import for_terminal
from lensprune.output.results_folder import write_results
from lensprune.output.tables import aligned, frame_json, of_how_many
from lensprune.terminal import progress_bar, stage

__all__ = ["PairTexts", "attribution_report"]

_Pairs = Sequence[PromptPair]
_PAIRS = 8
_UNSIGNED = ("standard_error", "answer_rank")


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
            clean[rows] = batch.metric(last_logits(model, batch.clean)).cpu().double().numpy()
            corrupt[rows] = batch.metric(last_logits(model, batch.corrupt)).cpu().double().numpy()
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
    lines = [for_terminal(title), str(preference), result.note, _shown(result, most, kept=out is not None)]
    if out is not None:
        tables = {f"{name}.csv": table for name, table in result.tables.items()}
        draw = {} if result.draw is None else {method: partial(result.draw, title)}
        lines.append("\n".join(str(path) for path in write_results(Path(out), tables, draw)))
    return frame_json(next(iter(result.tables.values()))) if as_json else "\n\n".join(lines)


def _shown(result: MethodResult, most: int, *, kept: bool) -> str:
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
    order = f"rows, largest {str(result.rank_by).replace('_', ' ')} first"
    left = of_how_many(len(frame), total, order, f"{name}.csv", kept=kept)
    return "\n".join(filter(None, [aligned([columns, *rows]), left]))


def _part(site: str, layer: int, head: int) -> str:
    return f"L{layer}.{site}" if pd.isna(head) else Head(layer, head).label


def _cell(column: str, value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return "-" if np.isnan(value) else f"{value:.3f}" if column in _UNSIGNED else f"{value:+.3f}"
