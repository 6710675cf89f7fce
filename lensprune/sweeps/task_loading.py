"""The items of the tasks that a sweep names, with the checks that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lensprune.analysis.stopping import AnyLook, Stopping
from lensprune.errors import UserError
from lensprune.protocols.registry import protocol_named
from lensprune.sweeps.generation import with_settings
from lensprune.sweeps.options import SweepOptions
from lensprune.tasks.base import GenerationFormat, LoadedTask, MultipleChoiceFormat, PromptFormat

__all__ = ["load_tasks"]


def load_tasks(options: SweepOptions) -> list[LoadedTask]:
    """The items of every requested task.

    Raises:
        UserError: a task that is unknown, lacks a protocol, is given twice, or has no rows.
    """
    from lensprune.tasks import find_task, load_task
    from lensprune.tasks.primary import with_primary_metric

    tasks = [find_task(name) for name in options.tasks]
    if options.primary_metric is not None:
        tasks = [with_primary_metric(task, options.primary_metric) for task in tasks]
    formats: list[PromptFormat] = []
    for task in tasks:
        for protocol in options.protocols:
            fmt = protocol_named(protocol).format_of(task)
            formats.append(fmt)
            if options.thinking == "on" and options.thinking_prefix is None and isinstance(fmt, MultipleChoiceFormat):
                raise UserError(
                    f"thinking on is given, but protocol {protocol} of task {task.name!r} scores options, which leaves "
                    "no room for thinking: use protocol generate, thinking off, or thinking_prefix clean"
                )
    if options.thinking_prefix is not None and not any(isinstance(fmt, MultipleChoiceFormat) for fmt in formats):
        raise UserError("a thinking prefix is given, but no options are scored: add protocol default or continuation")
    if options.primary_metric is not None and not any(isinstance(fmt, GenerationFormat) for fmt in formats):
        raise UserError(
            f"primary metric {options.primary_metric} is given, but no answer is generated: add protocol generate, or "
            "leave it out"
        )
    data_dir = None if options.data_dir is None else Path(options.data_dir)
    cap = options.limit if options.stopping is None else options.stopping.items[-1]
    loaded = [
        load_task(
            task,
            data_dir=data_dir,
            limit=cap,
            items=options.items,
            in_file_order=options.stopping is None,
            shots=options.shots,
            seed=options.seed,
            leave_out_repeated=options.leave_out_repeated,
        )
        for task in tasks
    ]
    names = [task.task.name for task in loaded]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"task {twice!r} is given twice")
    if options.stopping is not None:
        for loaded_task in loaded:
            _check_cap(loaded_task, options.stopping)
    loaded = with_settings(loaded, options)
    if options.stopping is not None:
        for loaded_task in loaded:
            _check_single(loaded_task, options.protocols)
    return loaded


def _check_single(task: LoadedTask, protocols: Sequence[str]) -> None:
    """Refuse a task that by default samples several texts per item."""
    for name in protocols:
        fmt = protocol_named(name).format_of(task.task)
        if isinstance(fmt, GenerationFormat) and fmt.samples > 1:
            raise UserError(
                f"task {task.task.name!r} takes {fmt.samples} samples per item, but a sweep that stops early counts "
                "items as right or wrong: set samples to 1"
            )


def _check_cap(task: LoadedTask, stopping: Stopping) -> None:
    """Refuse items that are not in a single random order, or are fewer than the last look."""
    name, n, cap = task.task.name, len(task.items), stopping.items[-1]
    if isinstance(stopping, AnyLook) and task.items and task.items[0].cluster is not None:
        raise UserError(
            f"task {name!r} has items in clusters ({task.items[0].cluster!r} and others), but looks any counts items "
            "as independent: plan the looks, like 100,200,400"
        )
    if task.task.by_cluster and len({item.cluster for item in task.items}) > 1:
        raise UserError(
            f"task {name!r} takes items from each cluster ({task.items[0].cluster!r} and others): a sweep that stops "
            "early takes one cluster"
        )
    if n < cap:
        raise UserError(f"task {name!r} has {n} items, fewer than the last look at {cap}: choose {n} or fewer")
