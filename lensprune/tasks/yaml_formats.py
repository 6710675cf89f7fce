"""The prompt formats of a task file: questions, options, right answers, and how examples differ from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lensprune.errors import unknown_name
from lensprune.tasks.base import (
    Doc,
    GenerationFormat,
    MultipleChoiceFormat,
    PromptFormat,
    ProtocolName,
)
from lensprune.tasks.filters import AnyOf, answers_of, exact_match
from lensprune.tasks.formats import LETTER_UNTIL, letter_choice, letter_generation, letters
from lensprune.tasks.generation_settings import generation_settings
from lensprune.tasks.templates import choices_of, is_index, target_of
from lensprune.tasks.yaml_fields import (
    FEWSHOT_OVERRIDES,
    FEWSHOT_REFUSED,
    FEWSHOT_USED,
    TaskFields,
    check_keys,
)
from lensprune.tasks.yaml_scoring import CHOICE_METRICS, MATCH_OPTIONS, read_filters, read_metrics

__all__ = ["YamlFormats"]


@dataclass(frozen=True)
class YamlFormats(TaskFields):
    """The formats of one task file, by protocol."""

    def formats_with_examples(self) -> dict[ProtocolName, PromptFormat]:
        """The formats, with few-shot examples written according to ``fewshot_config``."""
        formats = self._formats()
        overrides = {
            name: value for name, value in self.fewshot().items() if name in FEWSHOT_OVERRIDES and value is not None
        }
        if not overrides:
            return formats
        examples = YamlFormats(self.path, {**self.config, **overrides})._formats()
        if set(examples) != set(formats):
            raise self.error("fewshot_config: the examples must have options exactly where the question has them")
        return {name: replace(fmt, example=examples[name]) for name, fmt in formats.items()}

    def _formats(self) -> dict[ProtocolName, PromptFormat]:
        options = self.options()
        kind = self.config.get("output_type", "generate_until" if options is None else "multiple_choice")
        if kind not in ("multiple_choice", "generate_until"):
            raise unknown_name(f"output_type in {self.path}", str(kind), ["multiple_choice", "generate_until"])
        if options is None:
            if kind == "multiple_choice":
                raise self.error("output_type multiple_choice needs the field 'doc_to_choice'")
            return {"generate": self._generation()}
        if kind == "multiple_choice":
            self._check_no_generation()
        gold = self._gold(options)
        description = self.text("description")
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

    def fewshot(self) -> Mapping[str, Any]:
        """The settings of ``fewshot_config``, checked."""
        fewshot: Mapping[str, Any] = self.of_kind("fewshot_config", dict, {}, "a mapping")
        check_keys(fewshot, FEWSHOT_USED, FEWSHOT_REFUSED, f"{self.path}: fewshot_config", "setting")
        return fewshot

    def options(self) -> Callable[[Doc], list[str]] | None:
        """The options of a row, or ``None`` for an open answer."""
        source = self.of_kind("doc_to_choice", (str, list, dict), None, "a list, a mapping, a column or a template")
        return None if source is None else choices_of(source, f"{self.path}: doc_to_choice")

    def _shows_letters(self) -> bool:
        fixed = self.config.get("doc_to_choice")
        fixed = list(fixed.values()) if isinstance(fixed, dict) else fixed
        return isinstance(fixed, list) and [str(choice) for choice in fixed] == letters(len(fixed))

    def _question(self) -> Callable[[Doc], str]:
        if self.config.get("question") is not None:
            return self.text("question")
        text = self.text("doc_to_text")
        return lambda doc: text(doc).removesuffix("Answer:").rstrip()

    def _check_no_generation(self) -> None:
        """Reject generation settings if options are scored: lm-eval ignores them."""
        if self.config.get("generation_kwargs") is not None:
            raise self.error(
                "generation_kwargs have no effect with output_type multiple_choice: leave them out, or set "
                "generate_until"
            )
        for chain in read_filters(self):
            if chain.steps:
                raise self.error(f"filter {chain.name!r} has no effect with output_type multiple_choice: leave it out")
        if any(entry["metric"] == "exact_match" for entry in read_metrics(self)):
            raise self.error("metric exact_match is not measured with output_type multiple_choice: use acc")

    def _target(self) -> Callable[[Doc], str | int | tuple[str, ...]]:
        source = self.of_kind("doc_to_target", (str, int, list), "", "a column, template, number or list of answers")
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
        listed = [str(entry.get("metric")) for entry in read_metrics(self)]
        metrics = tuple(name for name in listed if name in CHOICE_METRICS) or ("acc", "acc_norm")
        primary = self.of_kind("primary_metric", str, metrics[0], "a metric")
        if primary not in metrics:
            raise unknown_name(f"primary_metric in {self.path}", primary, metrics)
        return MultipleChoiceFormat(
            context=self._context(),
            choices=options,
            gold=gold,
            description=self.text("description"),
            metrics=metrics,
            primary_metric=primary,
            target_delimiter=self._target_delimiter,
            fewshot_delimiter=self._fewshot_delimiter,
        )

    def _context(self) -> Callable[[Doc], str]:
        source, text = str(self.config["doc_to_text"]), self.text("doc_to_text")

        def context(doc: Doc) -> str:
            shown = text(doc)
            if is_index(source, shown, doc):
                # lm-eval then treats the options as questions, and the target as the continuation of each.
                raise ValueError(f"doc_to_text gives the number {shown!r}, but options as questions are not supported")
            return shown

        return context

    @property
    def _target_delimiter(self) -> str:
        return self.of_kind("target_delimiter", str, " ", "text")

    @property
    def _fewshot_delimiter(self) -> str:
        return self.of_kind("fewshot_delimiter", str, "\n\n", "text")

    def _generation(self) -> GenerationFormat:
        options = self.options()
        gold = self._gold(options) if options is not None else None
        target = self._target()

        def answer(doc: Doc) -> str:
            if options is not None and gold is not None:
                return options(doc)[gold(doc)]
            value = target(doc)
            return AnyOf(value) if isinstance(value, tuple) else str(value)

        filters = read_filters(self)
        matching = next((entry for entry in read_metrics(self) if entry.get("metric") == "exact_match"), {})
        settings = generation_settings(
            self.of_kind("generation_kwargs", dict, {}, "a mapping"), [self._fewshot_delimiter], str(self.path)
        )
        primary = self.of_kind("primary_metric", str, filters[0].name, "the name of a filter")
        if options is None and primary not in [entry.name for entry in filters]:
            raise unknown_name(f"filter in {self.path}", primary, [entry.name for entry in filters])
        return GenerationFormat(
            context=self.text("doc_to_text") if options is None else self._context(),
            target=answer,
            filters=filters,
            matches=partial(exact_match, **{key: matching[key] for key in MATCH_OPTIONS if matching.get(key)}),
            primary_filter=primary if options is None else filters[0].name,
            **vars(settings),
            samples=self._repeats() if settings.temperature else 1,
            display_gold=lambda doc: " | ".join(answers_of(answer(doc))),
            description=self.text("description"),
            target_delimiter=self._target_delimiter,
            fewshot_delimiter=self._fewshot_delimiter,
        )

    def _repeats(self) -> int:
        repeats = int(self.of_kind("repeats", int, 1, "a whole number"))
        if repeats < 1:
            raise self.error(f"field 'repeats' is {repeats}, expected a whole number of 1 or more")
        return repeats

    def _letters_written(self, gold: Callable[[Doc], int], options: Callable[[Doc], list[str]]) -> GenerationFormat:
        form = letter_generation(lambda doc: "", options, gold, self.text("description"))
        return GenerationFormat(
            context=self.text("doc_to_text"),
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
