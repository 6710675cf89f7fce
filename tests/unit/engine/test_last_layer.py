"""The last layer's attention, computed for a few tokens of a prefix tree."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lensprune.engine.last_layer import packed_blocks
from lensprune.engine.tree import build_tree

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
