"""Chains of additions and subtractions, generated from a seed, with worked steps for longer chains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from lensprune.errors import UserError
from lensprune.tasks.base import Doc, RowRequest, Rows, Task
from lensprune.tasks.formats import AnswerForm
from lensprune.tasks.numeric import number_choices, number_generation, numeric_chance
from lensprune.tasks.registry import register_task

__all__ = ["arithmetic", "generate_chains", "worked_steps"]

_ROWS = 200
_SHOTS = 32
_SHOT_SEED_OFFSET = 1_000_003


def worked_steps(numbers: Sequence[int], signs: Sequence[str]) -> tuple[str, int]:
    """A chain's intermediate results from left to right, as ``3 + 4 = 7. 7 - 2 = 5.``, and the last result."""
    value = numbers[0]
    steps = []
    for sign, number in zip(signs, numbers[1:], strict=True):
        result = value + number if sign == "+" else value - number
        steps.append(f"{value} {sign} {number} = {result}.")
        value = result
    return " ".join(steps), value


def generate_chains(n: int, operands: int, largest: int, subtract: bool, seed: int) -> list[dict[str, object]]:
    """Generate `n` chains whose every intermediate result lies in 0 to `largest`.

    Row i depends only on the parameters, the seed and i. Columns: ``question`` (``3 + 4 - 2``), ``answer`` (the last
    result), ``steps`` (the worked steps).

    Raises:
        UserError: fewer than two operands or a largest result below 4.
    """
    if operands < 2:
        raise UserError(f"task 'arithmetic': operands={operands}, expected 2 or more")
    if largest < 4:
        raise UserError(f"task 'arithmetic': largest={largest}, expected 4 or more")
    rows: list[dict[str, object]] = []
    for index in range(n):
        rng = Random(f"{seed}/{operands}/{largest}/{subtract}/{index}")
        value = rng.randint(1, largest - 1)
        numbers, signs = [value], []
        for _ in range(operands - 1):
            can_add, can_subtract = value < largest, subtract and value > 0
            sign = rng.choice("+-") if can_add and can_subtract else ("+" if can_add else "-")
            if sign == "-" and not can_subtract:
                # The chain is at the largest result and may not decrease, so only 0 can be added.
                sign, number = "+", 0
            else:
                number = rng.randint(1, largest - value if sign == "+" else value)
            value = value + number if sign == "+" else value - number
            numbers.append(number)
            signs.append(sign)
        steps, answer = worked_steps(numbers, signs)
        question = str(numbers[0]) + "".join(f" {s} {m}" for s, m in zip(signs, numbers[1:], strict=True))
        rows.append({"question": question, "answer": str(answer), "steps": steps})
    return rows


@dataclass(frozen=True)
class _Chains:
    operands: int
    largest: int
    subtract: bool

    def __call__(self, request: RowRequest) -> Rows:
        if request.split is not None:
            raise UserError(f"task 'arithmetic': generated rows have no split {request.split!r}")
        sizes = (max(_ROWS, request.limit or 0), max(_SHOTS, request.shots) if request.shots else 0)
        docs, shots = (
            generate_chains(n, self.operands, self.largest, self.subtract, seed)
            for n, seed in zip(sizes, (request.seed, request.seed + _SHOT_SEED_OFFSET), strict=True)
        )
        return Rows(docs, shots, f"generated: seed {request.seed}", random_order=True)


@register_task
def arithmetic(operands: int = 2, largest: int = 19, subtract: bool = False, answer: AnswerForm = "text") -> Task:
    """``3 + 4`` and longer chains; the answer is a whole number.

    Args:
        operands: numbers in a chain. From three on, ``generate``'s few-shot answers show the worked steps and end in
            ``The answer is N.``; with two they are the bare number.
        largest: no intermediate result is larger.
        subtract: whether chains also subtract (no result is negative).
        answer: what ``default`` scores. ``text``: the number, below a line that names the options; ``letter``: the
            letter, below lettered options.

    ``default`` and ``continuation`` offer the answer and three near numbers (`number_options`), so chance is 1/4; under
    ``generate`` it is that of guessing a number from 0 to `largest`.
    """

    def question(doc: Doc) -> str:
        return f"{doc['question']} ="

    def result(doc: Doc) -> str:
        return str(doc["answer"])

    def target(doc: Doc) -> str:
        return f"{doc['steps']} The answer is {doc['answer']}." if operands > 2 else result(doc)

    pattern = r"The answer is (\-?[0-9]+)" if operands > 2 else r"^\s*(\-?[0-9]+)"
    return Task(
        name="arithmetic",
        summary="chains of additions and subtractions",
        kind="reasoning",
        formats={
            **number_choices(question, question, result, answer),
            "generate": number_generation(
                question,
                target,
                result,
                strict_pattern=pattern,
                until=("\n",),
                # The target is compared as a whole: its worked steps are not part of the answer.
                also_ignored=(r"(?s).*The answer is ",),
                max_new_tokens=8 if operands == 2 else 24 * operands,
            ),
        },
        chance=lambda doc, protocol: 1 / (largest + 1) if protocol == "generate" else numeric_chance(doc, protocol),
        load=_Chains(operands, largest, subtract),
        default_shots=4,
        fewshot_sampler="first_n",
        licence="MIT",
        source="generated by lensprune",
    )
