"""The host waits for the GPU a few times a step, however deep the model, and a few times per scored variant."""

from __future__ import annotations

import pytest

from tests.pretend_gpu.counts import CHANGES, counted_decoding, counted_scoring

MOST_WAITS = 4


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mixtral"])
def test_waits_of_a_decode_step_are_fewer_than_layers(family: str, changes: str) -> None:
    steps = counted_decoding(family, MOST_WAITS + 1, changes)
    assert len(steps) == 5
    for step in steps:
        assert step.kernels > 10 * (MOST_WAITS + 1)
        assert 0 < step.syncs <= MOST_WAITS, step.layers.syncs + step.choice.syncs


def test_waits_of_scoring() -> None:
    first, *others = counted_scoring("llama", 3, "layers skip")
    assert len(others) == 3
    for counts in others:
        assert 0 < counts.syncs.total() <= MOST_WAITS, counts.syncs
    # The indices are sent once.
    assert first.syncs.total() <= MOST_WAITS + 1
