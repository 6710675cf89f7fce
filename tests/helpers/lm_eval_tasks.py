"""lm-eval's own tasks over local rows: only where the rows come from is changed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.config.group import GroupConfig
from lm_eval.tasks import TaskManager

LOCAL_FILES: dict[str, tuple[str, dict[str, str]]] = {
    "arc_challenge": ("arc_challenge", {"train": "train", "validation": "validation", "test": "test"}),
    "arc_easy": ("arc_easy", {"train": "train", "validation": "validation", "test": "test"}),
    "boolq": ("boolq", {"train": "train", "validation": "validation"}),
    "commonsense_qa": ("commonsense_qa", {"train": "train", "validation": "validation"}),
    "gsm8k": ("gsm8k", {"train": "train", "test": "test"}),
    "gsm8k_cot": ("gsm8k", {"train": "train", "test": "test"}),
    "hellaswag": ("hellaswag", {"train": "train", "validation": "validation"}),
    "mathqa": ("math_qa", {"train": "fewshot", "test": "test"}),
    "openbookqa": ("openbookqa", {"train": "train", "validation": "validation", "test": "test"}),
    "winogrande": ("winogrande", {"train": "train", "validation": "validation"}),
}
"""lm-eval's task name → folder of rows, and its split names → file names there."""

FEWSHOT_SEED = 1234


@cache
def manager() -> TaskManager:
    """lm-eval's index of tasks; scanning it takes seconds, so once a process."""
    return TaskManager()


def local_rows(data_dir: Path, folder: str, splits: dict[str, str], cache_dir: Path) -> dict[str, Any]:
    """Overrides that make a task read ``<data_dir>/<folder>/<file>.jsonl``."""
    files = {split: str(data_dir / folder / f"{file}.jsonl") for split, file in splits.items()}
    return _json_dataset(files, cache_dir)


def _json_dataset(files: dict[str, str], cache_dir: Path) -> dict[str, Any]:
    return {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(cache_dir)},
    }


def _subject_rows(data_dir: Path, subject: str, cache_dir: Path) -> dict[str, Any]:
    files = {}
    for split in ("dev", "test"):
        lines = (data_dir / "mmlu" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        path = cache_dir / f"mmlu_{subject}_{split}.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["subject"] == subject))
        files[split] = str(path)
    return _json_dataset(files, cache_dir)


def load(
    name: str, data_dir: Path, cache_dir: Path, shots: int | None, max_gen_toks: int | None = None
) -> dict[str, Any]:
    """One lm-eval task over local rows, as `lm_eval.evaluator.evaluate` takes it."""
    folder, splits = LOCAL_FILES[name]
    members = [{"task": name, **local_rows(data_dir, folder, splits, cache_dir)}]
    return {"tasks": _loaded(members, shots, max_gen_toks), "groups": {}, "group_map": {}}


def load_mmlu(
    form: str,
    subjects: tuple[str, ...],
    data_dir: Path,
    cache_dir: Path,
    shots: int | None,
    max_gen_toks: int | None = None,
) -> dict[str, Any]:
    """The subjects of one of MMLU's forms in a group weighted by size, as lm-eval groups them.

    Args:
        form: what follows the subject in the task's name: ``""``, ``"_continuation"`` or ``"_generative"``.
    """
    metrics: list[dict[str, Any]] = [{"metric": "acc", "weight_by_size": True}]
    if form == "_continuation":
        metrics.append({"metric": "acc_norm", "weight_by_size": True})
    if form == "_generative":
        metrics = [{"metric": "exact_match", "weight_by_size": True, "filter_list": "get_response"}]
    members = [{"task": f"mmlu_{subject}{form}", **_subject_rows(data_dir, subject, cache_dir)} for subject in subjects]
    tasks = _loaded(members, shots, max_gen_toks)
    group = Group.from_config(GroupConfig(group=f"subjects{form}", task=list(tasks), aggregate_metric_list=metrics))
    for task in tasks.values():
        group.add(task)
    return {"tasks": tasks, "groups": {group.name: group}, "group_map": {group.name: group.child_names}}


def build_task(name: str, data_dir: Path, cache_dir: Path, shots: int | None, limit: int) -> Any:
    """One lm-eval task with its requests built (`task.instances`); MMLU's by subject, e.g. ``mmlu_anatomy_generative``.

    `shots` ``None`` leaves the task's own number.
    """
    if name.startswith("mmlu_"):
        form = next((form for form in ("_continuation", "_generative") if name.endswith(form)), "")
        subject = name.removeprefix("mmlu_").removesuffix(form)
        rows = _subject_rows(data_dir, subject, cache_dir)
        task = _loaded([{"task": name, **rows}], shots, None)[name]
    else:
        task = load(name, data_dir, cache_dir, shots)["tasks"][name]
    task.build_all_requests(limit=limit)
    return task


def _loaded(members: list[dict[str, Any]], shots: int | None, max_gen_toks: int | None) -> dict[str, Any]:
    # Only members of a group are laid over lm-eval's own configuration; a task by itself would replace it.
    tasks: dict[str, Any] = manager().load([{"group": "local", "task": members}])["tasks"]
    for task in tasks.values():
        if shots is not None:
            task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        if max_gen_toks is not None:
            task.set_config(key="generation_kwargs", value={"max_gen_toks": max_gen_toks}, update=True)
    return tasks
