"""Counterfactual pairs of worked solutions: what is changed, and the expected effect if a part carries it."""

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
    """A clean prompt whose next token is `old`, and a donor run whose activation of one part is patched into it.

    `everywhere`: patch every position (the prompts correspond one to one, and the donor's next token is `new`);
    otherwise only the last position, from the donor's last position, and `new` is how the clean prompt would continue
    if the part determined where to look or what to do. `others`: tokens of the same kind that occur in neither run.
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
    """The texts of a probe: two prompts, and the possible answers after the clean one."""

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
    """Change an operand in the question, just before the solution copies it; each operand in turn."""
    return [_operand(chain, wording, random, place) for place in range(len(chain.numbers))]


def _operators(chain: Chain, partner: Chain, wording: Wording, random: Random) -> list[_Draft | None]:
    """Change an operator in the question, just before the solution copies it; each operator in turn."""
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
    """Change an operand in question and step, just before the step's result; either operand in turn."""
    drafts = []
    for place in range(2):
        tried = (_other_result(chain, chain.with_number(place, new), wording) for new in random.sample(range(1, 10), 9))
        drafts.append(next(filter(None, tried), None))
    return drafts


def _operation(chain: Chain, partner: Chain, wording: Wording, random: Random) -> list[_Draft | None]:
    """Change the operator in question and step, just before the step's result."""
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
    """Change a step's written result, just before the next step opens with it."""
    return [_written_result(chain, 0, "left1", wording, random)]


def _answer(chain: Chain, partner: Chain, wording: Wording, random: Random) -> list[_Draft | None]:
    """Change the last step's written result, just before the final answer."""
    return [_written_result(chain, len(chain.signs) - 1, "answer", wording, random)]


def _position(chain: Chain, partner: Chain, wording: Wording, random: Random) -> list[_Draft | None]:
    """Patch the last position of another chain, about to copy a different operand, and expect *this* chain's.

    In both directions between two operands after a step's operator.
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
    """Patch the last position of another chain, about to conclude, into a chain with one step left."""
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
"""What each test changes, by name."""


def make_probes(
    model: HookedModel, chains: Sequence[Chain], wording: Wording, front: str, seed: int = 0
) -> tuple[list[Probe], dict[str, int]]:
    """Make the probes of every test for every chain, and count those that can't be made.

    A probe can't be made if no other result is a digit, if corresponding prompts differ in their number of tokens, or
    if its answers don't differ in their first token.

    Args:
        chains: chains with distinct numbers; each is also the partner of another one.
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
    """The tokens shared by all continuations of a prompt, and the next token of each."""
    rows = [encode(model, prompt + word) for word in words]
    shared = 0
    while all(shared < len(row) and row[shared] == rows[0][shared] for row in rows):
        shared += 1
    front = min([shared, *(len(row) - 1 for row in rows)])
    return tuple(rows[0][:front]), [row[front] for row in rows]
