"""Cells made of given outcomes, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from lensprune.ablation.components import Layer
from lensprune.ablation.variants import CLEAN, Ablation, Variant
from lensprune.protocols.base import Failure, ItemRequests, Outcome
from lensprune.protocols.requests import LoglikelihoodRequest
from lensprune.runs.cell_store import CellStore
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.questions import QUESTIONS, Question, questions_hash
from lensprune.runs.records import CellKey, cell_table
from lensprune.runs.spec import ConditionSpec, SweepSpec, TaskSpec
from lensprune.runs.variant_json import variant_to_json
from lensprune.tasks.base import Item


def skip(layer: int) -> Variant:
    ablation = Ablation(Layer(layer), "skip")
    return Variant(ablation.name, (ablation,))


def outcome(
    index: int, correct: bool, cluster: str | None = None, failure: Failure | None = None, **changes: object
) -> Outcome:
    values: dict[str, object] = {
        "item_id": f"item {index}",
        "cluster": cluster,
        "target": f"answer {index}",
        "prediction": f"answer {index}" if correct else "another",
        "correct": correct,
        "gold_logprob": -1.0 - index,
        "logprob_margin": 0.5,
        "option_logprobs": (-1.0 - index, -1.5 - index),
        "failure": failure or ("none" if correct else "wrong_answer"),
        "n_tokens": 1,
        "text": " A",
        "metrics": {"acc": float(correct)},
    }
    return Outcome(**{**values, **changes})  # type: ignore[arg-type]


def requests(n: int, truncated: int = 0) -> list[ItemRequests]:
    asked = LoglikelihoodRequest((1,), (2,))
    return [ItemRequests(Item(f"item {i}", {}), "default", (), (asked,), truncated if i == 0 else 0) for i in range(n)]


def questions(n: int, text: str = "What is it?", scored: bool = True) -> pa.Table:
    """Of `n` items, each with the options A and B, of which A is right, or (not `scored`) with none."""
    options: tuple[Any, ...] = ((" A", " B"), ("A",), 0, (1, 1), (1, 1), (1, 1), (0, 0))
    none: tuple[Any, ...] = ((), ("A",), None, (), (), (), ())
    rows = [Question(f"item {i}", f"{i}: {text}", *(options if scored else none)) for i in range(n)]
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=QUESTIONS)


QUESTIONS_HASH = questions_hash(questions(4))


def table(
    variant: Variant,
    correct: Sequence[bool],
    *,
    task: str = "t",
    protocol: str = "default",
    chance: float = 0.25,
    clusters: Sequence[str] | None = None,
    truncated: int = 0,
    logprob_margin: float = 0.5,
) -> pa.Table:
    outcomes = [
        outcome(i, c, None if clusters is None else clusters[i], logprob_margin=logprob_margin)
        for i, c in enumerate(correct)
    ]
    key = CellKey(variant.name, task, protocol)
    return cell_table(key, variant, outcomes, requests(len(correct), truncated), [chance] * len(correct))


def spec(
    variants: Sequence[Variant] = (CLEAN, skip(0), skip(1)),
    tasks: Sequence[str] = ("t",),
    protocols: Sequence[str] = ("default",),
    **changes: object,
) -> SweepSpec:
    values: dict[str, object] = {
        "model": "tiny",
        "architecture": "LlamaForCausalLM",
        "n_layers": 4,
        "n_heads": 4,
        "n_key_value_heads": 2,
        "weights_hash": "w" * 64,
        "config_hash": "c" * 64,
        "tokenizer_hash": "t" * 64,
        "dtype": "float32",
        "device": "cpu",
        "bos": "tokenizer",
        "chat_template": False,
        "tasks": tuple(TaskSpec(name, 0, 0, 4, "i" * 64) for name in tasks),
        "protocols": tuple(protocols),
        "conditions": tuple(ConditionSpec(t, p, "p" * 64, QUESTIONS_HASH) for t in tasks for p in protocols),
        "variants": tuple(variant_to_json(v) for v in variants),
    }
    return SweepSpec(**{**values, **changes})  # type: ignore[arg-type]


def outcomes_of(
    store: CellStore, names: Sequence[str], cells: Sequence[tuple[str, str]] = (("t", "default"),), **changes: object
) -> Outcomes:
    """The outcomes in `store` of variants by their names, under a spec that has `cells`."""
    tasks, protocols = (list(dict.fromkeys(column)) for column in zip(*cells, strict=True))
    made = replace(
        spec(tasks=tasks, protocols=protocols, **changes),
        conditions=tuple(ConditionSpec(*cell, "p" * 64, QUESTIONS_HASH) for cell in cells),
        variants=tuple({"name": name} for name in names),
    )
    return Outcomes(made, store)
