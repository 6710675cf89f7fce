"""Few items against all others, and many rank correlations at once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lensprune.analysis.rank_correlation import kendall_rows, spearman_rows
from lensprune.divergence.sample_efficiency import changes_of, sample_efficiency
from lensprune.errors import UserError


def test_rows_equal_scipy_with_ties() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 5, (30, 12)).astype(float), generator.integers(0, 7, (30, 12)).astype(float)
    rho = [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    tau = [stats.kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert spearman_rows(a, b) == pytest.approx(rho)
    assert kendall_rows(a, b) == pytest.approx(tau)
    a[0], a[1, 3] = 1, np.nan
    for rows in (spearman_rows, kendall_rows):
        assert np.isnan(rows(a, b)[:2]).all()
        assert np.isfinite(rows(a, b)[2:]).all()


def test_a_graded_score_needs_fewer_items_than_counting() -> None:
    """Each of ten parts makes an item wrong with its own probability, which the score says; Δμ says only whether."""
    generator = np.random.default_rng(1)
    chance = np.linspace(0.02, 0.3, 10)
    changes = -(generator.random((200, 10)) < chance).astype(float)
    scores = np.clip(1 - chance + generator.normal(0, 0.02, (200, 10)), 0, 1)
    found = sample_efficiency(scores, changes, [0.1], splits=100).set_index("score")
    assert (found["n_few"].iloc[0], found["n_rest"].iloc[0]) == (20, 180)
    assert found.loc["fidelity", "spearman"] > 0.9
    assert 0.3 < found.loc["generate", "spearman"] < found.loc["fidelity", "spearman"] - 0.1
    assert abs(found.loc["shuffled", "spearman"]) < 0.15
    assert found.loc["shuffled", "spearman_low"] < -0.3


def test_a_score_that_ranks_nothing_counts_as_zero() -> None:
    changes = -np.eye(10)[:, :4]
    found = sample_efficiency(np.ones((10, 4)), changes, [0.5], splits=20).set_index("score")
    assert found.loc["fidelity", "spearman"] == 0
    with pytest.raises(UserError, match="leaves no item"):
        sample_efficiency(np.ones((10, 4)), changes, [0.01])


def test_changes_by_item() -> None:
    records = pd.DataFrame(
        [("a", "clean", True), ("b", "clean", False), ("a", "L0", False), ("b", "L0", True)],
        columns=["item_id", "variant", "correct"],
    )
    assert changes_of(records)["L0"].tolist() == [-1, 1]
    assert changes_of(records, ["b"])["L0"].tolist() == [1]
    with pytest.raises(UserError, match="no clean cell"):
        changes_of(records[records["variant"] != "clean"])
