"""A short calibration: sizes, coverages, false discovery rates and powers, with fewer runs than `make calibration`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.calibration import studies
from tests.calibration.__main__ import main
from tests.calibration.studies import Row


def within(row: Row, size: float) -> bool:
    """At most three standard errors of so many runs above a size."""
    return row.now <= size + 3 * np.sqrt(size * (1 - size) / row.runs)


def test_more_parts_are_found_and_few_of_them_falsely() -> None:
    rows = studies.false_discovery(0.15)
    powers = [row for row in rows if row.number == "power"]
    rates = [row for row in rows if row.number != "power"]
    assert powers[0].now > 2 * powers[0].before > 0
    assert powers[1].now > 4 * powers[1].before
    assert all(row.now > row.before for row in powers)
    assert all(within(row, 0.05) for row in rates)


@pytest.mark.parametrize("study", [studies.outcome_intervals, studies.cluster_intervals, studies.unequal_clusters])
def test_intervals_cover(study: Callable[[float], list[Row]]) -> None:
    rows = study(0.5)
    assert min(row.before for row in rows) < 0.9
    # Enumerated coverage is exact.
    slack = [0.0 if row.runs == 0 else 3 * np.sqrt(0.93 * 0.07 / row.runs) for row in rows]
    assert all(row.now >= 0.93 - own for row, own in zip(rows, slack, strict=True))


def test_one_answer_for_all_is_marked() -> None:
    constant = [row for row in studies.marks(0.1) if row.aim == "1"]
    assert [(row.before, row.now) for row in constant] == [(0, 1), (0, 1)]


def test_a_likelihood_at_the_floor_is_not_seen_to_be_flat() -> None:
    row = studies.floors(0.15)[-1]
    assert row.before > 0.5
    assert within(row, 0.05)


def test_missed_heads_are_estimated_better_and_bounded() -> None:
    for row in studies.screened(0.1):
        if row.aim == "small":
            assert row.now < 0.7 * row.before
        else:
            assert within(row, 0.05)


def test_heads_that_were_only_ranked_keep_the_rate() -> None:
    for power, rate in zip(*[iter(studies.screened_q(0.25))] * 2, strict=True):
        assert power.now > 0.65
        assert within(rate, 0.05)
        assert rate.before > 2 * rate.now


def test_what_has_nothing_in_common_is_not_found_alike() -> None:
    for row in studies.overlaps(0.3):
        assert row.before > 0.2
        assert within(row, 0.05)


@pytest.mark.slow
def test_concentration_stays_in_its_interval_and_is_found() -> None:
    outside, power, size = studies.concentrations(0.3)
    assert outside.before > 0.5
    assert outside.now == 0
    assert power.now > 0.95
    assert power.now > power.before + 0.3
    assert within(size, 0.05)


def test_items_that_change_together_are_not_counted_as_evidence_of_their_own() -> None:
    for power, rate in zip(*[iter(studies.clustered_q(0.25))] * 2, strict=True):
        assert rate.before > 0.1
        assert within(rate, 0.05)
        assert power.now > 0.8
    [row] = studies.clustered_concentration(0.25)
    assert row.before > 0.2
    assert within(row, 0.05)


def test_gaps_are_covered() -> None:
    rows = studies.gap_intervals(0.5)
    assert min(row.before for row in rows) < 0.9
    assert all(row.now >= 0.93 - 3 * np.sqrt(0.93 * 0.07 / row.runs) for row in rows)


@pytest.mark.slow
def test_tokens_and_rows_are_not_counted_as_evidence_of_their_own() -> None:
    [row] = studies.contrasts(0.5)
    assert row.before > 0.2
    assert within(row, 0.05)
    [row] = studies.claims(0.2)
    assert row.before > 0.2
    # Five claims, each at 0.025.
    assert within(row, 0.125)


def test_the_table_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tests.calibration.__main__.STUDIES", (studies.fidelity,))
    monkeypatch.setattr("sys.argv", ["calibration"])
    main()
    assert (
        "| fidelity | six items, all 1 | lower end of the interval | 1 | 0.541 | below 1 | 1 |"
        in capsys.readouterr().out
    )


def test_one_study_leaves_the_other_rows_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, place = tmp_path / "page.md", Path(__file__).parents[3] / "docs" / "explanation" / "calibration.md"
    text = place.read_text(encoding="utf-8").replace("| 0.541 |", "| 9.99 |") + "\n## By hand\n\nkept\n"
    there.write_text(text, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["calibration", "--study", "fidelity", "--write", str(there)])
    main()
    written = there.read_text(encoding="utf-8")
    assert "| 9.99 |" in text
    assert "| 9.99 |" not in written
    assert written == text.replace("| 9.99 |", "| 0.541 |")
