"""Load a task's items by its name, each with its few-shot examples."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lensprune.errors import UserError
from lensprune.tasks.base import Doc, GenerationFormat, Item, LoadedTask, PromptFormat, RowRequest, Rows, Task
from lensprune.tasks.fewshot import LM_EVAL_SEED, FewshotDraw
from lensprune.tasks.item_choice import DRAWN, ItemChoice
from lensprune.tasks.nulls import MissingColumn, WatchedRow
from lensprune.tasks.own_answers import check_own_answers
from lensprune.tasks.registry import get_task
from lensprune.tasks.yaml_task import register_yaml

__all__ = ["find_task", "is_task_file", "load_task"]

logger = logging.getLogger("lensprune")


def load_task(
    spec: str | Task,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    items: str = DRAWN,
    shots: int | None = None,
    seed: int = 0,
    split: str | None = None,
    leave_out_repeated: bool = False,
    in_file_order: bool = True,
) -> LoadedTask:
    """Load a task's items.

    Args:
        spec: a task, its name, ``name[key=value,...]``, or the path of a task's YAML file.
        data_dir: folder that holds ``<folder>/<split>.jsonl``; without it, or without the task's folder in it, rows
            come from the bundled data, else from the Hugging Face hub.
        limit: number of items (MMLU: per subject); ``None``, or more than there are: all, in row order.
        items: which ones. ``drawn``: a limit takes a sample by `seed`, stratified by subject, with twins together; if
            rows come in random order, as generated ones do, it takes the first. ``first``: the first ones, as in
            lm-eval. With an offset, like ``drawn+40``: the ones after that many. ``17,40-60``: these rows, counted from
            0. ``@FILE``: the ids in a file, one per line. An item has the same id and few-shot examples whichever
            others are taken.
        shots: few-shot examples per item; ``None`` is the task's default.
        seed: few-shot examples are drawn with seed 1234 + `seed`, so that 0 draws lm-eval's default examples. Tasks
            that generate their rows generate different ones for each seed.
        split: evaluated split, if the task has several.
        leave_out_repeated: leave out items that are among their own few-shot examples because a row is in both splits;
            otherwise they are kept, as in lm-eval, with a warning.
        in_file_order: keep row order if no item is left out. Otherwise items come in drawn order even then, so that the
            first n are a sample for any n.

    Raises:
        UserError: unknown task or parameter; `limit` or `shots` out of range; rows missing or not as the task needs
            them (the message names file, row and column); more shots than examples; references that no answer can
            match.

    Examples:
        >>> loaded = lp.load_task("facts", limit=2)
        >>> len(loaded.items), sorted(loaded.task.formats)
        (2, ['continuation', 'default', 'generate'])
    """
    if limit is not None and limit <= 0:
        raise UserError(f"limit {limit} is not a number of items: expected 1 or more")
    task = find_task(spec) if isinstance(spec, str) else spec
    n_shots = task.default_shots if shots is None else shots
    if n_shots < 0:
        raise UserError(f"shots {n_shots} is not a number of examples: expected 0 or more")
    choice = replace(ItemChoice.parse(items), in_file_order=in_file_order)
    if limit is not None and choice.listed is not None:
        raise UserError(
            f"limit {limit} can't be combined with items {items}, which names the items: leave one of them out"
        )
    rows = task.load(
        RowRequest(
            data_dir=Path(data_dir) if data_dir is not None else None,
            split=split,
            limit=choice.rows_needed(limit),
            shots=0 if task.fixed_fewshot is not None else n_shots,
            seed=seed,
        )
    )
    taken = _items(task, rows, n_shots, limit, seed, choice)
    repeated = [item for item in taken.values() if item.doc in item.fewshot]
    if repeated:
        logger.warning(
            f"task {task.name!r}: {len(repeated)} of {len(taken)} items are among their own few-shot examples, since "
            f"some rows are in both splits, and are {'left out' if leave_out_repeated else 'kept'}; the first is item "
            f"{repeated[0].id}"
        )
    if leave_out_repeated:
        taken = {place: item for place, item in taken.items() if item.doc not in item.fewshot}
        if not taken:
            raise UserError(f"task {task.name!r}: every item is among its own few-shot examples")
    _check_items(task, taken, rows.source)
    return LoadedTask(
        task=task,
        items=tuple(taken.values()),
        fewshot_pool=tuple(_pool(task, rows)),
        shots=n_shots,
        seed=seed,
        data_source=rows.source,
        parameters={**task.parameters, **rows.parameters},
    )


def is_task_file(spec: str) -> bool:
    """Whether `spec` is the path of a task's YAML file rather than a name."""
    return spec.lower().endswith((".yaml", ".yml"))


def find_task(spec: str) -> Task:
    """The task with this name (``name[key=value,...]``), or that of a YAML file, which is registered.

    Raises:
        UserError: as `get_task` and `register_yaml`.
    """
    return get_task(register_yaml(spec) if is_task_file(spec) else spec)


def _pool(task: Task, rows: Rows) -> Sequence[Doc]:
    return task.fixed_fewshot if task.fixed_fewshot is not None else rows.fewshot


def _group(task: Task, doc: Doc) -> str | None:
    return task.cluster(doc) if task.by_cluster else None


def _items(task: Task, rows: Rows, shots: int, limit: int | None, seed: int, choice: ItemChoice) -> dict[int, Item]:
    """The chosen items with their examples, by row index."""
    pools: Mapping[str | None, list[Doc]] = defaultdict(list)
    for doc in _pool(task, rows):
        pools[_group(task, doc)].append(doc)
    exclude_self = task.exclude_self or (rows.fewshot_is_evaluated and task.fixed_fewshot is None)
    groups, labels = _groups_and_labels(task, rows)
    twins: Sequence[str | int] = range(len(rows.docs)) if rows.twins is None else rows.twins
    named = choice.named([label for label, _ in labels], f"task {task.name!r}")
    taken: dict[int, Item] = {}
    in_order = True
    for group, of_group in groups.items():
        draw = FewshotDraw(
            pools[group],
            shots,
            sampler=task.fewshot_sampler,
            exclude_self=exclude_self,
            seed=LM_EVAL_SEED + seed,
            where=f"task {task.name!r}" + (f", {group}" if group is not None else ""),
        )
        chosen = choice.places(
            [labels[place][1] for place in of_group],
            [twins[place] for place in of_group],
            limit,
            f"items {seed}" + (f" {group}" if group is not None else ""),
            random_order=rows.random_order,
        )
        if named is not None:
            chosen = [index for index, place in enumerate(of_group) if place in named]
        in_order = in_order and chosen == sorted(chosen)
        fewshot = _examples(draw, [rows.docs[place] for place in of_group], chosen)
        for index in chosen:
            place = of_group[index]
            item_id, cluster = labels[place]
            cluster = cluster if cluster is not None or rows.twins is None else rows.twins[place]
            taken[place] = Item(item_id, rows.docs[place], cluster=cluster, fewshot=fewshot[index])
    # Groups may be interleaved in the file.
    return dict(sorted(taken.items())) if in_order else taken


def _groups_and_labels(task: Task, rows: Rows) -> tuple[dict[str | None, list[int]], list[tuple[str, str | None]]]:
    """The row indices of each group that draws its own examples, and every row's item id and cluster."""
    groups: dict[str | None, list[int]] = defaultdict(list)
    labels = []
    for place, doc in enumerate(rows.docs):
        of_group = groups[_group(task, doc)]
        try:
            labels.append((task.item_id(doc, len(of_group)), task.cluster(doc)))
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"task {task.name!r}: item {place + 1} of {rows.source} has no id or cluster "
                f"({type(error).__name__}: {error})"
            ) from None
        of_group.append(place)
    return groups, labels


def _examples(draw: FewshotDraw, docs: Sequence[Doc], chosen: Sequence[int]) -> dict[int, tuple[Doc, ...]]:
    """The examples of the chosen rows of `docs`, by index: lm-eval's for each, whichever other rows are used."""
    fewshot: dict[int, tuple[Doc, ...]] = {}
    wanted = set(chosen)
    for index in range(max(chosen, default=-1) + 1):
        if index in wanted:
            fewshot[index] = draw.draw(docs[index])
        else:
            draw.skip(docs[index])
    return fewshot


def _check_items(task: Task, items: Mapping[int, Item], source: str) -> None:
    seen: set[str] = set()
    for place, item in items.items():
        number = place + 1
        if item.id in seen:
            raise UserError(f"task {task.name!r}: item id {item.id!r} occurs twice in {source}")
        seen.add(item.id)
        for protocol, fmt in task.formats.items():
            _check_doc(fmt, item.doc, f"task {task.name!r}, protocol {protocol}: item {number} of {source}")
            chance = task.chance(item.doc, protocol)
            if not 0 <= chance <= 1:
                raise UserError(
                    f"task {task.name!r}, protocol {protocol}: the chance of item {number} is {chance:g}, expected a "
                    "number from 0 to 1, like 0.25"
                )
            for example in item.fewshot:
                where = f"task {task.name!r}, protocol {protocol}: few-shot example of item {number}"
                _check_doc(fmt.example or fmt, example, where)
    for protocol, fmt in task.formats.items():
        if isinstance(fmt, GenerationFormat):
            check_own_answers(fmt, list(items.values()), f"task {task.name!r}, protocol {protocol}, {source}")


def _check_doc(fmt: PromptFormat, row: Doc, where: str) -> None:
    doc = WatchedRow(row)
    try:
        problem = _check_text(fmt.context(doc), "prompt") or _check_answer(fmt, doc)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        problem = str(error) if isinstance(error, (UserError, MissingColumn)) else f"{type(error).__name__}: {error}"
    if problem:
        raise UserError(f"{where} cannot be used ({problem})")


def _check_answer(fmt: PromptFormat, doc: Doc) -> str:
    if isinstance(fmt, GenerationFormat):
        return _check_text(fmt.target(doc), "answer")
    choices, gold = fmt.choices(doc), fmt.gold(doc)
    if len(choices) < 2:
        return f"{len(choices)} options, expected 2 or more"
    if not 0 <= gold < len(choices):
        return f"answer {gold} is not one of the {len(choices)} options"
    return next((text for text in (_check_text(choice, "option") for choice in choices) if text), "")


def _check_text(value: Any, what: str) -> str:
    return "" if isinstance(value, str) else f"the {what} is {type(value).__name__}, expected text"
