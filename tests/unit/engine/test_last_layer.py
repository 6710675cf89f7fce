"""The last layer's attention, computed for a few tokens of a prefix tree."""

from __future__ import annotations

from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lensprune.engine.last_layer import packed_blocks, runs_of
from lensprune.engine.tree import build_tree
from lensprune.engine.windows import WindowedRuns

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=12)


@settings(deadline=None, max_examples=200)
@given(SEQUENCES, st.data())
def test_packed_blocks_hold_each_key_that_a_token_sees_once(
    sequences: list[tuple[int, ...]], data: st.DataObject
) -> None:
    tree = build_tree(sequences, min_saving=1)
    wanted = sorted(data.draw(st.sets(st.integers(0, len(tree) - 1), min_size=1)))
    within, *others = packed_blocks(tree, torch.tensor(wanted))
    # One causal call in which every wanted token is once, in order, against itself and its neighbours before it.
    assert [i for queries, _ in within for i in range(queries.start, queries.stop)] == list(range(len(wanted)))
    seen: list[list[int]] = [[] for _ in wanted]
    for queries, keys in within:
        assert wanted[queries] == list(range(keys.start, keys.stop))
        for i in range(queries.start, queries.stop):
            seen[i] += range(keys.start, wanted[i] + 1)
    for blocks in others:
        in_one_call = [i for queries, _ in blocks for i in range(queries.start, queries.stop)]
        assert len(in_one_call) == len(set(in_one_call))
        for queries, keys in blocks:
            assert queries.start < queries.stop
            assert keys.start < keys.stop
            for i in range(queries.start, queries.stop):
                seen[i] += range(keys.start, keys.stop)
    for sequence in set(sequences):
        path = tree.flat_positions(sequence, len(sequence))
        for i, token in enumerate(wanted):
            if token in path:
                assert sorted(seen[i]) == path[: path.index(token) + 1]


@settings(deadline=None, max_examples=200)
@given(SEQUENCES, st.integers(1, 12), st.data())
def test_windowed_runs_hold_what_their_tokens_see_in_order(
    sequences: list[tuple[int, ...]], window: int, data: st.DataObject
) -> None:
    tree = build_tree(sequences, min_saving=1)
    wanted = sorted(data.draw(st.sets(st.integers(0, len(tree) - 1), min_size=1)))
    with mock.patch.multiple("lensprune.engine.windows", ROOM=data.draw(st.integers(0, 2)), LEAST_ROOM=0):
        calls = list(WindowedRuns(tree, runs_of(tree, torch.tensor(wanted)), "cpu").blocks(window))
    blocks = [block for call in calls for block in call]
    assert [i for queries, _ in blocks for i in range(queries.start, queries.stop)] == list(range(len(wanted)))
    seen = {}
    for queries, spans in blocks:
        keys = [i for span in spans for i in range(span.start, span.stop)]
        # The last query is at the last key, as the kernel takes it.
        assert keys[-(queries.stop - queries.start) :] == wanted[queries]
        for i in range(queries.start, queries.stop):
            end = len(keys) - (queries.stop - 1 - i)
            seen[wanted[i]] = keys[max(0, end - window) : end]
    for sequence in set(sequences):
        path = tree.flat_positions(sequence, len(sequence))
        for token in set(path) & set(wanted):
            end = path.index(token) + 1
            assert seen[token] == path[max(0, end - window) : end]
