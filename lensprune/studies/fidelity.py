"""Does fidelity rank parts as the protocols do, at a fraction of the cost? The study behind docs/open-questions.md."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lensprune.ablation.variants import Variant, each_head, each_layer
from lensprune.analysis.fidelity import agreement_with_loss
from lensprune.analysis.loss_split import failure_gap, split_half_of
from lensprune.analysis.similarity import layer_similarity
from lensprune.errors import UserError, unknown_name
from lensprune.heads.reasoning.battery import default_texts, text_rows
from lensprune.heads.reasoning.effects import token_losses
from lensprune.models.base import HookedModel
from lensprune.sweep.fidelity import fidelity
from lensprune.sweep.prepare import open_model
from lensprune.sweep.run import sweep

__all__ = ["MEASURES", "FidelityStudy", "validate_fidelity"]

MEASURES = {
    "fidelity": 1,
    "fidelity_right": 1,
    "follow": 1,
    "path_share": 1,
    "kl": -1,
    "loss_change": -1,
    "perplexity_change": -1,
    "block_influence": -1,
    "angular_distance": -1,
}
"""What is compared with Δμ; +1: a higher value means a smaller loss. ``perplexity_change``: of general text, relative.
``block_influence`` and ``angular_distance`` exist for whole layers alone."""
_TEXTS = 12
_LAYERS_ONLY = ("block_influence", "angular_distance")


@dataclass(frozen=True)
class FidelityStudy:
    """Tables of one model.

    `agreement`: a row a (task, protocol, measure), see `agreement_with_loss`, with ``accuracy_clean``, ``n`` items and
    ``ceiling``: the correlation that a score without error could be expected to reach, √`split_half`. Tasks and
    protocols at which the clean model is at chance have no row. `scores`: every measure of every (task, variant).
    `summary`: of the sweep. `gap`: see `failure_gap` (empty without both protocols). `seconds`: a row a task:
    ``generate`` (the sweep under generate), ``fidelity`` (clean generation and traces), ``ratio``.
    """

    model: str
    agreement: pd.DataFrame
    scores: pd.DataFrame
    summary: pd.DataFrame
    gap: pd.DataFrame
    seconds: pd.DataFrame


def validate_fidelity(
    model: Any,
    tasks: Sequence[str] | str,
    protocols: Sequence[str] = ("default", "continuation", "generate"),
    *,
    over: str = "layers",
    limit: int = 24,
    shots: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    device: str | None = None,
    resamples: int = 1000,
    progress: bool = True,
) -> FidelityStudy:
    """Measure Δμ by sweeps, and fidelity and its baselines on the same items, and correlate them over the parts.

    Args:
        model: a name or path for `load_model`, or a loaded model.
        tasks: each must support ``generate``.
        protocols: ``generate`` among them, since its time is what fidelity is to save.
        over: ``layers`` (skipped) or ``heads`` (zeroed).
        limit, shots, seed, data_dir, device, progress: of `sweep`.
        resamples: bootstrap draws of the parts, behind the intervals.

    Raises:
        UserError: an option out of range, or what `sweep` refuses.
    """
    if over not in ("layers", "heads"):
        raise unknown_name("kind of part", over, ("layers", "heads"))
    if "generate" not in protocols:
        raise UserError("protocols lack generate: fidelity is compared with it")
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    hooked = open_model(model, device=device)
    facts = hooked.facts
    variants = each_layer(facts) if over == "layers" else each_head(facts)
    options: dict[str, Any] = {
        "limit": limit,
        "shots": shots,
        "seed": seed,
        "data_dir": None if data_dir is None else str(data_dir),
        "progress": progress,
    }
    general = _general(hooked, variants, over)
    agreement, scores, summaries, gaps, seconds = [], [], [], [], []
    for task in names:
        found = fidelity(hooked.module, [task], variants, **options)
        cost = sum(found.attrs["seconds"].values())
        found = found.merge(general, on="variant")
        records, summary = [], []
        for protocol in protocols:
            began = time.perf_counter()
            run = sweep(hooked.module, [task], [protocol], variants, **options)
            if protocol == "generate":
                taken = time.perf_counter() - began
            records.append(run.records())
            summary.append(run.summary())
        measured, of_task = pd.concat(records, ignore_index=True), pd.concat(summary, ignore_index=True)
        # The sweep may write a task's parameters in another order than they were given.
        found["task"] = of_task["task"].iloc[0]
        rows = agreement_with_loss(found, of_task, _measures(over), resamples=resamples, seed=seed)
        agreement.append(_with_ceiling(rows, of_task, measured))
        scores.append(found)
        summaries.append(of_task)
        if "continuation" in protocols:
            gaps.append(failure_gap(measured))
        seconds.append((found["task"].iloc[0], taken, cost, taken / cost))
    return FidelityStudy(
        model=facts.name,
        agreement=pd.concat(agreement, ignore_index=True),
        scores=pd.concat(scores, ignore_index=True),
        summary=pd.concat(summaries, ignore_index=True),
        gap=pd.concat(gaps, ignore_index=True) if gaps else pd.DataFrame(),
        seconds=pd.DataFrame(seconds, columns=["task", "generate", "fidelity", "ratio"]),
    )


def _measures(over: str) -> dict[str, int]:
    return {name: sign for name, sign in MEASURES.items() if over == "layers" or name not in _LAYERS_ONLY}


def _general(model: HookedModel, variants: Sequence[Variant], over: str) -> pd.DataFrame:
    """The baselines that need no task, on the bundled general texts: a row a variant."""
    rows = text_rows(model, default_texts(_TEXTS))
    change = np.expm1(token_losses(model, rows, variants).loss.mean(axis=0))
    frame = pd.DataFrame({"variant": [variant.name for variant in variants], "perplexity_change": change})
    if over == "layers":
        similar = layer_similarity(model, [row.context_ids + row.solution_ids for row in rows])
        frame = frame.merge(similar[["variant", *_LAYERS_ONLY]], on="variant")
    return frame


def _with_ceiling(rows: pd.DataFrame, summary: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    clean = summary[summary["variant"] == "clean"].set_index("protocol")
    halves = (
        {
            str(protocol): split_half_of(own)
            for protocol, own in records.groupby("protocol")
            if str(protocol) in set(rows["protocol"])
        }
        if len(rows)
        else {}
    )
    if rows.empty:
        return rows
    return rows.assign(
        accuracy_clean=rows["protocol"].map(clean["accuracy"]),
        n=rows["protocol"].map(clean["n"]),
        ceiling=rows["protocol"].map({name: value**0.5 for name, value in halves.items()}),
    )
