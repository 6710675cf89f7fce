"""Benchmarks: registry, prompts, few-shot examples, answer filters and the sources of rows."""

from lensprune.tasks.base import (
    Doc,
    GenerationFormat,
    Item,
    LoadedTask,
    MultipleChoiceFormat,
    ProtocolName,
    RowRequest,
    Rows,
    Task,
)
from lensprune.tasks.registry import get_task, register_task, task_names

__all__ = [
    "Doc",
    "GenerationFormat",
    "Item",
    "LoadedTask",
    "MultipleChoiceFormat",
    "ProtocolName",
    "RowRequest",
    "Rows",
    "Task",
    "get_task",
    "register_task",
    "task_names",
]
