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
from lensprune.tasks.loading import find_task, is_task_file, load_task
from lensprune.tasks.prompts import build_context, prompt_hash, prompt_strings
from lensprune.tasks.registry import get_task, register_task, task_names
from lensprune.tasks.task_of_rows import task
from lensprune.tasks.yaml_task import register_yaml

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
    "build_context",
    "find_task",
    "get_task",
    "is_task_file",
    "load_task",
    "prompt_hash",
    "prompt_strings",
    "register_task",
    "register_yaml",
    "task",
    "task_names",
]
