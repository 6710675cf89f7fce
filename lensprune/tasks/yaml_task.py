"""A task from one YAML file, in the fields of lm-eval's task files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lensprune.errors import UserError, nearest, unknown_name
from lensprune.paths import usable_path
from lensprune.tasks.base import (
    Doc,
    FewshotSampler,
    Filter,
    GenerationFormat,
    MultipleChoiceFormat,
    PromptFormat,
    ProtocolName,
    Task,
)
from lensprune.tasks.filters import FilterChain, RegexFilter, exact_match, remove_whitespace
from lensprune.tasks.formats import LETTER_UNTIL, letter_choice, letter_generation, letters, uniform_chance
from lensprune.tasks.registry import register_task
from lensprune.tasks.sources import Dataset
from lensprune.tasks.templates import choices_of, target_of, text_of

__all__ = ["register_yaml"]

_NEEDED = ("task", "doc_to_text", "doc_to_target")
_USED = (
    *_NEEDED,
    "chance",
    "columns",
    "dataset_kwargs",
    "dataset_name",
    "dataset_path",
    "description",
    "doc_to_choice",
    "fewshot_config",
    "fewshot_delimiter",
    "fewshot_split",
    "filter_list",
    "folder",
    "generation_kwargs",
    "metric_list",
    "num_fewshot",
    "output_type",
    "primary_metric",
    "protocols",
    "question",
    "summary",
    "target_delimiter",
    "test_split",
    "training_split",
    "validation_split",
)
_WITHOUT_EFFECT = ("doc_to_decontamination_query", "metadata", "repeats", "should_decontaminate", "tag", "task_alias")
_PROTOCOLS: tuple[ProtocolName, ...] = ("default", "continuation", "generate")
_MATCH_OPTIONS = ("regexes_to_ignore", "ignore_case", "ignore_punctuation", "ignore_numbers")
_MAX_NEW_TOKENS = 256


def register_yaml(path: Path | str) -> str:
    """Register the task that a YAML file describes, and return its name.

    The fields are lm-eval's: ``task``, ``dataset_path``, ``dataset_name``, ``dataset_kwargs: data_files`` (paths
    relative to the file, with ``dataset_path: json``), ``training_split``, ``validation_split``, ``test_split``,
    ``fewshot_split``, ``doc_to_text``, ``doc_to_choice``, ``doc_to_target`` (column names or jinja2 templates, run in a
    sandbox), ``description``, ``target_delimiter``, ``fewshot_delimiter``, ``fewshot_config: sampler`` or ``samples``,
    ``num_fewshot``, ``output_type`` (``multiple_choice`` or ``generate_until``), ``generation_kwargs: until`` and
    ``max_gen_toks``, ``filter_list`` (functions regex, remove_whitespace, take_first), ``metric_list``. So a file of
    lm-eval without ``!function`` and ``include`` works as it is, with its prompts and its few-shot examples.

    Fields of our own: ``folder`` (below the data folder; default the task's name), ``columns``, ``summary``,
    ``question`` (what stands above the lettered options; default ``doc_to_text`` without a final ``Answer:``),
    ``protocols``, ``primary_metric``, ``chance`` (of an open answer; default 0).

    A task with ``doc_to_choice`` has all three protocols: ``continuation`` scores the options after ``doc_to_text``,
    ``default`` and ``generate`` show `question` with lettered options. Where the options are the letters themselves,
    ``doc_to_text`` already shows them: it is used as it is, and there is no ``continuation``. A task without has
    ``generate`` alone.

    Raises:
        UserError: the file cannot be read, a field is missing, unknown (with the nearest name) or of the wrong form.
    """
    path = usable_path(path, "task file")
    config = _read(path)
    file = _TaskFile(path, config)
    task = file.task()

    def builder() -> Task:
        return task

    # Two files that claim one name must not replace each other unnoticed.
    builder.__qualname__ = str(path.resolve())
    register_task(name=task.name)(builder)
    return task.name


def _read(path: Path) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        hint = "; Python code is not run from YAML, use @register_task" if "!function" in reason else ""
        raise UserError(f"{path}: not a task file ({reason}){hint}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a mapping of fields, got {type(config).__name__}")
    for field in config:
        if field not in (*_USED, *_WITHOUT_EFFECT):
            close = nearest(str(field), _USED, n=1)
            hint = f"did you mean {close[0]}?" if close else f"fields are: {', '.join(sorted(_USED))}"
            raise UserError(f"{path}: unknown field {field!r}: {hint}")
    for field in _NEEDED:
        if config.get(field) is None:
            raise UserError(f"{path}: field {field!r} is missing")
    return config


@dataclass(frozen=True)
class _TaskFile:
    path: Path
    config: Mapping[str, Any]

    def _error(self, message: str) -> UserError:
        return UserError(f"{self.path}: {message}")

    def _of_kind(self, field: str, kind: type | tuple[type, ...], default: Any, what: str) -> Any:
        value = self.config.get(field)
        if value is None:
            return default
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self._error(f"field {field!r} is {value!r}, expected {what}")
        return value

    def _text(self, field: str) -> Callable[[Doc], str]:
        return text_of(self._of_kind(field, str, "", "text"), f"{self.path}: {field}")

    def task(self) -> Task:
        formats = self._chosen(self._formats())
        options = self._options()
        chance = self._of_kind("chance", (int, float), 0.0, "a number")
        fewshot = self._of_kind("fewshot_config", dict, {}, "a mapping")
        sampler: FewshotSampler = "first_n" if fewshot.get("sampler") == "first_n" else "random"
        if fewshot.get("sampler") not in (None, "default", "first_n"):
            raise unknown_name(f"sampler in {self.path}", str(fewshot["sampler"]), ["default", "first_n"])
        samples = fewshot.get("samples")
        fewshot_split = fewshot.get("split", self.config.get("fewshot_split"))
        shots = self._of_kind("num_fewshot", int, 0, "a whole number")
        return Task(
            name=str(self.config["task"]),
            summary=self._of_kind("summary", str, f"from {self.path.name}", "text"),
            formats=formats,
            chance=uniform_chance(options) if options is not None else lambda doc, protocol: float(chance),
            load=self._dataset(fewshot_split),
            default_shots=shots,
            fewshot_sampler=sampler,
            fixed_fewshot=tuple(samples) if samples is not None and fewshot_split is None else None,
            # lm-eval compares the two fields as they stand, so two absent ones count as equal.
            exclude_self=fewshot_split == self.config.get("test_split"),
            source=str(self.path),
        )

    def _dataset(self, fewshot_split: str | None) -> Dataset:
        evaluated = self.config.get("test_split") or self.config.get("validation_split")
        shots = [fewshot_split or self.config.get("training_split") or self.config.get("validation_split")]
        hub = self._of_kind("dataset_path", str, None, "text")
        files = self._of_kind("dataset_kwargs", dict, {}, "a mapping").get("data_files", {})
        if not isinstance(files, dict):
            raise self._error(f"dataset_kwargs: data_files is {files!r}, expected a mapping of split to path")
        return Dataset(
            folder=self._of_kind("folder", str, str(self.config["task"]), "text"),
            columns=tuple(self._of_kind("columns", list, [], "a list of column names")),
            hub=None if hub == "json" else hub,
            config=self._of_kind("dataset_name", str, None, "text"),
            splits=(evaluated,) if evaluated else ("test", "validation"),
            fewshot_splits=tuple(split for split in shots if split),
            files={split: self.path.parent / file for split, file in files.items()},
        )

    def _options(self) -> Callable[[Doc], list[str]] | None:
        source = self._of_kind("doc_to_choice", (str, list), None, "a list, a column or a template")
        return None if source is None else choices_of(source, f"{self.path}: doc_to_choice")

    def _shows_letters(self) -> bool:
        fixed = self.config.get("doc_to_choice")
        return isinstance(fixed, list) and [str(choice) for choice in fixed] == letters(len(fixed))

    def _question(self) -> Callable[[Doc], str]:
        if self.config.get("question") is not None:
            return self._text("question")
        text = self._text("doc_to_text")
        return lambda doc: text(doc).removesuffix("Answer:").rstrip()

    def _formats(self) -> dict[ProtocolName, PromptFormat]:
        options = self._options()
        kind = self.config.get("output_type", "generate_until" if options is None else "multiple_choice")
        if kind not in ("multiple_choice", "generate_until"):
            raise unknown_name(f"output_type in {self.path}", str(kind), ["multiple_choice", "generate_until"])
        if options is None:
            if kind == "multiple_choice":
                raise self._error("output_type multiple_choice needs the field 'doc_to_choice'")
            return {"generate": self._generation()}
        gold = self._gold(options)
        description = self._text("description")
        question = self._question()
        own = self._choice(options, gold)
        if self._shows_letters():
            written: GenerationFormat = self._letters_written(gold, options)
            return {"default": own, "generate": self._generation() if kind == "generate_until" else written}
        return {
            "default": letter_choice(question, options, gold, description),
            "continuation": own,
            "generate": self._generation()
            if kind == "generate_until"
            else letter_generation(question, options, gold, description),
        }

    def _chosen(self, formats: dict[ProtocolName, PromptFormat]) -> dict[ProtocolName, PromptFormat]:
        wanted = self._of_kind("protocols", list, None, "a list of protocols")
        if wanted is None:
            return formats
        for name in wanted:
            if name not in _PROTOCOLS:
                raise unknown_name(f"protocol in {self.path}", str(name), _PROTOCOLS)
            if name not in formats:
                raise self._error(f"protocol {name!r} is not possible here; possible: {', '.join(formats)}")
        return {name: formats[name] for name in _PROTOCOLS if name in wanted}

    def _gold(self, options: Callable[[Doc], list[str]]) -> Callable[[Doc], int]:
        target = target_of(
            self._of_kind("doc_to_target", (str, int), "", "a column, template or number"), str(self.path)
        )

        def gold(doc: Doc) -> int:
            value = target(doc)
            if isinstance(value, int):
                return value
            choices = options(doc)
            # lm-eval's order: digits that a template renders are an index, the text of a column is an option.
            if value.isdigit() and self.config["doc_to_target"] not in doc:
                return int(value)
            if value not in choices:
                raise ValueError(f"the answer {value!r} is not one of the options {choices}")
            return choices.index(value)

        return gold

    def _choice(self, options: Callable[[Doc], list[str]], gold: Callable[[Doc], int]) -> MultipleChoiceFormat:
        listed = [str(entry.get("metric")) for entry in self._metrics()]
        metrics = tuple(name for name in listed if name in ("acc", "acc_norm")) or ("acc", "acc_norm")
        primary = self._of_kind("primary_metric", str, metrics[0], "acc or acc_norm")
        if primary not in metrics:
            raise unknown_name(f"primary_metric in {self.path}", primary, metrics)
        return MultipleChoiceFormat(
            context=self._text("doc_to_text"),
            choices=options,
            gold=gold,
            description=self._text("description"),
            metrics=metrics,
            primary_metric=primary,
            target_delimiter=self._target_delimiter,
            fewshot_delimiter=self._fewshot_delimiter,
        )

    @property
    def _target_delimiter(self) -> str:
        return self._of_kind("target_delimiter", str, " ", "text")

    @property
    def _fewshot_delimiter(self) -> str:
        return self._of_kind("fewshot_delimiter", str, "\n\n", "text")

    def _metrics(self) -> Sequence[Mapping[str, Any]]:
        entries = self._of_kind("metric_list", list, [], "a list")
        for entry in entries:
            if not isinstance(entry, dict) or entry.get("metric") not in ("acc", "acc_norm", "exact_match"):
                raise self._error(f"metric_list: {entry!r}, expected a metric: acc, acc_norm or exact_match")
        return entries

    def _filters(self) -> tuple[Filter, ...]:
        chains = []
        for entry in self._of_kind("filter_list", list, [], "a list"):
            if not isinstance(entry, dict) or "name" not in entry or not isinstance(entry.get("filter"), list):
                raise self._error(f"filter_list: {entry!r}, expected the fields name and filter")
            steps = [self._step(step) for step in entry["filter"]]
            chains.append(FilterChain(str(entry["name"]), tuple(step for step in steps if step is not None)))
        return tuple(chains) or (FilterChain("none", ()),)

    def _step(self, step: Mapping[str, Any]) -> Callable[[str], str | None] | None:
        function = step.get("function") if isinstance(step, dict) else None
        if function == "regex":
            pattern = str(step.get("regex_pattern", r"#### (\-?[0-9\.\,]+)"))
            try:
                return RegexFilter("regex", pattern, int(step.get("group_select", 0)))
            except (re.error, ValueError) as error:
                raise self._error(f"filter_list: {pattern!r} is not a regular expression ({error})") from None
        if function == "remove_whitespace":
            return remove_whitespace
        if function == "take_first":
            return None
        raise unknown_name(
            f"filter function in {self.path}", str(function), ["regex", "remove_whitespace", "take_first"]
        )

    def _generation(self) -> GenerationFormat:
        options = self._options()
        gold = self._gold(options) if options is not None else None
        target = target_of(
            self._of_kind("doc_to_target", (str, int), "", "a column, template or number"), str(self.path)
        )

        def answer(doc: Doc) -> str:
            return str(target(doc)) if options is None or gold is None else options(doc)[gold(doc)]

        filters = self._filters()
        matching = next((entry for entry in self._metrics() if entry.get("metric") == "exact_match"), {})
        kwargs = self._of_kind("generation_kwargs", dict, {}, "a mapping")
        until = kwargs.get("until", [self._fewshot_delimiter])
        until = [until] if isinstance(until, str) else until
        primary = self._of_kind("primary_metric", str, filters[0].name, "the name of a filter")
        if options is None and primary not in [entry.name for entry in filters]:
            raise unknown_name(f"filter in {self.path}", primary, [entry.name for entry in filters])
        return GenerationFormat(
            context=self._text("doc_to_text"),
            target=answer,
            filters=filters,
            matches=partial(exact_match, **{key: matching[key] for key in _MATCH_OPTIONS if key in matching}),
            primary_filter=primary if options is None else filters[0].name,
            until=tuple(str(stop) for stop in until),
            max_new_tokens=int(kwargs.get("max_gen_toks", _MAX_NEW_TOKENS)),
            display_gold=answer,
            description=self._text("description"),
            target_delimiter=self._target_delimiter,
            fewshot_delimiter=self._fewshot_delimiter,
        )

    def _letters_written(self, gold: Callable[[Doc], int], options: Callable[[Doc], list[str]]) -> GenerationFormat:
        form = letter_generation(lambda doc: "", options, gold, self._text("description"))
        return GenerationFormat(
            context=self._text("doc_to_text"),
            target=form.target,
            filters=form.filters,
            matches=form.matches,
            primary_filter=form.primary_filter,
            until=LETTER_UNTIL,
            max_new_tokens=form.max_new_tokens,
            display_gold=form.display_gold,
            description=form.description,
            is_answer=form.is_answer,
            target_delimiter=self._target_delimiter,
            fewshot_delimiter=self._fewshot_delimiter,
        )
