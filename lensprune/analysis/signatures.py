"""The failure signatures reported in arXiv 2510.02091, as checks that a run can pass, fail, or be too small for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.depth import BANDS, band_of
from lensprune.analysis.intervals import mean_intervals
from lensprune.analysis.room import ACCURACY_MARGIN, has_room
from lensprune.analysis.summary import Group, read_group
from lensprune.errors import UserError
from lensprune.runs.outcomes import Outcomes

__all__ = ["SIGNATURE_COLUMNS", "of_task", "signatures", "verdict"]

SIGNATURE_COLUMNS = (
    "signature",
    "task",
    "task_kind",
    "protocol",
    "ablation",
    "layers",
    "verdict",
    "n",
    "value",
    "ci_low",
    "ci_high",
    "p_value",
    "likelihood_value",
    "likelihood_ci_low",
    "likelihood_ci_high",
)
MIN_SHARE = 1 / 3
"""Share of each band's layers that must have been removed for the band to count, such as every third one."""
AT_CHANCE = "at chance"
_LIKELIHOODS = ("default", "continuation")


def verdict(low: float, high: float, accuracy_margin: float = ACCURACY_MARGIN) -> str:
    """``seen`` if the whole 95% interval lies below zero, ``not seen`` if it lies above −`accuracy_margin`, otherwise
    ``not resolvable`` with this many items. An interval between −`accuracy_margin` and zero counts as seen, but
    small."""
    if high < 0:
        return "seen"
    return "not seen" if low > -accuracy_margin else "not resolvable"


@dataclass(frozen=True)
class _Change:
    """Each item's mean change over the removed layers of the first band and over the later ones, with their numbers."""

    first: Float[np.ndarray, " item"]
    later: Float[np.ndarray, " item"]
    layers: str


def _changes(group: Group, n_layers: int) -> dict[str, _Change]:
    """Changes by ablation; ablations with too few layers in a band are left out."""
    sizes = Counter(band_of(layer, n_layers) for layer in range(n_layers))
    by_ablation: dict[str, dict[str, list[np.ndarray]]] = {}
    for name, cell in group.cells.items():
        layer = cell.facts["layer"]
        if name != CLEAN.name and cell.facts["component"] == "layer" and isinstance(layer, int):
            bands = by_ablation.setdefault(str(cell.facts["ablation"]), {band: [] for band in BANDS})
            bands[band_of(layer, n_layers)].append(cell.correct.astype(float) - group.clean.correct)  # type: ignore[union-attr]
    complete = {
        ablation: bands
        for ablation, bands in by_ablation.items()
        if all(bands[band] and len(bands[band]) >= MIN_SHARE * sizes[band] for band in BANDS)
    }
    if not complete:
        raise UserError(
            "signatures need every third layer or more removed, one at a time, in the first 30%, the middle and the "
            "last 30% of the depth: sweep over layers"
        )
    changes = {}
    for ablation, bands in complete.items():
        later = [*bands["middle"], *bands["last"]]
        removed = f"{len(bands['first'])} of {sizes['first']}, {len(later)} of {n_layers - sizes['first']}"
        changes[ablation] = _Change(np.mean(bands["first"], axis=0), np.mean(later, axis=0), removed)
    return changes


def signatures(
    outcomes: Outcomes, task: str | None = None, *, accuracy_margin: float = ACCURACY_MARGIN
) -> pd.DataFrame:
    """One row per signature and (task, protocol, ablation), with the columns `SIGNATURE_COLUMNS`.

    Layers are those removed one at a time by the same ablation; *first* is the first 30% of the depth, *later* the
    rest, and a band's change is the mean of Δμ over its removed layers. An ablation that removed less than a third of
    the layers of the first 30%, the middle or the last 30% has no row. `layers`: how many layers were removed in
    *first* and in *later*. `task_kind` is the task's kind, as declared when the run was made.

    * ``early drop``: change in *first* minus change in *later*, under each protocol; below zero if shallow layers are
      needed more.
    * ``deep loss of generation``: change in *later* under ``generate``.
    * ``likelihood flat, generation drops``: change in *later* under ``generate`` minus that under a likelihood protocol
      on the same items; ``seen`` only if the whole interval of the likelihood protocol's change (`likelihood_value`) is
      above −`accuracy_margin`, and the clean model is known to have room for a loss there (`has_room`): near chance, it
      looks flat in any case.

    `value` has a 95% interval over items (or clusters); `p_value`: one-sided, for the value not being below 0;
    `verdict`: see `verdict`, or `AT_CHANCE` if the clean model does not beat chance, so that nothing can be concluded.
    Verdicts here are not corrected for the number of rows; `lensprune.analysis.claims` does that per claim.

    Raises:
        UserError: a name that is not part of this run, no ablation removed enough single layers in all three bands of
            the depth, or `accuracy_margin` is not positive.
    """
    if not accuracy_margin > 0:
        raise UserError(f"margin {accuracy_margin} is not a loss of accuracy: expected a number above 0")
    groups: dict[str, dict[str, Group]] = {}
    for condition in outcomes.select(task):
        group = read_group(outcomes, *condition)
        if group is not None and group.clean is not None:
            groups.setdefault(group.task, {})[group.protocol] = group
    kinds = {spec.name: spec.kind for spec in outcomes.spec.tasks}
    rows = [
        {**row, "task_kind": kinds[name]}
        for name, by_protocol in groups.items()
        for row in of_task(by_protocol, outcomes.spec.n_layers, accuracy_margin)
    ]
    return pd.DataFrame(rows, columns=list(SIGNATURE_COLUMNS))


def of_task(groups: dict[str, Group], n_layers: int, accuracy_margin: float) -> list[dict[str, object]]:
    """Rows of `signatures` for one task, from its groups under each protocol."""
    by_protocol = {protocol: _changes(group, n_layers) for protocol, group in groups.items()}
    ablations = dict.fromkeys(ablation for of_protocol in by_protocol.values() for ablation in of_protocol)
    return [
        {
            **row,
            "ablation": ablation,
            "layers": next(of[ablation].layers for of in by_protocol.values() if ablation in of),
        }
        for ablation in ablations
        for row in _of_ablation(
            groups, {protocol: of[ablation] for protocol, of in by_protocol.items() if ablation in of}, accuracy_margin
        )
    ]


def _of_ablation(
    groups: dict[str, Group], changes: dict[str, _Change], accuracy_margin: float
) -> list[dict[str, object]]:
    # With the same clean outcome on both sides, first − later is between −1 and 1; across protocols it can reach ±2.
    rows = [
        _row("early drop", groups[protocol], change.first - change.later, 1, accuracy_margin)
        for protocol, change in changes.items()
    ]
    if "generate" not in changes:
        return rows
    group, generated = groups["generate"], changes["generate"].later
    rows.append(_row("deep loss of generation", group, generated, 1, accuracy_margin))
    for protocol in (p for p in _LIKELIHOODS if p in changes):
        likelihood = changes[protocol].later
        # A protocol leaves out items that it can't use, so the two may have different items.
        here, there = _shared(group, groups[protocol])
        if not len(here):
            continue
        clusters = None if group.clusters is None else group.clusters[here]
        paired = replace(group, clusters=clusters)
        row = _row("likelihood flat, generation drops", paired, generated[here] - likelihood[there], 2, accuracy_margin)
        rows.append(_asking_for_flat(row, groups[protocol], likelihood, accuracy_margin))
    return rows


def _shared(a: Group, b: Group) -> tuple[Int[np.ndarray, " item"], Int[np.ndarray, " item"]]:
    """Indices of the shared items in each of two groups."""
    ours, theirs = (group.clean.item_ids.to_numpy(zero_copy_only=False) for group in (a, b))  # type: ignore[union-attr]
    _, here, there = np.intersect1d(ours, theirs, return_indices=True)
    return here, there


def _row(
    signature: str, group: Group, values: Float[np.ndarray, " item"], largest: float, accuracy_margin: float
) -> dict[str, object]:
    interval = mean_intervals(values[:, None], group.clusters, bounds=(-largest, largest))
    low, high = float(interval.low[0]), float(interval.high[0])
    return {
        "signature": signature,
        "task": group.task,
        "protocol": group.protocol,
        "verdict": AT_CHANCE if group.at_chance else verdict(low, high, accuracy_margin),
        "n": len(values),
        "value": float(interval.delta[0]),
        "ci_low": low,
        "ci_high": high,
        "p_value": float(interval.p_negative[0]),
    }


def _asking_for_flat(
    row: dict[str, object], likelihood: Group, change: Float[np.ndarray, " item"], accuracy_margin: float
) -> dict[str, object]:
    """Restrict `row`, a gap between generation and a likelihood protocol: seen only if likelihood stays flat."""
    flat = mean_intervals(change[:, None], likelihood.clusters)
    low, high = float(flat.low[0]), float(flat.high[0])
    decided = row["verdict"]
    if likelihood.at_chance:
        decided = AT_CHANCE
    elif decided == "seen" and not has_room(likelihood, accuracy_margin):
        decided = "not resolvable"
    elif decided == "seen" and low <= -accuracy_margin:
        decided = "not seen" if high < -accuracy_margin else "not resolvable"
    return {
        **row,
        "protocol": f"{row['protocol']} − {likelihood.protocol}",
        "verdict": decided,
        "likelihood_value": float(flat.delta[0]),
        "likelihood_ci_low": low,
        "likelihood_ci_high": high,
    }
