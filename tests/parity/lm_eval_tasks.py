"""lm-eval's own tasks over local rows: its YAML files, with the dataset replaced by JSON Lines files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from lm_eval.tasks import TaskManager

FEWSHOT_SEED = 1234
_TASKS = Path(lm_eval.tasks.__file__).parent


@dataclass(frozen=True)
class LocalRows:
    """Where lm-eval defines a task, and which local file stands for each split that it reads."""

    yaml_file: str
    folder: str
    splits: dict[str, str]


_TRAIN_VALIDATION = {"train": "train", "validation": "validation"}
_TRAIN_TEST = {"train": "train", "test": "test"}
_LOCAL = {
    "arc_challenge": LocalRows("arc/arc_challenge.yaml", "arc_challenge", _TRAIN_TEST),
    "arc_easy": LocalRows("arc/arc_easy.yaml", "arc_easy", _TRAIN_TEST),
    "boolq": LocalRows("super_glue/boolq/default.yaml", "boolq", _TRAIN_VALIDATION),
    "commonsense_qa": LocalRows("commonsense_qa/default.yaml", "commonsense_qa", _TRAIN_VALIDATION),
    "gsm8k": LocalRows("gsm8k/gsm8k.yaml", "gsm8k", _TRAIN_TEST),
    "gsm8k_cot": LocalRows("gsm8k/gsm8k-cot.yaml", "gsm8k", _TRAIN_TEST),
    "hellaswag": LocalRows("hellaswag/hellaswag.yaml", "hellaswag", _TRAIN_VALIDATION),
    "mathqa": LocalRows("mathqa/mathqa.yaml", "math_qa", {"train": "fewshot", "test": "test"}),
    "openbookqa": LocalRows("openbookqa/openbookqa.yaml", "openbookqa", _TRAIN_TEST),
    "winogrande": LocalRows("winogrande/default.yaml", "winogrande", _TRAIN_VALIDATION),
}


def _local_rows(name: str) -> tuple[LocalRows, str | None]:
    if not name.startswith("mmlu_"):
        return _LOCAL[name], None
    stem, folder = name, "default"
    for suffix, own_folder in (("_continuation", "continuation"), ("_generative", "generative")):
        if name.endswith(suffix):
            stem, folder = name.removesuffix(suffix), own_folder
    return (
        LocalRows(f"mmlu/{folder}/{stem}.yaml", "mmlu", {"dev": "dev", "test": "test"}),
        stem.removeprefix("mmlu_"),
    )


def _file_of_split(path: Path, subject: str | None, tmp_path: Path) -> Path:
    """MMLU's local file holds all subjects, lm-eval's task reads one."""
    if subject is None:
        return path
    lines = [
        line for line in path.read_text(encoding="utf-8").split("\n") if line and json.loads(line)["subject"] == subject
    ]
    own = tmp_path / f"{subject}-{path.name}"
    own.write_text("\n".join(lines) + "\n")
    return own


def build_task(
    name: str,
    data_dir: Path,
    tmp_path: Path,
    num_fewshot: int | None = None,
    limit: int | None = None,
    **overrides: Any,
) -> Any:
    """An lm-eval task over the rows below `data_dir`, its requests built (`task.instances`).

    Args:
        name: lm-eval's name of the task; MMLU's by subject, e.g. ``mmlu_anatomy_generative``.
        tmp_path: an empty folder for the YAML file, the rows of one MMLU subject and the cache of `datasets`.
        num_fewshot: shots; ``None`` is the task's own number.
        limit: the first so many documents.
        overrides: further fields of the YAML file, e.g. ``generation_kwargs``.
    """
    local, subject = _local_rows(name)
    data_files = {
        split: str(_file_of_split(data_dir / local.folder / f"{file}.jsonl", subject, tmp_path))
        for split, file in local.splits.items()
    }
    config = {
        "include": str(_TASKS / local.yaml_file),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": data_files, "cache_dir": str(tmp_path / "datasets")},
        **overrides,
    }
    folder = tmp_path / "yaml"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    task = TaskManager(include_path=str(folder), include_defaults=False).load([name])["tasks"][name]
    if num_fewshot is not None:
        task.set_config(key="num_fewshot", value=num_fewshot)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    task.build_all_requests(limit=limit)
    return task
