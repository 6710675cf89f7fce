"""The questions of a run: prompt, options and right answers of every item, once per task and protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from lensprune.errors import UserError
from lensprune.protocols.base import ItemRequests
from lensprune.protocols.registry import protocol_named
from lensprune.protocols.requests import LoglikelihoodRequest
from lensprune.runs.spec import canonical_json
from lensprune.tasks.base import LoadedTask, MultipleChoiceFormat, PromptFormat
from lensprune.tasks.filters import answers_of

__all__ = [
    "QUESTIONS",
    "Question",
    "question_table",
    "questions_from_parquet",
    "questions_hash",
    "questions_to_parquet",
    "storable",
]

QUESTIONS = pa.schema(
    [
        ("item_id", pa.string()),
        ("prompt", pa.string()),
        ("options", pa.list_(pa.string())),
        ("reference", pa.list_(pa.string())),
        ("gold", pa.int32()),
        ("option_tokens", pa.list_(pa.int32())),
        ("option_characters", pa.list_(pa.int32())),
        ("option_bytes", pa.list_(pa.int32())),
        ("option_context", pa.list_(pa.int32())),
    ]
)
"""One row per item, in the order of the records; the columns are the fields of `Question`."""

_BATCH = 1000
_PAGE_BYTES = 2**24
"""Parquet compresses page by page: in a large page, the examples that prompts share are stored once."""


@dataclass(frozen=True)
class Question:
    """One item under one protocol.

    `prompt` is the text that every request starts with: the description, the examples and the question, in the model's
    chat format where the run uses one. Tokens that did not fit the model's context were cut from its left; the records
    count them (`truncated_tokens`). `prompt` + `options[i]` is the whole text of option i. The first
    `option_context[i]` characters of the option are read and not scored (0, except where the options are contexts, as
    in winogrande). The others are the `option_tokens[i]` tokens whose log-probability is in the records.
    `option_characters` and `option_bytes` are the lengths by which ``acc_norm`` and ``acc_bytes`` divide. Where a text
    is generated there are no options.

    `reference` holds the right answers: the right option as the task words it, with its index `gold`; where a text is
    generated, every text that the answer is compared with.
    """

    item_id: str
    prompt: str
    options: tuple[str, ...]
    reference: tuple[str, ...]
    gold: int | None
    option_tokens: tuple[int, ...]
    option_characters: tuple[int, ...]
    option_bytes: tuple[int, ...]
    option_context: tuple[int, ...]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """A row of a table with the columns `QUESTIONS`."""
        values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in row.items()}
        return cls(**values)


def storable(text: str) -> str:
    """`text` as valid UTF-8: a lone surrogate, which JSON can carry and Parquet cannot, becomes an escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def question_table(task: LoadedTask, protocol: str, items: Sequence[ItemRequests]) -> pa.Table:
    """The questions of `items`, from the requests that are sent.

    Raises:
        UserError: the index of a right option is out of range.
    """
    fmt = protocol_named(protocol).format_of(task.task)
    return pa.Table.from_pylist([asdict(_question(fmt, item)) for item in items], schema=QUESTIONS)


def _question(fmt: PromptFormat, of_item: ItemRequests) -> Question:
    doc, gold = of_item.item.doc, None
    prompt = _shared_start([prompt.context for prompt in of_item.prompts])
    scored = [
        (text, request)
        for text, request in zip(of_item.prompts, of_item.requests, strict=True)
        if isinstance(request, LoglikelihoodRequest)
    ]
    options = [text.context[len(prompt) :] + text.continuation for text, _ in scored]
    if isinstance(fmt, MultipleChoiceFormat):
        choices = list(fmt.choices(doc))
        gold = fmt.gold(doc)
        if not 0 <= gold < len(choices):
            raise UserError(
                f"item {of_item.item.id}: the right option has index {gold}, but there are only {len(choices)} options"
            )
        reference: Sequence[str] = (choices[gold],)
    else:
        choices = options
        reference = answers_of(fmt.target(doc))
    measured = choices if len(choices) == len(options) else options
    return Question(
        item_id=storable(of_item.item.id),
        prompt=storable(prompt),
        options=tuple(map(storable, options)),
        reference=tuple(map(storable, reference)),
        gold=gold if options else None,
        option_tokens=tuple(len(request.continuation_ids) for _, request in scored),
        option_characters=tuple(map(len, measured)),
        option_bytes=tuple(len(option.encode("utf-8", "backslashreplace")) for option in measured),
        option_context=tuple(len(text.context) - len(prompt) for text, _ in scored),
    )


def _shared_start(contexts: Sequence[str]) -> str:
    """The common start of all contexts, in whole words."""
    if not contexts:
        return ""
    if all(context == contexts[0] for context in contexts):
        return contexts[0]
    # The first and the last in order differ as early as any two.
    first, last = min(contexts), max(contexts)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: first.rfind(" ", 0, shared) + 1]


def questions_hash(table: pa.Table) -> str:
    """sha256 over every row and column."""
    digest = hashlib.sha256()
    for batch in table.to_batches(max_chunksize=_BATCH):
        for row in batch.to_pylist():
            digest.update(canonical_json(row).encode())
            digest.update(b"\n")
    return digest.hexdigest()


def questions_to_parquet(table: pa.Table) -> bytes:
    """The bytes of a questions file."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, compression="zstd", compression_level=9, use_dictionary=False, data_page_size=_PAGE_BYTES
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


def questions_from_parquet(data: bytes) -> pa.Table:
    """Read what `questions_to_parquet` wrote."""
    return pq.read_table(pa.BufferReader(data))
