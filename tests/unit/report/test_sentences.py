"""One sentence per task says what the table says."""

from __future__ import annotations

import numpy as np

from lensprune.ablation.variants import Variant
from lensprune.results.sentences import task_sentences
from tests.helpers.made_runs import heads_run, layers_run


def test_what_each_protocol_needs_and_what_costs_most() -> None:
    first, second = task_sentences(layers_run())
    assert first == (
        "facts: the model needs 1 of 10 layers (0) under default and 10 (0–9) under generate (q ≤ 0.05); "
        "without L0 accuracy falls most, from 1.00 to 0.00 under default."
    )
    assert second.startswith("arithmetic: the model needs 1 of 10 layers (0) under default")


def test_no_loss_that_is_certain_and_a_model_at_chance_are_said() -> None:
    def right(task: str, protocol: str, variant: Variant, n: int) -> np.ndarray:
        return np.arange(n) % 4 == 0 if protocol == "default" else np.ones(n, bool)

    [said] = task_sentences(layers_run(tasks=("facts",), right=right))
    assert said == (
        "facts: the model needs none of 10 layers under generate (q ≤ 0.05); under default the clean model is not "
        "known to beat chance, so nothing is named."
    )
    [silent] = task_sentences(layers_run(tasks=("facts",), protocols=("default",), right=right))
    assert silent == "facts: under default the clean model is not known to beat chance, so nothing is named."


def test_heads_are_named_the_strongest_first() -> None:
    said = task_sentences(heads_run())[0]
    assert " parts (" in said
    assert "layers" not in said
