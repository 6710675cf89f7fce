"""The columns of a record, and one cell's outcomes as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import pyarrow as pa

from lensprune.ablation.orders import place_in_order
from lensprune.protocols.base import ItemRequests, Outcome
from lensprune.runs.questions import storable

__all__ = ["SCHEMA", "CellKey", "Intervention", "cell_table"]


class CellKey(NamedTuple):
    """A cell of a run: one variant on one task under one protocol; with planned looks, one block of its items."""

    variant: str
    task: str
    protocol: str
    block: int = 0

    def __str__(self) -> str:
        which = f", block {self.block + 1}" if self.block else ""
        return f"{self.variant} on {self.task} under {self.protocol}{which}"


class Intervention(Protocol):
    """What a record says about a change to the model: a `Variant`, or any other named change."""

    @property
    def name(self) -> str: ...
    @property
    def layer(self) -> int | None: ...
    @property
    def head(self) -> int | None: ...
    @property
    def component(self) -> str: ...
    @property
    def ablation(self) -> str: ...


SCHEMA = pa.schema(
    [
        ("variant", pa.string()),
        ("layer", pa.int32()),
        ("head", pa.int32()),
        ("component", pa.string()),
        ("ablation", pa.string()),
        ("task", pa.string()),
        ("protocol", pa.string()),
        ("item_id", pa.string()),
        ("sample", pa.int32()),
        ("cluster", pa.string()),
        ("target", pa.string()),
        ("prediction", pa.string()),
        ("correct", pa.bool_()),
        ("chance", pa.float64()),
        ("gold_logprob", pa.float64()),
        ("logprob_margin", pa.float64()),
        ("option_logprobs", pa.list_(pa.float64())),
        ("failure", pa.string()),
        ("stop_reason", pa.string()),
        ("n_tokens", pa.int32()),
        ("n_thinking_tokens", pa.int32()),
        ("truncated_tokens", pa.int32()),
        ("text", pa.string()),
        ("thinking", pa.string()),
        ("metrics", pa.map_(pa.string(), pa.float64())),
    ]
)
"""One row per item and `sample` of it, an item's samples one after the other. `stop_reason`: why a generation ended
(``eos``, ``stop_string``, ``length`` or ``non_finite``), null where nothing is generated. `chance` is the expected
accuracy of an uninformed guess on this item under this protocol; log-probabilities are in nats and null under
generate; `option_logprobs` has one for each option of the item's `lensprune.runs.questions.Question`;
`truncated_tokens` were cut on the left of the prompt; `thinking` and `n_thinking_tokens` are null where thinking is
not separated from the answer, `text`; `n_tokens` counts both."""


def _storable(text: str | None) -> str | None:
    return None if text is None else storable(text)


def cell_table(
    key: CellKey,
    variant: Intervention,
    outcomes: Sequence[Outcome],
    requests: Sequence[ItemRequests],
    chances: Sequence[float],
) -> pa.Table:
    """Records of one cell, in the order of its items.

    The first k parts of an order are a set even if k is 1: their layer and head are null.

    Args:
        requests: the items' requests, which say what was cut from each prompt.
        chances: chance accuracy of each item.
    """
    n = len(outcomes)
    ordered = place_in_order(variant.name) is not None and variant.layer is not None
    columns: dict[str, Sequence[object]] = {
        "variant": [variant.name] * n,
        "layer": [None if ordered else variant.layer] * n,
        "head": [None if ordered else variant.head] * n,
        "component": ["range" if ordered else variant.component] * n,
        "ablation": [variant.ablation] * n,
        "task": [key.task] * n,
        "protocol": [key.protocol] * n,
        "item_id": [_storable(o.item_id) for o in outcomes],
        "sample": [o.sample for o in outcomes],
        "cluster": [_storable(o.cluster) for o in outcomes],
        "target": [_storable(o.target) for o in outcomes],
        "prediction": [_storable(o.prediction) for o in outcomes],
        "correct": [o.correct for o in outcomes],
        "chance": list(chances),
        "gold_logprob": [o.gold_logprob for o in outcomes],
        "logprob_margin": [o.logprob_margin for o in outcomes],
        "option_logprobs": [o.option_logprobs for o in outcomes],
        "failure": [o.failure for o in outcomes],
        "stop_reason": [o.stop_reason for o in outcomes],
        "n_tokens": [o.n_tokens for o in outcomes],
        "n_thinking_tokens": [o.n_thinking_tokens for o in outcomes],
        "truncated_tokens": [r.truncated_tokens for r in requests],
        "text": [_storable(o.text) for o in outcomes],
        "thinking": [_storable(o.thinking) for o in outcomes],
        "metrics": [sorted((str(k), float(v)) for k, v in o.metrics.items()) for o in outcomes],
    }
    arrays = [pa.array(columns[f.name], type=f.type, from_pandas=False) for f in SCHEMA]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)
