"""Agreement between ablations on which heads matter, and between them and gradient estimates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Unpack

import numpy as np
import pandas as pd
from jaxtyping import Float

from lensprune.ablation.enumeration import each_head
from lensprune.ablation.kinds import ablation_kind
from lensprune.analysis.overlap import jaccard_top_k, spearman
from lensprune.engine.registry import make_executor
from lensprune.errors import UserError
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel
from lensprune.protocols.registry import protocol_named
from lensprune.results.run import Run
from lensprune.sweeps.cells import reference_of
from lensprune.sweeps.options import SweepArguments, SweepOptions, option_values
from lensprune.sweeps.prepare import prepare
from lensprune.sweeps.run import sweep
from lensprune.sweeps.screening import estimated_effects

__all__ = ["Agreement", "importance_agreement"]


@dataclass(frozen=True)
class Agreement:
    """Effects of every head by every method, the methods' agreement, and the run that they come from.

    `effects`: task, protocol, layer, head, and one column per method: ``zero``, ``mean``, … measured,
    ``estimate:zero``, … by attribution patching towards that value (mean changes of the measure; negative: needed).
    `table`: one row per (task, protocol, pair of methods): ``way_a``, ``way_b``, ``spearman``, ``spearman_p``, ``k``,
    ``shared`` (of the k heads with the largest |effect|), ``jaccard``, ``jaccard_expected`` and ``jaccard_p``.
    """

    effects: pd.DataFrame
    table: pd.DataFrame
    run: Run


def importance_agreement(
    model: AnyModel,
    tasks: Sequence[str] | str,
    protocols: Sequence[str] | str = ("continuation",),
    *,
    ablations: Sequence[str] = ("zero", "mean", "resample"),
    estimates: bool = True,
    layers: Sequence[int] | None = None,
    k: int = 10,
    seed: int = 0,
    **options: Unpack[SweepArguments],
) -> Agreement:
    """Remove every head by several ablations, estimate the same removals, and compare the rankings.

    The measure is the right answer's log-probability margin, in nats; under ``generate``, measured effects are Δμ, and
    estimates are about the clean text's log-probability.

    Args:
        ablations: kinds to compare; ``optimal`` is measured but never estimated.
        layers: only these layers; ``None`` takes all.
        k: number of strongest heads of each ranking whose overlap is counted.
        seed: of the items.
        options: of `lensprune.sweep` (limit, shots, data_dir, out, …).

    Raises:
        UserError: fewer than two rankings to compare, or invalid input of a sweep.
    """
    estimated = [kind for kind in ablations if ablation_kind(kind).can_be_estimated] if estimates else []
    if len(ablations) + len(estimated) < 2:
        raise UserError("agreement compares ablations: give two, or one with its estimate")
    hooked = as_hooked_model(model)
    variants = {kind: each_head(hooked, kind, layers) for kind in ablations}
    removals = [variant for of_kind in variants.values() for variant in of_kind]
    run = sweep(hooked, tasks, protocols, removals, seed=seed, **options)
    given = option_values(options, SweepOptions)
    job = prepare(hooked, SweepOptions.given(tasks, protocols, removals, seed=seed, **given))
    executor = make_executor(job.options.executor, hooked)
    frames, rows = [], []
    for condition, (task, protocol) in zip(job.conditions, run.conditions, strict=True):
        measure = protocol_named(protocol).measure
        ways = {kind: run.effects(task, protocol, ablation=kind, measure=measure)[0].effects for kind in ablations}
        for kind in estimated:
            reference = reference_of(hooked, condition, variants[kind], job.options)
            ways[f"estimate:{kind}"] = estimated_effects(hooked, condition, variants[kind], executor, reference)
        heads = variants[ablations[0]]
        place = {"task": task, "protocol": protocol, "layer": [v.layer for v in heads], "head": [v.head for v in heads]}
        frames.append(pd.DataFrame({**place, **ways}))
        rows += [
            [task, protocol, *row] for row in _compared(ways, [int(v.layer or 0) for v in heads], min(k, len(heads)))
        ]
    return Agreement(pd.concat(frames, ignore_index=True), pd.DataFrame(rows, columns=_COLUMNS), run)


_COLUMNS = [
    "task", "protocol", "way_a", "way_b", "spearman", "spearman_p", "k", "shared", "jaccard", "jaccard_expected",
    "jaccard_p",
]  # fmt: skip


def _compared(ways: Mapping[str, Float[np.ndarray, " head"]], layers: Sequence[int], k: int) -> Iterator[list[Any]]:
    """Agreement of every two methods: the columns of `Agreement.table` from ``way_a`` on."""
    for a, b in combinations(ways, 2):
        _, _, shared, jaccard, expected, jaccard_p = jaccard_top_k(ways[a], ways[b], k)
        yield [a, b, *spearman(ways[a], ways[b], layers), k, shared, jaccard, expected, jaccard_p]
