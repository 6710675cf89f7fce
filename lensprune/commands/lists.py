"""What ``lensprune tasks`` prints."""

from __future__ import annotations

import json

from lensprune.output.tables import aligned
from lensprune.protocols.registry import protocols_of
from lensprune.tasks import get_task, task_names

__all__ = ["tasks_json", "tasks_table"]


def tasks_table() -> str:
    """One line per task: name, protocols, parameters with their defaults, and a description."""
    rows = [["task", "protocols", "parameters", "what it is"]]
    for name in task_names():
        task = get_task(name)
        parameters = ", ".join(f"{key}={value}" for key, value in task.parameters.items())
        rows.append([name, ", ".join(protocols_of(task)), parameters or "-", task.summary])
    return aligned(rows)


def tasks_json() -> str:
    """The same as a JSON list: name, protocols, parameters and description."""
    tasks = [(name, get_task(name)) for name in task_names()]
    rows = [
        {
            "task": name,
            "protocols": list(protocols_of(task)),
            "parameters": dict(task.parameters),
            "summary": task.summary,
            "kind": task.kind,
        }
        for name, task in tasks
    ]
    return json.dumps(rows, indent=1, default=str)
