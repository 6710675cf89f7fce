"""When a model counts as guessing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lensprune.runs.chance import at_chance, items_to_beat_chance


@pytest.mark.parametrize(
    ("right", "n", "chance", "expected"),
    [
        (9, 20, 0.25, False),  # P(X ≥ 9) = 0.0409
        (8, 20, 0.25, True),  # P(X ≥ 8) = 0.1018
        (5, 20, 0.25, True),
        (0, 20, 0.25, True),
        (15, 20, 0.5, False),  # P(X ≥ 15) = 0.0207
        (14, 20, 0.5, True),  # P(X ≥ 14) = 0.0577
        (0, 20, 0.0, True),
        (1, 20, 0.0, True),
        (2, 20, 0.0, False),
    ],
)
def test_at_chance_by_binomial_tables(right: int, n: int, chance: float, expected: bool) -> None:
    correct = np.arange(n) < right
    assert at_chance(correct, np.full(n, chance)) is expected


def test_at_chance_with_unequal_chances() -> None:
    # Chances ½ and ¼ (two items): P(both right) = 1/8, so two of two are no evidence.
    assert at_chance(np.array([True, True]), np.array([0.5, 0.25]))
    # Four items of ¼ and one of ½: P(all five right) = 1/512.
    assert not at_chance(np.ones(5, bool), np.array([0.25, 0.25, 0.25, 0.25, 0.5]))


def test_no_items_are_at_chance() -> None:
    assert at_chance(np.zeros(0, bool), np.zeros(0))


def test_one_answer_for_all_is_a_guess_however_often_it_is_right() -> None:
    """BoolQ's "yes" is right for 62 of 100: far above one half, and no knowledge."""
    targets = ["yes"] * 62 + ["no"] * 38
    correct = np.array([target == "yes" for target in targets])
    halves = np.full(100, 0.5)
    assert not at_chance(correct, halves)
    assert at_chance(correct, halves, targets, ["yes"] * 100)
    # In capitals it is the same answer, and so it is where some answers are missing.
    assert at_chance(correct, halves, targets, ["Yes"] * 100)
    # As many right answers from both sides are knowledge.
    given = ["yes"] * 43 + ["no"] * 19 + ["no"] * 19 + ["yes"] * 19
    targets = ["yes"] * 43 + ["no"] * 19 + ["yes"] * 19 + ["no"] * 19
    assert not at_chance(np.array(given) == np.array(targets), halves, targets, given)


def test_shuffles_have_the_hypergeometric_law() -> None:
    """Of two answers, matches follow from how many "yes" meet a "yes": p at the border of 0.05 from both sides."""
    n = 40
    law = stats.hypergeom(n, n // 2, n // 2)
    targets = ["yes"] * (n // 2) + ["no"] * (n // 2)
    found = {}
    for met in range(10, 16):
        given = ["yes"] * met + ["no"] * (n // 2 - met) + ["yes"] * (n // 2 - met) + ["no"] * met
        found[met] = at_chance(np.array(given) == np.array(targets), np.full(n, 0.01), targets, given)
    assert found == {met: bool(law.sf(met - 1) >= 0.05) for met in found}
    assert len(set(found.values())) == 2


def test_a_right_answer_counts_as_right_whatever_its_spelling() -> None:
    targets, given = ["18", "7"] * 10, ["18.0", "7"] * 10
    assert not at_chance(np.ones(20, bool), np.zeros(20), targets, given)


@pytest.mark.slow
def test_shuffled_size() -> None:
    """Answers that have nothing to do with the right ones beat chance in about 5% of runs."""
    generator = np.random.default_rng(1)
    runs, beaten = 400, 0
    for _ in range(runs):
        targets = generator.choice(list("ABCD"), 60, p=[0.4, 0.3, 0.2, 0.1])
        given = generator.choice(list("ABCD"), 60, p=[0.7, 0.1, 0.1, 0.1])
        # A chance of 0.01 takes the first test out of the way.
        beaten += not at_chance(targets == given, np.full(60, 0.01), targets.tolist(), given.tolist())
    assert beaten / runs < 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert beaten > 0


def test_how_many_items_tell() -> None:
    needed = items_to_beat_chance(0.5, 0.25)
    assert needed is not None

    def power(n: int) -> float:
        least = next(right for right in range(n + 2) if stats.binom.sf(right - 1, n, 0.25) < 0.05)
        return float(stats.binom.sf(least - 1, n, 0.5))

    assert power(needed) >= 0.8 > power(needed - 1)
    assert 6 < needed < 40
    assert items_to_beat_chance(0.251, 0.25) is None
    assert items_to_beat_chance(0.2, 0.25) is None


@pytest.mark.parametrize(("n", "missed"), [(12, 0.84), (50, 0.34)])
def test_the_power_that_the_documentation_states(n: int, missed: float) -> None:
    marked = [at_chance(np.arange(n) < right, np.full(n, 0.25)) for right in range(n + 1)]
    weights = stats.binom.pmf(np.arange(n + 1), n, 0.4)
    assert weights[np.array(marked)].sum() == pytest.approx(missed, abs=0.005)


def test_equal_right_answers_tell_nothing_of_knowledge() -> None:
    """A model that is right every time and one that always gives the only right answer are the same."""
    correct, half = np.ones(20, bool), np.full(20, 0.5)
    assert at_chance(correct, half, ["yes"] * 20, ["yes"] * 20)
    assert not at_chance(correct, half, ["yes"] * 19 + ["no"], ["yes"] * 19 + ["no"])
    # A single item has no other that it could be like.
    assert not at_chance(np.ones(1, bool), np.full(1, 0.04), ["yes"], ["yes"])
