"""Keys and values of shared histories stay with their tokens, whatever splits, ends and is needed no more."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lensprune.engine.decoding.kv import HistoryKV
from lensprune.engine.decoding.shared_histories import SharedHistories


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_rows=st.integers(1, 60), n_prompts=st.integers(1, 3))
def test_each_history_holds_its_rows_tokens(seed: int, n_rows: int, n_prompts: int):
    draw, most, copied = np.random.default_rng(seed), 40, 0
    prompts = draw.integers(0, n_prompts, n_rows)
    histories, kv = SharedHistories(prompts), HistoryKV(torch.zeros(1, 2, 1, 3), most)
    rows, told = np.arange(n_rows), np.full((n_rows, most), -1)
    alike = draw.random()
    for step in range(most):
        tokens = np.where(draw.random(len(rows)) < alike, 0, draw.integers(0, 3, len(rows)))
        told[rows, step] = tokens
        split = histories.advance(rows, tokens)
        numbers, first = np.unique(histories.of_row[rows], return_index=True)
        places = kv.need(numbers, split, step)
        if places is not None:
            copied += places.shape[1]
            kv.copy(torch.from_numpy(places), step)
        assert len(set(kv.places.tolist())) == len(numbers) <= len(kv) <= 2 * n_rows + 8
        newest = torch.from_numpy(tokens[first]).float()[:, None, None].expand(-1, 2, 3)
        kv.write(torch.from_numpy(kv.places), step, newest, -newest)
        of_row = kv.places[np.searchsorted(numbers, histories.of_row[rows])]
        for place, row in zip(of_row, rows, strict=True):
            assert kv.pair[0][place, 1, : step + 1, 2].tolist() == told[row, : step + 1].tolist()
            assert kv.pair[1][place, 0, : step + 1, 0].tolist() == (-told[row, : step + 1]).tolist()
        rows = rows[draw.random(len(rows)) < 0.95]
        if not len(rows):
            break
    assert copied == 0 or n_rows > 1


def test_places_are_freed_when_histories_end():
    n_rows = 200
    histories, kv = SharedHistories(np.zeros(n_rows, dtype=int)), HistoryKV(torch.zeros(1, 2, 1, 3), 40)
    rows = np.arange(n_rows)
    for step in range(4):
        split = histories.advance(rows, rows)
        kv.need(np.unique(histories.of_row[rows]), split, step)
        if step == 1:
            rows = rows[:5]
    assert len(kv) == 5
