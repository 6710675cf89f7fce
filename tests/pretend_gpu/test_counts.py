"""The host waits for the GPU a few times a step, however deep the model, and a few times per scored variant."""

from __future__ import annotations

from statistics import median

import pytest

from tests.pretend_gpu.counts import CHANGES, FAMILIES, counted_attention, counted_decoding, counted_scoring

MAX_WAITS = 4
MAX_KERNELS = 60
MAX_STEP_KERNELS = {"llama": 29, "gpt2": 32, "gemma3": 32, "mixtral": 48}
"""Per layer, whatever is changed. Gemma 3 has six norms, Mixtral experts."""


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_waits_of_a_decode_step_are_fewer_than_layers(family: str, changes: str) -> None:
    steps = counted_decoding(family, MAX_WAITS + 1, changes)
    assert len(steps) == 5
    for step in steps:
        assert step.kernels > 10 * (MAX_WAITS + 1)
        assert 0 < step.syncs <= MAX_WAITS, step.layers.syncs + step.choice.syncs
    assert median(step.kernels for step in steps) <= MAX_STEP_KERNELS[family] * (MAX_WAITS + 1)


def test_waits_of_scoring() -> None:
    first, *others = counted_scoring("llama", 3, "layers skip")
    assert len(others) == 3
    for counts in others:
        assert 0 < counts.syncs.total() <= MAX_WAITS, counts.syncs
    # The indices are sent once.
    assert first.syncs.total() <= MAX_WAITS + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_takes_as_many_kernels_for_many_questions_as_for_few(family: str) -> None:
    few, many = (counted_attention(family, MAX_WAITS + 1, n_questions) for n_questions in (10, 40))
    for calls, more in zip(few, many, strict=True):
        assert [call.kernels for call in calls] == [call.kernels for call in more]
        assert 5 < max(call.kernels.total() for call in more) <= MAX_KERNELS
        # The first call under a window sends its tables.
        assert not any(call.syncs for call in more[family == "gemma3" :])
