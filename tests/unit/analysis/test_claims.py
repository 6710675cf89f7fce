"""Verdicts on the paper's claims follow from the rows, and nothing is said without them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lensprune.ablation.variants import Variant
from lensprune.analysis.claims import CLAIMS, claim_results, claim_verdict
from lensprune.analysis.signatures import SIGNATURE_COLUMNS
from lensprune.errors import UserError
from lensprune.results.run import Run
from lensprune.runs.spec import SweepSpec
from lensprune.tasks import get_task, load_task, task_names
from lensprune.tasks.base import TASK_KINDS
from tests.helpers.made_runs import layers_run


def verdicts(run: Run) -> list[str]:
    return [found.verdict for found in claim_results(run.signatures())]


@pytest.mark.slow
def test_a_model_as_the_paper_has_it() -> None:
    assert verdicts(layers_run(n=200)) == ["seen"] * 5 + ["not measured"]


@pytest.mark.slow
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


def test_every_task_of_the_package_declares_its_kind() -> None:
    assert [name for name in task_names() if get_task(name).kind is None] == []
    assert get_task("arithmetic[operands=3]").kind == "reasoning"
    assert {get_task(name).kind for name in task_names()} == set(TASK_KINDS)


def test_closed_books_exist_and_share_items_and_parameters() -> None:
    twins = {name: get_task(name).closed_book for name in task_names() if get_task(name).closed_book}
    assert twins == {"facts_open": "facts", "openbookqa_open": "openbookqa"}
    assert get_task("facts_open[answer=letter]").closed_book == "facts[answer=letter]"
    opened, closed = (load_task(name, limit=5) for name in ("facts_open", "facts"))
    assert [item.doc for item in opened.items] == [item.doc for item in closed.items]


def test_an_unknown_kind_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown kind of task 'facts' 'resoning': did you mean reasoning"):
        replace(get_task("facts"), kind="resoning")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reasoning", None])
def test_a_claim_counts_a_new_task_by_the_kind_that_it_declares(kind: str | None) -> None:
    run = layers_run(tasks=("mine",), n=200)
    [task] = run.spec.tasks
    run.spec = replace(run.spec, tasks=(replace(task, kind=kind),))
    signed = run.signatures()
    assert set(signed["task_kind"]) == {kind}
    of_reasoning = claim_results(signed)[4]
    assert of_reasoning.claim.text == "Reasoning relies on the deeper layers."
    assert of_reasoning.verdict == ("seen" if kind else "not measured")
    assert SweepSpec.from_json(run.spec.to_json()) == run.spec


def signature_row(
    p_value: float, low: float, high: float, verdict: str = "seen", task: str = "facts"
) -> dict[str, object]:
    row = dict.fromkeys(SIGNATURE_COLUMNS, float("nan"))
    return {**row, "signature": "deep loss of generation", "task": task, "protocol": "generate", "verdict": verdict,
            "p_value": p_value, "ci_low": low, "ci_high": high}  # fmt: skip


@pytest.mark.slow
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
