"""The report of one run: a single HTML file that works without a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.claims import claim_results
from lensprune.analysis.critical import critical
from lensprune.analysis.decisions import unfinished
from lensprune.analysis.room import ACCURACY_MARGIN
from lensprune.analysis.signatures import SIGNATURE_COLUMNS, signatures
from lensprune.analysis.stopping import level_of
from lensprune.analysis.summary import summarise
from lensprune.errors import UserError
from lensprune.models.base import ModelOrName
from lensprune.output.files import write_error
from lensprune.output.html import (
    LARGEST_INSIDE,
    Column,
    csv_link,
    embedded_figure,
    render,
    table,
    write_page,
)
from lensprune.output.plain_text import csv_text, visible, write_csv_parts
from lensprune.output.tables import heading
from lensprune.results.analyses import Analysis, analyses, shown_analyses
from lensprune.results.browser_rows import MAX_RECORDS, browser_rows
from lensprune.results.concentration import concentration_files
from lensprune.results.explorer import check_patterns, explorer, shown_patterns
from lensprune.results.page_text import counted, facts, lead, none_critical, notes, tests_in_words
from lensprune.runs.chance import known_at_chance
from lensprune.runs.noise import NOISE_NOTE, within_noise
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.records import SCHEMA
from lensprune.terminal import progress_bar

__all__ = ["RECORDS_FILE", "REPORT_FILE", "run_page", "write_report"]

REPORT_FILE = "report.html"
RECORDS_FILE = "records.csv"
_CELLS_AT_ONCE = 50
MAX_ROWS = 500
"""Rows of the summary that the page shows."""

_SECTIONS = [
    ("run", "What was run"),
    ("analyses", "Analyses"),
    ("critical", "Critical parts"),
    ("summary", "All results"),
    ("claims", "The paper's claims"),
    ("map", "Map of effects"),
    ("items", "Items"),
    ("downloads", "Downloads"),
]
SUMMARY_SHOWN = {
    "variant": Column("variant"),
    "task": Column("task"),
    "protocol": Column("protocol"),
    "n": Column("n", "d"),
    "accuracy_clean": Column("clean", ".3f"),
    "accuracy": Column("accuracy", ".3f"),
    "delta": Column("Δμ", "+.3f"),
    "ci_low": Column("95% from", "+.3f"),
    "ci_high": Column("to", "+.3f"),
    "p_value": Column("p", ".2g"),
    "q_loss": Column("q of a loss", ".2g"),
    "q_gain": Column("q of a gain", ".2g"),
    "parse_rate": Column("answered", ".2f"),
    "degenerate_rate": Column("degenerate", ".2f"),
    "cut_off_rate": Column("cut off", ".2f"),
    "note": Column("note"),
}
_NOT_OF_LOSSES = ("q_gain", "parse_rate", "degenerate_rate", "cut_off_rate", "note")
_CRITICAL_SHOWN = {name: column for name, column in SUMMARY_SHOWN.items() if name not in _NOT_OF_LOSSES}
_CELLS_SHOWN = {
    "task": Column("task"),
    "protocol": Column("protocol"),
    "n": Column("items", "d"),
    "chance": Column("chance", ".3f"),
    "accuracy": Column("clean accuracy", ".3f"),
    "parse_rate": Column("answered", ".2f"),
    "cut_off_rate": Column("cut off", ".2f"),
    "shots": Column("shots", "d"),
    "seed": Column("seed", "d"),
    "note": Column("note"),
}
CLAIM_SHOWN = {
    "task": Column("task"),
    "protocol": Column("protocol"),
    "ablation": Column("removed by"),
    "layers": Column("layers, first and later"),
    "verdict": Column("verdict"),
    "n": Column("n", "d"),
    "value": Column("value", "+.3f"),
    "ci_low": Column("95% from", "+.3f"),
    "ci_high": Column("to", "+.3f"),
    "p_holm": Column("p, Holm", ".2g"),
    "likelihood_value": Column("likelihood's own", "+.3f"),
    "likelihood_ci_low": Column("95% from", "+.3f"),
    "likelihood_ci_high": Column("to", "+.3f"),
}


def write_report(
    outcomes: Outcomes,
    path: str | Path | None = None,
    *,
    most_records: int = MAX_RECORDS,
    patterns: int = 0,
    model: ModelOrName | None = None,
    progress: bool = False,
) -> Path:
    """Write `outcomes` as one HTML page, and beside it records.csv with every record.

    Args:
        path: the file; ``None`` takes ``report.html`` in the run's folder.
        most_records: how many records the page's item browser holds; records.csv has all.
        patterns, model: as `run_page`.
        progress: show a progress bar.

    Returns:
        The page.

    Raises:
        UserError: as `check_patterns`; a run in memory without `path`, a folder that does not exist, or one that can't
            be written to.
    """
    check_patterns(patterns, model)
    if path is None and outcomes.folder is None:
        raise UserError("this run is in memory: name the file to write its report to")
    target = Path(path) if path is not None else outcomes.folder / REPORT_FILE  # type: ignore[operator]
    if target.is_dir() or not target.parent.is_dir():
        what = "is a folder" if target.is_dir() else f"lies in {target.parent}, which does not exist"
        raise UserError(f"{target} {what}: expected the name of a file in an existing folder, like {REPORT_FILE}")
    try:
        # Every analysis is computed and drawn; those without data end at once.
        steps = 2 + 2 * len(analyses())
        with progress_bar(shown=progress, total=steps, unit="step", description="records") as bar:

            def step(doing: str) -> None:
                bar.update(1)
                bar.set_description(doing)

            write_csv_parts(_record_parts(outcomes), target.with_name(RECORDS_FILE))
            step("summary")
            page = run_page(
                outcomes, target.with_name(RECORDS_FILE), most_records, patterns=patterns, model=model, step=step
            )
            bar.update(steps - bar.n)
    except OSError as error:
        raise write_error(error, target.parent) from None
    return write_page(page, target)


def _record_parts(outcomes: Outcomes) -> Iterator[pd.DataFrame]:
    keys = outcomes.finished()
    for start in range(0, max(1, len(keys)), _CELLS_AT_ONCE):
        cells = [outcomes.cell(key, whole=True) for key in keys[start : start + _CELLS_AT_ONCE]]
        frame = pa.concat_tables(cells).to_pandas() if cells else SCHEMA.empty_table().to_pandas()
        # One text per record: JSON, like {"acc": 1.0}, and NaN where a log-probability is none.
        frame["metrics"] = [json.dumps(dict(pairs)) for pairs in frame["metrics"]]
        frame["option_logprobs"] = [
            None if logprobs is None else json.dumps(list(logprobs)) for logprobs in frame["option_logprobs"]
        ]
        yield frame.astype({"layer": "Int64", "head": "Int64"})


def run_page(
    outcomes: Outcomes,
    records: Path | None,
    most_records: int = MAX_RECORDS,
    *,
    patterns: int = 0,
    model: ModelOrName | None = None,
    step: Callable[[str], object] = lambda doing: None,
) -> str:
    """The page's text.

    Args:
        records: the CSV file of all records, which lies beside the page; ``None``: there is none, and no file that is
            too large for the page.
        patterns: of how many heads attention patterns are kept; 0 loads no model.
        model: the run's model, for `patterns`; ``None`` loads it by the run's name for it.
        step: called with the name of each step before it begins.
    """
    summary = _with_notes(summarise(outcomes))
    changed = summary[summary["variant"] != CLEAN.name].sort_values("delta", kind="stable")
    level = level_of(outcomes.spec)
    needed = critical(changed, level)
    signed, missing = _signatures(outcomes)
    rows = browser_rows(outcomes, most_records)
    state = unfinished(outcomes)
    return render(
        "run.html",
        title=visible(f"{outcomes.spec.model}: {counted(len(outcomes.spec.variants) - 1, 'changed model')}"),
        lead=lead(changed, needed, level),
        unfinished=f"Not finished: {state}." if state else "",
        sections=_SECTIONS,
        facts=facts(outcomes),
        cells=table(_clean_cells(outcomes, summary), _CELLS_SHOWN),
        notes=notes(outcomes, summary),
        spec_json=visible(outcomes.spec.to_json()),
        analyses=[_section(*shown, outcomes, step) for shown in shown_analyses(outcomes, step=step)],
        critical=table(needed.head(MAX_ROWS), _CRITICAL_SHOWN),
        level=f"{level:g}",
        tests=tests_in_words(outcomes.spec),
        critical_left_out=max(0, len(needed) - MAX_ROWS),
        none_critical=none_critical(changed),
        summary=table(changed.head(MAX_ROWS), SUMMARY_SHOWN, ("task", "protocol")),
        summary_left_out=max(0, len(changed) - MAX_ROWS),
        tasks=[visible(task.name) for task in outcomes.spec.tasks],
        protocols=outcomes.spec.protocols,
        claims=[
            {
                "text": result.claim.text,
                "verdict": result.verdict,
                "needs": result.claim.needs,
                "table": table(result.rows, _claim_columns(result.rows)),
            }
            for result in claim_results(signed)
        ],
        claims_missing=missing,
        accuracy_margin=ACCURACY_MARGIN,
        **explorer(rows, [("", outcomes)], shown_patterns(outcomes, patterns, model)),
        downloads=_downloads(outcomes, {"critical": needed, "signatures": signed}, records),
    )


def _section(
    analysis: Analysis, frame: pd.DataFrame, outcomes: Outcomes, step: Callable[[str], object]
) -> dict[str, Any]:
    """What the page shows of one analysis: its figure, or its text, and the columns that it names."""
    columns = {name: Column(heading(name), form) for name, form in analysis.columns.items()}
    figure = None
    step(f"figure: {analysis.title}")
    if analysis.draw is not None:
        made = analysis.figure_of(frame, outcomes.spec)
        figure = embedded_figure(made.name, made.draw(), made.data(), made.alt, made.caption)
    return {
        "name": analysis.name,
        "title": analysis.title,
        "text": analysis.text,
        "figure": figure,
        "table": table(frame.head(MAX_ROWS), columns) if columns else None,
        "left_out": max(0, len(frame) - MAX_ROWS),
        "csv": csv_link(frame) if figure is None else None,
    }


def _claim_columns(rows: pd.DataFrame) -> dict[str, Column]:
    """Without the likelihood's own change where no row has one."""
    alone = rows["likelihood_value"].isna().all()
    return {name: column for name, column in CLAIM_SHOWN.items() if not (alone and name.startswith("likelihood"))}


def _with_notes(summary: pd.DataFrame) -> pd.DataFrame:
    chance = known_at_chance(summary)
    broken = summary["non_finite_rate"].fillna(0) > 0
    texts = ("clean model at chance", "NaN or infinite logits", NOISE_NOTE)
    notes = [
        ", ".join(text for flag, text in zip(flags, texts, strict=True) if flag)
        for flags in zip(chance, broken, within_noise(summary), strict=True)
    ]
    return summary.assign(note=notes)


def _signatures(outcomes: Outcomes) -> tuple[pd.DataFrame, str]:
    try:
        return signatures(outcomes), ""
    except UserError as error:
        return pd.DataFrame(columns=list(SIGNATURE_COLUMNS)), f"Can't be tested: {error}."


def _clean_cells(outcomes: Outcomes, summary: pd.DataFrame) -> pd.DataFrame:
    clean = summary[summary["variant"] == CLEAN.name]
    tasks = {task.name: task for task in outcomes.spec.tasks}
    specs = [tasks[name] for name in clean["task"]]
    return clean.assign(shots=[task.shots for task in specs], seed=[task.seed for task in specs])


def _downloads(outcomes: Outcomes, tables: dict[str, pd.DataFrame], records: Path | None) -> list[dict[str, Any]]:
    files = [("summary.csv", summarise(outcomes), "one row per variant, task and protocol")]
    for name, frame in concentration_files(outcomes).items():
        text = "whether few heads carry a task" if name.startswith("concentration") else "heads that tasks share"
        files.append((name, frame, text))
    files += [
        ("critical.csv", tables["critical"], "parts whose removal lowers accuracy"),
        ("signatures.csv", tables["signatures"], "the numbers for the paper's claims"),
    ]
    downloads: list[dict[str, Any]] = []
    for name, frame, text in files:
        address = csv_link(frame)
        if address is not None:
            downloads.append({"name": name, "href": address, "text": text})
        elif records is not None:
            records.with_name(name).write_text(csv_text(frame), encoding="utf-8")
            downloads.append({"name": name, "href": name, "text": f"{text} (a file beside this page)"})
    if records is None:
        return downloads
    text = "every record, one row per item"
    if records.stat().st_size <= LARGEST_INSIDE:
        downloads.append({"name": records.name, "href": csv_link(records.read_bytes()), "text": text})
    else:
        downloads.append({"name": records.name, "href": records.name, "text": f"{text} (a file beside this page)"})
    return downloads
