"""How many of the strongest heads a screened sweep missed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import lensprune as lp
from lensprune.analysis.protocol_gap import protocol_gap
from lensprune.analysis.screening import missed
from lensprune.analysis.summary import summarise
from lensprune.runs.outcomes import Outcomes
from tests.helpers.made_runs import heads_run


def measured(strongest: list[float], controls: list[float]) -> pd.DataFrame:
    rows = [(value, "measured: strongest") for value in strongest] + [
        (value, "measured: control") for value in controls
    ]
    return pd.DataFrame(rows, columns=["loss", "status"]).sort_values("loss", kind="stable")


def test_a_control_stands_for_its_share_of_the_unmeasured() -> None:
    """20 heads, 4 measured as strongest, 4 controls, 12 unmeasured: a control weighs 4. Of the top 6 two strongest and
    one control are within."""
    table = measured([-0.9, -0.8, -0.2, -0.1], [-0.5, -0.3, 0.0, 0.0])
    touched, expected, most = missed(table, 20, 6)
    assert (touched, expected) == (1, pytest.approx(12 / 4))
    # The upper bound: 1 of 4 controls, of which at most a share with P(X ≤ 1) = 0.05.
    share = most / 12 if most < 6 else None
    assert share is None or 4 * share * (1 - share) ** 3 + (1 - share) ** 4 == pytest.approx(0.05)
    # Of a top of 4 the border cuts through the control: half of it is within.
    assert missed(table, 20, 4)[:2] == (1, pytest.approx(12 / 4 / 2))
    assert missed(table, 20, 2)[:2] == (0, 0)


def test_without_controls_nothing_is_known() -> None:
    touched, expected, most = missed(measured([-0.9], []), 10, 1)
    assert touched == 0
    assert np.isnan([expected, most]).all()


def test_expected_and_bound_against_the_truth() -> None:
    """270 heads, a tenth sought, 41 measured for poor estimates and 13 controls: right on average, and bounded."""
    generator, errors, above = np.random.default_rng(0), [], 0
    for _ in range(400):
        losses = -generator.gamma(0.5, 1, 270)
        order = np.argsort(losses + generator.normal(0, 0.7, 270))
        strongest, rest = order[:41], generator.permutation(order[41:])
        top = set(np.argsort(losses)[:27].tolist())
        truth = len(top - set(strongest.tolist()) - set(rest[:13].tolist()))
        _, expected, most = missed(measured(losses[strongest].tolist(), losses[rest[:13]].tolist()), 270, 27)
        errors.append(expected - truth)
        above += truth > most
    assert abs(np.mean(errors)) < 2
    assert above / 400 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_heads_that_were_only_ranked_count_in_q() -> None:
    """One of 8 measured heads loses 8 of 16 items under generate, and 12 others were only ranked."""
    run = heads_run(n=16, protocols=("default", "generate"), right=_lost_under_generate)
    ranked = [{"variant": f"head {i}", "estimate": 0.0} for i in range(20)]
    screened = Outcomes(replace(run.spec, screen={"estimates": ranked}), run._store)
    # One head's p can be 1, 9, 37, 93, … / 256. τ: mean odds are 0.02 at 37 and 0.07 at 93 over the 8 measured heads;
    # of all 20, 13 can reach such values: 0.02 at 9 and 0.11 at 37.
    p = 1 / 256
    for outcomes, tau, reaching in ((run, 37 / 256, 1), (screened, 9 / 256, 13)):
        expected = reaching * p / (1 - tau)
        for frame, column in ((summarise(outcomes), "q_loss"), (protocol_gap(outcomes), "q_lower")):
            assert frame[column].min() == pytest.approx(expected)


def _lost_under_generate(task: str, protocol: str, variant: lp.Variant, n: int) -> np.ndarray:
    lost = protocol == "generate" and (variant.layer, variant.head) == (1, 2)
    return np.arange(n) % 2 == 0 if lost else np.ones(n, bool)
