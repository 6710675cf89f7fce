"""Reliability of rankings and the gap between protocols, by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lensprune.divergence.failure_breakdown import FAILURES, failure_gap, split_half, split_half_of
from lensprune.errors import UserError


def cell(variant: str, protocol: str, failures: list[str], layer: int | None = 0) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "variant": variant,
            "layer": layer,
            "task": "t",
            "protocol": protocol,
            "item_id": [str(i) for i in range(len(failures))],
            "correct": [failure == "none" for failure in failures],
            "failure": failures,
        }
    )


def records() -> pd.DataFrame:
    return pd.concat(
        [
            cell("clean", "generate", ["none", "none", "none", "wrong_answer"], None),
            cell("L0.skip", "generate", ["no_answer", "degenerate", "none", "no_answer"]),
            cell("clean", "continuation", ["none", "none", "none", "none"], None),
            cell("L0.skip", "continuation", ["none", "none", "none", "wrong_answer"]),
        ],
        ignore_index=True,
    )


def test_the_gap_by_hand() -> None:
    (row,) = failure_gap(records()).to_dict("records")
    assert row["delta"] == pytest.approx(-0.5)
    assert row["delta_other"] == pytest.approx(-0.25)
    assert row["gap"] == pytest.approx(-0.25)
    assert row["no_answer"] == pytest.approx(-0.5)
    assert row["degenerate"] == pytest.approx(-0.25)
    assert row["wrong_answer"] == pytest.approx(0.25)
    assert sum(row[name] for name in FAILURES) == pytest.approx(row["delta"])


def test_a_protocol_that_is_missing() -> None:
    with pytest.raises(UserError, match="no protocol 'default'"):
        failure_gap(records(), other="default")


def test_a_ranking_without_noise_is_reliable_and_noise_is_not() -> None:
    generator = np.random.default_rng(0)
    steady = np.tile(np.linspace(-1, 0, 12), (40, 1))
    assert split_half(steady) == pytest.approx(1)
    noise = generator.choice([-1.0, 0.0, 1.0], size=(40, 12))
    assert split_half(noise) < 0.5
    assert np.isnan(split_half(steady[:3]))
    assert np.isnan(split_half(np.zeros((10, 5))))


def test_spearman_brown_predicts_a_second_draw() -> None:
    """The stepped-up half predicts the correlation between two whole draws."""
    generator = np.random.default_rng(1)
    truth = np.linspace(-0.5, 0, 200)

    def draw() -> np.ndarray:
        return -(generator.random((24, len(truth))) < -truth).astype(float)

    first, second = draw(), draw()
    again = pd.Series(first.mean(axis=0)).corr(pd.Series(second.mean(axis=0)), method="spearman")
    # Sampling: half of the data predicts what the other half would give, up to its noise.
    assert split_half(first) == pytest.approx(again, abs=0.08)


def test_records_need_a_clean_cell() -> None:
    own = records()[lambda frame: frame["protocol"] == "generate"]
    assert np.isnan(split_half_of(own))
    with pytest.raises(UserError, match="no clean cell"):
        split_half_of(own[own["variant"] != "clean"])
