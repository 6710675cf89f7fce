"""Randomization tests, with p-values fine enough for a single effect to be significant in a large family of tests."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Literal, Protocol

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int

__all__ = ["FLIPS", "Exceedances", "integer_law", "sign_flip_p", "sizes_of", "two_stage_p"]

FLIPS = 10_000
TOLERANCE = 1e-9
"""Sums that differ by less count as equal: their terms were added in a different order."""
_ALPHA = 0.05
_FLOOR_BELOW = 20
"""Factor by which the second stage's smallest possible p lies below Bonferroni's bound for `_ALPHA`."""
_NEAR_FLOOR = 10
_EXACT_ITEMS = 13
_LARGEST_STEP = 16
_BLOCK = 2048


class Exceedances(Protocol):
    """Counts the draws that are at least as extreme as the observed value, for each of the wanted columns.

    Each `stage` must use different draws, whichever columns are wanted.
    """

    def __call__(self, columns: Int[np.ndarray, " column"], draws: int, stage: int) -> Int[np.ndarray, " column"]: ...


def two_stage_p(beyond: Exceedances, n_columns: int, *, draws: int, tests: int) -> Float[np.ndarray, " column"]:
    """Monte Carlo p-values, (1 + beyond) / (1 + draws) (Phipson & Smyth 2010), fine enough to be significant in a
    family of `tests`.

    With few draws every p is at least 1 / (1 + draws), and Benjamini & Hochberg's q of a single effect at least `tests`
    times that. So columns with at most `_NEAR_FLOOR` of `draws` beyond are tested again on fresh draws only, enough for
    the smallest p to be below 0.05 / (20 · tests). P(p ≤ α) stays at most α, because p ≤ α implies p ≤ α in one stage:
    the second if α is below the threshold that sends columns there, else the first.
    """
    counts = beyond(np.arange(n_columns), draws, 0)
    p_values: Float[np.ndarray, " column"] = (1 + counts) / (1 + draws)
    near = np.flatnonzero(counts <= _NEAR_FLOOR)
    fresh = round(_FLOOR_BELOW * tests / _ALPHA)
    if len(near) and fresh > draws:
        p_values[near] = (1 + beyond(near, fresh, 1)) / (1 + fresh)
    return p_values


def sign_flip_p(
    differences: Float[np.ndarray, "item variant"],
    *,
    tests: int | None = None,
    flips: int = FLIPS,
    alternative: Literal["two-sided", "greater"] = "two-sided",
    seed: int = 0,
) -> Float[np.ndarray, " variant"]:
    """Sign-flip test of a zero mean: p-values when each item's difference is equally likely to have either sign.

    The share of sign patterns whose |Σ| (``greater``: Σ) is at least as large as the observed one, for each variant
    separately. Items count as independent. Without any difference p is 1; with a difference that is not finite it is
    NaN.

    * Integers up to 16, such as differences of outcomes: exact, by convolution of the binomial distributions of how
      many items of each size are flipped.
    * Other numbers: exact over all 2ⁿ patterns if at most 13 items differ; otherwise random patterns in two stages,
      `flips` for all and more where few are beyond (`two_stage_p`).

    Args:
        tests: size of the family that the p-values are corrected in; ``None``: the number of variants.
        flips: random patterns in the first stage.
        alternative: ``greater`` tests only for a mean above zero.
        seed: seed of the random patterns.
    """
    p_values = np.full(differences.shape[1], np.nan)
    known = np.isfinite(differences).all(axis=0)
    whole = known.copy()
    whole[known] = (differences[:, known] == np.rint(differences[:, known])).all(axis=0)
    whole[known] &= np.abs(differences[:, known]).max(axis=0, initial=0) <= _LARGEST_STEP
    sided = alternative == "greater"
    p_values[whole] = _integer_p(differences[:, whole], sided)
    few = known & ~whole & ((differences != 0).sum(axis=0) <= _EXACT_ITEMS)
    for column in np.flatnonzero(few):
        values = differences[differences[:, column] != 0, column]
        p_values[column] = _as_extreme(_patterns(len(values)), values[:, None], sided).mean()
    rest = np.flatnonzero(known & ~whole & ~few)
    if len(rest):
        remaining = differences[:, rest]

        def beyond(columns: Int[np.ndarray, " column"], draws: int, stage: int) -> Int[np.ndarray, " column"]:
            generator = np.random.default_rng((seed, stage))
            counts = np.zeros(len(columns), int)
            for start in range(0, draws, _BLOCK):
                shape = min(_BLOCK, draws - start), len(remaining)
                bits = np.frombuffer(generator.bytes(-(-shape[0] * shape[1] // 8)), np.uint8)
                flipped = np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape)
                counts += _as_extreme(flipped.astype(float), remaining[:, columns], sided).sum(axis=0)
            return counts

        p_values[rest] = two_stage_p(beyond, len(rest), draws=flips, tests=tests or differences.shape[1])
    return p_values


def _as_extreme(
    flipped: Float[np.ndarray, "draw item"], values: Float[np.ndarray, "item variant"], sided: bool
) -> Bool[np.ndarray, "draw variant"]:
    total = values.sum(axis=0)
    drawn = total - 2 * (flipped @ values)
    return drawn >= total - TOLERANCE if sided else np.abs(drawn) >= np.abs(total) - TOLERANCE


@cache
def _patterns(n: int) -> Float[np.ndarray, "pattern item"]:
    """Every way to flip or leave n items."""
    return ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(float)


def sizes_of(differences: Float[np.ndarray, "item variant"]) -> Int[np.ndarray, "variant size"]:
    """How many items of each variant differ by 1, 2, … up to the largest |difference|. Integers only."""
    sizes = np.abs(differences)
    steps = range(1, int(sizes.max(initial=0)) + 1)
    return np.stack([(sizes == step).sum(axis=0) for step in steps] or [np.zeros(differences.shape[1], int)], axis=1)


def _integer_p(differences: Float[np.ndarray, "item variant"], sided: bool) -> Float[np.ndarray, " variant"]:
    observed = differences.sum(axis=0).astype(int)
    keys = zip(map(tuple, sizes_of(differences).tolist()), observed.tolist(), strict=True)
    return np.array(
        [_tail_p(of_step, total if sided else abs(total), 1 if sided else 2) for of_step, total in keys], float
    )


@lru_cache(maxsize=100_000)
def _tail_p(counts: tuple[int, ...], observed: int, tails: int) -> float:
    """`tails` × P(Σ ±size ≥ observed) for `counts[k − 1]` items of size k with random signs."""
    total = sum(step * count for step, count in enumerate(counts, 1))
    # The sum is total − 2 · (flipped sum), so one tail is a flipped sum up to this; the distribution is symmetric.
    law = integer_law(counts, (total - observed) // 2)
    # A p of 0 would claim what no test can; the law underflows from about 1,075 items on.
    return float(np.clip(tails * law.sum(), np.finfo(float).tiny, 1.0))


def integer_law(counts: tuple[int, ...], most: int) -> Float[np.ndarray, " flipped"]:
    """P(the flipped items' sizes sum to 0, 1, …, `most`) for `counts[k − 1]` items of size k, each flipped with
    probability ½."""
    law = np.ones(1)
    for step, count in enumerate(counts, 1):
        step_law = np.zeros(step * count + 1)
        step_law[::step] = _binomial(count)
        law = np.convolve(law, step_law[: most + 1])[: most + 1]
    return law


@lru_cache(maxsize=10_000)
def _binomial(count: int) -> Float[np.ndarray, " flipped"]:
    probabilities: Float[np.ndarray, " flipped"] = scipy.stats.binom.pmf(np.arange(count + 1), count, 0.5)
    return probabilities
