"""Choose which metric decides whether a generated answer is right."""

from __future__ import annotations

from dataclasses import replace

from lensprune.errors import unknown_name
from lensprune.tasks.base import GenerationFormat, PromptFormat, Task

__all__ = ["with_primary_metric"]


def with_primary_metric(task: Task, name: str) -> Task:
    """A copy of `task` in which the metric `name` decides generated answers: ``exact_match,boxed``, ``equal,boxed``, ….

    Options scored by likelihood keep their metric.

    Raises:
        UserError: generated answers of the task have no such metric.
    """
    return replace(task, formats={form: _by(fmt, name, task.name) for form, fmt in task.formats.items()})


def _by(fmt: PromptFormat, name: str, task: str) -> PromptFormat:
    if not isinstance(fmt, GenerationFormat):
        return fmt
    if name not in fmt.extracted_metrics:
        raise unknown_name(f"primary metric of task {task!r}", name, fmt.extracted_metrics)
    match, _, chosen = name.partition(",")
    return replace(fmt, primary_match="equal" if match == "equal" else "exact_match", primary_filter=chosen)
