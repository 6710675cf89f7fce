"""A screened sweep's heads: what was estimated, what was measured, and how reliable the estimates are."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import scipy

from lensprune.ablation.variants import CLEAN
from lensprune.errors import UserError
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.records import CellKey

__all__ = ["missed", "screen_quality", "screen_table"]


def screen_table(outcomes: Outcomes) -> pd.DataFrame:
    """One row per (task, protocol, head) with its estimate, and its measurement if it was measured.

    Columns: ``task``, ``protocol``, ``variant``, ``layer``, ``head``, ``estimate`` (mean change in nats, see
    `lensprune.sweeps.screening.estimated_effects`; if heads are ranked by several rules, by the one that ranks this
    head best), ``rank`` (1: largest estimated loss), ``status`` (``measured: strongest``, ``measured: strongest
    elsewhere``, under another task or protocol, ``measured: control`` or ``estimated``), ``n`` (items that it was
    measured on), ``delta`` (measured Δμ) and ``logprob_margin_change`` (measured mean change of the margin, nats, on
    items where it is finite; NaN under a protocol without one). Heads that were only estimated have no value there.

    Raises:
        UserError: the sweep measured all its heads.
    """
    return _table(outcomes, whole=True)


def _table(outcomes: Outcomes, *, whole: bool) -> pd.DataFrame:
    """`screen_table`; `whole`: on all items that each head was measured on, else on those that all heads were."""
    screen = outcomes.spec.screen
    if screen is None:
        raise UserError("this run was not screened, so all its heads are measured: see summary()")
    frame = pd.DataFrame(screen["estimates"])
    frame["status"] = [
        "estimated"
        if name not in screen["measured"]
        else "measured: strongest"
        if rank <= screen["reach"]
        else "measured: control"
        if screen["measured"][name] == "control"
        else "measured: strongest elsewhere"
        for name, rank in zip(frame["variant"], frame["rank"], strict=True)
    ]
    finished = set(outcomes.finished())
    rows = []
    for variant, task, protocol in zip(frame["variant"], frame["task"], frame["protocol"], strict=True):
        key = CellKey(variant, task, protocol)
        there = key in finished and key._replace(variant=CLEAN.name) in finished
        rows.append(_measured(outcomes, key, whole=whole) if there else {})
    measured = pd.DataFrame(rows, frame.index, ["n", "delta", "logprob_margin_change"])
    frame = frame.join(measured.astype({"n": "Int64", "delta": float, "logprob_margin_change": float}))
    return frame.sort_values(["task", "protocol", "rank"], kind="stable").reset_index(drop=True)


def _measured(outcomes: Outcomes, key: CellKey, *, whole: bool) -> dict[str, float]:
    """Items of one cell, and its mean changes from the clean model on them."""
    columns = ["correct", "logprob_margin"]
    cells = [outcomes.cell(which, columns, whole=whole) for which in (key, key._replace(variant=CLEAN.name))]
    n = cells[0].num_rows
    values = [cell.slice(0, n).to_pandas().astype(float).to_numpy() for cell in cells]
    right, margin = (values[0] - values[1]).T
    finite = margin[np.isfinite(margin)]
    return {
        "n": n // outcomes.samples(key.task, key.protocol),
        "delta": float(right.mean()),
        "logprob_margin_change": float(finite.mean()) if len(finite) else math.nan,
    }


def screen_quality(outcomes: Outcomes) -> pd.DataFrame:
    """How reliable the estimates are, judged by randomly drawn control heads: one row per (task, protocol).

    Columns: ``heads``, ``measured``, ``n`` (items that all heads were measured on), ``controls``, ``rank_correlation``
    (Spearman's, between rank and measurement over the controls), ``top`` (number of strongest heads to find in
    each), ``controls_in_top`` (controls whose measured loss is among the `top` largest of all heads),
    ``expected_missed`` (expected number of unmeasured heads among them) and ``most_missed`` (its upper one-sided 95%
    Clopper–Pearson bound). A control has weight (unmeasured + controls) / controls, for itself and its share of the
    unmeasured heads; the `top` largest are determined with these weights. The measurement is the margin's change, or Δμ
    under a protocol without one.

    Raises:
        UserError: as `screen_table`.
    """
    table, top = _table(outcomes, whole=False), int((outcomes.spec.screen or {})["top"])
    rows = []
    for (task, protocol), group in table.groupby(["task", "protocol"], sort=False):
        column = "logprob_margin_change" if group["logprob_margin_change"].notna().any() else "delta"
        measured = group.dropna(subset=[column])
        controls = measured[measured["status"] == "measured: control"]
        inside, expected, most = missed(measured.sort_values([column, "rank"], kind="stable"), len(group), top)
        varied = len(controls) > 2 and controls[column].nunique() > 1
        rows.append(
            {
                "task": task,
                "protocol": protocol,
                "heads": len(group),
                "measured": len(measured),
                "n": measured["n"].min(),
                "controls": len(controls),
                "rank_correlation": float(scipy.stats.spearmanr(controls["rank"], controls[column])[0])
                if varied
                else math.nan,
                "top": top,
                "controls_in_top": inside,
                "expected_missed": expected,
                "most_missed": most,
            }
        )
    return pd.DataFrame(rows)


def missed(measured: pd.DataFrame, heads: int, top: int) -> tuple[int, float, float]:
    """Controls among the `top` largest losses of all `heads`, unmeasured heads expected there, and an upper bound.

    `measured`: largest loss first. Heads within the top are counted by weight; a control on the border counts
    partially.
    """
    control = (measured["status"] == "measured: control").to_numpy()
    n, unmeasured = int(control.sum()), heads - len(measured)
    if not n:
        return 0, math.nan, math.nan
    weights = np.where(control, (unmeasured + n) / n, 1.0)
    within = np.clip((top - (np.cumsum(weights) - weights)) / weights, 0, 1)
    share = float(within[control].sum()) / n
    touched = int((within[control] > 0).sum())
    highest = float(scipy.stats.binomtest(touched, n).proportion_ci(0.9, method="exact").high)
    return touched, share * unmeasured, min(highest * unmeasured, float(top))
