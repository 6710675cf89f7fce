"""The records in a report's item browser: a limited number, starting with those that changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.runs_gap import shared_items
from lensprune.analysis.summary import summarise
from lensprune.output.plain_text import visible, visible_end
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.questions import Question
from lensprune.runs.records import CellKey

__all__ = ["MAX_RECORDS", "TEXT_LIMIT", "BrowserRows", "browser_rows", "shares_of"]

MAX_RECORDS = 15_000
TEXT_LIMIT = 400
"""Number of characters shown of a text."""
PROMPT_LIMIT, SHORTEST_PROMPT = 1_000, 200
"""Characters of a prompt that are shown, from its end, and how few they may become."""
MAX_PROMPT_CHARACTERS = 3_000_000
"""Of all prompts together, before they are cut to fewer than `PROMPT_LIMIT`."""
MAX_OPTIONS = 20
"""Options of a question that are shown."""
Record = Mapping[str, Any]
_NO_RECORDS: Sequence[Record] = ()
_COLUMNS = [
    "item_id",
    "target",
    "prediction",
    "correct",
    "gold_logprob",
    "option_logprobs",
    "failure",
    "text",
    "sample",
]


@dataclass(frozen=True)
class BrowserRows:
    """`payload` is plain JSON: names once, then each question with the clean model's answer once, then rows of numbers
    and texts. `shown` of `total` records of changed models are in it, and of each prompt the last `prompt_limit`
    characters."""

    payload: dict[str, Any]
    shown: int
    total: int
    prompt_limit: int


def shares_of(sizes: Mapping[CellKey, int], most: int) -> dict[CellKey, int]:
    """How many records of each cell to show, `most` in total: equal shares; what small cells don't use goes to others.

    Earlier cells get one more where the division leaves a remainder.
    """
    shares = dict.fromkeys(sizes, 0)
    left, open_cells = most, [key for key, size in sizes.items() if size > 0]
    while left and open_cells:
        each, more = divmod(left, len(open_cells))
        for i, key in enumerate(open_cells):
            given = min(sizes[key] - shares[key], each + (i < more))
            shares[key] += given
            left -= given
        open_cells = [key for key in open_cells if shares[key] < sizes[key]]
    return shares


def browser_rows(outcomes: Outcomes, most: int = MAX_RECORDS, other: Outcomes | None = None) -> BrowserRows:
    """Choose the variants' records for the browser, each with the clean model's answer to the same item.

    Up to `most` records, shared out evenly between cells (the largest losses first); within a cell the items whose
    outcome changed come first, then the others in their order. Reads one cell at a time.

    Args:
        other: a second run, whose answer to the same item stands beside each record.
    """
    summary = summarise(outcomes)
    changed = summary[summary["variant"] != CLEAN.name].sort_values("delta", kind="stable")
    places = zip(
        changed["variant"], changed["task"], changed["protocol"], changed["n"] * changed["samples"], strict=True
    )
    sizes = {CellKey(variant, task, protocol): int(n) for variant, task, protocol, n in places}
    shares = shares_of(sizes, most)
    rows = _Rows(outcomes, other)
    for key in (key for key in rows.finished if shares.get(key)):
        rows.add(key, shares[key])
    limit = _shorten_prompts(rows.questions)
    return BrowserRows(rows.payload(), len(rows.rows), sum(sizes.values()), limit)


class _Rows:
    """What the browser shows of a run, cell by cell; those of one (task, protocol) come one after the other."""

    def __init__(self, outcomes: Outcomes, other: Outcomes | None) -> None:
        self.finished = outcomes.finished()
        self.rows: list[list[Any]] = []
        self.questions: list[list[Any]] = []
        self._outcomes, self._other = outcomes, other
        self._names = _Names()
        self._clean: dict[int, dict[str, list[Any]]] = {}
        self._place, self._clean_records = ("", ""), _NO_RECORDS
        self._stored_questions: Any = None
        self._samples = 1

    def add(self, key: CellKey, share: int) -> None:
        """Add `share` records of a cell, if the clean model answered its items."""
        place = (key.task, key.protocol)
        if place != self._place:
            if CellKey(CLEAN.name, *place) not in self.finished:
                return
            clean = self._outcomes.cell(CellKey(CLEAN.name, *place), _COLUMNS, whole=True)
            self._place, self._clean_records = place, clean.to_pylist()
            self._stored_questions, self._samples = self._outcomes.questions(*place), self._outcomes.samples(*place)
        measured = self._outcomes.cell(key, [*_COLUMNS, "layer"], whole=True).to_pylist()
        beside = {} if self._other is None else _beside(self._outcomes, self._other, key)
        base = self._clean_records[: len(measured)]
        index = self._names.index
        condition, variant = index("conditions", place), index("variants", key.variant)
        for i in _chosen(measured, base, share):
            record = measured[i]
            item = self._item(condition, i, record, base[i])
            self.rows.append([condition, item, variant, record["layer"], *_answer(record, index)])
            if self._other is not None:
                self.rows[-1].append(_answer(beside[i], index) if i in beside else None)

    def _item(self, condition: int, i: int, record: Record, before: Record) -> str:
        """The name of record `i` of a task and protocol; its question and the clean model's answer are kept once."""
        item = visible(str(record["item_id"])) + (f", sample {record['sample']}" if self._samples > 1 else "")
        if item not in self._clean.setdefault(condition, {}):
            question = Question.from_row(self._stored_questions.slice(i // self._samples, 1).to_pylist()[0])
            self.questions.append(_shown(question))
            answer = _answer(before, self._names.index)
            self._clean[condition][item] = [visible(record["target"]), *answer, len(self.questions) - 1]
        return item

    def payload(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {
            **self._names.lists,
            "questions": self.questions,
            "clean": {str(condition): answers for condition, answers in self._clean.items()},
            "rows": self.rows,
            "two": self._other is not None,
        }


class _Names:
    """Lists of names, each name once, and their indices."""

    def __init__(self) -> None:
        self.lists: dict[str, list[Any]] = {"variants": [], "conditions": [], "failures": []}
        self._indices: dict[tuple[str, Any], int] = {}

    def index(self, kind: str, value: Any) -> int:
        """The place of a name, or of a tuple of names, in the list of its kind."""
        if (kind, value) not in self._indices:
            self._indices[kind, value] = len(self.lists[kind])
            self.lists[kind].append(visible(value) if isinstance(value, str) else [visible(part) for part in value])
        return self._indices[kind, value]


def _shorten_prompts(questions: Sequence[list[Any]]) -> int:
    """Cut the prompts of these questions (`_shown`) to what a page can hold; returns the characters kept of each."""
    limit = PROMPT_LIMIT
    if questions:
        limit = max(SHORTEST_PROMPT, min(limit, MAX_PROMPT_CHARACTERS // len(questions)))
    for question in questions:
        question[0] = visible_end(question[0], limit)
    return limit


def _beside(outcomes: Outcomes, other: Outcomes, key: CellKey) -> dict[int, Record]:
    """Records of `other` of the same variant, item and sample, by their places in the cell of `outcomes`."""
    place = (key.task, key.protocol)
    samples = outcomes.samples(*place)
    if key not in other.finished() or other.samples(*place) != samples:
        return {}
    records = other.cell(key, _COLUMNS, whole=True).to_pylist()
    shared = shared_items(outcomes, other, *place)
    n = len(records) // samples
    pairs = zip(range(n), range(n), strict=True) if shared is None else zip(*map(list, shared), strict=True)
    return {a * samples + s: records[b * samples + s] for a, b in pairs if b < n for s in range(samples)}


def _shown(question: Question) -> list[Any]:
    """Prompt, options that are shown, how many there are, index of the right one, and the right answers."""
    options = [visible(option, TEXT_LIMIT) for option in question.options[:MAX_OPTIONS]]
    reference = [visible(text, TEXT_LIMIT) for text in question.reference]
    return [question.prompt, options, len(question.options), question.gold, reference]


def _chosen(measured: Sequence[Record], base: Sequence[Record], share: int) -> list[int]:
    differs = [a["correct"] != b["correct"] for a, b in zip(measured, base, strict=True)]
    return sorted(sorted(range(len(measured)), key=lambda i: not differs[i])[:share])


def _answer(record: Record, index: Callable[[str, Any], int]) -> list[Any]:
    """Prediction, text, right or wrong, failure, and the log-probabilities of the right answer and of the options that
    are shown, as JSON values."""
    options = record["option_logprobs"]
    return [
        visible(record["prediction"], TEXT_LIMIT),
        visible(record["text"], TEXT_LIMIT),
        int(bool(record["correct"])),
        index("failures", str(record["failure"])),
        _rounded(record["gold_logprob"]),
        None if options is None else [_rounded(logprob) for logprob in options[:MAX_OPTIONS]],
    ]


def _rounded(logprob: float | None) -> float | None:
    return round(logprob, 4) if logprob is not None and math.isfinite(logprob) else None
