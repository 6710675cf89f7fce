"""What ``lensprune sweep`` and ``lensprune analyse`` print about a run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.screening import screen_quality, screen_table
from lensprune.analysis.summary import summarise
from lensprune.errors import UserError
from lensprune.output.plain_text import for_terminal
from lensprune.output.results_folder import FIGURES, SUMMARY_TABLE, write_results
from lensprune.output.tables import aligned, frame_json, frame_rows, of_how_many
from lensprune.results.analyses import Analysis, analyses, parse_analysis
from lensprune.results.concentration import NOT_OF_ALL_HEADS
from lensprune.results.outputs import SCREEN_TABLE
from lensprune.results.run import Run
from lensprune.results.sentences import task_sentences
from lensprune.runs.chance import items_to_beat_chance, known_at_chance
from lensprune.runs.folder import read_spec
from lensprune.runs.noise import NOISE_NOTE, within_noise

__all__ = [
    "analyses_list",
    "analysis_report",
    "analysis_text",
    "at_chance_line",
    "run_report",
    "screen_report",
    "top_variants",
]

_SHOWN = {
    "variant": "variant",
    "accuracy": "accuracy",
    "delta": "Δμ",
    "interval": "95% interval",
    "p_value": "p",
    "q_loss": "q (loss)",
}


def top_variants(summary: pd.DataFrame, task: str, protocol: str, most: int = 5, *, kept: bool = True) -> str:
    """The variants with the largest losses under one protocol; for a clean model at chance, a line that says so.
    `kept`: whether the summary is in a file."""
    group = summary[(summary["task"] == task) & (summary["protocol"] == protocol)]
    clean = group[group["variant"] == CLEAN.name]
    if clean.empty:
        return f"{for_terminal(task)}, {protocol}: the clean model is not measured yet"
    first = clean.iloc[0]
    clean_line = (
        f"clean accuracy {first['accuracy']:.3f} (chance {first['chance']:.3f}, n {first['n']}{_samples(first)})"
    )
    head = f"{for_terminal(task)}, {protocol}: {clean_line}"
    notes = [
        f"{count} {what}"
        for count, what in (
            (int(first["truncated"]), "prompts cut on the left to fit the context"),
            (int((group["non_finite_rate"] > 0).sum()), "variants with NaN or infinite logits"),
        )
        if count
    ]
    if first["cut_off_rate"] > 0:
        notes.append(f"{first['cut_off_rate']:.0%} of texts cut off without an answer")
    if notes:
        head += "; " + ", ".join(notes)
    if ";" in str(first["metrics"]):
        head += f"\n  metrics: {for_terminal(str(first['metrics']))}"
    if known_at_chance(clean).iloc[0]:
        return f"{head}\n  {at_chance_line(first)}, so its changes are not ranked"
    changed = group[group["variant"] != CLEAN.name].sort_values("delta", kind="stable")
    shown = changed.head(most)
    noisy = within_noise(shown)
    own_n = group["n"].nunique() > 1
    rows = [[*_SHOWN.values(), *(["n"] if own_n else []), *(["note"] if noisy.any() else [])]]
    for (_, row), small in zip(shown.iterrows(), noisy, strict=True):
        rows.append(
            [
                str(row["variant"]),
                f"{row['accuracy']:.3f}",
                f"{row['delta']:+.3f}",
                f"[{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]",
                f"{row['p_value']:.2g}",
                f"{row['q_loss']:.2g}",
                *([str(row["n"])] if own_n else []),
                *([NOISE_NOTE if small else ""] if noisy.any() else []),
            ]
        )
    left = of_how_many(len(rows) - 1, len(changed), "variants, largest losses first", SUMMARY_TABLE, kept=kept)
    return "\n".join([head, *("  " + line for line in [*aligned(rows).splitlines(), left] if line)])


def _samples(row: pd.Series) -> str:
    return f", {row['samples']} samples each" if row["samples"] > 1 else ""


def at_chance_line(clean: pd.Series) -> str:
    """The line on a clean model at chance, by its row of a summary: that it guesses, or that the items are too
    few to tell."""
    accuracy, chance, n = float(clean["accuracy"]), float(clean["chance"]), int(clean["n"])
    needed = items_to_beat_chance(accuracy, chance)
    if needed is None or needed <= n:
        return "at chance: the clean model's right answers could come from guessing or from one answer for all"
    return (
        f"at chance: {n} items can't tell {accuracy:.2f} from guessing ({chance:.2f}); at that "
        f"accuracy {needed} would in four of five runs"
    )


def screen_report(table: pd.DataFrame, quality: pd.DataFrame, most: int = 10, *, kept: bool = True) -> str:
    """Heads of a screened sweep by rank, measured or not, and what the control set says of them."""
    parts = []
    for _, row in quality.iterrows():
        where = (table["task"] == row["task"]) & (table["protocol"] == row["protocol"])
        controls, own_n = int(row["controls"]), table.loc[where, "n"].dropna().nunique() > 1
        condition = f"{for_terminal(str(row['task']))}, {row['protocol']}"
        shared = f" (on the {row['n']} items that all heads were measured on)" if own_n else ""
        lines = [
            f"{condition}: {row['measured']} of {row['heads']} heads are measured: {row['measured'] - controls} chosen "
            f"by their estimates and {controls} drawn at random; the others are only estimated",
            f"on the random ones, the rank correlation of estimate and measurement is {row['rank_correlation']:.2f}"
            f"{shared}; "
            f"{row['controls_in_top']} of them are among the {row['top']} heads that lose most: about "
            f"{row['expected_missed']:.0f} of those {row['top']} were missed, at most {row['most_missed']:.0f} with "
            "95% confidence",
        ]
        rows = [["variant", "estimate (nats)", "measured (nats)", "Δμ", *(["n"] if own_n else []), "status"]]
        for _, head in table[where].head(most).iterrows():
            measured = ["-" if pd.isna(head[c]) else f"{head[c]:+.3f}" for c in ("logprob_margin_change", "delta")]
            measured += ["-" if pd.isna(head["n"]) else str(head["n"])] if own_n else []
            rows.append([str(head["variant"]), f"{head['estimate']:+.3f}", *measured, str(head["status"])])
        order = "heads, those ranked highest first"
        left = of_how_many(len(rows) - 1, int(where.sum()), order, SCREEN_TABLE, kept=kept)
        parts.append("\n".join([*lines, *("  " + line for line in [*aligned(rows).splitlines(), left] if line)]))
    return "\n\n".join(parts)


def run_report(run: Run, most: int = 5) -> str:
    """What a finished sweep prints: a sentence per task, the largest losses under each protocol, where files are."""
    summary, kept = summarise(run), run.folder is not None
    parts = [repr(run), "\n".join(task_sentences(run))]
    parts += [top_variants(summary, task, protocol, most, kept=kept) for task, protocol in run.conditions]
    if run.spec.screen is not None:
        parts += [screen_report(screen_table(run), screen_quality(run), kept=kept), NOT_OF_ALL_HEADS]
    if run.folder is not None:
        places = [
            ("table", run.folder / SUMMARY_TABLE),
            ("screened", run.folder / SCREEN_TABLE),
            ("records", run.folder / "records"),
            *(("figure", path) for path in sorted((run.folder / FIGURES).glob("*.png"))),
            *(("table", path) for path in sorted(run.folder.glob("concentration*.csv"))),
            *(("table", path) for path in sorted(run.folder.glob("overlap*.csv"))),
            *(("table", run.folder / f"{one.name}.csv") for one in analyses() if one.saved and one.columns),
        ]
        parts.append("\n".join(f"{what + ':':10}{path}" for what, path in places if path.exists()))
    return "\n\n".join(parts)


def _sweep_in(folder: str | Path) -> Run:
    if read_spec(Path(folder)).replaces_weights:
        raise UserError(
            f"{folder} contains a weight replacement, but only sweeps can be analysed: use lensprune report"
        )
    return Run.load(folder)


def analyses_list(folder: str | Path) -> str:
    """Every analysis with its options, for the run in `folder`.

    Raises:
        UserError: no run there, or one that exchanges weights.
    """
    _sweep_in(folder)
    rows = [["analysis", "options", "what it shows"]]
    for analysis in analyses():
        defaults = {
            name: option.default for name, option in analysis.options.items() if name not in ("task", "protocol")
        }
        options = ", ".join(name if default is None else f"{name}={default}" for name, default in defaults.items())
        rows.append([analysis.name, options or "-", analysis.title])
    return aligned(rows)


def analysis_text(run: Run, analysis: Analysis, table: pd.DataFrame) -> str:
    """The title of an analysis of a run, and its table."""
    return f"{for_terminal(run.spec.model)}: {analysis.title}\n\n{frame_rows(table, analysis.columns)}"


def analysis_report(
    folder: str | Path,
    analysis: str,
    task: str | None = None,
    protocol: str | None = None,
    *,
    out: str | Path | None = None,
    as_json: bool = False,
) -> str:
    """What ``lensprune analyse`` prints: the table of an analysis, and where its files are.

    Args:
        analysis: ``NAME`` or ``NAME[key=value,...]``.
        out: folder for table and figure; ``None`` writes none.
        as_json: the table alone, with all its columns, as JSON.

    Raises:
        UserError: no run there, an unknown analysis or option, a run without data for it, or a folder that can't
            be written to.
    """
    chosen, options = parse_analysis(analysis)
    run = _sweep_in(folder)
    for name, value in (("task", task), ("protocol", protocol)):
        if value is not None:
            options[name] = value
    table = chosen.table(run, **options)
    parts = [analysis_text(run, chosen, table)]
    if out is not None:
        draw = {} if chosen.draw is None else {chosen.name: chosen.figure_of(table, run.spec).draw}
        parts.append("\n".join(str(path) for path in write_results(Path(out), {f"{chosen.name}.csv": table}, draw)))
    if as_json:
        return frame_json(table)
    return "\n\n".join(parts)
