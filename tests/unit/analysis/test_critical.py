"""What is critical, what may be ranked, and the order in which every method names a task and a protocol."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pytest

import lensprune as lp
from lensprune.ablation.variants import CLEAN, Variant
from lensprune.analysis.critical import critical
from lensprune.errors import UserError
from lensprune.runs.cell_store import MemoryStore
from lensprune.runs.chance import beats_chance, known_at_chance
from tests.helpers.made_cells import outcomes_of
from tests.helpers.made_runs import layers_run


def test_critical_is_a_clear_loss_above_chance() -> None:
    rows = [(-0.2, 0.01, False), (-0.2, 0.06, False), (0.2, 0.01, False), (-0.2, 0.01, True), (-0.2, 0.01, pd.NA)]
    summary = pd.DataFrame(rows, columns=["delta", "q_loss", "at_chance"]).astype({"at_chance": "boolean"})
    assert critical(summary).index.tolist() == [0]
    assert critical(summary, 0.1).index.tolist() == [0, 1]
    with pytest.raises(UserError, match=r"q 1\.5"):
        critical(summary, 1.5)


def test_unknown_counts_as_at_chance_but_is_not_said() -> None:
    frame = pd.DataFrame({"at_chance": pd.array([False, True, pd.NA], "boolean")})
    assert beats_chance(frame).tolist() == [True, False, False]
    assert known_at_chance(frame).tolist() == [False, True, False]


def test_only_tasks_above_chance_are_ranked() -> None:
    def right(task: str, protocol: str, variant: Variant, n: int) -> np.ndarray:
        return np.arange(n) < (n if protocol == "generate" else n // 4)

    run = layers_run(right=right, tasks=("facts", "arithmetic"), n_layers=1)
    assert run.select("facts") == [("facts", "default"), ("facts", "generate")]
    assert run.ranked() == [("facts", "generate"), ("arithmetic", "generate")]
    assert run.ranked("facts", "default") == []
    assert outcomes_of(MemoryStore(), [CLEAN.name]).ranked() == []


def test_critical_layers_take_the_task_first() -> None:
    run = layers_run()
    found = run.critical_layers("facts", "generate")
    assert set(found["task"]) == {"facts"}
    assert set(found["protocol"]) == {"generate"}
    assert found["variant"].iloc[0] == "L0.skip"
    assert len(found) == 10
    with pytest.raises(UserError, match="task of this run 'generate'"):
        run.critical_layers("generate")


def test_every_method_names_the_task_before_the_protocol() -> None:
    both = {}
    for kind in (lp.Run, lp.ReplacementRun):
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            names = list(inspect.signature(method).parameters)
            if "task" in names and "protocol" in names:
                both[f"{kind.__name__}.{name}"] = names.index("protocol") - names.index("task")
    assert len(both) >= 10
    assert set(both.values()) == {1}
