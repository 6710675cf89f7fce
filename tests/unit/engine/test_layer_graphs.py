"""Sizes of graphs, and errors where there are none; the rest needs a GPU (tests/pretend_gpu/test_graphs.py)."""

from __future__ import annotations

import pytest

from lensprune.engine import ForkedExecutor, make_executor
from lensprune.engine.layer_graphs import graph_size
from lensprune.errors import UserError
from tests import DEVICE
from tests.helpers.tiny_models import tiny


def test_graph_sizes() -> None:
    sizes = [graph_size(n) for n in range(1, 5000)]
    assert sizes == sorted(sizes)
    assert all(n <= size < n + max(64, n / 4) for n, size in enumerate(sizes, 1))
    # Few sizes, so that few graphs are captured.
    assert len(set(sizes)) < 30
    assert all(graph_size(size) == size for size in set(sizes))


@pytest.mark.skipif(DEVICE != "cpu", reason="needs a model on the CPU")
@pytest.mark.parametrize(
    "make", [lambda m: ForkedExecutor(m, graphs=True), lambda m: make_executor("forked-graphs", m)]
)
def test_a_cpu_has_no_graphs(make) -> None:
    with pytest.raises(UserError, match="need an NVIDIA GPU, Ampere or later, but the model is on cpu: use the exec"):
        make(tiny("llama"))
