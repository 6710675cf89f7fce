"""Change in the length of a model's thinking when a part is removed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.intervals import mean_intervals
from lensprune.analysis.multiplicity import benjamini_hochberg
from lensprune.analysis.randomization import sign_flip_p
from lensprune.analysis.summary import Group, read_group
from lensprune.errors import UserError
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.records import CellKey

__all__ = ["LENGTH_COLUMNS", "thinking_length"]

LENGTH_COLUMNS = (
    "variant", "component", "layer", "head", "ablation", "task", "protocol", "n", "n_clusters", "tokens",
    "tokens_clean", "delta", "ci_low", "ci_high", "p_value", "q_value", "ended", "ended_clean",
)  # fmt: skip
_FACTS = ("component", "layer", "head", "ablation")


def thinking_length(outcomes: Outcomes, task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """Change in thinking length with each part removed, in tokens, on the same items; band: paired 95% interval.

    One row per (variant, task, protocol), clean first, with the columns `LENGTH_COLUMNS`: `tokens` is the mean length
    without the markers, 0 for an answer without thinking; `delta` = `tokens` − `tokens_clean` (negative: the model
    thinks less without the part), `ci_low`, `ci_high`: its 95% interval (`mean_intervals`), over clusters if items have
    them; `p_value`: two-sided, `sign_flip_p`; `q_value`: false discovery rate over the variants of the same task and
    protocol. An item with several samples counts with their mean. `ended`: share of texts whose thinking ended, so that
    an answer began; if it is below 1 or below `ended_clean`, lengths are cut short by the limit on new tokens, and
    `delta` understates how much longer a model would think.

    Raises:
        UserError: a name that is not part of this run, or no text in it contains thinking.
    """
    separated = outcomes.spec.think_tokens is not None
    tables = [
        _lengths(outcomes, group)
        for condition in outcomes.select(task, protocol)
        if separated and (group := read_group(outcomes, *condition)) is not None and group.clean is not None
    ]
    kept = [table for table in tables if len(table) and (table["tokens"] > 0).any()]
    if not kept:
        raise UserError("this run contains no thinking: generate in the chat format of a model that thinks")
    return pd.concat(kept, ignore_index=True).astype({"layer": "Int64", "head": "Int64"})


def _lengths(outcomes: Outcomes, group: Group) -> pd.DataFrame:
    """The rows of one (task, protocol); none if thinking is not separated."""
    lengths, ended = {}, {}
    for name in (CLEAN.name, *(name for name in group.cells if name != CLEAN.name)):
        key = CellKey(name, group.task, group.protocol)
        table: pa.Table = outcomes.cell(key, ["item_id", "n_thinking_tokens", "failure", "text"])
        if table.column("n_thinking_tokens").null_count:
            return pd.DataFrame(columns=list(LENGTH_COLUMNS))
        # An item with several samples counts with its mean length.
        records = table.to_pandas()
        lengths[name] = records.groupby("item_id", sort=False)["n_thinking_tokens"].mean().to_numpy(float)
        unended = (records["failure"] == "cut_off") & (records["text"] == "")
        ended[name] = 1 - float(unended.mean())
    clean = lengths[CLEAN.name]
    changed = np.stack(list(lengths.values()), axis=1) - clean[:, None]
    interval = mean_intervals(changed, group.clusters, bounds=None)
    p_values = sign_flip_p(changed)
    # The clean model has no comparison.
    p_values[0] = np.nan
    low, high = interval.low.copy(), interval.high.copy()
    low[0] = high[0] = 0.0
    frame = pd.DataFrame([{name: group.cells[variant].facts[name] for name in _FACTS} for variant in lengths])
    frame = frame.assign(
        variant=list(lengths),
        task=group.task,
        protocol=group.protocol,
        n=len(clean),
        n_clusters=group.n_clusters,
        tokens=[float(values.mean()) for values in lengths.values()],
        tokens_clean=float(clean.mean()),
        delta=interval.delta,
        ci_low=low,
        ci_high=high,
        p_value=p_values,
        q_value=benjamini_hochberg(p_values),
        ended=list(ended.values()),
        ended_clean=ended[CLEAN.name],
    )
    return frame[list(LENGTH_COLUMNS)]
