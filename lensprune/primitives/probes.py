"""Counterfactual pairs of worked solutions: what is changed, and what would change if a part carried it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.models.tokenizers import encode
from lensprune.primitives.chains import Chain, Wording

__all__ = ["TESTS", "Probe", "make_probes"]

DIGITS = range(10)


@dataclass(frozen=True)
class Probe:
    """A clean prompt whose next token is `old`, and a donor run whose activation of one part is put into it.

    `everywhere`: at every position (the prompts correspond one to one, and the donor's next token is `new`); otherwise
    at the last position alone, from the donor's last position, and `new` is how the clean prompt would continue if
    the part told it where to look or what to do. `others`: tokens of the same kind that belong to neither run.
    """

    test: str
    clean: tuple[int, ...]
    donor: tuple[int, ...]
    old: int
    new: int
    others: tuple[int, ...]
    everywhere: bool
    unit: int


@dataclass(frozen=True)
class _Draft:
    """Texts of a probe: two prompts, and answers after the clean one."""

    clean: str
    donor: str
    old: str
    new: str
    others: tuple[str, ...]
    everywhere: bool


def _unused(chains: Sequence[Chain]) -> list[int]:
    used = {value for chain in chains for value in (*chain.numbers, *chain.results)}
    return [digit for digit in DIGITS if digit not in used]


def _numbers(values: Sequence[int]) -> tuple[str, ...]:
    return tuple(f" {value}" for value in values)


def _operand(chain: Chain, wording: Wording, random: Random, place: int) -> _Draft | None:
    free = [digit for digit in _unused([chain]) if digit]
    if len(free) < 2:
        return None
    new = random.choice(free)
    piece = "left0" if place == 0 else f"right{place - 1}"
    clean = chain.prefix(wording, piece)
    changed = chain.with_number(place, new).question(wording)
    donor = changed + clean.removeprefix(chain.question(wording))
    others = _numbers([digit for digit in free if digit != new])
    return _Draft(clean, donor, f" {chain.numbers[place]}", f" {new}", others, True)


def _operands(chain: Chain, partner: Chain, wording: Wording, random: Random) -> list[_Draft | None]:
    """Another operand in the question, where the solution is about to copy it; each operand in turn."""
    return [_operand(chain, wording, random, place) for place in range(len(chain.numbers))]


def _operators(chain: Chain, partner: Chain, wording: Wording, random: Random) -> list[_Draft | None]:
    """Another operator in the question, where the solution is about to copy it; each operator in turn."""
    return [_operator(chain, wording, place) for place in range(len(chain.signs))]


def _operator(chain: Chain, wording: Wording, place: int) -> _Draft | None:
    sign = chain.signs[place]
    new = "-" if sign == "+" else "+"
    clean = chain.prefix(wording, f"sign{place}")
    donor = chain.with_sign(place, new).question(wording) + clean.removeprefix(chain.question(wording))
    return _Draft(clean, donor, f" {sign}", f" {new}", _numbers(_unused([chain])), True)


def _other_result(chain: Chain, changed: Chain, wording: Wording) -> _Draft | None:
    old, new = chain.results[0], changed.results[0]
    if new == old or new not in DIGITS:
        return None
    clean, donor = (one.prefix(wording, "result0") for one in (chain, changed))
    others = _numbers([digit for digit in _unused([chain, changed]) if digit != new])
    return _Draft(clean, donor, f" {old}", f" {new}", others, True)


def _result(chain: Chain, partner: Chain, wording: Wording, random: Random) -> list[_Draft | None]:
    """Another operand in question and step, where the step's result is about to be written; either operand in turn."""
    drafts = []
    for place in range(2):
        tried = (_other_result(chain, chain.with_number(place, new), wording) for new in random.sample(range(1, 10), 9))
        drafts.append(next(filter(None, tried), None))
    return drafts


def _operation(chain: Chain, partner: Chain, wording: Wording, random: Random) -> list[_Draft | None]:
    """Another operator in question and step, where the step's result is about to be written."""
    return [_other_result(chain, chain.with_sign(0, "-" if chain.signs[0] == "+" else "+"), wording)]


def _written_result(chain: Chain, step: int, before: str, wording: Wording, random: Random) -> _Draft | None:
    free = _unused([chain])
    if len(free) < 2:
        return None
    new = random.choice(free)
    clean, donor = (chain.prefix(wording, before, {f"result{step}": f" {r}"}) for r in (chain.results[step], new))
    others = _numbers([digit for digit in free if digit != new])
    return _Draft(clean, donor, f" {chain.results[step]}", f" {new}", others, True)


def _carried(chain: Chain, partner: Chain, wording: Wording, random: Random) -> list[_Draft | None]:
    """Another number written as a step's result, where the next step is about to open with it."""
    return [_written_result(chain, 0, "left1", wording, random)]


def _answer(chain: Chain, partner: Chain, wording: Wording, random: Random) -> list[_Draft | None]:
    """Another number written as the last step's result, where the final answer is about to be written."""
    return [_written_result(chain, len(chain.signs) - 1, "answer", wording, random)]


def _position(chain: Chain, partner: Chain, wording: Wording, random: Random) -> list[_Draft | None]:
    """Whether the last position of another chain, about to copy another operand, brings up *this* chain's operand.

    Both ways between two operands after a step's operator.
    """
    here, there = random.sample(range(1, len(chain.numbers)), 2)
    others = _numbers(_unused([chain, partner]))
    return [
        _Draft(
            chain.prefix(wording, f"right{a - 1}"),
            partner.prefix(wording, f"right{b - 1}"),
            f" {chain.numbers[a]}",
            f" {chain.numbers[b]}",
            others,
            False,
        )
        for a, b in ((here, there), (there, here))
    ]


def _format(chain: Chain, partner: Chain, wording: Wording, random: Random) -> list[_Draft | None]:
    """The last position of another chain, about to conclude, in a chain that has a step to go."""
    clean, donor = chain.prefix(wording, "left1"), partner.prefix(wording, "conclusion")
    return [_Draft(clean, donor, f" {chain.results[0]}", wording.conclusion, (" +", " -", " ="), False)]


TESTS: dict[str, Callable[[Chain, Chain, Wording, Random], list[_Draft | None]]] = {
    "operand": _operands,
    "operator": _operators,
    "result": _result,
    "operation": _operation,
    "carried": _carried,
    "answer": _answer,
    "position": _position,
    "format": _format,
}
"""What is changed, by the test's name."""


def make_probes(
    model: HookedModel, chains: Sequence[Chain], wording: Wording, front: str, seed: int = 0
) -> tuple[list[Probe], dict[str, int]]:
    """Probes of every test for every chain, and how many could not be made for each test.

    A probe can't be made where no other result is a digit, where prompts don't have the same number of tokens though
    they should, or where its answers aren't told apart by their first token.

    Args:
        chains: with distinct numbers; each is also the partner of another one.
        front: worked examples at the start of every prompt.
    """
    if len(chains) < 2:
        raise UserError(f"causal tests need 2 chains or more, not {len(chains)}")
    probes: list[Probe] = []
    missed = dict.fromkeys(TESTS, 0)
    for unit, chain in enumerate(chains):
        partner = chains[(unit + 1) % len(chains)]
        for test, draft_of in TESTS.items():
            for draft in draft_of(chain, partner, wording, Random(f"probe {seed} {test} {unit}")):
                probe = None if draft is None else _encoded(model, test, draft, front, unit)
                if probe is None:
                    missed[test] += 1
                else:
                    probes.append(probe)
    return probes, missed


def _encoded(model: HookedModel, test: str, draft: _Draft, front: str, unit: int) -> Probe | None:
    clean, tokens = _answers(model, front + draft.clean, (draft.old, draft.new, *draft.others))
    donor, _ = _answers(model, front + draft.donor, (draft.old, draft.new, *draft.others))
    old, new, *others = tokens
    others = [token for token in dict.fromkeys(others) if token not in (old, new)]
    if old == new or len(others) < 1 or (draft.everywhere and len(clean) != len(donor)):
        return None
    return Probe(test, clean, donor, old, new, tuple(others), draft.everywhere, unit)


def _answers(model: HookedModel, prompt: str, words: Sequence[str]) -> tuple[tuple[int, ...], list[int]]:
    """The tokens that all continuations of a prompt share, and the next token of each."""
    rows = [encode(model, prompt + word) for word in words]
    shared = 0
    while all(shared < len(row) and row[shared] == rows[0][shared] for row in rows):
        shared += 1
    front = min([shared, *(len(row) - 1 for row in rows)])
    return tuple(rows[0][:front]), [row[front] for row in rows]
