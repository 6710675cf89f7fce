"""Runs made of given outcomes, for figures and pages, without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lensprune.ablation.components import Head
from lensprune.ablation.variants import CLEAN, Ablation, Variant
from lensprune.errors import UserError
from lensprune.results.run import Run
from lensprune.runs.cell_store import CellStore, MemoryStore
from lensprune.runs.questions import questions_hash
from lensprune.runs.records import CellKey, cell_table
from lensprune.runs.spec import ConditionSpec, TaskSpec
from lensprune.runs.store import RunStore
from lensprune.tasks import get_task
from tests.helpers.made_cells import outcome, questions, requests, skip, spec

HOSTILE = '</script><script>window.hit = 1</script><img src=x onerror="window.hit = 2">\u202etxt.exe\x1b[31m{{7*7}}'
N_LAYERS = 10
PROTOCOLS = ("default", "generate")

Right = Callable[[str, str, Variant, int], np.ndarray]


def layers_run(
    folder: Path | None = None,
    *,
    n: int = 40,
    tasks: Sequence[str] = ("facts", "arithmetic"),
    protocols: Sequence[str] = PROTOCOLS,
    right: Right | None = None,
    text: str = "an answer",
    variants: Sequence[Variant] | None = None,
    n_layers: int = N_LAYERS,
    items_hash: str = "i" * 64,
) -> Run:
    """A run whose outcome for (task, protocol, variant, n) is `right`; by default the clean model knows all,
    a removed first layer loses everything, and any later layer half of the items under generate alone."""
    chosen = [CLEAN, *(variants if variants is not None else [skip(layer) for layer in range(n_layers)])]
    asked = {(task, p): questions(n, text, scored=p != "generate") for task in tasks for p in protocols}
    made = replace(
        spec(chosen, tasks, protocols, n_layers=n_layers),
        conditions=tuple(ConditionSpec(*place, "p" * 64, questions_hash(table)) for place, table in asked.items()),
        tasks=tuple(TaskSpec(name, 0, 0, n, items_hash, *_declared(name)) for name in tasks),
    )

    def fill(store: CellStore) -> None:
        store.keep_questions(asked)
        for task in tasks:
            for protocol in protocols:
                for variant in chosen:
                    correct = (right or _shallow_and_deep)(task, protocol, variant, n)
                    outcomes = [
                        outcome(
                            i,
                            bool(c),
                            text=text,
                            prediction=text if i % 2 else None,
                            gold_logprob=None if protocol == "generate" else -1.0,
                            option_logprobs=None if protocol == "generate" else (-1.0, -1.5),
                        )
                        for i, c in enumerate(correct)
                    ]
                    key = CellKey(variant.name, task, protocol)
                    store.write(key, cell_table(key, variant, outcomes, requests(n), [0.25] * n))

    if folder is None:
        memory = MemoryStore()
        fill(memory)
        return Run(made, memory)
    with RunStore.writing(folder, made) as store:
        fill(store)
    return Run.load(folder)


def _declared(task: str) -> tuple[str | None, str | None]:
    try:
        found = get_task(task)
    except UserError:
        return None, None
    return found.kind, found.closed_book


def _shallow_and_deep(task: str, protocol: str, variant: Variant, n: int) -> np.ndarray:
    if variant.is_clean:
        return np.ones(n, bool)
    if variant.layer == 0:
        return np.zeros(n, bool)
    return np.arange(n) % 2 == 0 if protocol == "generate" else np.ones(n, bool)


def heads_run(**changes: Any) -> Run:
    """Heads of layers 0 and 1 zeroed, 4 a layer; only head (1, 2) is needed, for half of the items."""
    variants = []
    for layer in range(2):
        for head in range(4):
            ablation = Ablation(Head(layer, head), "zero")
            variants.append(Variant(ablation.name, (ablation,)))

    def right(task: str, protocol: str, variant: Variant, n: int) -> np.ndarray:
        needed = (variant.layer, variant.head) == (1, 2)
        return np.arange(n) % 2 == 0 if needed else np.ones(n, bool)

    return layers_run(**{"variants": variants, "right": right, **changes})
