"""A reasoner by hand: attention alone works chains of additions in steps, a head for every role.

``<bos> 3 + 4 + 2 ? 3 + 4 = 7 . 7 + 2 = 9 . ? 9 .`` has every token at a fixed place, so heads find what they copy by
offsets. Positions: the operands at 1, 3, 5, the question's ``?`` at 6, the first step at 7 to 12, the second at 13 to
18, the concluding ``?`` at 19, the answer at 20.
"""

from __future__ import annotations

from functools import cache

from lensprune.models.base import HookedModel
from lensprune.primitives import Wording
from tests.helpers.planted.blueprint import BOS, Blueprint, Mover, PlantedHead
from tests.helpers.planted.models import loaded

__all__ = ["REASONER", "TEXTS", "WORDING", "reasoner"]

DIGITS = tuple(str(n) for n in range(10))
SIGNS = ("+", "-")
LETTERS = ("u", "v", "w", "x")
WORDING = Wording(ask=" ?", end=" .", conclusion=" ?", between="")
TEXTS = [f"{a} {b} {a} {b} {a} {b} {a} {b}" for a in LETTERS for b in LETTERS if a != b]
"""General text: two letters taking turns."""

WORDS = (*DIGITS, *SIGNS, "=", "?", ".", *LETTERS)
_COPIED = {word: {word: 1.0} for word in WORDS}
"""Everything but BOS, on which heads rest."""
_OUT = [Mover("token", "out", table=_COPIED)]
_SUM = 0.1


def _adds(constant: bool) -> list[Mover]:
    """Raise every number s by 2·s·n for the number n that is attended; with `constant` also lower it by s².

    Two heads on a and b together give s the logit −(s − a − b)² and what is the same for all s.
    """
    table = {n: {s: 2.0 * int(s) * int(n) - (int(s) ** 2 if constant else 0) for s in DIGITS} for n in DIGITS}
    return [Mover("token", "out", gain=_SUM, table=table)]


REASONER = Blueprint(
    words=WORDS,
    parts=("stage", "before", "out"),
    n_layers=3,
    n_heads=8,
    heads={
        # Which step is it? At every token: whether a full stop came before (else BOS).
        (0, 0): PlantedHead(key_tokens=(".",), rest=30.0, movers=[Mover("token", "stage")]),
        # At a full stop: the token six back, the question's "?" after the first step, "." after the second.
        (0, 2): PlantedHead(offset=6, only_for=(".",), movers=[Mover("token", "before", table=_COPIED)]),
        # General text: at a letter, the letter one back.
        (0, 4): PlantedHead(offset=1, only_for=LETTERS, movers=_OUT),
        # Operands: the first at the question's end, the second and third behind the steps' operators.
        (1, 0): PlantedHead(offset=5, only_for=SIGNS, unless=("stage", "."), movers=_OUT),
        (1, 2): PlantedHead(offset=9, only_for=SIGNS, unless=("stage", BOS), movers=_OUT),
        (1, 4): PlantedHead(offset=5, only_for=("?",), unless=("stage", "."), movers=_OUT),
        # The result in front of the first full stop opens the second step.
        (1, 6): PlantedHead(offset=1, only_for=(".",), unless=("before", "."), movers=_OUT),
        # The question's "?" behind the second full stop concludes.
        (2, 0): PlantedHead(key_tokens=("?",), only_for=(".",), unless=("before", "?"), movers=_OUT),
        # The last result is the answer.
        (2, 2): PlantedHead(offset=2, only_for=("?",), unless=("stage", BOS), movers=_OUT),
        # The sum of what stands three and one back.
        (2, 4): PlantedHead(offset=3, only_for=("=",), movers=_adds(True)),
        (2, 6): PlantedHead(offset=1, only_for=("=",), movers=_adds(False)),
    },
)
"""Roles, by construction:

- L0.H0 routes: L1.H0 and L1.H2 rest or not by what it writes, and it holds no operand. Which of two operands is copied
  depends on it alone. It also keeps L1.H4 and L2.H2 apart.
- L0.H2 decides the format: with "?" six back L1.H6 opens another step, with "." six back L2.H0 concludes.
- L1.H0, L1.H2, L1.H4 carry an operand each, L1.H6 and L2.H2 move a result, L2.H4 and L2.H6 add, L0.H4 keeps letters.

No head predicts operators, ``=`` or full stops.
"""


@cache
def reasoner(shape: str) -> HookedModel:
    """The reasoner as a loaded model, once per session."""
    return loaded(REASONER, shape)
