"""The page about a whole study: its sweeps, the distilled pair, the paper's claims over all of them, the choices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.claims import DISTILLATION, claim_results
from lensprune.analysis.critical import critical
from lensprune.analysis.signatures import SIGNATURE_COLUMNS
from lensprune.errors import UserError
from lensprune.output.html import Column, EmbeddedFigure, Table, embedded_figure, render, table, write_page
from lensprune.output.plain_text import visible
from lensprune.replacement.figure_kinds import replacement_figure_of
from lensprune.results.analyses import analysis_named
from lensprune.results.page import CLAIM_SHOWN
from lensprune.results.page_text import prompts_in_words
from lensprune.results.run import Run
from lensprune.runs.chance import beats_chance, known_at_chance
from lensprune.studies.pair import NO_PAIR, PairResult, concentration_change_rows, moved
from lensprune.studies.presets import Preset, StudyPart
from lensprune.studies.thinking import ThinkingRun, draw_thinking, thinking_effects, thinking_rows

__all__ = ["STUDY_FILE", "write_study_page"]

STUDY_FILE = "report.html"
_SECTIONS = [
    ("parts", "Sweeps"),
    ("pair", "Base and distilled"),
    ("claims", "The paper's claims"),
    ("choices", "Choices"),
]
_NOT_SHOWN = ("p_holm", "likelihood_value", "likelihood_ci_low", "likelihood_ci_high")
_SHOWN = {name: column for name, column in CLAIM_SHOWN.items() if name not in _NOT_SHOWN}
_CHANGE_SHOWN = {
    "task": Column("task"),
    "protocol": Column("protocol"),
    "statistic": Column("statistic"),
    "n": Column("n", "d"),
    "n_parts": Column("parts", "d"),
    "accuracy_base": Column("accuracy of base", ".2f"),
    "accuracy": Column("of distilled", ".2f"),
    "base": Column("base", ".2f"),
    "value": Column("distilled", ".2f"),
    "difference": Column("change", "+.2f"),
    "ci_low": Column("95% from", "+.2f"),
    "ci_high": Column("to", "+.2f"),
    "note": Column("note"),
}
_MOVED_SHOWN = {name: _CHANGE_SHOWN[name] for name in ("task", "protocol")} | {
    "verdict": Column("verdict"),
    **{name: _CHANGE_SHOWN[name] for name in ("n", "base", "value", "difference", "ci_low", "ci_high")},
}
_THINKING_SHOWN = {
    "role": Column("model"),
    "way": Column("prompted with"),
    "task": Column("task"),
    "n": Column("n", "d"),
    "accuracy": Column("clean accuracy", ".2f"),
    "thinking_tokens": Column("tokens of thinking", ".0f"),
    "cut_off_rate": Column("cut off", ".2f"),
}
_STATISTICS = {"gini": "Gini index", "participation_ratio": "effective number of parts"}


def _signatures(runs: list[tuple[StudyPart, Run]]) -> tuple[pd.DataFrame, str]:
    frames = [pd.DataFrame(columns=list(SIGNATURE_COLUMNS))]
    missing = ""
    for part, run in runs:
        if part.over == "layers" and part.depth is None:
            try:
                frames.append(run.signatures())
            except UserError as error:
                missing = f"No verdict from {part.name}: {error}."
    kept = [frame for frame in frames if len(frame)]
    # Two sweeps may ask the same of the same items; the evidence is one all the same.
    rows = pd.concat(kept).drop_duplicates(["signature", "task", "protocol", "ablation"]) if kept else frames[0]
    return rows.reset_index(drop=True), missing


def _lost(run: Run) -> str:
    summary = run.summary()
    ranked = beats_chance(summary) & summary["variant"].ne(CLEAN.name)
    lost = critical(summary)
    return f"{len(lost)} of {int(ranked.sum())}" if ranked.any() else "none above chance"


def _row(part: StudyPart, run: Run) -> dict[str, Any]:
    return {
        "name": part.name,
        "question": part.question,
        "what": f"{part.over}, {part.ablation}; {len(run.spec.variants) - 1} variants",
        "tasks": visible("; ".join(f"{task.name} (n {task.n_items})" for task in run.spec.tasks)),
        "protocols": ", ".join(part.protocols),
        "lost": _lost(run),
        "href": f"{part.name}/report.html",
    }


def _pair(pair_result: PairResult, change: pd.DataFrame, folder: Path) -> dict[str, Any]:
    pictures: list[EmbeddedFigure] = []
    sweeps = _pair_sweeps(pair_result, folder, pictures)
    replacements = _pair_replacements(pair_result, folder, pictures)
    thinking = _pair_thinking(pair_result, pictures) if pair_result.thinking else None
    notes = ["clean model at chance" if chance else "" for chance in known_at_chance(change)]
    shown = change.assign(statistic=change["statistic"].map(_STATISTICS), note=notes)
    return {
        "sweeps": sweeps,
        "concentration_change": table(shown, _CHANGE_SHOWN),
        "replacements": replacements,
        "thinking": thinking,
        "thinking_links": [_thinking_link(one, folder) for one in pair_result.thinking],
        "figures": pictures,
    }


def _pair_sweeps(pair_result: PairResult, folder: Path, pictures: list[EmbeddedFigure]) -> list[dict[str, Any]]:
    """The rows of both models' sweeps; adds their figures to `pictures`."""
    sweeps = []
    for part, base, distilled, page in pair_result.sweeps:
        for role, run in (("base", base), ("distilled", distilled)):
            assert run.folder is not None
            href = (run.folder / "report.html").relative_to(folder).as_posix()
            compared = page.relative_to(folder).as_posix() if role == "distilled" else ""
            sweeps.append({**_row(part, run), "role": role, "href": href, "compared": compared})
            figure = analysis_named("depth").figure(run)
            caption = f"{role.capitalize()}, {visible(run.spec.model)}: {figure.caption}"
            name = f"{part.name}_{role}"
            pictures.append(embedded_figure(name, figure.draw(), figure.data(), f"{role}. {figure.alt}", caption))
    return sweeps


def _pair_replacements(pair_result: PairResult, folder: Path, pictures: list[EmbeddedFigure]) -> list[dict[str, Any]]:
    """The rows of the exchanges; adds their figures to `pictures`."""
    replacements = []
    for one, result in pair_result.replacements:
        assert result.folder is not None
        replacements.append(
            {
                "name": one.name,
                "question": one.question,
                "href": (result.folder / "report.html").relative_to(folder).as_posix(),
                "gain": "; ".join(_gain(row) for row in _gains(result.shares())),
                "most": [_most(result.shares(), direction) for direction in ("forward", "backward")],
            }
        )
        figure = replacement_figure_of(result)
        caption = f"{one.name}: {figure.caption}"
        pictures.append(embedded_figure(one.name, figure.draw(), figure.data(), f"{one.name}. {figure.alt}", caption))
    return replacements


def _pair_thinking(pair_result: PairResult, pictures: list[EmbeddedFigure]) -> Table:
    """The table of ways of thinking; adds its figure to `pictures`."""
    effects = thinking_effects(pair_result.thinking)
    models = {one.role: one.run.spec.model for one in pair_result.thinking}
    caption = f"Δμ without each layer, with paired 95% intervals: {visible(', '.join(map(' '.join, models.items())))}"
    alt = "Lines: change of accuracy against the removed layer, one line for each way of thinking"
    pictures.append(embedded_figure("thinking", draw_thinking(effects), effects, alt, caption))
    return table(thinking_rows(pair_result.thinking), _THINKING_SHOWN)


def _thinking_link(one: ThinkingRun, folder: Path) -> dict[str, str]:
    assert one.run.folder is not None
    return {
        "name": f"{one.role}, {one.way}",
        "href": (one.run.folder / "report.html").relative_to(folder).as_posix(),
        "lost": _lost(one.run),
    }


def _gains(shares: pd.DataFrame) -> list[dict[str, Any]]:
    return list(shares.drop_duplicates(["task", "protocol"]).to_dict("records"))  # type: ignore[arg-type]


def _signed(value: float, form: str = "+.2f") -> str:
    return format(value, form).replace("-", "−")


def _gain(row: dict[str, Any]) -> str:
    interval = f"{_signed(row['gain_ci_low'])} to {_signed(row['gain_ci_high'])}"
    return f"{_signed(row['gain'])} ({interval}, n {row['n']})"


def _most(shares: pd.DataFrame, direction: str) -> str:
    ranked = shares[(shares["direction"] == direction) & beats_chance(shares)]
    if ranked.empty:
        return "at chance"
    best = ranked.sort_values("effect", ascending=False, kind="stable").iloc[0]
    return f"{best['part']} {_signed(best['effect'])} ({_signed(best['ci_low'])} to {_signed(best['ci_high'])})"


def write_study_page(preset: Preset, runs: list[tuple[StudyPart, Run]], pair: PairResult | None, folder: Path) -> Path:
    """Write the page about a study into `folder`.

    Raises:
        UserError: the disk is full or the folder can't be written to.
    """
    signed, missing = _signatures(runs)
    claims = []
    change = None if pair is None else concentration_change_rows(pair)
    for one in claim_results(signed):
        shown = table(one.rows, _SHOWN)
        if one.claim == DISTILLATION and change is not None:
            verdict, rows = moved(change)
            one, shown = replace(one, verdict=verdict), table(rows, _MOVED_SHOWN)  # noqa: PLW2901
        claims.append({"text": one.claim.text, "verdict": one.verdict, "needs": one.claim.needs, "table": shown})
    page = render(
        "study.html",
        title=visible(f"{runs[0][1].spec.model}: the study of arXiv 2510.02091, preset {preset.name}"),
        lead=preset.summary,
        sections=_SECTIONS,
        parts=[_row(part, run) for part, run in runs],
        pair=None if pair is None or change is None else _pair(pair, change, folder),
        no_pair=NO_PAIR,
        pair_title="" if pair is None else visible(f"{pair.base} and {pair.distilled}"),
        claims=claims,
        missing=visible(missing),
        choices=[*preset.choices, visible(f"Prompts: {prompts_in_words(runs[0][1].spec)}.")],
    )
    target = folder / STUDY_FILE
    return write_page(page, target)
