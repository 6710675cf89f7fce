"""A task from one YAML file, in the fields of lm-eval's task files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensprune.errors import unknown_name
from lensprune.paths import usable_path
from lensprune.tasks.base import (
    TASK_KINDS,
    FewshotSampler,
    PromptFormat,
    ProtocolName,
    Task,
)
from lensprune.tasks.formats import uniform_chance
from lensprune.tasks.registry import register_task
from lensprune.tasks.sources import Dataset
from lensprune.tasks.yaml_fields import (
    check_keys,
    read_fields,
)
from lensprune.tasks.yaml_formats import YamlFormats

__all__ = ["register_yaml"]

_PROTOCOLS: tuple[ProtocolName, ...] = ("default", "continuation", "generate")
_BUILDERS = ("arrow", "csv", "pandas", "parquet", "text", "webdataset", "xml")
_DATASET_KWARGS = {"trust_remote_code": "code from the hub is never run"}


def register_yaml(path: Path | str) -> str:
    """Register the task that a YAML file describes, and return its name.

    The fields are lm-eval's: ``task``, ``dataset_path``, ``dataset_name``, ``dataset_kwargs: data_files`` (paths
    relative to the file, with ``dataset_path: json``), ``training_split``, ``validation_split``, ``test_split``,
    ``fewshot_split``, ``doc_to_text``, ``doc_to_choice``, ``doc_to_target`` (column names or jinja2 templates, run in a
    sandbox; with a list of texts, any of them is right), ``description``, ``target_delimiter``,
    ``fewshot_delimiter``, ``fewshot_config`` (sampler, split, samples, and how the examples' format differs from the
    question's), ``num_fewshot``, ``output_type`` (``multiple_choice`` or ``generate_until``), ``generation_kwargs``
    (`generation_settings`), ``repeats`` (samples of each item, if it is sampled), ``filter_list``, ``metric_list``,
    ``include``. So an lm-eval file without ``!function`` works unchanged, with its prompts and few-shot examples; a
    field that can't be supported is rejected by name.

    Additional fields: ``folder`` (below the data folder; default: the task's name), ``columns``, ``summary``,
    ``question`` (the text above the lettered options; default: ``doc_to_text`` without a final ``Answer:``),
    ``protocols``, ``primary_metric``, ``chance`` (of an open answer; default: 0), ``kind``, ``closed_book`` (`Task`).

    A task with ``doc_to_choice`` has all three protocols: ``continuation`` scores the options after ``doc_to_text``;
    ``default`` and ``generate`` show `question` with lettered options. If the options are the letters themselves,
    ``doc_to_text`` already shows them: it is used unchanged, and there is no ``continuation``. A task without
    ``doc_to_choice`` has only ``generate``.

    Raises:
        UserError: the file cannot be read, or a field is missing, unknown (the message names the nearest) or malformed.
    """
    path = usable_path(path, "task file")
    config = read_fields(path)
    file = _TaskFile(path, config)
    task = file.task()

    def builder() -> Task:
        return task

    # Two files with the same task name must not silently replace each other.
    builder.__qualname__ = str(path.resolve())
    register_task(name=task.name)(builder)
    return task.name


@dataclass(frozen=True)
class _TaskFile(YamlFormats):
    """A task file as a whole."""

    def task(self) -> Task:
        formats = self._chosen(self.formats_with_examples())
        options = self.options()
        chance = self.of_kind("chance", (int, float), 0.0, "a number")
        fewshot = self.fewshot()
        sampler: FewshotSampler = "first_n" if fewshot.get("sampler") == "first_n" else "random"
        if fewshot.get("sampler") not in (None, "default", "first_n"):
            raise unknown_name(f"sampler in {self.path}", str(fewshot["sampler"]), ["default", "first_n"])
        samples = fewshot.get("samples")
        if samples is not None and not (isinstance(samples, list) and all(isinstance(row, dict) for row in samples)):
            raise self.error(f"fewshot_config: samples is {samples!r}, expected a list of rows")
        fewshot_split = fewshot.get("split") or self.config.get("fewshot_split")
        shots = self.of_kind("num_fewshot", int, 0, "a whole number")
        kind = self.of_kind("kind", str, None, "text")
        if kind not in (None, *TASK_KINDS):
            raise unknown_name(f"kind in {self.path}", kind, TASK_KINDS)
        return Task(
            name=str(self.config["task"]),
            summary=self.of_kind("summary", str, f"from {self.path.name}", "text"),
            formats=formats,
            chance=uniform_chance(options) if options is not None else lambda doc, protocol: float(chance),
            load=self._dataset(fewshot_split),
            default_shots=shots,
            fewshot_sampler=sampler,
            fixed_fewshot=tuple(samples) if samples is not None and fewshot_split is None else None,
            # lm-eval compares the two fields as given, so two absent ones count as equal.
            exclude_self=fewshot_split == self.config.get("test_split"),
            kind=kind,
            closed_book=self.of_kind("closed_book", str, None, "the name of a task"),
            source=str(self.path),
        )

    def _chosen(self, formats: dict[ProtocolName, PromptFormat]) -> dict[ProtocolName, PromptFormat]:
        wanted = self.of_kind("protocols", list, None, "a list of protocols")
        if wanted is None:
            return formats
        for name in wanted:
            if name not in _PROTOCOLS:
                raise unknown_name(f"protocol in {self.path}", str(name), _PROTOCOLS)
            if name not in formats:
                raise self.error(f"protocol {name!r} is not possible here; possible: {', '.join(formats)}")
        return {name: formats[name] for name in _PROTOCOLS if name in wanted}

    def _dataset(self, fewshot_split: str | None) -> Dataset:
        evaluated = self.config.get("test_split") or self.config.get("validation_split")
        shots = [fewshot_split or self.config.get("training_split") or self.config.get("validation_split")]
        hub = self.of_kind("dataset_path", str, None, "text")
        kwargs = self.of_kind("dataset_kwargs", dict, {}, "a mapping")
        check_keys(kwargs, ("data_files",), _DATASET_KWARGS, f"{self.path}: dataset_kwargs", "setting")
        files = kwargs.get("data_files") or {}
        if not isinstance(files, dict):
            raise self.error(f"dataset_kwargs: data_files is {files!r}, expected a mapping of split to path")
        if files and hub not in (None, "json"):
            raise self.error(f"dataset_path is {hub!r}, but data_files are read as JSON Lines: expected json")
        if hub in _BUILDERS:
            raise self.error(f"dataset_path {hub!r} is not supported: convert the files to JSON Lines, and give json")
        return Dataset(
            folder=self.of_kind("folder", str, str(self.config["task"]), "text"),
            columns=tuple(self.of_kind("columns", list, [], "a list of column names")),
            hub=None if hub == "json" else hub,
            config=self.of_kind("dataset_name", str, None, "text"),
            splits=(evaluated,) if evaluated else ("test", "validation"),
            fewshot_splits=tuple(split for split in shots if split),
            files={split: self._paths(split, given) for split, given in files.items()},
        )

    def _paths(self, split: str, given: Any) -> tuple[Path, ...]:
        paths = [given] if isinstance(given, str) else given
        if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
            raise self.error(f"dataset_kwargs: data_files of {split} is {given!r}, expected a path or a list of paths")
        return tuple(self.path.parent / path for path in paths)
