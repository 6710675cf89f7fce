"""The work of ``lensprune paper``: every sweep of a preset with its report, and one page about all of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lensprune.errors import UserError, unknown_name
from lensprune.paths import usable_path
from lensprune.results.page import write_report
from lensprune.results.run import Run
from lensprune.studies.pair import NO_PAIR, chosen_pair, run_pair
from lensprune.studies.presets import PRESETS, StudyPart
from lensprune.studies.study_page import STUDY_FILE, write_study_page
from lensprune.sweeps.options import Generation, Loading, Rows, Seed, Wording, option_values
from lensprune.sweeps.run import sweep
from lensprune.sweeps.selection import VariantSelection

__all__ = ["STUDY_FILE", "paper"]

logger = logging.getLogger("lensprune")


def paper(
    model: str,
    out: str | Path = "runs/paper",
    *,
    preset: str = "smoke",
    seed: int = 0,
    data_dir: str | Path | None = None,
    chat_template: bool = False,
    template_date: str | None = None,
    template_args: Mapping[str, Any] | None = None,
    fewshot_as_multiturn: bool = False,
    system: str | None = None,
    keep_eos: bool = False,
    thinking: str = "auto",
    think_tokens: tuple[str, str] | None = None,
    thinking_budget: int | None = None,
    max_new_tokens: int | None = None,
    until: Sequence[str] = (),
    until_only: bool = False,
    generation_config: str = "model",
    dtype: str | None = None,
    device: str | None = None,
    bos: str | None = None,
    progress: bool = True,
    command: str = "",
    base: str | None = None,
    distilled: str | None = None,
) -> Path:
    """Run the study `preset` on `model`, each sweep into its own folder in `out`, and write its pages.

    Finished cells are kept: call it again to resume.

    Args:
        model: a name or path for `load_model`.
        preset: one of `PRESETS`.
        max_new_tokens, until, until_only, generation_config: for the sweeps that generate texts.
        base, distilled: names or paths of the pair to compare; ``None`` for both takes the preset's, if it has one.

    The other arguments are those of `sweep`, for every model of the study.

    Returns:
        The page about the whole study, which links to the report of each sweep.

    Raises:
        UserError: an unknown preset, half a pair, or other invalid input.
    """
    options = option_values(locals(), Seed, Rows, Wording, Loading) | {"progress": progress, "command": command}
    generation = option_values(locals(), Generation)
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    chosen, folder = PRESETS[preset], usable_path(Path(out), "out folder")
    if folder.is_file():
        raise UserError(f"out folder {folder} is a file: choose a new folder")
    pair = chosen_pair(chosen, base, distilled)
    if pair is None:
        logger.warning(NO_PAIR)
    runs: list[tuple[StudyPart, Run]] = []
    try:
        for part in chosen.parts:
            n_layers = runs[0][1].spec.n_layers if runs else None
            run = sweep(
                model,
                part.tasks,
                part.protocols,
                VariantSelection(part.over, part.ablation, _layers(part, n_layers)),
                limit=part.limit,
                out=folder / part.name,
                **options,
                **(generation if "generate" in part.protocols else {}),
            )
            write_report(run)
            runs.append((part, run))
        pair_result = None if pair is None else run_pair(chosen, pair, folder, generation, **options)
    except KeyboardInterrupt:
        # A sweep's own message would resume only that sweep.
        raise KeyboardInterrupt(f"stopped: rerun the command to resume the study in {folder}") from None
    return write_study_page(chosen, runs, pair_result, folder)


def _layers(part: StudyPart, n_layers: int | None) -> str | None:
    if part.depth is not None and n_layers is None:
        raise ValueError(f"part {part.name} is restricted in depth, so it can't come first")
    return None if n_layers is None else part.layers(n_layers)
