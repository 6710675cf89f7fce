"""The work of ``lensprune paper``: every sweep of a preset with its report, and one page about all of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lensprune.errors import UserError, unknown_name
from lensprune.models.model_config import load_model_config
from lensprune.paths import usable_path
from lensprune.replacement.pair import check_tokenizers
from lensprune.results.page import write_report
from lensprune.results.run import Run
from lensprune.studies.pair import NO_PAIR, chosen_pair, run_pair
from lensprune.studies.presets import PRESETS, StudyPart
from lensprune.studies.study_page import STUDY_FILE, write_study_page
from lensprune.studies.thinking import check_wording, fitted, options_for, parts_apart
from lensprune.sweeps.options import Generation, Loading, Rows, Seed, TokenSampling, Wording, option_values
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
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    samples: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    bos: str | None = None,
    progress: bool = True,
    command: str = "",
    base: str | None = None,
    distilled: str | None = None,
    renamed_tokens: bool = False,
) -> Path:
    """Run the study `preset` on `model`, each sweep into its own folder in `out`, and write its pages.

    Finished cells are kept: call it again to resume.

    Args:
        model: a name or path for `load_model`.
        preset: one of `PRESETS`.
        max_new_tokens, until, until_only, generation_config, temperature, top_p, top_k, samples: of the sweeps in which
            texts are generated.
        thinking, think_tokens, thinking_budget: of the same. Protocols that score options then run in separate sweeps
            without them; the part about thinking has its own settings.
        base, distilled: names or paths of the pair that is compared; ``None`` for both takes the preset's own, if it
            has one.
        renamed_tokens: accept models whose special tokens have the same ids but different names.

    The other arguments are those of `sweep`, for every model of the study.

    Returns:
        The page about the whole study, which links to the report of each sweep.

    Raises:
        UserError: an unknown preset, half a pair, or other invalid input.
    """
    options = option_values(locals(), Seed, Rows, Wording, Loading) | {"progress": progress, "command": command}
    generation = option_values(locals(), Generation, TokenSampling)
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    chosen, folder = PRESETS[preset], usable_path(Path(out), "out folder")
    if folder.is_file():
        raise UserError(f"out folder {folder} is a file: choose a new folder")
    pair = chosen_pair(chosen, base, distilled)
    # What can be refused is refused before hours of sweeps.
    check_wording(model, options)
    options_of_pair = None if pair is None else [fitted(name, options) for name in pair]
    if pair is None:
        logger.warning(NO_PAIR)
    elif chosen.replacements:
        tokenizers = [load_model_config(name).tokenizer for name in pair]
        check_tokenizers(tokenizers[0], tokenizers[1], renamed_tokens)
    runs: list[tuple[StudyPart, Run]] = []
    try:
        for part in [apart for whole in chosen.parts for apart in parts_apart(whole, options)]:
            n_layers = runs[0][1].spec.n_layers if runs else None
            run = sweep(
                model,
                part.tasks,
                part.protocols,
                VariantSelection(part.over, part.ablation, _layers(part, n_layers)),
                limit=part.limit,
                out=folder / part.name,
                **options_for(part.protocols, options),
                **(generation if "generate" in part.protocols else {}),
            )
            write_report(run)
            runs.append((part, run))
        pair_result = None
        if pair is not None and options_of_pair is not None:
            pair_result = run_pair(
                chosen, pair, folder, generation, options_of_pair, renamed_tokens=renamed_tokens, **options
            )
    except KeyboardInterrupt:
        # A sweep's own message would resume only that sweep.
        raise KeyboardInterrupt(f"stopped: rerun the command to resume the study in {folder}") from None
    return write_study_page(chosen, runs, pair_result, folder)


def _layers(part: StudyPart, n_layers: int | None) -> str | None:
    if part.depth is not None and n_layers is None:
        raise ValueError(f"part {part.name} is restricted in depth, so it can't come first")
    return None if n_layers is None else part.layers(n_layers)
