"""What ``lensprune delta`` prints about a weight replacement."""

from __future__ import annotations

import pandas as pd

from lensprune.output.plain_text import for_terminal
from lensprune.output.results_folder import FIGURES
from lensprune.output.tables import aligned, frame_json, of_how_many
from lensprune.replacement.outcomes import ReplacementOutcomes
from lensprune.replacement.outputs import SHARES_TABLE
from lensprune.replacement.ranks import weights_against_effect
from lensprune.replacement.shares import gain_shares
from lensprune.runs.chance import beats_chance

__all__ = ["replacement_report"]


def replacement_report(outcomes: ReplacementOutcomes, most: int = 5, *, as_json: bool = False) -> str:
    """What `lensprune delta` prints: the pair, the gain per task and protocol, and the parts that carry most of it;
    `as_json`: replacement.csv as JSON."""
    shares = gain_shares(outcomes)
    if as_json:
        return frame_json(shares)
    ranks = weights_against_effect(shares)
    parts = [f"{for_terminal(outcomes.base)} → {for_terminal(outcomes.distilled)}: " + "; ".join(outcomes.notes)]
    for (task, protocol), of_condition in shares.groupby(["task", "protocol"], sort=False):
        first = of_condition.iloc[0]
        head = (
            f"{for_terminal(str(task))}, {protocol}: base {first['accuracy_base']:.3f}, distilled "
            f"{first['accuracy_distilled']:.3f}, gain {first['gain']:+.3f} "
            f"[{first['gain_ci_low']:+.3f}, {first['gain_ci_high']:+.3f}], n {first['n']}"
        )
        if not beats_chance(of_condition).iloc[0]:
            parts.append(
                f"{head}\n  at chance: not even the distilled model beats guessing here, so parts are not ranked"
            )
            continue
        if not bool(first["gain_is_clear"]):
            head += "; the interval of the gain includes 0, so no shares are given"
        rows = [["direction", "part", "accuracy", "effect", "95% interval", "share of gain", "‖ΔW‖/‖W‖"]]
        for _, ranked in of_condition.groupby("direction", sort=False):
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
        order, kept = "parts, largest effects of each direction first", outcomes.folder is not None
        left = of_how_many(len(rows) - 1, len(of_condition), order, SHARES_TABLE, kept=kept)
        table = "\n".join("  " + line for line in [*aligned(rows).splitlines(), left] if line)
        correlations = [
            f"{row['direction']} {row['spearman']:+.2f}"
            for _, row in ranks.iterrows()
            if (row["task"], row["protocol"]) == (task, protocol) and not pd.isna(row["spearman"])
        ]
        note = f"\n  rank correlation of ‖ΔW‖ and effect: {', '.join(correlations)}" if correlations else ""
        parts.append(f"{head}\n{table}{note}")
    if outcomes.folder is not None:
        places = [
            ("table", outcomes.folder / SHARES_TABLE),
            ("records", outcomes.folder / "records"),
            ("figures", outcomes.folder / FIGURES),
        ]
        parts.append("\n".join(f"{what + ':':9}{path}" for what, path in places if path.exists()))
    return "\n\n".join(parts)
