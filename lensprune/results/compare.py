"""The comparison of two runs: their shared variants, tasks and protocols, and where they differ."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path

import pandas as pd

from lensprune.analysis.protocol_gap import clear_gaps
from lensprune.analysis.runs_gap import runs_gap, shared_items
from lensprune.analysis.summary import summarise
from lensprune.errors import UserError
from lensprune.models.base import ModelOrName
from lensprune.output.html import Column, csv_link, embedded_figure, render, table, write_page
from lensprune.output.plain_text import visible
from lensprune.results.browser_rows import browser_rows
from lensprune.results.explorer import explorer, shown_patterns
from lensprune.results.figures.protocols import open_book_gap_by_depth
from lensprune.runs.chance import beats_chance
from lensprune.runs.outcomes import Outcomes

__all__ = ["compare_page", "write_comparison"]

MAX_ROWS = 500
_COMPARED = (
    "model", "architecture", "n_layers", "weights_hash", "dtype", "device", "bos", "chat_template", "template_date",
    "fewshot_as_multiturn", "system", "template_args", "thinking", "think_tokens", "thinking_budget", "keep_eos",
    "primary_metric", "seed",
)  # fmt: skip
_SECTIONS = [
    ("runs", "The two runs"), ("clean", "Clean models"), ("figures", "Figures"), ("changes", "Changes"),
    ("map", "Maps of effects"), ("items", "Items"),
]  # fmt: skip
_CLEAN_SHOWN = {
    "task": Column("task"),
    "protocol": Column("protocol"),
    "n_a": Column("n of A", "d"),
    "n_b": Column("n of B", "d"),
    "accuracy_a": Column("accuracy of A", ".3f"),
    "accuracy_b": Column("accuracy of B", ".3f"),
    "items": Column("items"),
}
_GAP_SHOWN = {
    "variant": Column("variant"),
    "task": Column("task"),
    "protocol": Column("protocol"),
    "n": Column("n", "d"),
    "delta_a": Column("Δμ of A", "+.3f"),
    "delta_b": Column("Δμ of B", "+.3f"),
    "gap": Column("B − A", "+.3f"),
    "ci_low": Column("95% from", "+.3f"),
    "ci_high": Column("to", "+.3f"),
    "q_lower": Column("q, B − A < 0", ".2g"),
    "q_higher": Column("q, B − A > 0", ".2g"),
    "note": Column("note"),
}


def _clean(a: Outcomes, b: Outcomes) -> pd.DataFrame:
    sides = []
    for run in (a, b):
        frame = summarise(run)
        sides.append(frame.loc[frame["variant"] == "clean", ["task", "protocol", "n", "accuracy"]])
    both = sides[0].merge(sides[1], on=["task", "protocol"], suffixes=("_a", "_b"))
    conditions = both[["task", "protocol"]].itertuples(index=False)
    return both.assign(items=[_items(shared_items(a, b, *condition)) for condition in conditions])


def _items(places: tuple[Sized, Sized] | None) -> str:
    if places is None:
        return "the same"
    return f"{len(places[0])} shared" if len(places[0]) else "different"


def _name(run: Outcomes) -> str:
    return run.folder.name if run.folder is not None else run.spec.model


def _facts(a: Outcomes, b: Outcomes) -> pd.DataFrame:
    rows = [("folder", str(a.folder or "in memory"), str(b.folder or "in memory"))]
    for field in _COMPARED:
        one, other = ("–" if value is None else str(value) for value in (getattr(r.spec, field) for r in (a, b)))
        rows.append((field.replace("_", " "), one, other))
    for library in sorted({*a.spec.versions, *b.spec.versions}):
        rows.append((library, a.spec.versions.get(library, "–"), b.spec.versions.get(library, "–")))
    frame = pd.DataFrame(rows, columns=["what", "a", "b"])
    return frame.assign(same=(frame["a"] == frame["b"]).map({True: "", False: "differs"}))


def compare_page(a: Outcomes, b: Outcomes, *, patterns: int = 0, model: ModelOrName | None = None) -> str:
    """The page's text.

    Args:
        patterns, model: of `a`, as `lensprune.results.page.run_page`.

    Raises:
        UserError: as `runs_gap`.
    """
    gap = runs_gap(a, b)
    ordered = gap.sort_values("gap", key=lambda column: column.abs(), ascending=False, kind="stable")
    clear = gap[clear_gaps(gap)]
    pictures = []
    by_layer = gap[gap["layer"].notna()]
    if len(by_layer):
        # The figure of open and closed books, with the two runs in their place.
        names = [f"A: {_name(a)}", f"B: {_name(b)}"]
        labelled = by_layer.assign(
            task_a=names[0], task_b=names[1], protocol_b=by_layer["task"] + "\n" + by_layer["protocol"],
        )  # fmt: skip
        depth = max(a.spec.n_layers, b.spec.n_layers)
        axes = open_book_gap_by_depth(labelled, n_layers=depth)
        alt = "Line charts: change of accuracy against the layer, run A dashed and run B solid"
        pictures.append(
            embedded_figure(
                "two_runs", axes, by_layer, alt, "Δμ against depth in both runs; dots: they differ, q ≤ 0.05."
            )
        )
    return render(
        "compare.html",
        title=visible(f"{_name(a)} (A) and {_name(b)} (B)"),
        lead=_lead(gap, len(clear)),
        sections=_SECTIONS,
        facts=table(_facts(a, b), {"what": Column("what"), "a": Column("A"), "b": Column("B"), "same": Column("")}),
        clean=table(_clean(a, b), _CLEAN_SHOWN),
        only=[text for text in (_only(a, b, "A"), _only(b, a, "B")) if text],
        figures=pictures,
        gap=table(ordered.head(MAX_ROWS), _GAP_SHOWN, ("task", "protocol")),
        left_out=max(0, len(gap) - MAX_ROWS),
        tasks=[visible(task) for task in dict.fromkeys(gap["task"])],
        protocols=list(dict.fromkeys(gap["protocol"])),
        csv=csv_link(gap),
        **explorer(
            browser_rows(a, other=b), [(f"A: {_name(a)}", a), (f"B: {_name(b)}", b)], shown_patterns(a, patterns, model)
        ),
    )  # fmt: skip


def _lead(gap: pd.DataFrame, clear: int) -> str:
    paired = gap["q_lower"].notna()
    known = beats_chance(gap) & ~gap["floor"].astype(bool)
    tested = int((paired & known).sum())
    left_out = [
        f"{count} {reason}."
        for count, reason in (
            (
                int((~paired).sum()),
                "changes can't be tested: the runs used different items, and B − A is the plain difference",
            ),
            (int((paired & ~known).sum()), "changes are at or near chance in one run, and are not compared"),
        )
        if count
    ]
    if not tested:
        return f"All {left_out[0]}" if len(left_out) == 1 else " ".join(left_out)
    text = f"{clear} of {tested} changes that both runs measured differ with q ≤ 0.05 (by task and protocol)."
    return " ".join([text, *left_out])


def _only(run: Outcomes, other: Outcomes, letter: str) -> str:
    missing = [
        f"{task} under {protocol}" for task, protocol in run.conditions if (task, protocol) not in other.conditions
    ]
    variants = len(set(run.spec.variant_names) - set(other.spec.variant_names))
    parts = [f"tasks and protocols: {', '.join(missing)}"] * bool(missing) + [f"{variants} variants"] * bool(variants)
    return visible(f"Only in {letter}: {'; '.join(parts)}.") if parts else ""


def write_comparison(
    a: Outcomes, b: Outcomes, path: str | Path | None = None, *, patterns: int = 0, model: ModelOrName | None = None
) -> Path:
    """Write the comparison of two runs as one HTML page.

    Args:
        path: the file; ``None`` takes ``against-NAME.html`` in the folder of `b`, NAME being the folder of `a`.
        patterns, model: of `a`, as `lensprune.results.page.run_page`.

    Raises:
        UserError: as `runs_gap`; no `path` and a run in memory; a place that can't be written to.
    """
    if path is None and (a.folder is None or b.folder is None):
        raise UserError("a run is in memory: name the file to write the comparison to")
    target = Path(path) if path is not None else b.folder / f"against-{_name(a)}.html"  # type: ignore[operator]
    page = compare_page(a, b, patterns=patterns, model=model)
    return write_page(page, target)
