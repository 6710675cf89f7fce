"""What is said of texts that are cut off."""

from __future__ import annotations

import pytest

from lensprune.protocols.base import Outcome
from lensprune.sweeps.cells import warn_of_cut_off
from tests.helpers.made_cells import outcome


def outcomes(short: int, ended: int, n: int = 20) -> list[Outcome]:
    kinds = ["length"] * short + ["eos"] * ended
    cut = [outcome(i, False, failure="cut_off", stop_reason=kind) for i, kind in enumerate(kinds)]
    return [*cut, *(outcome(i, True, stop_reason="length") for i in range(n - len(cut)))]


def test_more_than_a_tenth_is_said_and_how_to_mend_it(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_cut_off("t", "generate", outcomes(1, 1), 7)
    assert not caplog.text
    warn_of_cut_off("t", "generate", outcomes(3, 0), 7)
    assert "3 of 20 texts of the whole model were cut off after 7 new tokens" in caplog.text
    assert "raise --max-new-tokens" in caplog.text
    assert "thinking" not in caplog.text
    caplog.clear()
    # A text that ends by itself inside its thinking gains nothing from more new tokens.
    warn_of_cut_off("t", "generate", outcomes(0, 3), 7)
    assert "3 of 20 texts of the whole model ended inside their thinking" in caplog.text
    assert "--think-tokens" in caplog.text
    assert "raise --max-new-tokens" not in caplog.text
    caplog.clear()
    warn_of_cut_off("t", "generate", outcomes(2, 1), 7)
    assert "2 of 20 texts of the whole model were cut off" in caplog.text
    assert "1 of 20 texts of the whole model ended inside" in caplog.text
