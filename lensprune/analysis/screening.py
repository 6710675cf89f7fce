"""A screened sweep's heads: what was estimated, what was measured, and how far the estimates can be trusted."""

from __future__ import annotations

import math

import pandas as pd
import scipy

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.head_effects import read_effects
from lensprune.errors import UserError
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.records import CellKey

__all__ = ["screen_quality", "screen_table"]


def screen_table(outcomes: Outcomes) -> pd.DataFrame:
    """One row a (task, protocol, head): what was estimated, and what was measured where it was.

    Columns: ``task``, ``protocol``, ``variant``, ``layer``, ``head``, ``estimate`` (mean change in nats, see
    `lensprune.sweeps.screening.estimated_effects`), ``rank`` (1: largest estimated loss), ``status`` (``measured:
    strongest``, ``measured: strongest elsewhere``, under another task or protocol, ``measured: control`` or
    ``estimated``), ``delta`` (measured Δμ) and ``logprob_margin_change`` (measured mean change of the margin, nats, on
    items where it is finite; NaN under a protocol without one). What is only estimated has NaN there.

    Raises:
        UserError: the sweep measured all its heads.
    """
    screen = outcomes.spec.screen
    if screen is None:
        raise UserError("this run was not screened, all its heads are measured: see summary()")
    frame = pd.DataFrame(screen["estimates"])
    frame["rank"] = frame.groupby(["task", "protocol"])["estimate"].rank(method="first").astype(int)
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
    for column in ("delta", "logprob_margin_change"):
        frame[column] = math.nan
    finished = set(outcomes.finished())
    for cell, group in frame.groupby(["task", "protocol"], sort=False):
        task, protocol = map(str, cell)
        measured = any(CellKey(name, task, protocol) in finished for name in group["variant"])
        for column, measure in (("delta", "correct"), ("logprob_margin_change", "logprob_margin")):
            clean = CellKey(CLEAN.name, task, protocol)
            if not measured or clean not in finished:
                continue
            # Null, not NaN, where a protocol has no such measure.
            values = outcomes.cell(clean, [measure]).column(measure)
            if values.null_count == len(values):
                continue
            effects = read_effects(outcomes, task, protocol, component=screen["component"], measure=measure)
            effect_of = dict(zip(effects.variants, effects.effects, strict=True))
            frame.loc[group.index, column] = [effect_of.get(name, math.nan) for name in group["variant"]]
    return frame.sort_values(["task", "protocol", "rank"], kind="stable").reset_index(drop=True)


def screen_quality(outcomes: Outcomes) -> pd.DataFrame:
    """How far the estimates can be trusted, by the heads drawn at random: one row a (task, protocol).

    Columns: ``heads``, ``measured``, ``controls``, ``rank_correlation`` (Spearman's, between estimate and measurement
    over the controls), ``top`` (heads sought in each), ``controls_in_top`` (controls whose measured loss is among the
    `top` largest measured) and ``expected_missed`` (how many heads that were never measured would be
    among them, if they are like the controls). The measurement is the margin's change, or Δμ under a protocol without
    one.

    Raises:
        UserError: as `screen_table`.
    """
    table, top = screen_table(outcomes), int((outcomes.spec.screen or {})["top"])
    rows = []
    for (task, protocol), group in table.groupby(["task", "protocol"], sort=False):
        column = "logprob_margin_change" if group["logprob_margin_change"].notna().any() else "delta"
        measured = group.dropna(subset=[column])
        controls = measured[measured["status"] == "measured: control"]
        strongest = measured.sort_values([column, "rank"], kind="stable").head(top)
        inside = int((strongest["status"] == "measured: control").sum())
        varied = len(controls) > 2 and controls[column].nunique() > 1 and controls["estimate"].nunique() > 1
        rows.append(
            {
                "task": task,
                "protocol": protocol,
                "heads": len(group),
                "measured": len(measured),
                "controls": len(controls),
                "rank_correlation": float(scipy.stats.spearmanr(controls["estimate"], controls[column])[0])
                if varied
                else math.nan,
                "top": top,
                "controls_in_top": inside,
                "expected_missed": inside / len(controls) * (len(group) - len(measured)) if len(controls) else math.nan,
            }
        )
    return pd.DataFrame(rows)
