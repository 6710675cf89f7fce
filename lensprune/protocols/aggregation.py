"""A task's metrics from its outcomes, with lm-eval's standard errors."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from lensprune.errors import UserError
from lensprune.protocols.base import Outcome
from lensprune.tasks.base import LoadedTask

__all__ = ["aggregate", "mean_stderr", "pooled_stderr"]


def mean_stderr(values: Sequence[float]) -> float:
    """Standard error of the mean from the sample variance (lm-eval's ``mean_stderr``); NaN below two values."""
    n = len(values)
    if n < 2:
        return math.nan
    mean = sum(values) / n
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1)) / math.sqrt(n)


def pooled_stderr(groups: Sequence[Sequence[float]]) -> float:
    """Standard error of the mean over all groups from the variance within each (lm-eval's ``pooled_sample_stderr``).

    NaN if a group has fewer than two values, as lm-eval then reports none.
    """
    sizes = [len(group) for group in groups]
    if not sizes or min(sizes) < 2:
        return math.nan
    within = sum((n - 1) * mean_stderr(group) ** 2 * n for n, group in zip(sizes, groups, strict=True))
    return math.sqrt(within / (sum(sizes) - len(sizes)) / sum(sizes))


def aggregate(outcomes: Sequence[Outcome], task: LoadedTask) -> dict[str, tuple[float, float]]:
    """Mean and standard error of every metric over the items of one (variant, task, protocol).

    Clusters that are separate tasks in lm-eval (MMLU's subjects) are treated as there: as subtasks of a group weighted
    by size, so the mean is over all items and the standard error is pooled within clusters. This is lm-eval's standard
    error of an accuracy; it is not the paired interval of a change.

    Raises:
        UserError: there are no outcomes.
    """
    if not outcomes:
        raise UserError(f"task {task.task.name}: there are no outcomes to aggregate")
    result = {}
    for metric in outcomes[0].metrics:
        clusters: dict[str | None, list[float]] = defaultdict(list)
        for outcome in outcomes:
            clusters[outcome.cluster if task.task.by_cluster else None].append(outcome.metrics[metric])
        groups = list(clusters.values())
        mean = sum(map(sum, groups)) / len(outcomes)
        result[metric] = (mean, mean_stderr(groups[0]) if len(groups) == 1 else pooled_stderr(groups))
    return result
