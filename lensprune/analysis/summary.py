"""From records to the summary table: one row per (variant, task, protocol)."""

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
from lensprune.errors import LensPruneError
from lensprune.runs.chance import CHANCE_COLUMNS, cell_at_chance
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
    "parse_rate",
    "degenerate_rate",
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
    """What the summary keeps of one cell: its outcomes item by item, and its rates."""

    correct: np.ndarray
    item_ids: pa.ChunkedArray
    facts: dict[str, object]


@dataclass(frozen=True)
class Group:
    """All finished cells of one (task, protocol), in the spec's order; `clean` is among `cells` once finished, and
    `at_chance` then says whether the clean model is (else ``None``)."""

    task: str
    protocol: str
    cells: dict[str, Cell]
    chances: np.ndarray
    clusters: np.ndarray | None
    n_clusters: int
    at_chance: bool | None

    @property
    def clean(self) -> Cell | None:
        return self.cells.get(CLEAN.name)


def _one(table: pa.Table, column: str) -> object:
    return table.column(column)[0].as_py() if table.num_rows else None


def _means(metrics: pa.ChunkedArray) -> str:
    """Each metric's mean over the items, as text: ``exact_match,strict-match 0.250; last_number 0.375``."""
    values: dict[str, list[float]] = {}
    for pairs in metrics.to_pylist():
        for name, value in pairs or ():
            values.setdefault(name, []).append(value)
    return "; ".join(f"{name} {sum(numbers) / len(numbers):.3f}" for name, numbers in sorted(values.items()))


def _cell(table: pa.Table) -> Cell:
    failure = table.column("failure").to_numpy(zero_copy_only=False)
    n = max(1, table.num_rows)
    logprobs = table.column("gold_logprob").to_numpy(zero_copy_only=False).astype(float)
    finite = logprobs[np.isfinite(logprobs)]
    return Cell(
        correct=table.column("correct").to_numpy(zero_copy_only=False).astype(bool),
        item_ids=table.column("item_id").combine_chunks(),
        facts={
            "component": _one(table, "component"),
            "layer": _one(table, "layer"),
            "head": _one(table, "head"),
            "ablation": _one(table, "ablation"),
            "parse_rate": 1 - table.column("prediction").null_count / n,
            "degenerate_rate": float((failure == "degenerate").sum() / n),
            "non_finite_rate": float((failure == "non_finite").sum() / n),
            "mean_gold_logprob": float(finite.mean()) if len(finite) else np.nan,
            "truncated": int((table.column("truncated_tokens").to_numpy() > 0).sum()),
            "metrics": _means(table.column("metrics")),
        },
    )


def read_group(
    outcomes: Outcomes, task: str, protocol: str, items: Int[np.ndarray, " some"] | None = None
) -> Group | None:
    """Read the cells of one (task, protocol), a file at a time; ``None`` when none is finished.

    Args:
        items: places of the items to take; ``None`` takes all.

    Raises:
        UserError: a name that is not part of the run.
        LensPruneError: two cells hold different items, so they can't be paired.
    """
    keys = outcomes.finished(task, protocol)
    if not keys:
        return None
    task = keys[0].task

    def read(key: CellKey, columns: Sequence[str]) -> pa.Table:
        cell = outcomes.cell(key, columns)
        return cell if items is None else cell.take(items)

    shared = read(keys[0], ["chance", "cluster"])
    names = shared.column("cluster").to_pandas()
    codes, distinct = pd.factorize(names)
    clustered = bool(names.notna().all()) and len(names) > 0
    cells = {key.variant: _cell(read(key, _READ)) for key in keys}
    ids = cells[keys[0].variant].item_ids
    for name, cell in cells.items():
        if not cell.item_ids.equals(ids):
            raise LensPruneError(
                f"records of {name} and {keys[0].variant} on {task} under {protocol} hold different items"
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
    )


def _rows(group: Group, level: float) -> list[dict[str, object]]:
    clean = group.clean
    accuracy_clean = float(clean.correct.mean()) if clean is not None and len(clean.correct) else np.nan
    changed = [name for name in group.cells if name != CLEAN.name]
    measured: dict[str, dict[str, float]] = {}
    if clean is not None and changed:
        outcomes = np.stack([group.cells[name].correct for name in changed], axis=1)
        differences = outcomes.astype(float) - clean.correct[:, None]
        intervals = mean_intervals(differences, group.clusters)
        p_values = mcnemar_exact(clean.correct, outcomes)
        sums, _ = unit_sums(differences, group.clusters)
        q_loss, q_gain = (discrete_bh(lower_tail(counted), level) for counted in (sums, -sums))
        for i, name in enumerate(changed):
            delta = float(intervals.delta[i])
            measured[name] = {
                "delta": delta,
                "delta_relative": delta / accuracy_clean if accuracy_clean else np.nan,
                "ci_low": float(intervals.low[i]),
                "ci_high": float(intervals.high[i]),
                "p_value": float(p_values[i]),
                "q_loss": float(q_loss[i]),
                "q_gain": float(q_gain[i]),
            }
    if clean is not None:
        measured[CLEAN.name] = {
            "delta": 0.0,
            "delta_relative": 0.0 if accuracy_clean else np.nan,
            "ci_low": 0.0,
            "ci_high": 0.0,
        }
    shared = {
        "task": group.task,
        "protocol": group.protocol,
        "n_clusters": group.n_clusters,
        "chance": float(group.chances.mean()) if len(group.chances) else np.nan,
        "at_chance": group.at_chance,
        "accuracy_clean": accuracy_clean,
    }
    rows = []
    for name, cell in group.cells.items():
        accuracy = float(cell.correct.mean()) if len(cell.correct) else np.nan
        counted = {"variant": name, "n": len(cell.correct), "accuracy": accuracy}
        rows.append({**shared, **counted, **cell.facts, **measured.get(name, {})})
    return rows


@computed_once
def summarise(outcomes: Outcomes) -> pd.DataFrame:
    """The summary of a run's finished cells, one row per (variant, task, protocol), with the columns `SUMMARY_COLUMNS`.

    `delta` = accuracy − accuracy_clean on the same items (negative: the part was needed), `delta_relative` =
    delta / accuracy_clean (NaN when the clean model got nothing right); `ci_low`, `ci_high`: paired 95% interval of
    `delta` (`lensprune.analysis.intervals.mean_intervals`), over clusters where items have one; `p_value`:
    exact McNemar, two-sided. `q_loss`, `q_gain`: discrete false discovery rate of one-sided exact p-values, that the
    part was needed and that the model gains without it (`lensprune.analysis.multiplicity.discrete_bh`), each over the
    changed variants of the same (task, protocol).

    `at_chance`: the clean model does not beat chance here, so `delta` means nothing. `parse_rate`: share of items
    with an answer; `mean_gold_logprob`: nats, over items where it is finite; `truncated`: items whose prompt was cut on
    the left; `metrics`: the mean of every metric by its name, of which the task's primary one is `accuracy`.
    Until the clean cell is finished the columns that compare with it are empty.
    """
    return summary_at(outcomes, LEVEL)


def summary_at(outcomes: Outcomes, level: float) -> pd.DataFrame:
    """`summarise` with q-values that decide up to `level` (see `discrete_bh`)."""
    rows: list[dict[str, object]] = []
    for task, protocol in outcomes.cells:
        group = read_group(outcomes, task, protocol)
        if group is not None:
            rows.extend(_rows(group, level))
    frame = pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))
    floats = [c for c in SUMMARY_COLUMNS if c.startswith(("delta", "ci_", "p_value", "q_", "accuracy"))]
    kinds = {"layer": "Int64", "head": "Int64", "at_chance": "boolean", **dict.fromkeys(floats, "float64")}
    return frame.astype(kinds)


def summarise_cells(outcomes: Outcomes, task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """The rows of `summarise` of one task, of one protocol, of both, or all.

    Raises:
        UserError: a name that is not part of this run.
    """
    cells = set(outcomes.select(task, protocol))
    summary = summarise(outcomes)
    here = [cell in cells for cell in zip(summary["task"], summary["protocol"], strict=True)]
    return summary[pd.Series(here, summary.index, dtype=bool)]
