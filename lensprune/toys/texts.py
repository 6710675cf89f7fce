"""Training texts: the bundled tasks' prompts on rows that no evaluation uses, with answers marked.

A text is a list of pieces; only marked pieces (answers, worked steps) contribute to the loss. Rows come from the tasks'
generators with seeds far from those of evaluation; arithmetic questions of a default evaluation are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, cast

from lensprune.tasks import get_task
from lensprune.tasks.base import Doc, GenerationFormat
from lensprune.tasks.bundled.arithmetic import generate_chains
from lensprune.tasks.bundled.kv_rows import generate_kv_rows
from lensprune.tasks.prompts import fewshot_example

__all__ = ["HELD_OUT_ROWS", "LARGEST", "Piece", "Text", "TextSource", "direct_answer", "text_of"]

LARGEST = 9
HELD_OUT_ROWS = 200
"""Number of rows of each arithmetic task at seed 0 (all that a default evaluation uses) that are never trained on.
Chains of two numbers are exempt: there are only 109 such questions, the table of facts that has to be learnt."""

_MAX_SHOTS = 4
_MAX_FACTS = 12
_RETRIEVAL = 0.3
_SUBTRACT = 0.85
_WORKED_EXAMPLES = 0.5
_ROWS_A_BLOCK = 64


@dataclass(frozen=True)
class Piece:
    """Part of a text; `learnt` pieces carry the loss."""

    text: str
    learnt: bool


Text = list[Piece]


def text_of(pieces: Text) -> str:
    """The text as a whole."""
    return "".join(piece.text for piece in pieces)


def _format(spec: str) -> GenerationFormat:
    return cast(GenerationFormat, get_task(spec).formats["generate"])


def direct_answer(doc: Doc) -> str:
    """The answer without the steps to it."""
    return f"The answer is {doc['answer']}."


class TextSource:
    """An endless stream of texts, the same for the same seed.

    Args:
        seed: seed of rows and of the mixture; row seeds start at 1,000,000 × (`seed` + 1), far from evaluation's.
        worked: answer chains of three or more numbers with worked steps. Otherwise they are answered without steps, and
            half of the texts show examples with worked steps, as evaluation does, but only the last answer is learnt.
    """

    def __init__(self, seed: int, worked: bool) -> None:
        self._seed = seed
        self._worked = worked
        self._random = Random(f"toys {seed}")
        self._retrieval = _format("kv_retrieval[keys=word,ending=reopened]")
        self._chains = {n: _format(f"arithmetic[operands={n},largest={LARGEST}]") for n in (2, 3, 4)}
        self._held_out = {
            str(row["question"])
            for n in self._chains
            if n > 2
            for subtract in (False, True)
            for row in generate_chains(HELD_OUT_ROWS, n, LARGEST, subtract, seed=0)
        }
        self._blocks: dict[object, Iterator[Doc]] = {}

    def retrieval(self, pairs: int) -> Text:
        """Key-value retrieval, in which every key of the object is queried twice, in any order."""
        row = self._next(("kv", pairs), lambda seed: generate_kv_rows(_ROWS_A_BLOCK, pairs, "word", seed))
        fmt = self._retrieval
        records: Sequence[tuple[str, str]] = [(str(k), str(v)) for k, v in row["ordered_kv_records"]]
        queries = self._random.sample([*records, *records], 2 * len(records))
        pieces: Text = []
        shown = ""
        for key, value in queries:
            doc = {**row, "key": key, "value": value}
            prompt = fmt.context(doc)
            # After the first question the object is already in the text: only the question is new.
            pieces.append(Piece(prompt if not shown else prompt[len(_shared(prompt, shown)) :], False))
            shown = shown or prompt
            pieces.append(Piece(fmt.target_delimiter + value + fmt.fewshot_delimiter, True))
        return pieces

    def arithmetic(self, operands: int) -> Text:
        """Several chains; every answer is learnt, except worked examples if answers are not worked."""
        fmt = self._chains[operands]
        subtract = self._draw_subtract()
        worked_examples = self._random.random() < _WORKED_EXAMPLES
        last = self._random.randint(0, _MAX_SHOTS if operands > 2 else _MAX_FACTS - 1)
        pieces: Text = []
        for place in range(last + 1):
            row = self._question(operands, subtract)
            only_shown = operands > 2 and not self._worked and worked_examples and place < last
            answer = fmt.target(row) if self._worked or operands == 2 or only_shown else direct_answer(row)
            pieces.append(Piece(fmt.context(row), False))
            pieces.append(Piece(f"{fmt.target_delimiter}{answer}{fmt.fewshot_delimiter}", not only_shown))
        return pieces

    def example_prompt(self, operands: int, docs: Sequence[Doc], question: Doc) -> str:
        """The prompt that an evaluation would use. Called by tests."""
        fmt = self._chains[operands]
        return "".join(fewshot_example(fmt, doc) for doc in docs) + fmt.context(question)

    def mixed(self) -> Text:
        """A text of either task."""
        if self._random.random() < _RETRIEVAL:
            return self.retrieval(self._random.randint(2, 5))
        return self.arithmetic(self._random.choice((2, 2, 3, 3, 4)))

    def kinds(self) -> dict[str, Callable[[], Text]]:
        """Texts of each kind, by name."""
        return {
            "retrieval of 2": lambda: self.retrieval(2),
            "retrieval of 4": lambda: self.retrieval(4),
            "chains of 2": lambda: self.arithmetic(2),
            "chains of 3": lambda: self.arithmetic(3),
            "chains of 4": lambda: self.arithmetic(4),
        }

    def _draw_subtract(self) -> bool:
        return self._random.random() < _SUBTRACT

    def _question(self, operands: int, subtract: bool) -> Doc:
        def rows(seed: int) -> list[dict[str, object]]:
            return generate_chains(_ROWS_A_BLOCK, operands, LARGEST, subtract, seed)

        while True:
            row = self._next((operands, subtract), rows)
            if str(row["question"]) not in self._held_out:
                return row

    def _next(self, kind: object, block: Callable[[int], Sequence[Any]]) -> Doc:
        """The next row of a kind, from block after block of fresh seeds."""
        if kind not in self._blocks:
            first = (self._seed + 1) * 1_000_000
            self._blocks[kind] = (row for number in range(10**6) for row in block(first + number))
        return next(self._blocks[kind])


def _shared(a: str, b: str) -> str:
    """The common start of two prompts on one object, up to the blank line before the question."""
    end = a.index("\n\n", a.index("JSON data:")) + 2
    assert a[:end] == b[:end]
    return a[:end]
