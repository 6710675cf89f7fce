"""The report of a weight replacement: a single HTML file that works without a network."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lensprune.errors import UserError
from lensprune.output.html import Column, csv_link, embedded_figure, render, table, write_page
from lensprune.output.plain_text import visible
from lensprune.replacement.figure_kinds import replacement_figures
from lensprune.replacement.outcomes import ReplacementOutcomes
from lensprune.replacement.ranks import weights_against_effect
from lensprune.replacement.shares import gain_shares
from lensprune.results.page_text import prompts_in_words

__all__ = ["replacement_page", "write_replacement_report"]

_SECTIONS = [("run", "What was run"), ("figures", "Figures"), ("parts", "Parts"), ("weights", "Weights and effects")]
_GAIN_SHOWN = {
    "task": Column("task"),
    "protocol": Column("protocol"),
    "n": Column("n", "d"),
    "accuracy_base": Column("base", ".3f"),
    "accuracy_distilled": Column("distilled", ".3f"),
    "gain": Column("gain", "+.3f"),
    "gain_ci_low": Column("95% from", "+.3f"),
    "gain_ci_high": Column("to", "+.3f"),
    "note": Column("note"),
}
_PARTS_SHOWN = {
    "part": Column("part"),
    "direction": Column("direction"),
    "task": Column("task"),
    "protocol": Column("protocol"),
    "accuracy": Column("accuracy", ".3f"),
    "effect": Column("effect", "+.3f"),
    "ci_low": Column("95% from", "+.3f"),
    "ci_high": Column("to", "+.3f"),
    "share": Column("share of gain", ".0%"),
    "share_ci_low": Column("95% from", ".0%"),
    "share_ci_high": Column("to", ".0%"),
    "weight_change_relative": Column("‖ΔW‖/‖W‖", ".3f"),
}
_RANKS_SHOWN = {
    "task": Column("task"),
    "protocol": Column("protocol"),
    "direction": Column("direction"),
    "n_parts": Column("parts", "d"),
    "spearman": Column("Spearman’s ρ", "+.2f"),
    "p_value": Column("p", ".2g"),
}


def replacement_page(outcomes: ReplacementOutcomes) -> str:
    """The page's text.

    Raises:
        UserError: no replacement was measured.
    """
    shares, spec = gain_shares(outcomes), outcomes.spec
    pictures = [embedded_figure(f.name, f.draw(), f.data(), f.alt, f.caption) for f in replacement_figures(outcomes)]
    gains = shares.drop_duplicates(["task", "protocol"])
    lead = "; ".join(
        f"{visible(row['task'])} under {row['protocol']}: the distilled model gains {row['gain']:+.2f} "
        f"(95% {row['gain_ci_low']:+.2f} to {row['gain_ci_high']:+.2f}, n {row['n']})"
        for row in gains.to_dict("records")
    )
    facts = [
        ("base", outcomes.base),
        ("distilled", outcomes.distilled),
        ("architecture", f"{spec.architecture}; {spec.n_layers} layers, {spec.n_heads} heads"),
        ("replaced", f"{', '.join(dict.fromkeys(shares['part']))}"),
        ("the rest", "; ".join(outcomes.notes)),
        ("prompts", prompts_in_words(spec)),
        ("numbers", f"{spec.dtype} on {spec.device}; BOS: {spec.bos}; seed {spec.seed}"),
        ("command", spec.execution.command or "called from Python"),
        ("versions", ", ".join(f"{name} {number}" for name, number in sorted(spec.versions.items()))),
        ("digest", spec.digest),
    ]
    return render(
        "replacement.html",
        title=visible(f"{outcomes.title}: {len(set(shares['part']))} replaced parts"),
        lead=lead.replace("-", "−") + ".",
        sections=_SECTIONS,
        facts=[(name, visible(value)) for name, value in facts],
        gains=table(gains.assign(note=[_note(row) for _, row in gains.iterrows()]), _GAIN_SHOWN),
        figures=pictures,
        parts=table(shares, _PARTS_SHOWN, ("task", "protocol", "direction")),
        tasks=[visible(task) for task in dict.fromkeys(shares["task"])],
        protocols=list(dict.fromkeys(shares["protocol"])),
        csv=csv_link(shares),
        ranks=table(weights_against_effect(shares), _RANKS_SHOWN),
    )


def _note(row: pd.Series) -> str:
    if bool(row["at_chance"]):
        return "at chance: not even the distilled model beats guessing"
    return "" if bool(row["gain_is_clear"]) else "its interval includes 0, so no shares are given"


def write_replacement_report(outcomes: ReplacementOutcomes, path: str | Path | None = None) -> Path:
    """Write `outcomes` as one HTML page.

    Args:
        path: the file; ``None`` takes ``report.html`` in the run's folder.

    Raises:
        UserError: a run in memory without `path`, or a place that can't be written to.
    """
    if path is None and outcomes.folder is None:
        raise UserError("this run is in memory: name the file to write its report to")
    target = Path(path) if path is not None else outcomes.folder / "report.html"  # type: ignore[operator]
    page = replacement_page(outcomes)
    return write_page(page, target)
