"""Compare two runs: Δμ of the same changes, on the items that both used."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Int

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.protocol_gap import GAP_COLUMNS, paired_gap
from lensprune.analysis.stopping import n_ranked
from lensprune.analysis.summary import read_group, summarise_cells
from lensprune.errors import UserError
from lensprune.runs.chance import known_at_chance
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.records import CellKey

__all__ = ["runs_gap", "shared_items"]

_ASKED = ("item_id", "prompt", "options", "reference")
"""Columns that identify an item; few-shot examples are part of the prompt."""
_Places = tuple[Int[np.ndarray, " shared"], Int[np.ndarray, " shared"]]


def shared_items(a: Outcomes, b: Outcomes, task: str, protocol: str) -> _Places | None:
    """Indices of the shared items in each run's cells; ``None`` if both runs used exactly the same items.

    Otherwise, items are shared if they have the same id, prompt, options and right answers. For a run that stops early,
    only the first items, which all its variants answered, count.
    """
    hashes = [next(spec.items_hash for spec in run.spec.tasks if spec.name == task) for run in (a, b)]
    if hashes[0] == hashes[1] and a.spec.stopping is None and b.spec.stopping is None:
        return None
    first, second = (_asked(run, task, protocol) for run in (a, b))
    shared = [question for question in first if question in second]
    return np.array([first[q] for q in shared], dtype=int), np.array([second[q] for q in shared], dtype=int)


def _asked(run: Outcomes, task: str, protocol: str) -> dict[tuple[str, ...], int]:
    questions = run.questions(task, protocol).select(_ASKED)
    if run.spec.stopping is not None:
        clean = run.cell(CellKey(CLEAN.name, run.task_named(task), protocol), ["item_id"])
        questions = questions.slice(0, clean.num_rows)
    return {tuple(repr(row[name]) for name in _ASKED): place for place, row in enumerate(questions.to_pylist())}


def runs_gap(a: Outcomes, b: Outcomes, task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """Δμ in run `b` minus Δμ in run `a` for every change, task and protocol that both have.

    The gap is paired (`lensprune.analysis.protocol_gap.paired_gap`: interval, p, q) on the items that both runs used
    (`shared_items`), and `n` is their number. If they share none, `gap` is the plain difference, without an interval,
    and `n` is missing.

    Args:
        task, protocol: only this one.

    Returns:
        The columns `GAP_COLUMNS` with `task`, `protocol` and `note`.

    Raises:
        UserError: a name that is not part of `a`, `b` is no run, or the runs share no finished change on a task and
            protocol.
    """
    if not isinstance(b, Outcomes):
        raise UserError(f"{b!r} is not a run to compare with: expected a Run, like Run.load('runs/first')")
    frames = []
    for condition in a.select(task, protocol):
        if condition not in b.conditions:
            continue
        gap = _condition_gap(a, b, *condition)
        if gap is None or gap.empty:
            continue
        unclear = known_at_chance(gap)
        for marked, text in ((unclear, "at chance"), (gap["floor"] & ~unclear, "near chance")):
            gap.loc[marked, "note"] = (gap.loc[marked, "note"] + f", {text}").str.strip(", ")
        frames.append(gap.assign(task=condition[0], protocol=condition[1]))
    if not frames:
        raise UserError("the two runs share no finished change on a task and protocol: there is nothing to compare")
    return pd.concat(frames, ignore_index=True)


def _condition_gap(a: Outcomes, b: Outcomes, task: str, protocol: str) -> pd.DataFrame | None:
    """The gap on one task and protocol with its `note`; ``None`` if a run has not finished its clean cell."""
    first, second = read_group(a, task, protocol), read_group(b, task, protocol)
    if first is None or second is None or first.clean is None or second.clean is None:
        return None
    places = shared_items(a, b, task, protocol)
    ranked = max(n_ranked(a.spec), n_ranked(b.spec))
    if places is None:
        return paired_gap(first, second, ranked).assign(note="")
    if not len(places[0]):
        return _unpaired(a, b, task, protocol).assign(note="different items: not paired")
    n = len(places[0])
    note = f"{n} item{'' if n == 1 else 's'} shared, of {len(first.chances)} and {len(second.chances)}"
    if a.spec.stopping is not None or b.spec.stopping is not None:
        note += " that all variants answered"
    some = [read_group(run, task, protocol, items) for run, items in zip((a, b), places, strict=True)]
    return paired_gap(some[0], some[1], ranked).assign(note=note)  # type: ignore[arg-type]


def _unpaired(a: Outcomes, b: Outcomes, task: str, protocol: str) -> pd.DataFrame:
    sides = []
    for run in (a, b):
        frame = summarise_cells(run, task, protocol)
        sides.append(frame[frame["variant"] != CLEAN.name])
    place = ["variant", "component", "layer", "head", "ablation"]
    both = sides[0].merge(sides[1][["variant", "delta", "at_chance"]], on="variant", suffixes=("_a", "_b"))
    both = both.assign(
        task_a=task, task_b=task, protocol_a=protocol, protocol_b=protocol, n=pd.array([pd.NA] * len(both), "Int64"),
        gap=both["delta_b"] - both["delta_a"], ci_low=float("nan"), ci_high=float("nan"), p_value=float("nan"),
        q_lower=float("nan"), q_higher=float("nan"), relative_a=float("nan"), relative_b=float("nan"), floor=False,
        at_chance=both["at_chance_a"] | both["at_chance_b"],
    )  # fmt: skip
    return both[[*place, *GAP_COLUMNS[len(place) :]]]
