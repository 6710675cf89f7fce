"""Compare rankings by fidelity with those of the protocols, and their costs: the study of docs/results/fidelity.md."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lensprune.ablation.enumeration import each_head, each_layer
from lensprune.ablation.variants import Variant
from lensprune.divergence.failure_breakdown import GAP_COLUMNS, failure_gap, split_half_of
from lensprune.divergence.measure import AnswerReading, read_answers
from lensprune.divergence.sample_efficiency import SHARES, changes_of, sample_efficiency
from lensprune.divergence.scores import agreement_with_loss, fidelity_row
from lensprune.divergence.similarity import layer_similarity
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import HookedModel, ModelOrName
from lensprune.models.load import open_model
from lensprune.primitives.battery import default_texts, text_rows
from lensprune.primitives.effects import token_losses
from lensprune.registry import names_given
from lensprune.sweeps.options import (
    Execution,
    Generation,
    Items,
    ItemSampling,
    Loading,
    Prompts,
    Rows,
    Splitting,
    SweepOptions,
    option_values,
)
from lensprune.sweeps.run import sweep
from lensprune.tasks.item_choice import DRAWN
from lensprune.terminal import stage

__all__ = ["ALL_PROTOCOLS", "MEASURES", "FidelityStudy", "validate_fidelity"]

ALL_PROTOCOLS = ("default", "continuation", "generate")

MEASURES = {
    "fidelity": 1,
    "follow": 1,
    "path_share": 1,
    "kl": -1,
    "loss_change": -1,
    "gold_logprob": 1,
    "perplexity_change": -1,
    "block_influence": -1,
    "angular_distance": -1,
}
"""What is compared with Δμ; +1: a higher value means a smaller loss. The first five are columns of `fidelity`.
``gold_logprob``: mean log-probability of the right option under the first likelihood protocol requested.
``perplexity_change``: of general text, relative. ``block_influence`` and ``angular_distance`` exist for whole layers
alone."""
_TEXTS = 12
_LAYERS_ONLY = ("block_influence", "angular_distance")
_FEW = 5


@dataclass(frozen=True)
class FidelityStudy:
    """Tables of one model.

    `agreement`: one row per (task, protocol, measure), see `agreement_with_loss`, with ``accuracy_clean``, ``n`` items
    and ``ceiling``: the correlation that a score without error could reach, √`split_half`. Tasks and
    protocols at which the clean model is at chance have no row. `scores`: every measure of every (task, variant).
    `summary`: of the sweep. `gap`: see `failure_gap` (empty without both protocols). `sample_efficiency`: see
    `sample_efficiency`, by task. `seconds`: one row per task: ``generate`` (the sweep under generate), ``fidelity``
    (clean generation and reading), ``ratio``, and ``few`` and ``few_ratio``: the same of fidelity on the first fifth
    of the items, NaN where the clean model answers none of these right.
    """

    model: str
    agreement: pd.DataFrame
    scores: pd.DataFrame
    summary: pd.DataFrame
    gap: pd.DataFrame
    sample_efficiency: pd.DataFrame
    seconds: pd.DataFrame


def validate_fidelity(
    model: ModelOrName,
    tasks: Sequence[str] | str,
    protocols: Sequence[str] = ALL_PROTOCOLS,
    *,
    over: str = "layers",
    layers: Sequence[int] | None = None,
    limit: int = 24,
    items: str = DRAWN,
    shots: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    leave_out_repeated: bool = False,
    primary_metric: str | None = None,
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
    n_devices: int | None = None,
    bos: str | None = None,
    executor: str = "forked",
    batch_tokens: int | None = None,
    memory: str | None = None,
    resamples: int = 1000,
    progress: bool = True,
) -> FidelityStudy:
    """Measure Δμ by sweeps, and fidelity and its baselines on the same items, and correlate them over the parts.

    Args:
        model: a name or path for `load_model`, or a loaded model.
        tasks: each must support ``generate``.
        protocols: with ``generate`` among them, whose time fidelity is compared with.
        over: ``layers`` (skipped) or ``heads`` (zeroed).
        layers: these alone, or heads of these alone; ``None``: all.
        resamples: bootstrap draws of the parts, for the intervals.

    The other arguments are those of `sweep`.

    Raises:
        UserError: an option out of range, or other invalid input.
    """
    if over not in ("layers", "heads"):
        raise unknown_name("kind of part", over, ("layers", "heads"))
    if "generate" not in protocols:
        raise UserError("protocols lack generate, with which fidelity is compared: add it")
    given = locals()
    names = names_given("task", tasks)
    hooked = open_model(model, **option_values(given, Loading, Splitting))
    facts = hooked.facts
    variants = each_layer(facts, "skip", layers) if over == "layers" else each_head(facts, "zero", layers)
    options = option_values(given, Items, ItemSampling, Rows, Prompts, Execution)
    with stage(f"{len(variants)} variants read general text", shown=progress):
        general = _general(hooked, variants, over)
    tables: dict[str, list[pd.DataFrame]] = {
        name: [] for name in ("agreement", "scores", "summary", "gap", "sample_efficiency")
    }
    seconds = []
    # What is said of thinking is said of texts, but for its being off, which prompts say too.
    without_texts = {"primary_metric": None, "think_tokens": None, "thinking": "off" if thinking == "off" else "auto"}
    for task in names:
        sweep_options = SweepOptions.given(task, "generate", variants, **options, **option_values(given, Generation))
        [reading] = read_answers(hooked.module, sweep_options, progress=progress)
        few = _seconds_of_few(hooked, replace(sweep_options, limit=max(1, limit // _FEW)), progress)
        runs, taken = {}, {}
        for protocol in protocols:
            began = time.perf_counter()
            protocol_options = options | (option_values(given, Generation) if protocol == "generate" else without_texts)
            runs[protocol] = sweep(hooked.module, [task], [protocol], variants, progress=progress, **protocol_options)
            taken[protocol] = time.perf_counter() - began
        measured = pd.concat([run.records() for run in runs.values()], ignore_index=True)
        of_task = pd.concat([run.summary() for run in runs.values()], ignore_index=True)
        scores = _scores(reading, of_task).merge(general, on="variant")
        with stage(f"{task}: correlations with losses", shown=progress):
            rows = agreement_with_loss(scores, of_task, _measures(over), resamples=resamples, seed=seed)
        tables["agreement"].append(_with_ceiling(rows, of_task, measured))
        tables["scores"].append(scores)
        tables["summary"].append(of_task)
        tables["sample_efficiency"].append(
            _sample_efficiency(reading, runs["generate"].records(), seed).assign(task=scores["task"].iloc[0])
        )
        if "continuation" in protocols:
            tables["gap"].append(failure_gap(measured))
        whole, cost = taken["generate"], sum(reading.seconds.values())
        seconds.append((scores["task"].iloc[0], whole, cost, whole / cost, few, whole / few))
    return _study(facts.name, tables, seconds)


def _study(
    model: str, tables: Mapping[str, Sequence[pd.DataFrame]], seconds: Sequence[tuple[Any, ...]]
) -> FidelityStudy:
    """The tables of all tasks together."""
    joined = {name: _joined(frames) for name, frames in tables.items()}
    if joined["gap"].empty:
        joined["gap"] = pd.DataFrame(columns=list(GAP_COLUMNS))
    columns = ["task", "generate", "fidelity", "ratio", "few", "few_ratio"]
    return FidelityStudy(model=model, seconds=pd.DataFrame(seconds, columns=columns), **joined)


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    # An empty frame's columns are of no type, which those of the others would take on.
    kept = [frame for frame in frames if len(frame)] or list(frames[:1])
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()


def _seconds_of_few(model: HookedModel, options: SweepOptions, progress: bool) -> float:
    """Time of fidelity on few items; NaN where the clean model answers none of them right."""
    try:
        [few] = read_answers(model.module, options, progress=progress)
    except UserError:
        # All items were read before with these options, so the only thing that few can lack is a right answer.
        return float("nan")
    return sum(few.seconds.values())


def _scores(reading: AnswerReading, summary: pd.DataFrame) -> pd.DataFrame:
    """Measures of one task: one row per variant."""
    rows = []
    for variant in reading.variants:
        row: dict[str, object] = {"variant": variant.name, "layer": variant.layer, "head": variant.head}
        row |= fidelity_row(reading.items[variant.name], reading.n_tokens)
        rows.append(row)
    frame = pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})
    # The sweep may write a task's parameters in another order than they were given.
    frame.insert(0, "task", summary["task"].iloc[0])
    likelihood = summary[summary["mean_gold_logprob"].notna()].drop_duplicates("variant").set_index("variant")
    frame["gold_logprob"] = frame["variant"].map(likelihood["mean_gold_logprob"]).astype(float)
    return frame


def _sample_efficiency(reading: AnswerReading, records: pd.DataFrame, seed: int) -> pd.DataFrame:
    changes = changes_of(records)
    names = [variant.name for variant in reading.variants]
    items = pd.DataFrame({name: reading.items[name]["fidelity"] for name in names}, index=list(reading.item_ids))
    # An answer that was not read says nothing of any variant.
    scores = items.reindex(changes.index).fillna(0.0)
    shares = [share for share in SHARES if 0 < round(share * len(changes)) < len(changes)]
    return sample_efficiency(scores.to_numpy(), changes[names].to_numpy(), shares, seed=seed)


def _measures(over: str) -> dict[str, int]:
    return {name: sign for name, sign in MEASURES.items() if over == "layers" or name not in _LAYERS_ONLY}


def _general(model: HookedModel, variants: Sequence[Variant], over: str) -> pd.DataFrame:
    """The baselines that need no task, on the bundled general texts: one row per variant."""
    rows = text_rows(model, default_texts(_TEXTS))
    change = np.expm1(token_losses(model, rows, variants).loss.mean(axis=0))
    frame = pd.DataFrame({"variant": [variant.name for variant in variants], "perplexity_change": change})
    if over == "layers":
        similar = layer_similarity(model, [row.context_ids + row.solution_ids for row in rows])
        frame = frame.merge(similar[["variant", *_LAYERS_ONLY]], on="variant")
    return frame


def _with_ceiling(rows: pd.DataFrame, summary: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    clean = summary[summary["variant"] == "clean"].set_index("protocol")
    ranked = records[records["protocol"].isin(rows["protocol"])]
    ceilings = {protocol: split_half_of(group) ** 0.5 for protocol, group in ranked.groupby("protocol")}
    return rows.assign(
        accuracy_clean=rows["protocol"].map(clean["accuracy"]),
        n=rows["protocol"].map(clean["n"]),
        ceiling=rows["protocol"].map(ceilings).astype(float),
    )
