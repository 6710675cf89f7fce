"""Four circuits worked out by hand. Each test model holds exactly one of them; every other head rests on BOS.

All attention below is one-hot to within 1e-8: scores of the wanted key lead the next by at least 20.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from lensprune.models.base import HookedModel
from tests.helpers.planted.blueprint import Blueprint, Mover, PlantedHead
from tests.helpers.planted.models import loaded
from tests.helpers.planted.weights import REST

__all__ = [
    "ARITHMETIC",
    "BACKUP",
    "BLUEPRINTS",
    "DUPLICATE",
    "INDUCTION",
    "LEAK",
    "LINEAR",
    "RETRIEVAL",
    "ids",
    "model_of",
]

LEAK = 1e-4
"""How far a planted share of 1 may be off by construction: by attention outside its target and the epsilon of norms.
Planted logits are 10, so they may be off by 10 · LEAK. Measured: 5e-5, and 1.2e-4 in compiled models; a planted part
that is missing moves its share by a quarter or more.
"""

LETTERS = tuple("abcdefghijklmnop")

INDUCTION = Blueprint(
    words=LETTERS,
    parts=("previous", "out"),
    heads={
        (0, 1): PlantedHead(offset=1, movers=[Mover("token", "previous")]),
        (1, 2): PlantedHead(match=("token", "previous"), rest=REST, movers=[Mover("token", "out")]),
    },
)
"""Two-layer induction (Elhage et al. 2021; Olsson et al. 2022).

L0.H1 writes the previous token into ``previous``. L1.H2 at token x looks for a key whose ``previous`` is x (score 60;
BOS scores 30, others 0), so it attends to the token after an earlier x, and writes that token into ``out``. On
``<bos> a b c a`` the last position attends to ``b`` at position 2: logit 10 for b, 0 for all others. At the first
occurrence of a token nothing matches and L1.H2 rests on BOS, whose logit it raises to 10.
Without L0.H1 nothing matches: the answer's logit is 0. Without L1.H2 it is 0. No other head changes anything.
Edges: embed → L0.H1 values, L0.H1 → L1.H2 keys, embed → L1.H2 queries and values, L1.H2 → logits. The rest of both
heads reads embed's constant too, which is the same in every prompt.
"""

KEYS = ("k0", "k1", "k2", "k3", "k4", "k5")
VALUES = ("v0", "v1", "v2", "v3", "v4", "v5")

RETRIEVAL = Blueprint(
    words=(*KEYS, *VALUES, "=", ";", "?"),
    parts=("one_back", "two_back", "out"),
    heads={
        (0, 0): PlantedHead(offset=1, movers=[Mover("token", "one_back")]),
        (0, 2): PlantedHead(offset=2, movers=[Mover("token", "two_back")]),
        (1, 3): PlantedHead(
            match=("one_back", "two_back"), key_tokens=VALUES, rest=1.5 * 60, movers=[Mover("token", "out")]
        ),
    },
)
"""Key-value retrieval: ``<bos> k1 = v4 ; k3 = v0 ; ? k3 =`` is answered by ``v0``.

L0.H0 writes the token one back, L0.H2 the token two back. At the last ``=`` the token one back is the asked key; at a
value the token two back is its key. L1.H3 therefore matches the value of the asked key: score 60 for the key and 60
for being a value, against 90 on BOS and at most 60 elsewhere. It writes that value into ``out``: logit 10.
Every earlier ``=`` finds its own key nowhere to the left and rests on BOS. L1.H3 is the retrieval head.
Edges: embed → L0.H0 values and L0.H2 values, L0.H0 → L1.H3 queries, L0.H2 → L1.H3 keys, embed → L1.H3 keys (which
tokens are values) and values, L1.H3 → logits.
"""

NUMBERS = tuple(str(n) for n in range(20))

ARITHMETIC = Blueprint(
    words=(*NUMBERS, "+", "="),
    parts=("operand", "out"),
    heads={
        (0, 3): PlantedHead(offset=1, only_for=("+",), movers=[Mover("token", "operand")]),
        (1, 0): PlantedHead(offset=2, only_for=("=",), movers=[Mover("operand", "out")]),
    },
)
"""A head that copies the operand at an operator: ``3 + 4 =`` is answered by the first operand, ``3``.

L0.H3 at ``+`` attends one back, to the first operand, and writes it into ``operand``; everywhere else it rests on BOS
(score 3000), of which it copies the token BOS. L1.H0 at ``=`` attends two back, to the ``+``, and moves what it holds
into ``out``: logit 10 for the first operand. Elsewhere it rests on BOS, whose ``operand`` is BOS itself (L0.H3 can
attend to nothing else there).
Edges: embed → L0.H3 queries and values, L0.H3 → L1.H0 values, L1.H0 → logits.
"""

BACKUP = Blueprint(
    words=LETTERS,
    parts=("previous", "out"),
    flags=("done",),
    n_layers=3,
    heads={
        (0, 1): PlantedHead(offset=1, movers=[Mover("token", "previous")]),
        (1, 2): PlantedHead(
            match=("token", "previous"), rest=REST, movers=[Mover("token", "out"), Mover("not_bos", "done")]
        ),
        (2, 0): PlantedHead(match=("token", "previous"), rest=REST, unless="done", movers=[Mover("token", "out")]),
    },
)
"""The induction circuit with a back-up (Wang et al. 2022; McGrath et al. 2023).

L1.H2 is the induction head of `INDUCTION`; where it finds a match it also raises the flag ``done``. L2.H0 is the same
head again, but the flag puts its rest 3000 above everything, so it stays on BOS and writes BOS into ``out``.
On ``<bos> a b c a``: the logit of b is 10, all of it from L1.H2, and BOS's is 10 from L2.H0.
Without L1.H2 the flag is down, L2.H0 attends to b and writes it: the logit of b is 10 again, BOS's 0. Without L2.H0
the logit of b is 10. Without both it is 0. So between b and c L1.H2 has the direct effect 10 and the total effect 0:
self-repair is 10. L0.H1 has the total effect 10.
"""


LINEAR = Blueprint(
    words=LETTERS,
    parts=("seen", "out"),
    heads={
        (0, 1): PlantedHead(movers=[Mover("token", "seen")]),
        (0, 2): PlantedHead(movers=[Mover("token", "out", gain=0.5)]),
        (1, 2): PlantedHead(movers=[Mover("seen", "out", gain=2.0)]),
    },
)
"""No score depends on a token: all attention of the named heads is uniform, and the model is linear in its embeddings.

At position t (t + 1 keys) L0.H1 writes the share of each token so far into ``seen`` and L0.H2 half of it into ``out``;
L1.H2 adds twice the mean of ``seen`` over the positions so far.
"""


DUPLICATE = Blueprint(
    words=LETTERS,
    parts=("out",),
    heads={(0, 2): PlantedHead(match=("token", "token"), rest=REST, movers=[Mover("token", "out")])},
)
"""A head that looks for its own token: at a repeated token it finds the earlier one and itself, half of it each."""


def _softer(blueprint: Blueprint, factor: float) -> Blueprint:
    """The same circuit with weaker scores: attention is spread, so that gradients do not vanish."""
    heads = {
        place: replace(head, strength=head.strength * factor, rest=head.rest * factor)
        for place, head in blueprint.heads.items()
    }
    return replace(blueprint, heads=heads)


BLUEPRINTS = {
    "induction": INDUCTION,
    "retrieval": RETRIEVAL,
    "arithmetic": ARITHMETIC,
    "backup": BACKUP,
    "linear": LINEAR,
    "duplicate": DUPLICATE,
    "soft induction": _softer(INDUCTION, 1 / 8),
    "soft retrieval": _softer(RETRIEVAL, 1 / 8),
}


@cache
def model_of(name: str, shape: str) -> HookedModel:
    """One of the circuits as a loaded model, once per session."""
    return loaded(BLUEPRINTS[name], shape)


def ids(model: HookedModel, text: str) -> tuple[int, ...]:
    """Token ids of words between blanks, behind BOS."""
    tokens: Sequence[int] = model.tokenizer.encode(text, add_special_tokens=False)
    return (int(model.tokenizer.bos_token_id), *tokens)
