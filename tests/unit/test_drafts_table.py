"""The simulation of drafted tokens counts steps and tokens as decoding would."""

from __future__ import annotations

import pytest

from tests.drafts_table import Recorded, guess, seconds

CLEAN = (1, 2, 3, 4, 5, 6, 7, 8, 9)


@pytest.mark.parametrize(
    ("tokens", "n_done", "earlier", "guessed"),
    [
        # As most that begin alike go on.
        ((1, 2, 3), 2, [(1, 2, 3, 4), (1, 2, 5, 5), (1, 2, 5, 6)], (5, 5)),
        # After a token of its own the row follows an earlier one again.
        ((9, 2, 3, 4, 5), 4, [CLEAN], (5, 6)),
        # Its own text: 7 8 9 was in the prompt.
        ((7, 8, 9, 1), 3, [(5, 5)], (4, 4)),
        ((3, 3), 1, [(5, 5)], ()),
    ],
)
def test_guesses(
    tokens: tuple[int, ...], n_done: int, earlier: list[tuple[int, ...]], guessed: tuple[int, ...]
) -> None:
    assert guess(Recorded(0, (7, 8, 9, 4, 4), tokens), n_done, earlier, 2) == guessed


@pytest.mark.parametrize(("most", "steps"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_an_answer_equal_to_the_clean_one_takes_as_many_steps_as_blocks(most: int, steps: int) -> None:
    rows = [Recorded(0, (), CLEAN)]
    assert seconds([rows], {0: CLEAN}, lambda tokens: 1.0, most) == steps
    # Every token is sent once.
    assert seconds([rows], {0: CLEAN}, lambda tokens: tokens, most) == 8


def test_wrong_guesses_cost_tokens_and_save_no_step() -> None:
    rows = [Recorded(0, (), (1, 9, 9, 9))]
    answers = {0: (1, 2, 3, 4)}
    assert seconds([rows], answers, lambda tokens: 1.0, 2) == seconds([rows], answers, lambda tokens: 1.0, 1) == 3
    # One guess, after the first token; later ones match nothing.
    assert seconds([rows], answers, lambda tokens: tokens, 2) == 4


def test_a_later_group_learns_from_an_earlier_one() -> None:
    same = [Recorded(0, (), (1, 9, 8, 7, 6))]
    assert seconds([same, same], {0: (1, 2)}, lambda tokens: 1.0, 4) == 4 + 1
