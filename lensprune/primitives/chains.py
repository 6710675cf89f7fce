"""Chains of sums with their worked solutions, piece by piece, so that single pieces can be replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from lensprune.errors import UserError
from lensprune.tasks.bundled.arithmetic import generate_chains

__all__ = ["Chain", "ChainOptions", "Wording", "draw_chains"]

_TRIES = 20_000
_SHOWN_SEED = 1_000_003


@dataclass(frozen=True)
class Wording:
    """How a chain and its solution are written; the default is that of the task ``arithmetic``.

    `ask` ends the question, `end` ends each step, `conclusion` precedes the final answer, and `between` follows a
    worked example.
    """

    ask: str = " ="
    end: str = "."
    conclusion: str = " The answer is"
    between: str = "\n\n"


@dataclass(frozen=True)
class Chain:
    """``numbers[0] signs[0] numbers[1] …``, worked from left to right."""

    numbers: tuple[int, ...]
    signs: tuple[str, ...]

    @property
    def results(self) -> tuple[int, ...]:
        """The result of each step."""
        totals: list[int] = []
        for sign, number in zip(self.signs, self.numbers[1:], strict=True):
            before = totals[-1] if totals else self.numbers[0]
            totals.append(before + number if sign == "+" else before - number)
        return tuple(totals)

    def with_number(self, place: int, number: int) -> Chain:
        """A copy of the chain with one operand changed."""
        return replace(self, numbers=(*self.numbers[:place], number, *self.numbers[place + 1 :]))

    def with_sign(self, place: int, sign: str) -> Chain:
        """A copy of the chain with one operator changed."""
        return replace(self, signs=(*self.signs[:place], sign, *self.signs[place + 1 :]))

    def question(self, wording: Wording) -> str:
        """``3 + 4 - 2 =``"""
        terms = "".join(f" {s} {n}" for s, n in zip(self.signs, self.numbers[1:], strict=True))
        return f"{self.numbers[0]}{terms}{wording.ask}"

    def pieces(self, wording: Wording) -> dict[str, str]:
        """The pieces of the solution, in order: for step i ``left{i}``, ``sign{i}``, ``right{i}``, ``equals{i}``,
        ``result{i}``, ``end{i}``, then ``conclusion``, ``answer``, ``stop``."""
        pieces: dict[str, str] = {}
        left = self.numbers[0]
        for i, (sign, right, result) in enumerate(zip(self.signs, self.numbers[1:], self.results, strict=True)):
            pieces |= {f"left{i}": f" {left}", f"sign{i}": f" {sign}", f"right{i}": f" {right}"}
            pieces |= {f"equals{i}": " =", f"result{i}": f" {result}", f"end{i}": wording.end}
            left = result
        return {**pieces, "conclusion": wording.conclusion, "answer": f" {left}", "stop": wording.end}

    def solution(self, wording: Wording) -> str:
        """`` 3 + 4 = 7. 7 - 2 = 5. The answer is 5.``"""
        return "".join(self.pieces(wording).values())

    def prefix(self, wording: Wording, before: str, changes: Mapping[str, str] | None = None) -> str:
        """The question and the solution up to the piece `before`, with some pieces replaced."""
        pieces = self.pieces(wording)
        names = list(pieces)
        pieces |= changes or {}
        return self.question(wording) + "".join(pieces[name] for name in names[: names.index(before)])


def draw_chains(
    n: int, operands: int, largest: int, subtract: bool, seed: int, *, distinct: bool = False, fewer: bool = False
) -> list[Chain]:
    """Draw `n` different chains with numbers from 1 to `largest` and results from 0 to `largest`.

    Args:
        distinct: no number occurs twice among operands and results, so that a number's source is unambiguous.

        fewer: return those that there are, if they are fewer.

    Raises:
        UserError: there are fewer such chains.
    """
    random = Random(f"chains {seed}/{operands}/{largest}/{subtract}/{distinct}")
    chains: dict[Chain, None] = {}
    for _ in range(_TRIES):
        if len(chains) == n:
            break
        chain = Chain(
            tuple(random.randint(1, largest) for _ in range(operands)),
            tuple(random.choice("+-" if subtract else "+") for _ in range(operands - 1)),
        )
        values: Sequence[int] = (*chain.numbers, *chain.results)
        if all(0 <= value <= largest for value in values) and not (distinct and len(set(values)) < len(values)):
            chains[chain] = None
    if len(chains) < n and not fewer:
        raise UserError(
            f"there are only {len(chains)} chains of {operands} numbers with results up to {largest}, and {n} were "
            "requested: request fewer, or allow larger results"
        )
    return list(chains)


@dataclass(frozen=True)
class ChainOptions:
    """Which chains are used: those of the task ``arithmetic`` at `seed`, after `shots` worked examples.

    Raises:
        UserError: an option out of range.
    """

    operands: int
    largest: int
    subtract: bool
    limit: int
    shots: int
    wording: Wording
    seed: int

    def __post_init__(self) -> None:
        if not 4 <= self.largest <= 9:
            raise UserError(
                f"largest {self.largest} is out of range: expected 4 to 9, so that every number is one digit"
            )
        if self.operands < 3:
            raise UserError(f"operands {self.operands} is too few for a step that reuses a result: expected 3 or more")
        if self.shots < 0:
            raise UserError(f"shots {self.shots} is not a number of examples: expected 0 or more")

    def chains(self, skip: int = 0) -> list[Chain]:
        """The first `limit` chains after the first `skip`."""
        return self._generated(skip + self.limit, self.seed)[skip:]

    def shown(self, n: int) -> list[Chain]:
        """Chains that are never measured: the worked examples first, then others."""
        return self._generated(n, self.seed + _SHOWN_SEED)

    def examples(self) -> str:
        """The worked examples at the start of every prompt."""
        words = self.wording
        return "".join(
            chain.question(words) + chain.solution(words) + words.between for chain in self.shown(self.shots)
        )

    def _generated(self, n: int, seed: int) -> list[Chain]:
        chains = []
        for row in generate_chains(n, self.operands, self.largest, self.subtract, seed):
            parts = str(row["question"]).split()
            chains.append(Chain(tuple(int(part) for part in parts[::2]), tuple(parts[1::2])))
        return chains
