"""The methods that were replaced, kept only to be measured beside the new ones."""

from __future__ import annotations

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int

from lensprune.analysis.intervals import bootstrap_means
from lensprune.analysis.multiplicity import benjamini_hochberg
from lensprune.analysis.paired_tests import mcnemar_exact

__all__ = [
    "critical",
    "expected_missed",
    "percentile_interval",
    "shuffled_contrast_p",
    "shuffled_spearman_p",
    "sign_null",
]


def critical(clean: Bool[np.ndarray, " item"], variants: Bool[np.ndarray, "item variant"]) -> Bool[np.ndarray, " v"]:
    """Losses with Benjamini & Hochberg's q of the two-sided exact McNemar p at 0.05."""
    lower = variants.sum(axis=0) < clean.sum()
    return (benjamini_hochberg(mcnemar_exact(clean, variants)) <= 0.05) & lower


def percentile_interval(
    differences: Float[np.ndarray, "item variant"], clusters: Int[np.ndarray, " item"] | None = None, draws: int = 1000
) -> tuple[Float[np.ndarray, " variant"], Float[np.ndarray, " variant"]]:
    """95% percentile bootstrap over items or clusters; where all units are alike the Clopper–Pearson bound over
    units."""
    low, high = np.quantile(bootstrap_means(differences, clusters, resamples=draws), [0.025, 0.975], axis=0)
    unit = np.arange(len(differences)) if clusters is None else clusters
    sums = np.zeros((unit.max() + 1, differences.shape[1]))
    np.add.at(sums, unit, differences)
    means = sums / np.bincount(unit)[:, None]
    delta, unseen = differences.mean(axis=0), 1 - 0.025 ** (1 / len(means))
    alike = np.ptp(means, axis=0) < 1e-12
    return np.where(alike, delta - unseen * (1 + delta), low), np.where(alike, delta + unseen * (1 - delta), high)


def expected_missed(strongest: np.ndarray, controls: np.ndarray, unmeasured: int, top: int) -> float:
    """Controls among the `top` largest measured losses, times unmeasured heads per control."""
    border = np.sort(np.concatenate([strongest, controls]))[top - 1]
    return float((controls <= border).mean() * unmeasured)


def shuffled_spearman_p(a: Float[np.ndarray, " part"], b: Float[np.ndarray, " part"], draws: int, seed: int) -> float:
    """Two-sided p of Spearman's ρ by shuffling all parts of one side."""
    ranks = [scipy.stats.rankdata(side) for side in (a, b)]
    ranks = [side - side.mean() for side in ranks]
    shuffled = np.random.default_rng(seed).permuted(np.tile(ranks[1], (draws, 1)), axis=1) @ ranks[0]
    return float((1 + (np.abs(shuffled) >= abs(ranks[0] @ ranks[1]) - 1e-9).sum()) / (1 + draws))


def sign_null(differences: Float[np.ndarray, "item part"], draws: int, seed: int) -> Float[np.ndarray, "draw part"]:
    """Mean effects when the sign of every (item, part) difference is drawn at random."""
    generator = np.random.default_rng(seed)
    signs = generator.integers(0, 2, size=(draws, *differences.shape), dtype=np.int8) * 2 - 1
    return np.einsum("dip,ip->dp", signs, differences) / len(differences)


def shuffled_contrast_p(
    loss: Float[np.ndarray, "solution token"], label: Bool[np.ndarray, " token"], draws: int, seed: int
) -> float:
    """One-sided p of the labelled tokens' mean loss, with the labels shuffled within each solution."""
    generator = np.random.default_rng(seed)
    labels = generator.permuted(np.broadcast_to(label, (draws, *loss.shape)), axis=2)
    sums = (labels * loss).sum(axis=(1, 2))
    return float((1 + (sums >= loss[:, label].sum() - 1e-9).sum()) / (1 + draws))
