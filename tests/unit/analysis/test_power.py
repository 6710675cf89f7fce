"""The smallest loss that a sweep names, against simulated sweeps and by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lensprune.analysis.multiplicity import discrete_bh
from lensprune.analysis.paired_tests import lower_tail
from lensprune.analysis.power import detection_power, power_line, power_table, smallest_loss
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.results.power import power_report
from lensprune.sweeps import run


@pytest.mark.parametrize(
    ("n", "parts", "loss", "flips"), [(12, 30, 0.5, 0.02), (50, 30, 0.2, 0.04), (100, 270, 0.12, 0.02)]
)
def test_against_simulated_sweeps(n: int, parts: int, loss: float, flips: float) -> None:
    generator, found, runs = np.random.default_rng(n), 0, 400
    for _ in range(runs):
        rates = np.where(np.arange(parts) == 0, loss, 0.0) + flips / 2
        lost = generator.random((n, parts)) < rates
        won = ~lost & (generator.random((n, parts)) < flips / 2)
        found += discrete_bh(lower_tail(won.astype(float) - lost))[0] <= 0.05
    # The others' law enters by its expectation, which costs up to 0.04.
    assert found / runs == pytest.approx(
        detection_power(loss, n, parts, flips=flips), abs=0.04 + 3 * 0.5 / np.sqrt(runs)
    )


def test_by_hand_without_flips() -> None:
    """Parts that change nothing cost nothing: five of twelve items must be lost, for 2⁻⁵ is below 0.05 / 1.05."""
    assert detection_power(0.5, 12, 30, flips=0.0) == pytest.approx(stats.binom.sf(4, 12, 0.5))
    found = smallest_loss(12, 30, flips=0.0)
    assert found == 0.5
    assert stats.binom.sf(4, 12, found) >= 0.8 > stats.binom.sf(4, 12, found - 0.01)
    assert smallest_loss(4, 30) is None


def test_every_p_up_to_the_threshold_counts() -> None:
    """One part alone: all pairs of lost and won items with an exact p of at most 0.05 / 1.05, not only p = 2⁻ᵏ."""
    lost, won = np.arange(41)[:, None], np.arange(41)[None]
    p = stats.binom.sf(lost - 1, lost + won, 0.5)
    laws = stats.binom.pmf(lost, 40, 0.21) * stats.binom.pmf(won, 40, 0.01)
    assert detection_power(0.2, 40, 1) == pytest.approx(float(laws[p <= 0.05 / 1.05].sum()), abs=2e-6)
    assert float(laws[p <= 2**-5].sum()) < detection_power(0.2, 40, 1) - 0.005


@pytest.mark.slow
def test_the_largest_numbers_are_computed_without_a_table_of_all_pairs() -> None:
    assert smallest_loss(1_000_000, 30) == 0.01
    with pytest.raises(UserError, match="1000001 is not a number of items: expected 1 to 1000000"):
        detection_power(0.5, 1_000_001, 30)


def test_more_items_find_less_and_more_parts_and_clusters_need_more() -> None:
    table = power_table([12, 50, 200, 1000], 30)
    assert (np.diff(table["smallest_loss"]) < 0).all()
    assert power_table([50], 1024)["smallest_loss"][0] > table["smallest_loss"][1]
    clustered = power_table([50], 30, clusters_of=[5])
    assert clustered["smallest_loss"][0] > table["smallest_loss"][1]
    assert clustered["n_clusters"][0] == 5
    # Each item its own cluster is no cluster.
    assert power_table([50], 30, clusters_of=[50])["smallest_loss"][0] == table["smallest_loss"][1]


def test_lines() -> None:
    assert power_line(12, 30).startswith("with 12 items and 30 variants losses of 0.5")
    assert power_line(3, 1).startswith("with 3 items and 1 variant no loss can be detected")


def test_a_sweep_prints_each_line_once() -> None:
    def lines(*clusters: int) -> list[str]:
        of = [[None if n == 20 else str(i % n) for i in range(20)] for n in clusters]
        tasks = [[SimpleNamespace(item=SimpleNamespace(cluster=name)) for name in names] for names in of]
        conditions = [SimpleNamespace(items=items, samples=1) for items in tasks]
        options = SimpleNamespace(stopping=None)
        return run._power_lines(SimpleNamespace(conditions=conditions, options=options, variants=range(5)))  # type: ignore[arg-type]

    # To two digits, 15 clusters detect what 20 items do.
    assert lines(15, 20, 15) == lines(20) == [power_line(20, 4)]
    assert lines(20, 3) == [power_line(20, 4), power_line(20, 4, 3)]


def test_what_is_no_number() -> None:
    with pytest.raises(UserError, match="0 is not a number of items"):
        detection_power(0.5, 0, 30)
    with pytest.raises(UserError, match=r"flips 1\.5"):
        detection_power(0.5, 10, 30, flips=1.5)
    with pytest.raises(UserError, match="100000 items are more than"):
        power_report(30, [100000], task="facts")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["power", "--parts", "30", "--n", "12", "--n", "50", "--out", str(tmp_path / "power")]
    assert main(options) == 0
    shown = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "power" / "power.csv")
    assert table["n"].tolist() == [12, 50]
    assert f"{table['smallest_loss'][1]:.2f}" in shown
    assert (tmp_path / "power" / "figures" / "power.png").stat().st_size > 1000
    assert main(["power", "--parts", "30", "--task", "facts"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert int(rows[0][0]) == 12
    assert 1 < int(rows[0][1]) <= 12
