"""The part of a study about thinking: a base and a distilled model, each in its own format, with thinking on, off, and
cut short by budgets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack, cast

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lensprune.ablation.variants import CLEAN
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.models.model_config import load_model_config
from lensprune.output.drawing.style import MARKERS, colours, legend_below, panel_title, panels
from lensprune.protocols.prompting import PromptOptions, prompting_of
from lensprune.results.page import write_report
from lensprune.results.run import Run
from lensprune.studies.presets import StudyPart, ThinkingPart
from lensprune.sweeps.options import StudyArguments, Wording, option_values
from lensprune.sweeps.run import sweep
from lensprune.sweeps.selection import VariantSelection

__all__ = [
    "ThinkingRun",
    "check_wording",
    "draw_thinking",
    "fitted",
    "options_for",
    "parts_apart",
    "run_thinking",
    "thinking_effects",
    "thinking_rows",
    "ways_of",
]

logger = logging.getLogger("lensprune")

_THINKING: dict[str, Any] = {"thinking": "auto", "think_tokens": None, "thinking_budget": None}
_CHAT: dict[str, Any] = {"chat_template": False, "template_date": None, "template_args": None}
_CHAT["fewshot_as_multiturn"] = False

PLAIN, CHAT, OFF, ON = "no chat format", "no thinking known", "thinking off", "thinking on"


@dataclass(frozen=True)
class ThinkingRun:
    """One sweep: of which model, as ``base`` or ``distilled``, and in which way it was prompted."""

    part: ThinkingPart
    role: str
    way: str
    run: Run


def options_for(protocols: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` without those of thinking where nothing is generated; thinking ``off`` stays."""
    if "generate" in protocols:
        return dict(options)
    off = options.get("thinking") == "off"
    return {**options, **_THINKING, "thinking": "off" if off else "auto"}


def parts_apart(part: StudyPart, options: Mapping[str, Any]) -> tuple[StudyPart, ...]:
    """`part`, or two: if thinking is requested, protocols that score options get a separate sweep, without it."""
    scored = tuple(name for name in part.protocols if name != "generate")
    if not scored or scored == part.protocols or options_for(scored, options) == dict(options):
        return (part,)
    generated = replace(part, name=f"{part.name}-generate", protocols=("generate",))
    return replace(part, protocols=scored), generated


def check_wording(model: str, options: Mapping[str, Any]) -> None:
    """Raise `UserError` where the chat template or the tokenizer of `model` lacks what `options` ask for, or there is
    no such model."""
    problem = _problem(cast(HookedModel, load_model_config(model)), options)
    if problem is not None:
        raise problem


def fitted(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` as far as the chat template of `model` has them: without thinking where it knows none, and without the
    chat format where it has no template.

    What is left out is logged.

    Raises:
        UserError: no such model.
    """
    config = cast(HookedModel, load_model_config(model))
    problem = _problem(config, options)
    if problem is None:
        return dict(options)
    unthinking = {**options, **_THINKING}
    chat_problem = _problem(config, unthinking)
    what = "thinking options" if chat_problem is None else "the chat format"
    logger.warning(f"{config.facts.name} is prompted without {what}: {chat_problem or problem}")
    return unthinking if chat_problem is None else {**unthinking, **_CHAT}


def _problem(model: HookedModel, options: Mapping[str, Any]) -> UserError | None:
    try:
        prompting_of(model, PromptOptions(**option_values(options, Wording)))
    except UserError as error:
        return error
    return None


def ways_of(model: str, budgets: Sequence[int], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How a model can be prompted, by name: without a chat format if it has none, else in it, with thinking off, under
    each budget, and on, as far as its template goes.

    Args:
        options: of `sweep`; what they say about thinking and the chat format is replaced.
    """
    config = cast(HookedModel, load_model_config(model))
    plain = {**options, **_CHAT, **_THINKING}
    if not config.tokenizer.chat_template:
        return {PLAIN: plain}
    chat = {**options, **_THINKING, "chat_template": True, "think_tokens": options.get("think_tokens")}
    on = {**chat, "thinking": "on" if _problem(config, {**chat, "thinking": "on"}) is None else "auto"}
    if _problem(config, {**on, "thinking_budget": 1}) is not None:
        return {CHAT: {**chat, "think_tokens": None}}
    off = {**chat, "thinking": "off"}
    ways = {OFF: off} if _problem(config, off) is None else {}
    return ways | {f"budget {n}": {**on, "thinking_budget": n} for n in sorted(budgets)} | {ON: on}


def run_thinking(
    part: ThinkingPart,
    pair: tuple[str, str],
    folder: Path,
    generation: Mapping[str, Any],
    **options: Unpack[StudyArguments],
) -> tuple[ThinkingRun, ...]:
    """Run the sweeps of `part` on both models, below `folder`.

    Args:
        generation: how texts are generated; what is not given is the part's.
        options: of `sweep`.

    Raises:
        UserError: invalid input of `sweep`.
    """
    given = {name: value for name, value in generation.items() if value is not None}
    runs = []
    for role, model in zip(("base", "distilled"), pair, strict=True):
        for way, way_options in ways_of(model, part.budgets, options).items():
            run = sweep(
                model,
                part.tasks,
                ("generate",),
                VariantSelection(part.over, part.ablation),
                limit=part.limit,
                shots=part.shots,
                out=folder / f"{part.name}-{role}-{way.replace(' ', '-')}",
                **{"max_new_tokens": part.max_new_tokens, **given},
                **way_options,
            )
            write_report(run)
            runs.append(ThinkingRun(part, role, way, run))
    return tuple(runs)


def thinking_rows(runs: Sequence[ThinkingRun]) -> pd.DataFrame:
    """The clean model in each way: one row per (role, way, task), with ``accuracy``, mean ``thinking_tokens`` (missing
    where none are told apart), ``cut_off_rate``, ``n``, and the ``part``."""
    frames = []
    for one in runs:
        clean = one.run.summary().query("variant == @CLEAN.name")[["task", "n", "accuracy", "cut_off_rate"]]
        tokens = one.run.records(CLEAN.name).groupby("task")["n_thinking_tokens"].mean()
        frames.append(
            clean.assign(
                part=one.part.name, role=one.role, way=one.way, thinking_tokens=clean["task"].map(tokens).astype(float)
            )
        )
    return pd.concat(frames, ignore_index=True)


def thinking_effects(runs: Sequence[ThinkingRun]) -> pd.DataFrame:
    """Δμ of each removed part in each way: the rows of `Run.summary` without the clean model's, with ``role`` and
    ``way``."""
    frames = [one.run.summary().assign(role=one.role, way=one.way) for one in runs]
    table = pd.concat(frames, ignore_index=True)
    return table[table["variant"] != CLEAN.name].reset_index(drop=True)


def draw_thinking(effects: pd.DataFrame, *, title: str = "") -> list[Axes]:
    """Draw Δμ against the layer that was removed, one panel per (task, role), one line with 95% intervals per way.

    Args:
        effects: from `thinking_effects`.
    """
    groups = list(effects.groupby(["task", "role"], sort=False))
    ways = list(dict.fromkeys(effects["way"]))
    look = dict(zip(ways, zip(colours(len(ways)), MARKERS * len(ways), strict=False), strict=True))
    _, axes = panels(len(groups), size=(5.0, 3.6), title=title, sharey=True)
    several = effects["task"].nunique() > 1
    for ax, ((task, role), rows) in zip(axes, groups, strict=True):
        ax.axhline(0, color="0.25", linewidth=0.9, zorder=1)
        for place, (way, of_way) in enumerate(rows.groupby("way", sort=False)):
            colour, marker = look[str(way)]
            of_way = of_way.sort_values("layer")  # noqa: PLW2901
            spread = (place - (rows["way"].nunique() - 1) / 2) * 0.1
            ax.errorbar(
                of_way["layer"].astype(float) + spread,
                of_way["delta"],
                [of_way["delta"] - of_way["ci_low"], of_way["ci_high"] - of_way["delta"]],
                color=colour,
                marker=marker,
                markersize=4.5,
                linewidth=0.9,
                label=str(way),
            )
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(title=panel_title(str(task), str(role)) if several else str(role), xlabel="layer removed")
        ax.grid(axis="y", alpha=0.35)
    axes[0].set_ylabel("Δμ")
    shown = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    legend_below(axes, list(shown.values()))
    return axes
