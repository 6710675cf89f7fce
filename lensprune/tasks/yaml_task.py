"""A task from one YAML file, in the fields of lm-eval's task files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lensprune.errors import UserError, unknown_name
from lensprune.paths import usable_path
from lensprune.tasks.base import (
    TASK_KINDS,
    Doc,
    FewshotSampler,
    GenerationFormat,
    MultipleChoiceFormat,
    PromptFormat,
    ProtocolName,
    Task,
)
from lensprune.tasks.filters import AnyOf, FilterChain, RegexFilter, answers_of, exact_match, remove_whitespace
from lensprune.tasks.formats import LETTER_UNTIL, letter_choice, letter_generation, letters, uniform_chance
from lensprune.tasks.generation_settings import generation_settings
from lensprune.tasks.registry import register_task
from lensprune.tasks.sources import Dataset
from lensprune.tasks.templates import choices_of, is_index, target_of, text_of
from lensprune.tasks.yaml_fields import (
    FEWSHOT_OVERRIDES,
    FEWSHOT_REFUSED,
    FEWSHOT_USED,
    FILTERS_REFUSED,
    METRICS_REFUSED,
    check_keys,
    read_fields,
)

__all__ = ["register_yaml"]

_PROTOCOLS: tuple[ProtocolName, ...] = ("default", "continuation", "generate")
_MATCH_OPTIONS = ("regexes_to_ignore", "ignore_case", "ignore_punctuation", "ignore_numbers")
_METRIC_KEYS = ("metric", "aggregation", "higher_is_better", "hf_evaluate")
_CHOICE_METRICS = ("acc", "acc_norm", "acc_bytes")
_STEP_KEYS = {
    "lowercase": (),
    "majority_vote": (),
    "map": ("mapping_dict", "default_value"),
    "regex": ("regex_pattern", "group_select", "fallback"),
    "remove_whitespace": (),
    "take_first": (),
    "uppercase": (),
}
_ONE_ANSWER = ("take_first", "majority_vote")
"""Filters that choose among several sampled answers; with one answer they choose that one."""
_INVALID = "[invalid]"
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
        formats = self._chosen(self._formats_with_examples())
        options = self._options()
        chance = self._of_kind("chance", (int, float), 0.0, "a number")
        fewshot = self._fewshot()
        sampler: FewshotSampler = "first_n" if fewshot.get("sampler") == "first_n" else "random"
        if fewshot.get("sampler") not in (None, "default", "first_n"):
            raise unknown_name(f"sampler in {self.path}", str(fewshot["sampler"]), ["default", "first_n"])
        samples = fewshot.get("samples")
        if samples is not None and not (isinstance(samples, list) and all(isinstance(row, dict) for row in samples)):
            raise self._error(f"fewshot_config: samples is {samples!r}, expected a list of rows")
        fewshot_split = fewshot.get("split") or self.config.get("fewshot_split")
        shots = self._of_kind("num_fewshot", int, 0, "a whole number")
        kind = self._of_kind("kind", str, None, "text")
        if kind not in (None, *TASK_KINDS):
            raise unknown_name(f"kind in {self.path}", kind, TASK_KINDS)
        return Task(
            name=str(self.config["task"]),
            summary=self._of_kind("summary", str, f"from {self.path.name}", "text"),
            formats=formats,
            chance=uniform_chance(options) if options is not None else lambda doc, protocol: float(chance),
            load=self._dataset(fewshot_split),
            default_shots=shots,
            fewshot_sampler=sampler,
            fixed_fewshot=tuple(samples) if samples is not None and fewshot_split is None else None,
            # lm-eval compares the two fields as given, so two absent ones count as equal.
            exclude_self=fewshot_split == self.config.get("test_split"),
            kind=kind,
            closed_book=self._of_kind("closed_book", str, None, "the name of a task"),
            source=str(self.path),
        )

    def _dataset(self, fewshot_split: str | None) -> Dataset:
        evaluated = self.config.get("test_split") or self.config.get("validation_split")
        shots = [fewshot_split or self.config.get("training_split") or self.config.get("validation_split")]
        hub = self._of_kind("dataset_path", str, None, "text")
        kwargs = self._of_kind("dataset_kwargs", dict, {}, "a mapping")
        check_keys(kwargs, ("data_files",), _DATASET_KWARGS, f"{self.path}: dataset_kwargs", "setting")
        files = kwargs.get("data_files") or {}
        if not isinstance(files, dict):
            raise self._error(f"dataset_kwargs: data_files is {files!r}, expected a mapping of split to path")
        if files and hub not in (None, "json"):
            raise self._error(f"dataset_path is {hub!r}, but data_files are read as JSON Lines: expected json")
        if hub in _BUILDERS:
            raise self._error(f"dataset_path {hub!r} is not supported: convert the files to JSON Lines, and give json")
        return Dataset(
            folder=self._of_kind("folder", str, str(self.config["task"]), "text"),
            columns=tuple(self._of_kind("columns", list, [], "a list of column names")),
            hub=None if hub == "json" else hub,
            config=self._of_kind("dataset_name", str, None, "text"),
            splits=(evaluated,) if evaluated else ("test", "validation"),
            fewshot_splits=tuple(split for split in shots if split),
            files={split: self._paths(split, given) for split, given in files.items()},
        )

    def _paths(self, split: str, given: Any) -> tuple[Path, ...]:
        paths = [given] if isinstance(given, str) else given
        if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
            raise self._error(f"dataset_kwargs: data_files of {split} is {given!r}, expected a path or a list of paths")
        return tuple(self.path.parent / path for path in paths)

    def _fewshot(self) -> Mapping[str, Any]:
        fewshot: Mapping[str, Any] = self._of_kind("fewshot_config", dict, {}, "a mapping")
        check_keys(fewshot, FEWSHOT_USED, FEWSHOT_REFUSED, f"{self.path}: fewshot_config", "setting")
        return fewshot

    def _options(self) -> Callable[[Doc], list[str]] | None:
        source = self._of_kind("doc_to_choice", (str, list, dict), None, "a list, a mapping, a column or a template")
        return None if source is None else choices_of(source, f"{self.path}: doc_to_choice")

    def _shows_letters(self) -> bool:
        fixed = self.config.get("doc_to_choice")
        fixed = list(fixed.values()) if isinstance(fixed, dict) else fixed
        return isinstance(fixed, list) and [str(choice) for choice in fixed] == letters(len(fixed))

    def _question(self) -> Callable[[Doc], str]:
        if self.config.get("question") is not None:
            return self._text("question")
        text = self._text("doc_to_text")
        return lambda doc: text(doc).removesuffix("Answer:").rstrip()

    def _formats_with_examples(self) -> dict[ProtocolName, PromptFormat]:
        """The formats, with few-shot examples written according to ``fewshot_config``."""
        formats = self._formats()
        overrides = {
            name: value for name, value in self._fewshot().items() if name in FEWSHOT_OVERRIDES and value is not None
        }
        if not overrides:
            return formats
        examples = _TaskFile(self.path, {**self.config, **overrides})._formats()
        if set(examples) != set(formats):
            raise self._error("fewshot_config: the examples must have options exactly where the question has them")
        return {name: replace(fmt, example=examples[name]) for name, fmt in formats.items()}

    def _formats(self) -> dict[ProtocolName, PromptFormat]:
        options = self._options()
        kind = self.config.get("output_type", "generate_until" if options is None else "multiple_choice")
        if kind not in ("multiple_choice", "generate_until"):
            raise unknown_name(f"output_type in {self.path}", str(kind), ["multiple_choice", "generate_until"])
        if options is None:
            if kind == "multiple_choice":
                raise self._error("output_type multiple_choice needs the field 'doc_to_choice'")
            return {"generate": self._generation()}
        if kind == "multiple_choice":
            self._check_no_generation()
        gold = self._gold(options)
        description = self._text("description")
        question = self._question()
        letters = self._choice(options, gold)
        if self._shows_letters():
            written: GenerationFormat = self._letters_written(gold, options)
            return {"default": letters, "generate": self._generation() if kind == "generate_until" else written}
        return {
            "default": letter_choice(question, options, gold, description),
            "continuation": letters,
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

    def _check_no_generation(self) -> None:
        """Reject generation settings if options are scored: lm-eval ignores them."""
        if self.config.get("generation_kwargs") is not None:
            raise self._error(
                "generation_kwargs have no effect with output_type multiple_choice: leave them out, or set "
                "generate_until"
            )
        for chain in self._filters():
            if chain.steps:
                raise self._error(f"filter {chain.name!r} has no effect with output_type multiple_choice: leave it out")
        if any(entry["metric"] == "exact_match" for entry in self._metrics()):
            raise self._error("metric exact_match is not measured with output_type multiple_choice: use acc")

    def _target(self) -> Callable[[Doc], str | int | tuple[str, ...]]:
        source = self._of_kind("doc_to_target", (str, int, list), "", "a column, template, number or list of answers")
        return target_of(source, f"{self.path}: doc_to_target")

    def _gold(self, options: Callable[[Doc], list[str]]) -> Callable[[Doc], int]:
        target = self._target()

        def gold(doc: Doc) -> int:
            value = target(doc)
            if isinstance(value, tuple):
                raise ValueError(f"the answer {list(value)} is a list, but only one of several options can be right")
            if isinstance(value, int):
                # A boolean is an index too: false for the first option, true for the second.
                return int(value)
            choices = options(doc)
            # lm-eval's rule: digits rendered by a template are an index, a column's text is an option.
            if value.isdigit() and self.config["doc_to_target"] not in doc:
                return int(value)
            if value not in choices:
                raise ValueError(f"the answer {value!r} is not one of the options {choices}")
            return choices.index(value)

        return gold

    def _choice(self, options: Callable[[Doc], list[str]], gold: Callable[[Doc], int]) -> MultipleChoiceFormat:
        listed = [str(entry.get("metric")) for entry in self._metrics()]
        metrics = tuple(name for name in listed if name in _CHOICE_METRICS) or ("acc", "acc_norm")
        primary = self._of_kind("primary_metric", str, metrics[0], "a metric")
        if primary not in metrics:
            raise unknown_name(f"primary_metric in {self.path}", primary, metrics)
        return MultipleChoiceFormat(
            context=self._context(),
            choices=options,
            gold=gold,
            description=self._text("description"),
            metrics=metrics,
            primary_metric=primary,
            target_delimiter=self._target_delimiter,
            fewshot_delimiter=self._fewshot_delimiter,
        )

    def _context(self) -> Callable[[Doc], str]:
        source, text = str(self.config["doc_to_text"]), self._text("doc_to_text")

        def context(doc: Doc) -> str:
            shown = text(doc)
            if is_index(source, shown, doc):
                # lm-eval then treats the options as questions, and the target as the continuation of each.
                raise ValueError(f"doc_to_text gives the number {shown!r}, but options as questions are not supported")
            return shown

        return context

    @property
    def _target_delimiter(self) -> str:
        return self._of_kind("target_delimiter", str, " ", "text")

    @property
    def _fewshot_delimiter(self) -> str:
        return self._of_kind("fewshot_delimiter", str, "\n\n", "text")

    def _metrics(self) -> Sequence[Mapping[str, Any]]:
        entries = self._of_kind("metric_list", list, [], "a list")
        known = (*(_CHOICE_METRICS if self.config.get("doc_to_choice") is not None else ()), "exact_match")
        for entry in entries:
            name = entry.get("metric") if isinstance(entry, dict) else None
            if name in METRICS_REFUSED:
                raise self._error(f"metric_list: metric {name!r} is not supported: {METRICS_REFUSED[name]}")
            if name not in known:
                raise self._error(f"metric_list: {entry!r}, expected a metric: {', '.join(known)}")
            self._check_metric(entry)
        names = [entry["metric"] for entry in entries]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise self._error(f"metric_list: {twice!r} is listed twice")
        return entries

    def _check_metric(self, entry: Mapping[str, Any]) -> None:
        where = f"metric_list: {entry['metric']}"
        options = _MATCH_OPTIONS if entry["metric"] == "exact_match" else ()
        check_keys(entry, (*_METRIC_KEYS, *options), {}, f"{self.path}: {where}", "setting")
        for name, expected in (("aggregation", "mean"), ("higher_is_better", True), ("hf_evaluate", False)):
            if entry.get(name, expected) != expected:
                raise self._error(f"{where}: {name} is {entry[name]!r}, expected {expected!r}")
        for name in options:
            value = entry.get(name)
            if name == "regexes_to_ignore":
                if value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
                    raise self._error(f"{where}: {name} is {value!r}, expected a list of regular expressions")
                for pattern in value or []:
                    self._compiled(pattern, where)
            elif not isinstance(value, bool | None):
                raise self._error(f"{where}: {name} is {value!r}, expected true or false")

    def _compiled(self, pattern: str, where: str) -> None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise self._error(f"{where}: {pattern!r} is not a regular expression ({error})") from None

    def _filters(self) -> tuple[FilterChain, ...]:
        chains = []
        for entry in self._of_kind("filter_list", list, [], "a list"):
            if not isinstance(entry, dict) or "name" not in entry or not isinstance(entry.get("filter"), list):
                raise self._error(f"filter_list: {entry!r}, expected the fields name and filter")
            check_keys(entry, ("name", "filter"), {}, f"{self.path}: filter_list", "setting")
            steps = [self._step(step) for step in entry["filter"]]
            chains.append(FilterChain(str(entry["name"]), tuple(step for step in steps if step is not None)))
        names = [chain.name for chain in chains]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise self._error(f"filter_list: the name {twice!r} is given twice")
        return tuple(chains) or (FilterChain("none", ()),)

    def _step(self, step: Mapping[str, Any]) -> Callable[[str], str | None] | None:
        function = step.get("function") if isinstance(step, dict) else None
        if function in FILTERS_REFUSED:
            raise self._error(f"filter_list: filter {function!r} is not supported: {FILTERS_REFUSED[function]}")
        if function not in _STEP_KEYS:
            raise unknown_name(f"filter function in {self.path}", str(function), _STEP_KEYS)
        check_keys(step, ("function", *_STEP_KEYS[function]), {}, f"{self.path}: filter_list: {function}", "setting")
        if function == "regex":
            return self._regex(step)
        if function == "map":
            mapping, default = step.get("mapping_dict") or {}, step.get("default_value")
            if not isinstance(mapping, dict):
                raise self._error(f"filter_list: mapping_dict is {mapping!r}, expected a mapping")
            words = {str(key): str(value) for key, value in mapping.items()}
            return lambda text: words.get(text, None if default is None else str(default))
        simple = {"lowercase": str.lower, "uppercase": str.upper, "remove_whitespace": remove_whitespace}
        return None if function in _ONE_ANSWER else simple[function]

    def _regex(self, step: Mapping[str, Any]) -> RegexFilter:
        pattern = str(step.get("regex_pattern", r"#### (\-?[0-9\.\,]+)"))
        self._compiled(pattern, "filter_list")
        group, fallback = step.get("group_select", 0), step.get("fallback", _INVALID)
        if isinstance(group, bool) or not isinstance(group, int):
            raise self._error(f"filter_list: group_select is {group!r}, expected a whole number")
        if not isinstance(fallback, str):
            raise self._error(f"filter_list: fallback is {fallback!r}, expected text")
        return RegexFilter("regex", pattern, group, None if fallback == _INVALID else fallback)

    def _generation(self) -> GenerationFormat:
        options = self._options()
        gold = self._gold(options) if options is not None else None
        target = self._target()

        def answer(doc: Doc) -> str:
            if options is not None and gold is not None:
                return options(doc)[gold(doc)]
            value = target(doc)
            return AnyOf(value) if isinstance(value, tuple) else str(value)

        filters = self._filters()
        matching = next((entry for entry in self._metrics() if entry.get("metric") == "exact_match"), {})
        settings = generation_settings(
            self._of_kind("generation_kwargs", dict, {}, "a mapping"), [self._fewshot_delimiter], str(self.path)
        )
        primary = self._of_kind("primary_metric", str, filters[0].name, "the name of a filter")
        if options is None and primary not in [entry.name for entry in filters]:
            raise unknown_name(f"filter in {self.path}", primary, [entry.name for entry in filters])
        return GenerationFormat(
            context=self._text("doc_to_text") if options is None else self._context(),
            target=answer,
            filters=filters,
            matches=partial(exact_match, **{key: matching[key] for key in _MATCH_OPTIONS if matching.get(key)}),
            primary_filter=primary if options is None else filters[0].name,
            **vars(settings),
            samples=self._repeats() if settings.temperature else 1,
            display_gold=lambda doc: " | ".join(answers_of(answer(doc))),
            description=self._text("description"),
            target_delimiter=self._target_delimiter,
            fewshot_delimiter=self._fewshot_delimiter,
        )

    def _repeats(self) -> int:
        repeats = int(self._of_kind("repeats", int, 1, "a whole number"))
        if repeats < 1:
            raise self._error(f"field 'repeats' is {repeats}, expected a whole number of 1 or more")
        return repeats

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
            measures=form.measures,
            own_filters=form.own_filters,
            target_delimiter=self._target_delimiter,
            fewshot_delimiter=self._fewshot_delimiter,
        )
