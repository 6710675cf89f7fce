"""Key-value retrieval (Liu et al. 2023, "Lost in the Middle"): read one value out of a JSON object."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from lensprune.errors import UserError
from lensprune.tasks.base import (
    Doc,
    GenerationFormat,
    MultipleChoiceFormat,
    PromptFormat,
    ProtocolName,
    RowRequest,
    Rows,
    Task,
)
from lensprune.tasks.bundled.kv_rows import balanced_position, generate_kv_rows
from lensprune.tasks.distractors import shuffled_options
from lensprune.tasks.filters import RegexFilter, exact_match
from lensprune.tasks.formats import AnswerForm, choose_from, letter_choice
from lensprune.tasks.measures import contains
from lensprune.tasks.registry import register_task
from lensprune.tasks.sources import Dataset

__all__ = ["GoldPosition", "kv_retrieval", "with_pairs"]

GoldPosition = Literal["balanced", "as_is", "first", "middle", "last"]
Ending = Literal["plain", "reopened"]
Keys = Literal["auto", "word", "uuid"]

_FOLDER = "kv_retrieval"
_COLUMNS = ("ordered_kv_records", "key", "value")
_INSTRUCTION = "Extract the value corresponding to the specified key in the JSON object below."
_OPTIONS = 4
_GENERATED_ROWS = 200
_GENERATED_SHOTS = 50
_SHOT_SEED_OFFSET = 1_000_003
_VALUE = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[A-Za-z0-9]+"
_MAX_NEW_TOKENS = 40
"""A UUID has 36 characters, which tokenizers that split digits turn into up to 36 tokens."""


def with_pairs(row: Doc, pairs: int, gold: GoldPosition | int, index: int) -> dict[str, object]:
    """Cut a row down to `pairs` pairs and move its gold pair.

    The gold pair and the first `pairs` − 1 others are kept, in order (as the authors cut their rows).

    Args:
        row: with ``ordered_kv_records``, ``key`` and ``value``.
        gold: position of the gold pair from 0, or ``balanced`` (`balanced_position` of `index`), ``first``, ``middle``,
            ``last``, or ``as_is`` (its place in the row among the kept pairs).
        index: number of the row from 0.

    Raises:
        UserError: the row has fewer pairs, or no pair with its key and value.
    """
    records = [(str(key), str(value)) for key, value in row["ordered_kv_records"]]
    wanted = (str(row["key"]), str(row["value"]))
    if wanted not in records:
        raise UserError(f"task {_FOLDER!r}: row {index + 1} has no pair {wanted[0]!r}: {wanted[1]!r}")
    if len(records) < pairs:
        raise UserError(f"task {_FOLDER!r}: row {index + 1} has {len(records)} pairs, but {pairs} were requested")
    own_place = records.index(wanted)
    others = [record for record in records if record != wanted][: pairs - 1]
    places = {
        "balanced": balanced_position(index, pairs),
        "as_is": min(own_place, pairs - 1),
        "first": 0,
        "middle": pairs // 2,
        "last": pairs - 1,
    }
    place = gold if isinstance(gold, int) else places[gold]
    return {
        "ordered_kv_records": [list(record) for record in (*others[:place], wanted, *others[place:])],
        "key": wanted[0],
        "value": wanted[1],
        "gold_position": place,
    }


def _json(doc: Doc) -> str:
    lines = [f'"{key}": "{value}"' for key, value in doc["ordered_kv_records"]]
    return "{" + ",\n ".join(lines) + "}"


def _data(doc: Doc) -> str:
    return f"{_INSTRUCTION}\n\nJSON data:\n{_json(doc)}"


_ENDINGS: dict[Ending, Callable[[Doc], str]] = {
    "plain": lambda doc: f'Key: "{doc["key"]}"\nCorresponding value:',
    "reopened": lambda doc: f'"{doc["key"]}": "',
}


def _value(doc: Doc) -> str:
    return str(doc["value"])


def _options(doc: Doc) -> tuple[list[str], int]:
    values = [value for _, value in doc["ordered_kv_records"]]
    return shuffled_options(str(doc["key"]), _value(doc), values, _OPTIONS)


def _formats(ending: Ending, answer: AnswerForm) -> dict[ProtocolName, PromptFormat]:
    last = _ENDINGS[ending]
    delimiter, closing = (" ", "") if ending == "plain" else ("", '"')
    until = ("\n\n", "}", "Key:") if ending == "plain" else ('"', "\n")

    def prompt(doc: Doc) -> str:
        return f"{_data(doc)}\n\n{last(doc)}"

    continuation = MultipleChoiceFormat(
        context=prompt,
        choices=lambda doc: _options(doc)[0],
        gold=lambda doc: _options(doc)[1],
        target_delimiter=delimiter,
        fewshot_delimiter=f"{closing}\n\n",
        metrics=("acc",),
        primary_metric="acc",
    )
    if answer == "text":
        default = replace(
            continuation, context=lambda doc: f"{_data(doc)}\n\n{choose_from(_options(doc)[0])}\n{last(doc)}"
        )
    else:
        default = letter_choice(
            lambda doc: f"{_data(doc)}\n\n{_ENDINGS['plain'](doc)}", continuation.choices, continuation.gold
        )
    return {
        "default": default,
        "continuation": continuation,
        "generate": GenerationFormat(
            context=prompt,
            target=_value,
            filters=(RegexFilter("first-value", _VALUE),),
            matches=partial(exact_match, ignore_case=True),
            primary_filter="first-value",
            until=until,
            max_new_tokens=_MAX_NEW_TOKENS,
            display_gold=_value,
            target_delimiter=delimiter,
            fewshot_delimiter=f"{closing}\n\n",
            measures={"contains_value": lambda text, doc: contains(text, _value(doc))},
        ),
    }


def _chance(doc: Doc, protocol: ProtocolName) -> float:
    n_values = len(doc["ordered_kv_records"])
    return 1.0 / (n_values if protocol == "generate" else min(_OPTIONS, n_values))


@dataclass(frozen=True)
class _KeyValueRows:
    pairs: int
    gold: GoldPosition | int
    keys: Keys

    def __call__(self, request: RowRequest) -> Rows:
        folder = request.data_dir / _FOLDER if request.data_dir is not None else None
        local = folder is not None and folder.is_dir()
        keys = self.keys if self.keys != "auto" else ("uuid" if local else "word")
        if folder is not None and local and keys == "uuid":
            split = request.split or self._file_with_enough_pairs(folder)
            dataset = Dataset(folder=_FOLDER, columns=_COLUMNS, splits=(split,), fewshot_splits=())
            rows = dataset(RowRequest(request.data_dir, split, request.limit, request.shots, request.seed))
            docs, shots, source, shared = rows.docs, rows.fewshot, rows.source, True
        else:
            docs, shots = self._generated(request, keys)
            source, shared = f"generated: {keys} keys, seed {request.seed}", False
        return Rows(
            [with_pairs(row, self.pairs, self.gold, index) for index, row in enumerate(docs)],
            [with_pairs(row, self.pairs, self.gold, index) for index, row in enumerate(shots)],
            source,
            fewshot_is_evaluated=shared,
            parameters={"keys": keys},
            # Keys are random, and gold positions are balanced over the first n rows for any n.
            random_order=True,
        )

    def _file_with_enough_pairs(self, folder: Path) -> str:
        sizes = {}
        for path in folder.glob("*.jsonl"):
            match = re.fullmatch(r"test_(\d+)_keys", path.stem)
            if match is not None:
                sizes[int(match[1])] = path.stem
        enough = [size for size in sizes if size >= self.pairs]
        if not enough:
            known = ", ".join(str(size) for size in sorted(sizes)) or "none"
            raise UserError(f"{folder}: no file test_N_keys.jsonl with N ≥ {self.pairs} pairs; N there: {known}")
        return sizes[min(enough)]

    def _generated(self, request: RowRequest, keys: str) -> tuple[Sequence[Doc], Sequence[Doc]]:
        if request.split is not None:
            raise UserError(f"task {_FOLDER!r}: generated rows have no split {request.split!r}")
        docs = generate_kv_rows(max(_GENERATED_ROWS, request.limit or 0), self.pairs, keys, request.seed)
        n_shots = max(_GENERATED_SHOTS, request.shots) if request.shots else 0
        return docs, generate_kv_rows(n_shots, self.pairs, keys, request.seed + _SHOT_SEED_OFFSET) if n_shots else []


@register_task
def kv_retrieval(
    pairs: int = 4,
    gold: GoldPosition | int = "balanced",
    keys: Keys = "auto",
    ending: Ending = "plain",
    answer: AnswerForm = "letter",
) -> Task:
    """Key-value retrieval with the prompt of "Lost in the Middle", on its rows or on generated ones.

    Args:
        pairs: key-value pairs in the JSON object.
        gold: position of the gold pair, from 0, or a word (see `with_pairs`).
        keys: ``uuid``: the authors' rows if the data folder holds them, else generated UUIDs; ``word``: generated words
            with four-digit values; ``auto``: ``uuid`` if the data folder has a folder ``kv_retrieval``, else ``word``.
        ending: ``plain`` ends in ``Corresponding value:``; ``reopened`` ends in the key as written in the JSON, with
            the value's opening quote (``"key": "``).
        answer: what ``default`` scores: the ``letter`` below lettered options, or the value's ``text`` after a line
            that lists the options and the prompt's ending.

    ``default`` and ``continuation`` offer the value and three other values of the same JSON (`shuffled_options`,
    seeded by the key); ``continuation`` scores the bare value. ``generate`` compares the first UUID or word of the
    answer with the value; the metric ``contains_value`` is the authors', which requires only that the value occurs in
    it. Chance under ``generate`` is one over the number of pairs, as for a model that copies a random value.

    Raises:
        UserError: `pairs` below 2, or `gold` outside the list.
    """
    if pairs < 2:
        raise UserError(f"task 'kv_retrieval': pairs={pairs}, expected 2 or more")
    if isinstance(gold, int) and not 0 <= gold < pairs:
        raise UserError(f"task 'kv_retrieval': gold={gold} is outside the list, expected 0 to {pairs - 1}")
    return Task(
        name="kv_retrieval",
        summary="read one value from a JSON object",
        kind="retrieval",
        formats=_formats(ending, answer),
        chance=_chance,
        load=_KeyValueRows(pairs, gold, keys),
        licence="MIT (rows of Lost in the Middle); generated rows are this project's",
        source="https://github.com/nelson-liu/lost-in-the-middle",
    )
