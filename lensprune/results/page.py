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
from lensprune.analysis.sequential import Looks
from lensprune.analysis.signatures import SIGNATURE_COLUMNS, signatures
from lensprune.analysis.stopping import AnyLook, UntilWidth, level_of, stopping_of
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
from lensprune.results.analyses import Analysis, analyses, shown_analyses
from lensprune.results.browser_rows import MAX_RECORDS, browser_rows
from lensprune.results.concentration import NOT_OF_ALL_HEADS, concentration_files
from lensprune.results.explorer import explorer, shown_patterns
from lensprune.runs.chance import beats_chance, items_to_beat_chance, known_at_chance
from lensprune.runs.noise import NOISE_NOTE, noise_lines, within_noise
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.records import SCHEMA
from lensprune.runs.spec import SweepSpec
from lensprune.terminal import progress_bar

__all__ = ["RECORDS_FILE", "REPORT_FILE", "prompts_in_words", "run_page", "write_report"]

REPORT_FILE = "report.html"
RECORDS_FILE = "records.csv"
_CELLS_AT_ONCE = 50
MAX_ROWS = 500
"""Rows of the summary that the page shows."""
_NAMED = 5
"""Variants that the page's facts name."""

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
        most_records: how many records the page's browser of items holds; records.csv has all.
        patterns, model: as `run_page`.
        progress: show a progress bar.

    Returns:
        The page.

    Raises:
        UserError: a run in memory without `path`, a folder that does not exist, or one that can't be written to.
    """
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
        title=visible(f"{outcomes.spec.model}: {_counted(len(outcomes.spec.variants) - 1, 'changed model')}"),
        lead=_lead(changed, needed, level),
        unfinished=f"Not finished: {state}." if state else "",
        sections=_SECTIONS,
        facts=_facts(outcomes),
        cells=table(_clean_cells(outcomes, summary), _CELLS_SHOWN),
        notes=_notes(outcomes, summary),
        spec_json=visible(outcomes.spec.to_json()),
        analyses=[_section(*shown, outcomes, step) for shown in shown_analyses(outcomes, step=step)],
        critical=table(needed.head(MAX_ROWS), _CRITICAL_SHOWN),
        level=f"{level:g}",
        tests=_tests_in_words(outcomes.spec),
        critical_left_out=max(0, len(needed) - MAX_ROWS),
        none_critical=_none_critical(changed),
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
    columns = {name: Column(name.replace("_", " "), form) for name, form in analysis.columns.items()}
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


_NOT_ABOVE = "on no task is the clean model known to beat chance"


def _too_few(changed: pd.DataFrame) -> str:
    """A sentence on the task whose clean accuracy the fewest more items would tell from chance; empty if none."""
    cells = changed.drop_duplicates(["task", "protocol"])
    pairs = zip(cells["accuracy_clean"], cells["chance"], strict=True)
    cells = cells.assign(needed=pd.Series([items_to_beat_chance(*pair) for pair in pairs], cells.index, dtype=float))
    few = cells[cells["needed"] > cells["n"]].sort_values("needed")
    if few.empty:
        return ""
    row = few.iloc[0]
    return (
        f" {visible(row['task'])} under {row['protocol']} has too few items: {row['n']} can't tell "
        f"{row['accuracy_clean']:.2f} from {row['chance']:.2f}, and {row['needed']:.0f} would in four of five runs."
    )


def _none_critical(changed: pd.DataFrame) -> str:
    tested = int(beats_chance(changed).sum())
    if not tested:
        return f"None can be named: {_NOT_ABOVE}.{_too_few(changed)}"
    most = changed.loc[beats_chance(changed), "n"].max()
    return (
        f"None among {_counted(tested, 'change')} on tasks above chance, with up to {_counted(int(most), 'item')} each."
    )


def _claim_columns(rows: pd.DataFrame) -> dict[str, Column]:
    """Without the likelihood's own change where no row has one."""
    alone = rows["likelihood_value"].isna().all()
    return {name: column for name, column in CLAIM_SHOWN.items() if not (alone and name.startswith("likelihood"))}


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _lead(changed: pd.DataFrame, needed: pd.DataFrame, level: float) -> str:
    ranked = changed[beats_chance(changed)]
    if ranked.empty:
        return f"No change is ranked: {_NOT_ABOVE}.{_too_few(changed)}"
    worst = ranked.iloc[0]
    counted = _counted(len(needed), "change") + f" of {len(ranked)}"
    said = (
        f"{counted} on tasks above chance lower accuracy with q ≤ {level:g}. The largest loss: {worst['variant']} on "
        f"{visible(worst['task'])} under {worst['protocol']}, Δμ "
    )
    numbers = f"{worst['delta']:+.2f} (95% {worst['ci_low']:+.2f} to {worst['ci_high']:+.2f}, n {worst['n']})."
    return said + numbers.replace("-", "−")


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


def _notes(outcomes: Outcomes, summary: pd.DataFrame) -> list[str]:
    clean = summary[(summary["variant"] == CLEAN.name) & (summary["truncated"].fillna(0) > 0)]
    cut = [
        f"{visible(str(r.task))}, {r.protocol}: {r.truncated} prompts are cut on the left." for r in clean.itertuples()
    ]
    small = [task for task in outcomes.spec.tasks if task.n_items < 50]
    if small:
        cut.append(
            f"With fewer than 50 items ({', '.join(f'{visible(t.name)}: {t.n_items}' for t in small)}) only large "
            "losses can be detected."
        )
    cut += [f"{visible(line)}." for line in noise_lines(outcomes.spec)]
    if outcomes.spec.screen is not None:
        cut.append(f"{NOT_OF_ALL_HEADS}.")
    return cut


def prompts_in_words(spec: SweepSpec) -> str:
    """How the prompts of a run are written."""
    parts = [f"BOS: {spec.bos}", f"chat template: {'yes' if spec.chat_template else 'no'}"]
    parts[-1] += f", dated {spec.template_date}" if spec.template_date else ""
    parts += [f"{name}={value}" for name, value in (spec.template_args or {}).items()]
    parts += ["examples are turns"] if spec.fewshot_as_multiturn else []
    parts += [f"system prompt: {spec.system!r}"] if spec.system else []
    if spec.appended:
        parts.append(f"{spec.appended} after each prompt: {'kept' if spec.keep_eos else 'left out'}")
    if spec.think_tokens is not None:
        parts.append(f"thinking: {spec.thinking}, {' … '.join(spec.think_tokens)}")
        parts[-1] += "" if spec.thinking_budget is None else f", ended after {spec.thinking_budget} tokens"
    return "; ".join(parts)


def _stopping_in_words(spec: SweepSpec) -> str:
    """When a sweep that stops early stops measuring a variant."""
    stopping = stopping_of(spec.stopping)
    assert stopping is not None
    if isinstance(stopping, UntilWidth):
        return (
            f"each variant is measured until its 95% interval is no wider than {stopping.width:g}, or "
            f"{stopping.items[-1]} items"
        )
    if isinstance(stopping, AnyLook):
        return (
            f"each variant is measured until it is detected as losing more than {stopping.margin:g}, with q ≤ "
            f"{stopping.level:g}, or shown to lose less, or {stopping.items[-1]} items; p, q and intervals come from "
            "e-values and hold whenever the sweep is stopped"
        )
    looks = ", ".join(map(str, stopping.items))
    return (
        f"each variant is measured until it is detected as losing more than {stopping.margin:g}, with q ≤ "
        f"{stopping.level:g}, or given up; looks at {looks} items; p and intervals are repeated ones, which hold over "
        "all looks"
    )


def _tests_in_words(spec: SweepSpec) -> str:
    """What the intervals, p and q of the summary are."""
    stopping = stopping_of(spec.stopping)
    if isinstance(stopping, (Looks, AnyLook)):
        planned = isinstance(stopping, Looks)
        return (
            f"with a 95% interval that holds at {'all looks' if planned else 'any number of items'}; p is "
            f"{'the repeated p-value' if planned else '1 over the e-value'}, one-sided, of a loss larger than "
            f"{stopping.margin:g}; q is the false discovery rate of such losses among the variants of the same task "
            "and protocol, and that of gains is not known"
        )
    return (
        "with a paired 95% interval; p is McNemar's exact test, two-sided; the two q are false discovery rates of "
        "one-sided tests, of losses and of gains, among the variants of the same task and protocol"
    )


def _facts(outcomes: Outcomes) -> list[tuple[str, str]]:
    spec = outcomes.spec
    shape = f"{spec.n_layers} layers, {spec.n_heads} heads, {spec.n_key_value_heads} key/value heads"
    variants = outcomes.spec.variant_names
    named = ", ".join(variants if len(variants) <= _NAMED else [*variants[: _NAMED - 1], "…", variants[-1]])
    pairs = [
        ("model", f"{spec.model} ({spec.architecture}; {shape})"),
        ("weights", f"sha256 {spec.weights_hash}"),
        ("precision", f"{spec.dtype} on {spec.device}"),
        ("prompts", prompts_in_words(spec)),
        ("variants", f"{len(variants)}: {named}"),
        ("reference", f"{spec.reference or 'none needed'}" + (f", {spec.mean_mode}" if spec.mean_mode else "")),
        *([("stopping", _stopping_in_words(spec))] if spec.stopping is not None else []),
        ("seed", str(spec.seed)),
        ("executor", spec.execution.executor),
        ("command", spec.execution.command or "called from Python"),
        ("versions", ", ".join(f"{name} {number}" for name, number in sorted(spec.versions.items()))),
        ("data", "; ".join(f"{task}: {path}" for task, path in spec.execution.data_sources.items()) or "not recorded"),
        ("digest", spec.digest),
    ]  # fmt: skip
    return [(name, visible(value)) for name, value in pairs]


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
