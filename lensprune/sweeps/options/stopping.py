"""When to stop measuring a variant.

Statistics take a second to import, so the functions that check these options import them when called.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from lensprune.errors import UserError
from lensprune.sweeps.options.declare import Group, decimal, option, whole_number

LEVEL = 0.05
ANY = "any"


def _check_loss(loss: float) -> None:
    from lensprune.analysis.sequential import Looks

    Looks((1,), margin=loss)


def _check_q(q: float) -> None:
    if q == LEVEL:
        return
    from lensprune.analysis.sequential import Looks

    Looks((1,), level=q)


def _check_looks(text: str) -> None:
    items_at_looks(text)


def _check_width(width: float) -> None:
    from lensprune.analysis.stopping import UntilWidth

    UntilWidth((1,), width)


def items_at_looks(text: str) -> tuple[int, ...]:
    """Parse numbers of items like ``100,200,400``; ``any`` gives none."""
    from lensprune.analysis.sequential import Looks

    if text == ANY:
        return ()
    try:
        items = tuple(whole_number(part) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise UserError(f"looks {text!r}: expected increasing numbers of items, like 100,200,400, or any") from None
    return Looks(items).items


@dataclass(frozen=True, kw_only=True)
class StopEarly(Group):
    """When to stop measuring a variant."""

    lost_more_than: float | None = option(
        None,
        "test which variants lose more accuracy than this, like 0.05, and stop each one once that is decided",
        metavar="LOSS",
        parse=decimal,
        check=_check_loss,
    )
    looks: str | None = option(
        None,
        "with --lost-more-than: numbers of items at which to test, or any: at any time (default: four, up to --limit)",
        metavar="N,N,...",
        check=_check_looks,
    )
    q: float = option(LEVEL, "with --lost-more-than: false discovery rate", metavar="Q", parse=decimal, check=_check_q)
    until_width: float | None = option(
        None,
        "stop each variant once the interval of its Δμ is no wider than this, like 0.1, or at --limit",
        metavar="WIDTH",
        parse=decimal,
        check=_check_width,
    )
