"""The part of a study that needs two models: sweeps of a base and a distilled model, and exchanged weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from lensprune.ablation.choices import parts_over
from lensprune.analysis.concentration_change import Comparison, compare
from lensprune.errors import UserError
from lensprune.replacement.measure import measure_replacement
from lensprune.replacement.result import ReplacementRun
from lensprune.results.compare import write_comparison
from lensprune.results.page import write_report
from lensprune.results.run import Run
from lensprune.runs.chance import beats_chance
from lensprune.studies.presets import Preset, ReplacementPart, StudyPart
from lensprune.studies.thinking import ThinkingRun, options_for, parts_apart, run_thinking
from lensprune.sweeps.options import StudyArguments
from lensprune.sweeps.run import sweep
from lensprune.sweeps.selection import VariantSelection

__all__ = ["NO_PAIR", "PairResult", "chosen_pair", "concentration_change_rows", "moved", "run_pair"]

NO_PAIR = "The distilled pair is left out: give --base and --distilled to have it."
_FOLDER = "pair"


@dataclass(frozen=True)
class PairResult:
    """Sweeps of the base and the distilled model, the page that compares them, and exchanges between them."""

    base: str
    distilled: str
    sweeps: tuple[tuple[StudyPart, Run, Run, Path], ...]
    replacements: tuple[tuple[ReplacementPart, ReplacementRun], ...]
    thinking: tuple[ThinkingRun, ...] = ()


def chosen_pair(preset: Preset, base: str | None, distilled: str | None) -> tuple[str, str] | None:
    """The two models to compare: those given, or the preset's; ``None`` without either.

    Raises:
        UserError: only one of the two is given.
    """
    if base is None and distilled is None:
        return preset.pair
    if base is None or distilled is None:
        given, lacking = ("--distilled", "--base") if base is None else ("--base", "--distilled")
        raise UserError(f"{given} is given without {lacking}: give both or neither")
    return base, distilled


def run_pair(
    preset: Preset,
    pair: tuple[str, str],
    folder: Path,
    generation: Mapping[str, Any],
    options_of_pair: Sequence[Mapping[str, Any]],
    *,
    renamed_tokens: bool = False,
    **options: Unpack[StudyArguments],
) -> PairResult:
    """Run `preset.pair_sweeps` on both models, `preset.replacements` between them and `preset.thinking` on both, below
    `folder`/pair.

    In sweeps each model is prompted as far as its own chat template allows; exchanges use the distilled model's
    prompts.

    Args:
        generation: how texts are generated, where they are.
        options_of_pair: `options` as they fit the base and the distilled model (`fitted`).
        renamed_tokens: as for `measure_replacement`.
        options: of `sweep`.

    Raises:
        UserError: invalid input of `sweep`, `measure_replacement` and the reports, such as two models of different
            shapes.
    """
    home = folder / _FOLDER
    sweeps = []
    for part in [apart for whole in preset.pair_sweeps for apart in parts_apart(whole, options)]:
        runs = []
        for role, model, fitted_options in zip(("base", "distilled"), pair, options_of_pair, strict=True):
            run = sweep(
                model,
                part.tasks,
                part.protocols,
                VariantSelection(part.over, part.ablation),
                limit=part.limit,
                out=home / f"{part.name}-{role}",
                **options_for(part.protocols, fitted_options),
                **(generation if "generate" in part.protocols else {}),
            )
            write_report(run)
            runs.append(run)
        page = write_comparison(runs[0], runs[1], home / f"{part.name}-compared.html")
        sweeps.append((part, runs[0], runs[1], page))
    replacements = []
    for one in preset.replacements:
        base, distilled = pair
        result = measure_replacement(
            base,
            distilled,
            one.tasks,
            one.protocols,
            component=one.component,
            mode=one.mode,
            limit=one.limit,
            out=home / one.name,
            renamed_tokens=renamed_tokens,
            **options_for(one.protocols, options_of_pair[1]),
            **(generation if "generate" in one.protocols else {}),
        )
        result.report()
        replacements.append((one, result))
    thinking: list[ThinkingRun] = []
    for asked_of in preset.thinking:
        chosen = asked_of.pair if asked_of.pair is not None and pair == preset.pair else pair
        thinking += run_thinking(asked_of, chosen, home, generation, **options)
    return PairResult(*pair, tuple(sweeps), tuple(replacements), tuple(thinking))


def concentration_change_rows(pair_result: PairResult) -> pd.DataFrame:
    """Whether the distilled model's losses are spread over more parts than the base's, with paired intervals.

    One row per (sweep, task, protocol, statistic), the columns of
    `lensprune.analysis.concentration_change.PER_SEED_COLUMNS`, of losses alone, with
    ``task_kind``, ``protocol`` and ``at_chance``: that of either model. ``value`` is the distilled model's.
    """
    frames = []
    for part, base, distilled, _ in pair_result.sweeps:
        component = parts_over(part.over)[0].name
        kinds = {task.name: task.kind for task in base.spec.tasks}
        effects = zip(base.effects(component=component), distilled.effects(component=component), strict=True)
        for one, other in effects:
            accuracies = [_accuracy(run, one.task, one.protocol) for run in (base, distilled)]
            rows = compare(Comparison("distilled", 0, component, one, other, *accuracies), losses=True)
            place = {"task_kind": kinds[one.task], "protocol": one.protocol}
            frames.append(rows.assign(**place, at_chance=one.at_chance or other.at_chance))
    return pd.concat(frames, ignore_index=True)


def _accuracy(run: Run, task: str, protocol: str) -> float:
    rows = run.summary().query("variant == 'clean' and task == @task and protocol == @protocol")
    return float(rows["accuracy"].iloc[0])


def moved(rows: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The verdict on the claim that distillation changes where reasoning is located, and the rows behind it.

    The verdict is ``seen`` if the 95% interval of the change in the effective number of parts excludes 0 on every
    resolvable reasoning task, ``not resolvable`` if on none, otherwise ``mixed``; ``not measured`` without such a task.
    An interval that contains 0 is no proof of no change, so the verdict is never ``not seen``.
    """
    reasoning = rows[(rows["statistic"] == "participation_ratio") & (rows["task_kind"] == "reasoning")]
    reasoning = reasoning.reset_index(drop=True)
    clear = ((reasoning["ci_low"] > 0) | (reasoning["ci_high"] < 0)) & beats_chance(reasoning)
    verdicts = [
        "at chance" if chance else "seen" if seen else "not resolvable"
        for chance, seen in zip(reasoning["at_chance"], clear, strict=True)
    ]
    if reasoning.empty:
        return "not measured", reasoning.assign(verdict=verdicts)
    said = "seen" if clear.all() else "mixed" if clear.any() else "not resolvable"
    return said, reasoning.assign(verdict=verdicts)
