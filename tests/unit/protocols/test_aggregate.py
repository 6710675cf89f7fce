"""Means and standard errors against formulas written out, and against lm-eval's own functions."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensprune.errors import UserError
from lensprune.protocols.aggregation import aggregate, mean_stderr, pooled_stderr
from lensprune.protocols.base import Outcome


def outcome(value: float, cluster: str | None = None) -> Outcome:
    return Outcome("0", cluster, "", None, bool(value), None, None, "none", 1, "", {"acc": value})


def task(by_cluster: bool = False):
    return SimpleNamespace(task=SimpleNamespace(name="toy", by_cluster=by_cluster))


def test_mean_and_sample_error():
    result = aggregate([outcome(v) for v in (1.0, 0.0, 1.0, 1.0)], task())
    assert result == {"acc": (0.75, pytest.approx(0.5 / 2))}


def test_one_item_has_no_error():
    mean, stderr = aggregate([outcome(1.0)], task())["acc"]
    assert mean == 1.0
    assert math.isnan(stderr)


def test_no_items_is_refused():
    with pytest.raises(UserError, match=r"toy.*no outcomes"):
        aggregate([], task())


def test_clusters_pool_only_where_each_is_a_task():
    outcomes = [outcome(v, c) for c, values in (("a", [1.0, 1.0]), ("b", [0.0, 0.0, 0.0])) for v in values]
    assert aggregate(outcomes, task(by_cluster=True))["acc"] == (0.4, 0.0)
    assert aggregate(outcomes, task())["acc"][1] == pytest.approx(math.sqrt(0.3 / 5))


def test_a_cluster_of_one_leaves_no_error():
    outcomes = [outcome(1.0, "a"), outcome(0.0, "b"), outcome(1.0, "b")]
    assert math.isnan(aggregate(outcomes, task(by_cluster=True))["acc"][1])


values = st.lists(st.floats(0, 1), min_size=2, max_size=8)


@given(st.lists(values, min_size=1, max_size=4))
def test_equals_lm_eval(groups: list[list[float]]):
    metrics = pytest.importorskip("lm_eval.api.metrics")
    stderrs = [metrics.mean_stderr(group) for group in groups]
    assert [mean_stderr(group) for group in groups] == pytest.approx(stderrs, abs=1e-12)
    sizes = [len(group) for group in groups]
    assert pooled_stderr(groups) == pytest.approx(metrics.pooled_sample_stderr(stderrs, sizes), abs=1e-12)
