"""The summary table of a run's records: one row per (variant, task, protocol)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Int

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.intervals import mean_intervals, unit_sums
from lensprune.analysis.multiplicity import LEVEL, discrete_bh
from lensprune.analysis.paired_tests import lower_tail, mcnemar_exact
from lensprune.analysis.randomization import sign_flip_p
from lensprune.analysis.sequential import Looks, e_intervals
from lensprune.analysis.stopping import (
    AnyLook,
    Stopping,
    counts_of,
    hypotheses_of,
    look_intervals,
    look_p,
    n_ranked,
    stopping_of,
)
from lensprune.errors import LensPruneError
from lensprune.runs.chance import CHANCE_COLUMNS, cell_at_chance
from lensprune.runs.noise import noise_floor
from lensprune.runs.outcomes import Outcomes, computed_once
from lensprune.runs.records import CellKey

__all__ = ["SUMMARY_COLUMNS", "Cell", "Group", "read_group", "summarise", "summarise_cells", "summary_at"]

SUMMARY_COLUMNS = (
    "variant",
    "component",
    "layer",
    "head",
    "ablation",
    "task",
    "protocol",
    "n",
    "samples",
    "n_clusters",
    "chance",
    "at_chance",
    "accuracy",
    "accuracy_clean",
    "delta",
    "delta_relative",
    "ci_low",
    "ci_high",
    "p_value",
    "q_loss",
    "q_gain",
    "noise",
    "parse_rate",
    "degenerate_rate",
    "cut_off_rate",
    "non_finite_rate",
    "mean_gold_logprob",
    "truncated",
    "metrics",
)
_READ = [
    "item_id",
    "correct",
    "failure",
    "prediction",
    "gold_logprob",
    "truncated_tokens",
    "metrics",
    "component",
    "layer",
    "head",
    "ablation",
]


@dataclass(frozen=True)
class Cell:
    """What the summary needs from one cell: its outcomes item by item, and its rates over all records.

    `correct` is true or false, or the share of right samples if there are several.
    """

    correct: np.ndarray
    item_ids: pa.ChunkedArray
    facts: dict[str, object]


@dataclass(frozen=True)
class Group:
    """All finished cells of one (task, protocol), in the spec's order; `clean` is among `cells` once finished, and
    `at_chance` then says whether the clean model is at chance (otherwise ``None``). `chances` and `clusters` are per
    item; each item has `samples` records."""

    task: str
    protocol: str
    cells: dict[str, Cell]
    chances: np.ndarray
    clusters: np.ndarray | None
    n_clusters: int
    at_chance: bool | None
    samples: int = 1

    @property
    def clean(self) -> Cell | None:
        return self.cells.get(CLEAN.name)


def _one(table: pa.Table, column: str) -> object:
    return table.column(column)[0].as_py() if table.num_rows else None


def _means(metrics: pa.ChunkedArray) -> str:
    """Each metric's mean over the items, as text like ``exact_match,strict-match 0.250; last_number 0.375``."""
    values: dict[str, list[float]] = {}
    for pairs in metrics.to_pylist():
        for name, value in pairs or ():
            values.setdefault(name, []).append(value)
    return "; ".join(f"{name} {sum(numbers) / len(numbers):.3f}" for name, numbers in sorted(values.items()))


def _cell(table: pa.Table, samples: int) -> Cell:
    failure = table.column("failure").to_numpy(zero_copy_only=False)
    n = max(1, table.num_rows)
    logprobs = table.column("gold_logprob").to_numpy(zero_copy_only=False).astype(float)
    finite = logprobs[np.isfinite(logprobs)]
    correct = table.column("correct").to_numpy(zero_copy_only=False).astype(bool)
    return Cell(
        correct=correct if samples == 1 else correct.reshape(-1, samples).mean(axis=1),
        item_ids=_firsts(table, samples).column("item_id").combine_chunks(),
        facts={
            "component": _one(table, "component"),
            "layer": _one(table, "layer"),
            "head": _one(table, "head"),
            "ablation": _one(table, "ablation"),
            "parse_rate": 1 - table.column("prediction").null_count / n,
            "degenerate_rate": float((failure == "degenerate").sum() / n),
            "cut_off_rate": float((failure == "cut_off").sum() / n),
            "non_finite_rate": float((failure == "non_finite").sum() / n),
            "mean_gold_logprob": float(finite.mean()) if len(finite) else np.nan,
            "truncated": int((table.column("truncated_tokens").to_numpy() > 0).sum()),
            "metrics": _means(table.column("metrics")),
        },
    )


def _firsts(table: pa.Table, samples: int) -> pa.Table:
    """The first record of each item."""
    return table if samples == 1 else table.take(pa.array(range(0, table.num_rows, samples), pa.int64()))


def read_group(
    outcomes: Outcomes,
    task: str,
    protocol: str,
    items: Int[np.ndarray, " some"] | None = None,
    *,
    whole: bool = False,
) -> Group | None:
    """Read the cells of one (task, protocol), one file at a time; ``None`` if none is finished.

    Args:
        items: indices of the items to take; ``None`` takes all.
        whole: with planned looks, take all items that each variant was measured on; otherwise only those on which all
            were.

    Raises:
        UserError: a name that is not part of the run.
        LensPruneError: two cells contain different items, so they can't be paired.
    """
    keys = outcomes.finished(task, protocol)
    if not keys:
        return None
    task = keys[0].task
    samples = outcomes.samples(task, protocol)
    # An item's samples follow each other.
    rows = None if items is None else (items[:, None] * samples + np.arange(samples)).ravel()

    def read(key: CellKey, columns: Sequence[str]) -> pa.Table:
        cell = outcomes.cell(key, columns, whole=whole)
        return cell if rows is None else cell.take(rows)

    shared = _firsts(read(keys[0], ["chance", "cluster"]), samples)
    names = shared.column("cluster").to_pandas()
    codes, distinct = pd.factorize(names)
    clustered = bool(names.notna().all()) and len(names) > 0
    cells = {key.variant: _cell(read(key, _READ), samples) for key in keys}
    ids = cells[keys[0].variant].item_ids
    for name, cell in cells.items():
        if not cell.item_ids.equals(ids.slice(0, len(cell.item_ids)) if whole else ids):
            raise LensPruneError(
                f"records of {name} and {keys[0].variant} on {task} under {protocol} contain different items"
            )
    clean = CellKey(CLEAN.name, task, protocol)
    return Group(
        task=task,
        protocol=protocol,
        cells=cells,
        chances=shared.column("chance").to_numpy(zero_copy_only=False),
        clusters=codes if clustered else None,
        n_clusters=len(distinct) if clustered else len(ids),
        at_chance=cell_at_chance(read(clean, CHANCE_COLUMNS)) if clean in keys else None,
        samples=samples,
    )


def _measured(group: Group, level: float, stopping: Stopping | None, hypotheses: int) -> dict[str, dict[str, float]]:
    """Statistics of every changed variant against the clean model, on the items that it was measured on."""
    clean = group.clean
    changed = [name for name in group.cells if name != CLEAN.name]
    if clean is None or not changed:
        return {}
    outcomes = [group.cells[name].correct for name in changed]
    changes = [outcome.astype(float) - clean.correct[: len(outcome)] for outcome in outcomes]
    columns: dict[str, np.ndarray] = {
        name: np.full(len(changed), np.nan) for name in ("delta", "ci_low", "ci_high", "p_value", "q_loss", "q_gain")
    }
    for n in sorted({len(change) for change in changes}):
        places = [place for place, change in enumerate(changes) if len(change) == n]
        of_size = np.stack([changes[place] for place in places], axis=1)
        clusters = None if group.clusters is None else group.clusters[:n]
        interval = mean_intervals(of_size, clusters)
        columns["delta"][places] = interval.delta
        low, high = interval.low, interval.high
        if isinstance(stopping, Looks):
            low, high = look_intervals(of_size, clusters, stopping)
        columns["ci_low"][places], columns["ci_high"][places] = low, high
    if isinstance(stopping, AnyLook):
        columns["ci_low"], columns["ci_high"] = e_intervals(*counts_of(changes))
        columns["p_value"] = 1 / np.maximum(stopping.values(changes), 1.0)
        columns["q_loss"] = stopping.q(changes, hypotheses)
    elif isinstance(stopping, Looks):
        p = look_p(changes, group.clusters, stopping, len(stopping.items))
        columns["p_value"], columns["q_loss"] = stopping.repeated_p(p), stopping.q(p, hypotheses)
    else:
        # Items that a variant was not measured on count as unchanged, and unchanged items don't affect the test.
        padded = np.stack([np.append(outcome, clean.correct[len(outcome) :]) for outcome in outcomes], axis=1)
        # Integers: right samples gained or lost.
        counted = np.rint((padded.astype(float) - clean.correct[:, None]) * group.samples)
        sums, _ = unit_sums(counted, group.clusters)
        single = group.samples == 1
        columns["p_value"] = mcnemar_exact(clean.correct, padded.astype(bool)) if single else sign_flip_p(counted)
        columns["q_loss"], columns["q_gain"] = (
            discrete_bh(lower_tail(one_sided), level, hypotheses) for one_sided in (sums, -sums)
        )
    return {
        name: {column: float(values[place]) for column, values in columns.items()} for place, name in enumerate(changed)
    }


def _rows(group: Group, level: float, stopping: Stopping | None, hypotheses: int) -> list[dict[str, object]]:
    clean = group.clean
    measured = _measured(group, level, stopping, hypotheses)
    if clean is not None:
        measured[CLEAN.name] = {"delta": 0.0, "ci_low": 0.0, "ci_high": 0.0}
    rows = []
    for name, cell in group.cells.items():
        n = len(cell.correct)
        accuracy_clean = float(clean.correct[:n].mean()) if clean is not None and n else np.nan
        test = measured.get(name, {})
        rows.append(
            {
                "variant": name,
                "task": group.task,
                "protocol": group.protocol,
                "samples": group.samples,
                "n": n,
                "n_clusters": n if group.clusters is None else len(np.unique(group.clusters[:n])),
                "chance": float(group.chances[:n].mean()) if n else np.nan,
                "at_chance": group.at_chance,
                "accuracy": float(cell.correct.mean()) if n else np.nan,
                "accuracy_clean": accuracy_clean,
                "delta_relative": test["delta"] / accuracy_clean if test and accuracy_clean else np.nan,
                **cell.facts,
                **test,
            }
        )
    return rows


@computed_once
def summarise(outcomes: Outcomes) -> pd.DataFrame:
    """The summary of a run's finished cells, one row per (variant, task, protocol), with the columns `SUMMARY_COLUMNS`.

    `delta` = accuracy − accuracy_clean on the same items (negative: the part was needed), `delta_relative` =
    delta / accuracy_clean (NaN if the clean model got nothing right); `ci_low`, `ci_high`: paired 95% interval of
    `delta` (`lensprune.analysis.intervals.mean_intervals`), over clusters if items have them; `p_value`: exact McNemar,
    two-sided (with several samples per item: random signs of the items' differences). `q_loss`, `q_gain`: discrete
    false discovery rates, from one-sided exact p-values for a loss and for a gain without the part
    (`lensprune.analysis.multiplicity.discrete_bh`), each over the changed variants of the same (task, protocol); in a
    screened run over all parts that were ranked, since the ranking used the same items.

    `at_chance`: the clean model does not beat chance here, so ignore `delta`. `n` counts items, each with `samples`
    records; with several, an item's outcome is the share of right ones. `parse_rate`: share of records with an answer;
    `cut_off_rate`: share of records that ran out of new tokens without an answer; `mean_gold_logprob`: nats, over
    records where it is finite; `truncated`: number of records whose prompt was cut on the left; `metrics`: the mean of
    every metric by name; `accuracy` is the task's primary one. `noise`: share of items that the clean model answers
    differently when it is run in other ways, measured in half precision (`lensprune.runs.noise`); otherwise NaN.

    With planned looks (`SweepSpec.stopping`), each variant has its own `n`, and the clean model's accuracy is that on
    the same items. `q_loss` then tests for a loss larger than the margin, from the repeated p-values in `p_value`; the
    interval is the repeated one, with coverage over all looks, and `q_gain` is not available. With ``looks any``,
    `p_value` is 1 / e-value, and p, q and interval are valid at any number of items, whenever the sweep was stopped.

    Until the clean cell is finished, the columns that compare with it are empty.
    """
    return summary_at(outcomes, LEVEL)


def summary_at(outcomes: Outcomes, level: float) -> pd.DataFrame:
    """`summarise` with q-values for decisions at `level` (see `discrete_bh`)."""
    stopping = stopping_of(outcomes.spec.stopping)
    hypotheses = n_ranked(outcomes.spec) if stopping is None else hypotheses_of(outcomes.spec)
    rows: list[dict[str, object]] = []
    for task, protocol in outcomes.conditions:
        group = read_group(outcomes, task, protocol, whole=True)
        if group is not None:
            rows.extend(_rows(group, level, stopping, hypotheses))
    frame = pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))
    floors = {condition: noise_floor(outcomes.spec, *condition) for condition in outcomes.conditions}
    frame["noise"] = [floors[condition] for condition in zip(frame["task"], frame["protocol"], strict=True)]
    floats = [c for c in SUMMARY_COLUMNS if c.startswith(("delta", "ci_", "p_value", "q_", "accuracy", "noise"))]
    kinds = {"layer": "Int64", "head": "Int64", "at_chance": "boolean", **dict.fromkeys(floats, "float64")}
    return frame.astype(kinds)


def summarise_cells(outcomes: Outcomes, task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """The rows of `summarise` for one task, one protocol, both, or all.

    Raises:
        UserError: a name that is not part of this run.
    """
    conditions = set(outcomes.select(task, protocol))
    summary = summarise(outcomes)
    here = [condition in conditions for condition in zip(summary["task"], summary["protocol"], strict=True)]
    return summary[pd.Series(here, summary.index, dtype=bool)]
