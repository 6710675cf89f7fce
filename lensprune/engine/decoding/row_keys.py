"""What the rows of a decode step attend to, as the kernel for single rows takes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int

__all__ = ["RowKeys", "Seen", "WindowEdges"]


@dataclass(frozen=True)
class RowKeys:
    """Keys and values [row, kv_head, column, d_head], of which row `index[i]` is the i-th query's, up to `end`.

    `begins`, by row, is the first column that is not padding; ``None``: there is no padding. `calls`: the indices of
    the queries' tokens in the call; ``None``: all of them in order. No query sees columns before `first`.

    In `Seen` and `WindowEdges`, the i-th query's row is `index[i] + row_from`, or i without `calls`.
    """

    k: Float[torch.Tensor, "row kv_head column d_head"]
    v: Float[torch.Tensor, "row kv_head column d_head"]
    index: Int[torch.Tensor, " query"]
    end: int
    begins: Int[torch.Tensor, " row"] | None = None
    calls: Int[torch.Tensor, " query"] | None = None
    first: int = 0
    row_from: int = 0


@dataclass(frozen=True)
class Seen:
    """Attention of rows, in groups, to keys that each group shares: output and log-sum-exp.

    Those of row i are at `group[i]` and `place[i]`.
    """

    out: Float[torch.Tensor, "group head place d_head"]
    lse: Float[torch.Tensor, "group head place"]
    group: Int[torch.Tensor, " row"]
    place: Int[torch.Tensor, " row"]


@dataclass(frozen=True)
class WindowEdges:
    """Keys and values of shared prefixes that, under a sliding window, some rows of a prefix see and others don't.

    `spans`, as `shared_spans`, says which columns of `k` and `v` are a row's prefix, and how long its prompt and the
    longest one are. A row sees its prefix from column (its length + `shift`) on, if that is not negative; the columns
    that the row with the longest prompt sees, too, don't belong to the edge.
    """

    k: Float[torch.Tensor, "group kv_head shared d_head"]
    v: Float[torch.Tensor, "group kv_head shared d_head"]
    group: Int[torch.Tensor, " row"]
    spans: Int[torch.Tensor, "row 4"]
    shift: int
