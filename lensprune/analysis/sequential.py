"""Sequential decisions before all items are used: planned looks, interval width, and e-values for arbitrary looks.

Of n items, `lost` are right in the clean model and wrong without the part, and `won` the reverse. The null hypothesis
for a margin m is that (lost − won) / n is at most m in the population; a part is detected when it is rejected. Items
count as independent and come in random order.

Planned looks: Wang & Tsiatis (1987), "Approximately optimal one-parameter boundaries for group sequential trials",
Biometrics 43, 193–199; their crossing probabilities by recursive integration (Armitage, McPherson & Rowe 1969, JRSS A
132, 235–244); repeated p-values and intervals: Jennison & Turnbull (2000), "Group Sequential Methods with Applications
to Clinical Trials", chapters 9 and 19. E-values: Shafer & Vovk (2019), "Game-Theoretic Foundations for Probability and
Finance"; Waudby-Smith & Ramdas (2024), "Estimating means of bounded random variables by betting", JRSS B 86, 1–27.
e-BH: Wang & Ramdas (2022), "False discovery rate control with e-values", JRSS B 84, 822–852.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int

from lensprune.analysis.intervals import CONFIDENCE, tango
from lensprune.analysis.multiplicity import LEVEL, benjamini_hochberg
from lensprune.errors import UserError

__all__ = [
    "MAX_LOOKS",
    "SHAPE",
    "Looks",
    "crossing_probability",
    "e_bh",
    "e_intervals",
    "e_values",
    "loss_p",
    "narrow_enough",
]

SHAPE = 0.25
"""Wang and Tsiatis' Δ: 0 is strictest at early looks (O'Brien & Fleming), 0.5 equally strict at all looks (Pocock)."""
MAX_LOOKS = 10
FUTILITY = 0.05
"""A part is given up if its predicted probability of being detected at the last look is lower than this."""
_NODES = 120
_FAR = 9.0
_HEIGHTS = np.arange(-2.0, 9.0, 0.1)
_BETS = 16


def loss_p(lost: Int[np.ndarray, " part"], won: Int[np.ndarray, " part"], n: int, margin: float) -> np.ndarray:
    """One-sided p of each part at a single look: P(lost − won as large or larger) when (lost − won) / n is `margin`.

    Without a margin it is the exact sign test of the changed items. With a margin it is exact except for the share of
    won items, which is estimated under the null hypothesis by maximum likelihood (as for `score_z`), and equal
    differences count half (mid-p): P(p ≤ α) is at most 1.3 α, usually less, and far below α if few items can be lost.
    A normal approximation reaches 1.6 α.
    """
    pairs = list(zip(lost.tolist(), won.tolist(), strict=True))
    p_of = {pair: _loss_p(*pair, n, margin) for pair in set(pairs)}
    return np.array([p_of[pair] for pair in pairs], float)


@lru_cache(maxsize=200_000)
def _loss_p(lost: int, won: int, n: int, margin: float) -> float:
    if margin == 0:
        return float(scipy.stats.binom.sf(lost - 1, lost + won, 0.5))
    # The maximum-likelihood share of losses given that (lost − won) / n is the margin (Tango 1998).
    linear = -(2 * n - won + lost) * margin - won - lost
    root = np.sqrt(max(linear**2 - 8 * n * lost * margin * (1 + margin), 0.0))
    share = min(max((root - linear) / (4 * n), margin), 1.0)
    changed = 2 * share - margin
    counts, difference = np.arange(n + 1), lost - won
    half, odd = np.divmod(counts + difference, 2)
    more = scipy.stats.binom.sf(half, counts, share / changed)
    equal = np.where(odd == 0, scipy.stats.binom.pmf(half, counts, share / changed), 0.0)
    return float(min(1.0, scipy.stats.binom.pmf(counts, n, min(changed, 1.0)) @ (more + equal / 2)))


@dataclass(frozen=True)
class Looks:
    """Planned numbers of items at which all parts are tested; the last is the cap.

    Raises:
        UserError: there are none or too many, or they are not increasing.
    """

    items: tuple[int, ...]
    margin: float = 0.05
    level: float = LEVEL

    def __post_init__(self) -> None:
        given = ",".join(map(str, self.items))
        if not 1 <= len(self.items) <= MAX_LOOKS:
            raise UserError(f"looks {given or '(none)'}: expected 1 to {MAX_LOOKS} numbers of items")
        if self.items[0] < 1 or any(a >= b for a, b in zip(self.items, self.items[1:], strict=False)):
            raise UserError(f"looks {given}: expected increasing numbers of items, like 100,200,400")
        if not 0 <= self.margin < 1:
            raise UserError(f"margin {self.margin:g} is not a loss of accuracy: expected 0 up to 1, like 0.05")
        if not 0 < self.level < 1:
            raise UserError(f"q {self.level:g} is not a false discovery rate: expected a number between 0 and 1")

    @property
    def shares(self) -> tuple[float, ...]:
        """Each look as a share of the cap."""
        return tuple(n / self.items[-1] for n in self.items)

    def heights(self, p: Float[np.ndarray, "look part"]) -> Float[np.ndarray, " part"]:
        """Height that each part reached: the largest z · t^(½ − Δ) over the looks, where look i is at share t of the
        cap.

        Args:
            p: p-values of single looks (`loss_p`), for the first looks; NaN after a part was stopped.
        """
        z = scipy.stats.norm.isf(np.clip(p, 1e-300, 1 - 1e-16))
        raised = z * (np.array(self.shares[: len(p)]) ** (0.5 - SHAPE))[:, None]
        return np.fmax.reduce(raised, axis=0)

    def repeated_p(self, p: Float[np.ndarray, "look part"]) -> Float[np.ndarray, " part"]:
        """p-values that are valid whatever is decided at the looks: P(a height as large at any planned look)."""
        known = _log_crossing(self.shares)
        heights = np.clip(self.heights(p), _HEIGHTS[0], _HEIGHTS[-1])
        return np.exp(np.interp(heights, _HEIGHTS, known))

    def q(self, p: Float[np.ndarray, "look part"], hypotheses: int | None = None) -> Float[np.ndarray, " part"]:
        """False discovery rate (Benjamini & Hochberg) of the repeated p-values over all parts.

        Heights never decrease, so a part that is detected at one look stays detected.

        Args:
            hypotheses: number of parts in question; those that are not in `p` were never measured and count with
                p = 1. ``None``: those in `p`.
        """
        never = np.ones(max(0, (hypotheses or 0) - p.shape[1]))
        return benjamini_hochberg(np.append(self.repeated_p(p), never))[: p.shape[1]]

    def futile(
        self, p: Float[np.ndarray, "look part"], detected: int, hypotheses: int | None = None
    ) -> Bool[np.ndarray, " part"]:
        """Parts that can be given up: their predicted P(detected at the last look) is below `FUTILITY`.

        The error rates hold whether or not this rule is followed.

        Args:
            detected: number of parts detected so far; one more would need a p of (detected + 1) · level / parts.
            hypotheses: as for `q`.
        """
        if len(p) == len(self.items):
            return np.ones(p.shape[1], bool)
        needed = self.height_at(self.level * (detected + 1) / max(hypotheses or 0, p.shape[1]))
        share = self.shares[len(p) - 1]
        z = scipy.stats.norm.isf(np.clip(p[-1], 1e-300, 1 - 1e-16))
        likely: np.ndarray = scipy.stats.norm.sf((needed - z / np.sqrt(share)) / np.sqrt(1 / share - 1))
        return np.isnan(p[-1]) | (likely < FUTILITY)

    def verdicts(
        self, p: Float[np.ndarray, "look part"], hypotheses: int | None = None
    ) -> tuple[Bool[np.ndarray, " part"], Bool[np.ndarray, " part"]]:
        """Parts that are detected after these looks, and parts that continue; `hypotheses` as for `q`."""
        detected = self.q(p, hypotheses) <= self.level
        return detected, ~detected & ~self.futile(p, int(detected.sum()), hypotheses)

    def height_at(self, level: float) -> float:
        """The height that is reached at any look with probability `level` if no loss exceeds the margin."""
        return float(np.interp(-np.log(level), -_log_crossing(self.shares), _HEIGHTS))

    def intervals(
        self, lost: Int[np.ndarray, " part"], won: Int[np.ndarray, " part"], look: int
    ) -> tuple[Float[np.ndarray, " part"], Float[np.ndarray, " part"]]:
        """Repeated 95% interval of Δμ at look number `look` (from 0), with simultaneous coverage over all looks.

        Tango's score interval with the look's boundary instead of 1.96. An estimate at a stop is biased: away from the
        margin if a part was detected, towards it if it was given up. This interval remains valid.
        """
        return tango(lost, won, self.items[look], z=self.critical(look))

    def critical(self, look: int) -> float:
        """Critical value that replaces 1.96 at look number `look` (from 0), for 95% coverage over all looks."""
        return self.height_at((1 - CONFIDENCE) / 2) * self.shares[look] ** (SHAPE - 0.5)


def crossing_probability(shares: Sequence[float], height: float, shape: float = SHAPE) -> float:
    """P(Z(t) ≥ height · t^(shape − ½) at any t of `shares`), for Z(t) = B(t) / √t of a Brownian motion B.

    Args:
        shares: information fractions, increasing to 1.
    """
    total, before, density, nodes, weights = 0.0, 0.0, np.ones(1), np.zeros(1), np.ones(1)
    for share in shares:
        bound = height * share**shape
        spread = np.sqrt(share - before)
        total += float((density * weights) @ scipy.stats.norm.sf((bound - nodes) / spread))
        points, sizes = _legendre()
        low = -_FAR * np.sqrt(share)
        half = (bound - low) / 2
        new = low + half * (points + 1)
        density = scipy.stats.norm.pdf((new[:, None] - nodes) / spread) @ (density * weights) / spread
        nodes, weights, before = new, sizes * half, share
    return total


@lru_cache
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    points, sizes = np.polynomial.legendre.leggauss(_NODES)
    return points, sizes


@lru_cache
def _log_crossing(shares: tuple[float, ...]) -> Float[np.ndarray, " height"]:
    """Logarithm of `crossing_probability` at `_HEIGHTS`."""
    return np.log([crossing_probability(shares, height) for height in _HEIGHTS])


def narrow_enough(
    low: Float[np.ndarray, " part"], high: Float[np.ndarray, " part"], width: float
) -> Bool[np.ndarray, " part"]:
    """Which parts have an interval no wider than `width`, so that they need no more items.

    Stopping by the width of a 95% interval costs little coverage (see the calibration in the documentation), since the
    width says almost nothing about the direction of the error.
    """
    return (high - low) <= width


def e_values(
    lost: Int[np.ndarray, " part"],
    won: Int[np.ndarray, " part"],
    n: Int[np.ndarray, " part"] | int,
    margin: Float[np.ndarray, " part"] | float,
) -> Float[np.ndarray, " part"]:
    """e-values against a loss of at most `margin`, valid at any time: the wealth of a gambler who started with 1.

    The gambler bets a share λ on every item: wealth is multiplied by 1 + λ (1 − m) for a lost item, 1 − λ (1 + m) for a
    won one, and 1 − λ m for an unchanged one. If no loss exceeds the margin, no strategy wins on average, so P(wealth
    ever reaches 1/α) ≤ α. The initial wealth is spread over `_BETS` shares λ.

    With `lost` and `won` exchanged and −`margin`, it is the evidence against a loss of at least `margin`.
    """
    largest = 1 / (1 + np.asarray(margin))
    bets = largest * np.geomspace(0.02, 0.98, _BETS)[:, None]
    same = n - lost - won
    logs = lost * np.log1p(bets * (1 - margin)) + won * np.log1p(-bets * (1 + margin)) + same * np.log1p(-bets * margin)
    return np.exp(scipy.special.logsumexp(logs, axis=0) - np.log(_BETS))


def e_intervals(
    lost: Int[np.ndarray, " part"], won: Int[np.ndarray, " part"], n: Int[np.ndarray, " part"] | int
) -> tuple[Float[np.ndarray, " part"], Float[np.ndarray, " part"]]:
    """95% intervals of Δμ with coverage over all numbers of items: losses that `e_values` don't refute at 2.5%."""
    ends = []
    for a, b, sign in ((won, lost, 1.0), (lost, won, -1.0)):
        # The evidence against a change of at most `middle` decreases in `middle`.
        low, high = np.full(len(lost), -1 + 1e-9), np.full(len(lost), 1 - 1e-9)
        for _ in range(40):
            middle = (low + high) / 2
            refuted = e_values(a, b, n, middle) >= 2 / (1 - CONFIDENCE)
            low, high = np.where(refuted, middle, low), np.where(refuted, high, middle)
        ends.append(sign * low)
    return ends[0], ends[1]


def e_bh(values: Float[np.ndarray, " part"]) -> Float[np.ndarray, " part"]:
    """False discovery rates from e-values under any dependence: q ≤ α rejects the k largest for the largest k with
    e₍ₖ₎ ≥ parts / (α k)."""
    order = np.argsort(-values, kind="stable")
    with np.errstate(divide="ignore"):
        levels = len(values) / (np.arange(1, len(values) + 1) * values[order])
    q = np.empty(len(values))
    q[order] = np.minimum(np.minimum.accumulate(levels[::-1])[::-1], 1.0)
    return q
