"""Verdicts on the paper's claims follow from the rows, and nothing is said without them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lensprune.ablation.variants import Variant
from lensprune.analysis.claims import CLAIMS, claim_results, claim_verdict, task_kind
from lensprune.analysis.signatures import SIGNATURE_COLUMNS
from lensprune.results.run import Run
from lensprune.tasks import task_names
from tests.helpers.made_runs import layers_run


def verdicts(run: Run) -> list[str]:
    return [found.verdict for found in claim_results(run.signatures())]


def test_a_model_as_the_paper_has_it() -> None:
    assert verdicts(layers_run(n=200)) == ["seen"] * 5 + ["not measured"]


def test_a_model_that_needs_its_last_layers_under_every_protocol() -> None:
    def right(task: str, protocol: str, variant: Variant, n: int) -> np.ndarray:
        return np.arange(n) % 2 == 0 if variant.layer is not None and variant.layer >= 7 else np.ones(n, bool)

    found = verdicts(layers_run(right=right, n=200))
    assert found == ["not seen", "seen", "not seen", "not seen", "seen", "not measured"]


def test_at_chance_and_few_items_resolve_nothing() -> None:
    def right(task: str, protocol: str, variant: Variant, n: int) -> np.ndarray:
        return np.arange(n) % 4 == 0

    assert set(verdicts(layers_run(right=right))) == {"not resolvable", "not measured"}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([], "not measured"),
        (["seen", "not resolvable"], "seen"),
        (["seen", "not seen"], "mixed"),
        (["at chance", "not resolvable"], "not resolvable"),
        (["not seen"], "not seen"),
    ],
)
def test_verdict_of_rows(said: list[str], expected: str) -> None:
    assert claim_verdict(pd.Series(said, dtype=object)) == expected


def test_without_signatures_nothing_is_measured() -> None:
    found = claim_results(pd.DataFrame(columns=list(SIGNATURE_COLUMNS)))
    assert len(found) == len(CLAIMS)
    assert {one.verdict for one in found} == {"not measured"}


def test_every_task_has_a_kind() -> None:
    assert [name for name in task_names() if task_kind(name) is None] == []
    assert task_kind("arithmetic[operands=3]") == "reasoning"
    assert task_kind("mine") is None


def signature_row(
    p_value: float, low: float, high: float, verdict: str = "seen", task: str = "facts"
) -> dict[str, object]:
    row = dict.fromkeys(SIGNATURE_COLUMNS, float("nan"))
    return {**row, "signature": "deep loss of generation", "task": task, "protocol": "generate", "verdict": verdict,
            "p_value": p_value, "ci_low": low, "ci_high": high}  # fmt: skip


def test_a_claims_rows_are_corrected_for_their_number() -> None:
    """Of three resolvable rows the smallest p counts three times, the next twice; rows at chance count for nothing."""
    rows = [
        signature_row(0.008, -0.3, -0.1),
        signature_row(0.02, -0.3, -0.01),
        signature_row(0.5, -0.04, 0.2, "not seen"),
        signature_row(0.001, -0.3, -0.1, "at chance"),
    ]
    found = claim_results(pd.DataFrame(rows))[1].rows
    assert found["p_holm"].to_numpy() == pytest.approx([0.024, 0.04, 0.5, np.nan], nan_ok=True)
    assert found["verdict"].tolist() == ["seen", "not resolvable", "not seen", "at chance"]
    narrow = claim_results(pd.DataFrame([signature_row(0.02, -0.03, -0.001), *rows[2:]]))[1].rows
    assert narrow["verdict"].tolist()[0] == "not seen"
