"""What the rows of a decode step attend to, as the kernel for single rows takes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int

__all__ = ["RowKeys", "Seen"]


@dataclass(frozen=True)
class RowKeys:
    """Keys and values [row, kv_head, column, d_head], of which row `index[i]` is the i-th query's, up to `end`.

    `begins`, by row, is the first column that is not padding; ``None``: there is no padding. `calls`: the indices of
    the queries' tokens in the call; ``None``: all of them in order. No query sees columns before `first`.
    """

    k: Float[torch.Tensor, "row kv_head column d_head"]
    v: Float[torch.Tensor, "row kv_head column d_head"]
    index: Int[torch.Tensor, " query"]
    end: int
    begins: Int[torch.Tensor, " row"] | None = None
    calls: Int[torch.Tensor, " query"] | None = None
    first: int = 0


@dataclass(frozen=True)
class Seen:
    """Attention of rows, in groups, to keys that each group shares: output and log-sum-exp.

    Those of row i are at `group[i]` and `place[i]`.
    """

    out: Float[torch.Tensor, "group head place d_head"]
    lse: Float[torch.Tensor, "group head place"]
    group: Int[torch.Tensor, " row"]
    place: Int[torch.Tensor, " row"]
