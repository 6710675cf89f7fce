"""One sentence per task says what the table says."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lensprune.ablation.variants import Variant
from lensprune.results import page_text
from lensprune.results.sentences import task_sentences
from lensprune.results.text import at_chance_line
from lensprune.runs.chance import items_to_beat_chance
from tests.helpers.made_runs import heads_run, layers_run


def test_what_each_protocol_needs_and_what_costs_most() -> None:
    first, second = task_sentences(layers_run())
    assert first == (
        "facts: the model needs 1 of 10 layers (0) under default and 10 (0–9) under generate (q ≤ 0.05); "
        "without L0 accuracy falls most, from 1.00 to 0.00 under default."
    )
    assert second.startswith("arithmetic: the model needs 1 of 10 layers (0) under default")


def test_one_layer_alone_is_singular() -> None:
    assert task_sentences(layers_run(n_layers=1))[0].startswith(
        "facts: the model needs 1 of 1 layer (0) under default and 1 (0) under generate"
    )


def test_no_loss_that_is_certain_and_a_model_at_chance_are_said() -> None:
    def right(task: str, protocol: str, variant: Variant, n: int) -> np.ndarray:
        return np.arange(n) % 4 == 0 if protocol == "default" else np.ones(n, bool)

    [said] = task_sentences(layers_run(tasks=("facts",), right=right))
    assert said == (
        "facts: the model needs none of 10 layers under generate (q ≤ 0.05); under default the clean model is not "
        "known to beat chance, so nothing can be detected."
    )
    [silent] = task_sentences(layers_run(tasks=("facts",), protocols=("default",), right=right))
    assert silent == "facts: under default the clean model is not known to beat chance, so nothing can be detected."


def test_heads_are_named_the_strongest_first() -> None:
    said = task_sentences(heads_run())[0]
    assert " parts (" in said
    assert "layers" not in said


def test_items_that_cannot_tell_are_no_guessing() -> None:
    """0.5 is not found above 0.25 with 6 items, and 0.2 never is."""
    needed = items_to_beat_chance(0.5, 0.25)
    assert needed is not None
    few = {"task": "t", "protocol": "default", "accuracy_clean": 0.5, "chance": 0.25, "n": 6, "at_chance": True}
    guessing = {**few, "task": "u", "accuracy_clean": 0.2}

    def said(*rows: dict[str, object]) -> tuple[str, str]:
        frame = pd.DataFrame(rows)
        return page_text.none_critical(frame), page_text.lead(frame, frame[:0], 0.05)

    line = f"t under default has too few items: 6 can't tell 0.50 from 0.25, and {needed} would in four of five runs."
    for text in said(guessing, few):
        assert text.endswith(f"on no task is the clean model known to beat chance. {line}")
    for text in said(guessing, {**few, "n": needed}):
        assert text.endswith("on no task is the clean model known to beat chance.")
    clean = pd.Series({"accuracy": 0.5, "chance": 0.25, "n": 6})
    assert at_chance_line(clean) == (
        f"at chance: 6 items can't tell 0.50 from guessing (0.25); at that accuracy {needed} would in four of five runs"
    )
    for guess in ({"accuracy": 0.2}, {"n": needed}):
        assert "could come from guessing" in at_chance_line(pd.Series({**clean, **guess}))
