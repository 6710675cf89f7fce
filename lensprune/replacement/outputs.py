"""The job of ``lensprune delta``: what an exchange of weights leaves beside its records, and what it prints."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lensprune.output.plain_text import for_terminal
from lensprune.output.results_folder import FIGURES, SUMMARY_TABLE, write_results
from lensprune.output.tables import aligned
from lensprune.replacement.figure_kinds import delta_figures
from lensprune.replacement.result import DeltaRun

__all__ = ["delta_report", "write_delta_outputs"]

_TABLE = "delta.csv"


def write_delta_outputs(folder: Path, result: DeltaRun) -> list[Path]:
    """Write summary.csv, delta.csv and the figures.

    Raises:
        UserError: the disk is full or the folder can't be written to.
    """
    tables = {SUMMARY_TABLE: result.summary(), _TABLE: result.shares()}
    return write_results(folder, tables, {drawn.name: drawn.draw for drawn in delta_figures(result)})


def delta_report(result: DeltaRun, most: int = 5) -> str:
    """What `lensprune delta` prints: the pair, the gain of each task and protocol, the parts that carry most of it."""
    shares = result.shares()
    ranks = result.weights_against_effect()
    parts = [f"{for_terminal(result.base)} → {for_terminal(result.distilled)}: " + "; ".join(result.notes)]
    for (task, protocol), own in shares.groupby(["task", "protocol"], sort=False):
        first = own.iloc[0]
        head = (
            f"{for_terminal(str(task))}, {protocol}: base {first['accuracy_base']:.3f}, distilled "
            f"{first['accuracy_distilled']:.3f}, gain {first['gain']:+.3f} "
            f"[{first['gain_ci_low']:+.3f}, {first['gain_ci_high']:+.3f}], n {first['n']}"
        )
        if bool(first["at_chance"]):
            parts.append(
                f"{head}\n  at chance: not even the distilled model beats guessing here, so parts are not ranked"
            )
            continue
        if not bool(first["gain_is_clear"]):
            head += "; the gain is not clear of 0, so there are no shares of it"
        rows = [["direction", "part", "accuracy", "effect", "95% interval", "share of gain", "‖ΔW‖/‖W‖"]]
        for _, ranked in own.groupby("direction", sort=False):
            for _, row in ranked.sort_values("effect", ascending=False, kind="stable").head(most).iterrows():
                share = "-" if pd.isna(row["share"]) else f"{row['share']:.0%}"
                interval = "" if pd.isna(row["share"]) else f" [{row['share_ci_low']:.0%}, {row['share_ci_high']:.0%}]"
                rows.append(
                    [
                        str(row["direction"]),
                        str(row["part"]),
                        f"{row['accuracy']:.3f}",
                        f"{row['effect']:+.3f}",
                        f"[{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]",
                        share + interval,
                        f"{row['weight_change_relative']:.3f}",
                    ]
                )
        table = "\n".join("  " + line for line in aligned(rows).splitlines())
        correlations = [
            f"{row['direction']} {row['spearman']:+.2f}"
            for _, row in ranks.iterrows()
            if (row["task"], row["protocol"]) == (task, protocol) and not pd.isna(row["spearman"])
        ]
        note = f"\n  rank correlation of ‖ΔW‖ and effect: {', '.join(correlations)}" if correlations else ""
        parts.append(f"{head}\n{table}{note}")
    if result.folder is not None:
        places = [
            ("table", result.folder / _TABLE),
            ("records", result.folder / "records"),
            ("figures", result.folder / FIGURES),
        ]
        parts.append("\n".join(f"{what + ':':9}{path}" for what, path in places if path.exists()))
    return "\n\n".join(parts)
