"""Deciding before all items are asked: planned looks, intervals until they are narrow, and e-values for any look.

Losses are counted: of n items `lost` are right in the clean model and wrong without the part, `won` the reverse. The
null hypothesis of a margin m is that (lost − won) / n is m or less in the population; a part is named when it is
refuted. Items count as independent and come in random order.

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
"""Wang and Tsiatis' Δ: 0 asks for most at early looks (O'Brien & Fleming), 0.5 for the same at all (Pocock)."""
MAX_LOOKS = 10
FUTILITY = 0.05
"""A part is given up when its chance of being named at the last look, by what was seen of it, is lower."""
_NODES = 120
_FAR = 9.0
_HEIGHTS = np.arange(-2.0, 9.0, 0.1)
_BETS = 16


def loss_p(lost: Int[np.ndarray, " part"], won: Int[np.ndarray, " part"], n: int, margin: float) -> np.ndarray:
    """One-sided p of each part at a single look: P(lost − won as large or larger) when (lost − won) / n is `margin`.

    Without a margin it is the exact sign test of the items that changed. With one it is exact but for the share of
    won items, which is estimated under the null hypothesis by maximum likelihood (as for `score_z`), and of equal
    differences half count (mid-p): P(p ≤ α) is at most 1.3 α, mostly less, and far below α where few items could be
    lost. A normal approximation goes to 1.6 α.
    """
    pairs = list(zip(lost.tolist(), won.tolist(), strict=True))
    found = {pair: _loss_p(*pair, n, margin) for pair in set(pairs)}
    return np.array([found[pair] for pair in pairs], float)


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
    """Planned numbers of items at which all parts are looked at; the last is the cap.

    Raises:
        UserError: none or too many, or numbers that don't rise.
    """

    items: tuple[int, ...]
    margin: float = 0.05
    level: float = LEVEL

    def __post_init__(self) -> None:
        given = ",".join(map(str, self.items))
        if not 1 <= len(self.items) <= MAX_LOOKS:
            raise UserError(f"looks {given or '(none)'}: expected 1 to {MAX_LOOKS} numbers of items")
        if self.items[0] < 1 or any(a >= b for a, b in zip(self.items, self.items[1:], strict=False)):
            raise UserError(f"looks {given}: expected numbers of items that rise, like 100,200,400")
        if not 0 <= self.margin < 1:
            raise UserError(f"margin {self.margin:g} is not a loss of accuracy: expected 0 up to 1, like 0.05")
        if not 0 < self.level < 1:
            raise UserError(f"q {self.level:g} is not a false discovery rate: expected a number between 0 and 1")

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the cap."""
        return tuple(n / self.items[-1] for n in self.items)

    def heights(self, p: Float[np.ndarray, "look part"]) -> Float[np.ndarray, " part"]:
        """How high each part came: the largest z · t^(½ − Δ) over the looks, the i-th at the share t of the cap.

        Args:
            p: of single looks (`loss_p`), for the first looks; NaN where a part was not asked any more.
        """
        z = scipy.stats.norm.isf(np.clip(p, 1e-300, 1 - 1e-16))
        raised = z * (np.array(self.shares[: len(p)]) ** (0.5 - SHAPE))[:, None]
        return np.fmax.reduce(raised, axis=0)

    def repeated_p(self, p: Float[np.ndarray, "look part"]) -> Float[np.ndarray, " part"]:
        """p-values that hold whatever is decided at the looks: P(a height as large at any of all planned looks)."""
        known = _log_crossing(self.shares)
        heights = np.clip(self.heights(p), _HEIGHTS[0], _HEIGHTS[-1])
        return np.exp(np.interp(heights, _HEIGHTS, known))

    def q(self, p: Float[np.ndarray, "look part"], hypotheses: int | None = None) -> Float[np.ndarray, " part"]:
        """False discovery rate (Benjamini & Hochberg) of the repeated p-values over all parts.

        Heights never fall, so what is named at one look stays named.

        Args:
            hypotheses: parts in question, of which those that are not in `p` were never asked and count as p 1;
                ``None``: those in `p`.
        """
        never = np.ones(max(0, (hypotheses or 0) - p.shape[1]))
        return benjamini_hochberg(np.append(self.repeated_p(p), never))[: p.shape[1]]

    def futile(
        self, p: Float[np.ndarray, "look part"], named: int, hypotheses: int | None = None
    ) -> Bool[np.ndarray, " part"]:
        """Parts that need not be asked further: P(named at the last look) < `FUTILITY`, predicted from what was seen.

        The error rates hold whether this is followed or not.

        Args:
            named: parts that are named already; one more would need a p of (named + 1) · level / parts.
            hypotheses: as for `q`.
        """
        if len(p) == len(self.items):
            return np.ones(p.shape[1], bool)
        needed = self.height_at(self.level * (named + 1) / max(hypotheses or 0, p.shape[1]))
        share = self.shares[len(p) - 1]
        z = scipy.stats.norm.isf(np.clip(p[-1], 1e-300, 1 - 1e-16))
        likely: np.ndarray = scipy.stats.norm.sf((needed - z / np.sqrt(share)) / np.sqrt(1 / share - 1))
        return np.isnan(p[-1]) | (likely < FUTILITY)

    def verdicts(
        self, p: Float[np.ndarray, "look part"], hypotheses: int | None = None
    ) -> tuple[Bool[np.ndarray, " part"], Bool[np.ndarray, " part"]]:
        """Parts that are named after these looks, and those that are to be asked further; `hypotheses` as for `q`."""
        named = self.q(p, hypotheses) <= self.level
        return named, ~named & ~self.futile(p, int(named.sum()), hypotheses)

    def height_at(self, level: float) -> float:
        """The height that is reached at any look with probability `level` without a loss beyond the margin."""
        return float(np.interp(-np.log(level), -_log_crossing(self.shares), _HEIGHTS))

    def intervals(
        self, lost: Int[np.ndarray, " part"], won: Int[np.ndarray, " part"], look: int
    ) -> tuple[Float[np.ndarray, " part"], Float[np.ndarray, " part"]]:
        """Repeated 95% interval of Δμ at the `look`-th look (from 0): it holds at all looks together.

        Tango's score interval, with the boundary of the look in place of 1.96. An estimate at a stop is biased, away
        from the margin where a part was named and towards it where it was given up; this interval is not.
        """
        return tango(lost, won, self.items[look], z=self.critical(look))

    def critical(self, look: int) -> float:
        """What takes the place of 1.96 at the `look`-th look (from 0), for 95% over all looks."""
        return self.height_at((1 - CONFIDENCE) / 2) * self.shares[look] ** (SHAPE - 0.5)


def crossing_probability(shares: Sequence[float], height: float, shape: float = SHAPE) -> float:
    """P(Z(t) ≥ height · t^(shape − ½) at any t of `shares`), for Z(t) = B(t) / √t of a Brownian motion B.

    Args:
        shares: of the information, rising to 1.
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
    """Parts whose interval is no wider than `width`: they need no more items to be known so well.

    Stopping by the width of a 95% interval costs little of its coverage (see the calibration in the documentation), for
    the width says next to nothing of the side on which it errs.
    """
    return (high - low) <= width


def e_values(
    lost: Int[np.ndarray, " part"],
    won: Int[np.ndarray, " part"],
    n: Int[np.ndarray, " part"] | int,
    margin: Float[np.ndarray, " part"] | float,
) -> Float[np.ndarray, " part"]:
    """Evidence against a loss of `margin` or less, whenever it is looked at: what a gambler's 1 has become.

    The gambler stakes a share λ on every item: it is multiplied by 1 + λ (1 − m) on a lost one, 1 − λ (1 + m) on one
    that is won, 1 − λ m on one that stays. Without a loss beyond the margin no strategy wins on average, so P(the
    value ever reaches 1/α) ≤ α. The stake is spread over `_BETS` shares λ.

    With lost and won items exchanged and the margin's sign changed it is the evidence against a loss of `margin` or
    more.
    """
    largest = 1 / (1 + np.asarray(margin))
    bets = largest * np.geomspace(0.02, 0.98, _BETS)[:, None]
    same = n - lost - won
    logs = lost * np.log1p(bets * (1 - margin)) + won * np.log1p(-bets * (1 + margin)) + same * np.log1p(-bets * margin)
    return np.exp(scipy.special.logsumexp(logs, axis=0) - np.log(_BETS))


def e_intervals(
    lost: Int[np.ndarray, " part"], won: Int[np.ndarray, " part"], n: Int[np.ndarray, " part"] | int
) -> tuple[Float[np.ndarray, " part"], Float[np.ndarray, " part"]]:
    """95% intervals of Δμ that hold at all numbers of items together: losses that `e_values` do not refute at 2.5%."""
    ends = []
    for a, b, sign in ((won, lost, 1.0), (lost, won, -1.0)):
        # The evidence against a change of `middle` or less falls as `middle` rises.
        low, high = np.full(len(lost), -1 + 1e-9), np.full(len(lost), 1 - 1e-9)
        for _ in range(40):
            middle = (low + high) / 2
            refuted = e_values(a, b, n, middle) >= 2 / (1 - CONFIDENCE)
            low, high = np.where(refuted, middle, low), np.where(refuted, high, middle)
        ends.append(sign * low)
    return ends[0], ends[1]


def e_bh(values: Float[np.ndarray, " part"]) -> Float[np.ndarray, " part"]:
    """False discovery rates of e-values under any dependence: q ≤ α names the k largest for the largest k with
    e₍ₖ₎ ≥ parts / (α k). What was never asked has an e-value of 1 or less."""
    order = np.argsort(-values, kind="stable")
    with np.errstate(divide="ignore"):
        levels = len(values) / (np.arange(1, len(values) + 1) * values[order])
    q = np.empty(len(values))
    q[order] = np.minimum(np.minimum.accumulate(levels[::-1])[::-1], 1.0)
    return q
