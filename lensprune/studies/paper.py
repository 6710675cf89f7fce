"""The job of ``lensprune paper``: every sweep of a preset, a report of each, and one page about all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from lensprune.analysis.claims import claims_found
from lensprune.analysis.signatures import SIGNATURE_COLUMNS
from lensprune.errors import UserError, unknown_name
from lensprune.paths import usable_path
from lensprune.report.html import Column, render, table
from lensprune.report.page import write_report
from lensprune.report.plain_text import visible
from lensprune.studies.presets import PRESETS, Preset, StudyPart
from lensprune.sweep.files import write_atomically, write_error
from lensprune.sweep.result import Run
from lensprune.sweep.run import sweep
from lensprune.sweep.selection import VariantSelection

__all__ = ["STUDY_FILE", "paper"]

STUDY_FILE = "report.html"
_SECTIONS = [("parts", "Sweeps"), ("claims", "The paper's claims"), ("choices", "Choices")]
_SHOWN = {
    "task": Column("task"),
    "protocol": Column("protocol"),
    "verdict": Column("verdict"),
    "n": Column("n", "d"),
    "value": Column("value", "+.3f"),
    "ci_low": Column("95% from", "+.3f"),
    "ci_high": Column("to", "+.3f"),
}


def paper(
    model: str,
    out: str | Path = "runs/paper",
    *,
    preset: str = "smoke",
    seed: int = 0,
    data_dir: str | Path | None = None,
    dtype: str | None = None,
    device: str | None = None,
    progress: bool = True,
    command: str = "",
) -> Path:
    """Run the study `preset` on `model`, each sweep into a folder of its own below `out`, and write its pages.

    What is finished is kept: called again after a stop it goes on where it was.

    Args:
        model: a name or path for `load_model`.
        preset: one of `PRESETS`.
        seed, data_dir, dtype, device, progress, command: of `sweep`.

    Returns:
        The page about the whole study, which links to the report of each sweep.

    Raises:
        UserError: an unknown preset, or whatever `sweep` and the reports refuse.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    chosen, folder = PRESETS[preset], usable_path(Path(out), "out folder")
    if folder.is_file():
        raise UserError(f"out folder {folder} is a file: choose a new folder")
    runs: list[tuple[StudyPart, Run]] = []
    for part in chosen.parts:
        n_layers = runs[0][1].spec.n_layers if runs else None
        run = sweep(
            model,
            part.tasks,
            part.protocols,
            VariantSelection(part.over, part.ablation, _layers(part, n_layers)),
            limit=part.limit,
            seed=seed,
            data_dir=data_dir,
            dtype=dtype,
            device=device,
            out=folder / part.name,
            progress=progress,
            command=command,
        )
        write_report(run)
        runs.append((part, run))
    return _write_page(chosen, runs, folder)


def _layers(part: StudyPart, n_layers: int | None) -> str | None:
    if part.depth is not None and n_layers is None:
        raise ValueError(f"part {part.name} is restricted in depth, so it can't come first")
    return None if n_layers is None else part.layers(n_layers)


def _signatures(runs: list[tuple[StudyPart, Run]]) -> tuple[pd.DataFrame, str]:
    frames = [pd.DataFrame(columns=list(SIGNATURE_COLUMNS))]
    missing = ""
    for part, run in runs:
        if part.over == "layers" and part.depth is None:
            try:
                frames.append(run.signatures())
            except UserError as error:
                missing = f"Nothing can be said from {part.name}: {error}."
    kept = [frame for frame in frames if len(frame)]
    # Two sweeps may ask the same of the same items; the evidence is one all the same.
    rows = pd.concat(kept).drop_duplicates(["signature", "task", "protocol"]) if kept else frames[0]
    return rows.reset_index(drop=True), missing


def _row(part: StudyPart, run: Run) -> dict[str, Any]:
    critical = run.summary()
    ranked = critical["at_chance"].eq(False).fillna(False).astype(bool)
    lost = critical[ranked & (critical["delta"] < 0) & (critical["q_value"] <= 0.05)]
    return {
        "name": part.name,
        "question": part.question,
        "what": f"{part.over}, {part.ablation}; {len(run.spec.variants) - 1} variants",
        "tasks": visible("; ".join(f"{task.name} (n {task.n_items})" for task in run.spec.tasks)),
        "protocols": ", ".join(part.protocols),
        "lost": f"{len(lost)} of {int(ranked.sum()) - int((ranked & critical['variant'].eq('clean')).sum())}",
        "href": f"{part.name}/report.html",
    }


def _write_page(preset: Preset, runs: list[tuple[StudyPart, Run]], folder: Path) -> Path:
    signed, missing = _signatures(runs)
    found = claims_found(signed)
    page = render(
        "study.html",
        title=visible(f"{runs[0][1].spec.model}: the study of arXiv 2510.02091, preset {preset.name}"),
        lead=preset.summary,
        sections=_SECTIONS,
        parts=[_row(part, run) for part, run in runs],
        claims=[
            {
                "text": one.claim.text,
                "verdict": one.verdict,
                "needs": one.claim.needs,
                "table": table(one.rows, _SHOWN),
            }
            for one in found
        ],
        missing=visible(missing),
        choices=preset.choices,
    )
    target = folder / STUDY_FILE
    try:
        write_atomically(target, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    except OSError as error:
        raise write_error(error, target) from None
    return target
