"""A task's prompt strings, as lm-eval 0.4.13 builds them without a chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from lensprune.errors import unknown_name
from lensprune.tasks.base import (
    Doc,
    GenerationFormat,
    Item,
    LoadedTask,
    MultipleChoiceFormat,
    PromptFormat,
    ProtocolName,
    Task,
)
from lensprune.tasks.filters import answers_of

__all__ = ["build_context", "example_turns", "fewshot_example", "format_of", "prompt_hash", "prompt_strings"]


def format_of(task: Task, protocol: ProtocolName) -> PromptFormat:
    """The format of `task` under `protocol`.

    Raises:
        UserError: the task has no such protocol.
    """
    if protocol not in task.formats:
        raise unknown_name(f"protocol of task {task.name!r}", protocol, task.formats)
    return task.formats[protocol]


def example_turns(fmt: PromptFormat, doc: Doc) -> tuple[str, str]:
    """Question and answer of one worked example."""
    if isinstance(fmt, GenerationFormat):
        question, answer = fmt.context(doc), fmt.target(doc)
    elif fmt.continuation is not None:
        question, answer = fmt.context(doc) + fmt.choices(doc)[fmt.gold(doc)], fmt.continuation(doc)
    else:
        question, answer = fmt.context(doc), fmt.choices(doc)[fmt.gold(doc)]
    return question, answer


def fewshot_example(fmt: PromptFormat, doc: Doc) -> str:
    """One worked example: question, delimiter, answer, and the delimiter before the next text.

    lm-eval omits both delimiters and the answer if the answer is empty.
    """
    question, answer = example_turns(fmt, doc)
    return f"{question}{fmt.target_delimiter}{answer}{fmt.fewshot_delimiter}" if answer else question


def build_context(fmt: PromptFormat, item: Item) -> str:
    """The prompt of `item`: description, few-shot examples and question (lm-eval's ``fewshot_context``).

    With `per_choice_context` (winogrande) this is the part that all options share; `prompt_strings` appends the option.
    """
    examples = "".join(fewshot_example(fmt.example or fmt, doc) for doc in item.fewshot)
    return f"{fmt.description(item.doc)}{examples}{fmt.context(item.doc)}"


def prompt_strings(fmt: PromptFormat, item: Item) -> tuple[tuple[str, str], ...]:
    """(context, continuation) of each request of `item`: lm-eval's ``arguments``.

    One pair per option of a multiple-choice format, in order; one pair with an empty continuation for a generation.
    """
    context = build_context(fmt, item)
    if isinstance(fmt, GenerationFormat):
        return ((context, ""),)
    choices = fmt.choices(item.doc)
    if fmt.continuation is not None:
        shared = fmt.target_delimiter + fmt.continuation(item.doc)
        return tuple((context + choice, shared) for choice in choices)
    return tuple((context, fmt.target_delimiter + choice) for choice in choices)


def _hashed_strings(loaded: LoadedTask, fmt: PromptFormat) -> Iterator[str]:
    for item in loaded.items:
        yield item.id
        for context, continuation in prompt_strings(fmt, item):
            yield context
            yield continuation
        if isinstance(fmt, MultipleChoiceFormat):
            yield str(fmt.gold(item.doc))
        else:
            yield from answers_of(fmt.target(item.doc))
    if isinstance(fmt, GenerationFormat):
        yield from fmt.until
        yield str(fmt.max_new_tokens)


def prompt_hash(loaded: LoadedTask, protocol: ProtocolName) -> str:
    """sha256 (hex) of the item ids, prompts, continuations and answers of `loaded` under `protocol`, and of the stop
    strings and length limit of a generation.

    Every string is prefixed with its length in bytes, so that different lists of strings can't hash alike.

    Raises:
        UserError: the task has no such protocol.
    """
    digest = hashlib.sha256()
    for text in _hashed_strings(loaded, format_of(loaded.task, protocol)):
        encoded = text.encode()
        digest.update(f"{len(encoded)}:".encode())
        digest.update(encoded)
    return digest.hexdigest()
