"""Which metric of a generated answer decides whether it is right, where not the task's own."""

from __future__ import annotations

from dataclasses import replace

from lensprune.errors import unknown_name
from lensprune.tasks.base import GenerationFormat, PromptFormat, Task

__all__ = ["with_primary_metric"]


def with_primary_metric(task: Task, name: str) -> Task:
    """`task` whose generated answers are right by the metric `name`: ``exact_match,boxed``, ``equal,boxed``, ….

    Options that are scored by their likelihood keep their metric.

    Raises:
        UserError: a generated answer to the task has no such metric.
    """
    return replace(task, formats={form: _by(fmt, name, task.name) for form, fmt in task.formats.items()})


def _by(fmt: PromptFormat, name: str, task: str) -> PromptFormat:
    if not isinstance(fmt, GenerationFormat):
        return fmt
    if name not in fmt.extracted_metrics:
        raise unknown_name(f"primary metric of task {task!r}", name, fmt.extracted_metrics)
    match, _, chosen = name.partition(",")
    return replace(fmt, primary_match="equal" if match == "equal" else "exact_match", primary_filter=chosen)
