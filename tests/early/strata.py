"""What asking the items near the boundary first would gain: ``python -m tests.early.strata RUNS --write PAGE``.

RUNS holds one sweep folder per row of the table; a sweep that is not there is run first, which takes minutes. Items are
resampled from its records: the clean model is measured on N items, and each variant on m of them, drawn at random, or
by strata of the clean margin, more where variants of the other half of the sweep change more items.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

import lensprune as lp
from lensprune.ablation.variants import CLEAN
from lensprune.analysis.multiplicity import benjamini_hochberg, discrete_bh
from lensprune.analysis.paired_tests import lower_tail
from lensprune.engine import make_executor
from lensprune.sweeps.options import SweepOptions
from lensprune.sweeps.prepare import prepare
from lensprune.sweeps.selection import VariantSelection
from tests.helpers.markdown import write_between

__all__ = ["Recorded", "allocate", "by_quarters", "by_rightness", "resampled", "stratified_p"]

MODEL, TASK, ITEMS, LEAST = "smollm2-135m", "facts", 200, 0.1
"""`LEAST`: smallest share of a stratum's items that is measured."""
_GRID, _SIZE = 1 / 4000, 1 << 14
"""Step and length of the grid on which the law of a weighted loss is computed."""

Strata = Int[np.ndarray, " item"]


@dataclass(frozen=True)
class Recorded:
    """A sweep's outcomes: `changes` are variant − clean, and `margin` is how far each clean answer is from another."""

    right: Bool[np.ndarray, " item"]
    margin: Float[np.ndarray, " item"]
    changes: Float[np.ndarray, "item variant"]
    clusters: Int[np.ndarray, " item"]


def by_quarters(sweep: Recorded) -> Strata:
    """Quarters of the size of the margin."""
    return _ranks(sweep.margin, 4)


def by_rightness(sweep: Recorded) -> Strata:
    """Items that the clean model answers wrong, and thirds of the margin of the right ones."""
    strata = np.zeros(len(sweep.right), int)
    strata[sweep.right] = 1 + _ranks(sweep.margin[sweep.right], 3)
    return strata


def _ranks(margin: Float[np.ndarray, " item"], parts: int) -> Strata:
    return np.searchsorted(np.quantile(np.abs(margin), np.arange(1, parts) / parts), np.abs(margin))


def allocate(
    sizes: Int[np.ndarray, " stratum"], spread: Float[np.ndarray, " stratum"], n: int
) -> Int[np.ndarray, " stratum"]:
    """Items to measure in strata of `sizes` items, `n` in all: in proportion to size times `spread`, the standard
    deviation of an item's change (Neyman 1934), at least `LEAST` of each stratum and at most all of it."""
    least, wanted = LEAST * sizes, sizes * np.maximum(spread, 1e-3)
    low, high = 0.0, sizes.sum() / wanted[wanted > 0].min()
    for _ in range(60):
        middle = (low + high) / 2
        over = np.clip(middle * wanted, least, sizes).sum() > n
        low, high = (low, middle) if over else (middle, high)
    return np.maximum(np.clip(low * wanted, least, sizes).astype(int), np.minimum(sizes, 1))


@lru_cache(maxsize=200_000)
def stratified_p(
    changed: tuple[int, ...], n: tuple[int, ...], weight: tuple[float, ...], sign: tuple[int, ...], margin: float = 0.0
) -> float:
    """One-sided p of a loss beyond `margin` from stratified items, by the law of the weighted loss if it is the margin.

    In each stratum the items can all be lost (`sign` 1) or all be won (−1). The shares of changed items under the null
    hypothesis are those of greatest likelihood with that loss on balance; equal losses count half (mid-p).

    Args:
        changed: changed items of `n` measured ones, in each stratum, which has the share `weight` of all items.
    """
    k, m, w, s = (np.array(own, float) for own in (changed, n, weight, sign))
    if (margin == 0 and s * w @ (k / m) <= 0) or w[s > 0].sum() <= margin:
        return 1.0

    def shares(pull: float) -> Float[np.ndarray, " stratum"]:
        # Where the derivative k / x − (m − k) / (1 − x) + a of the likelihood and the pull on the balance is 0.
        a = pull * s * w
        a = np.where(np.abs(a) < 1e-9, 1e-9, a)
        return np.clip(((a - m) + np.sqrt(np.maximum((m - a) ** 2 + 4 * a * k, 0))) / (2 * a), 0, 1)

    low, high = -1e6, 1e6
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if s * w @ shares(middle) < margin else (low, middle)
    steps = np.rint(s * w / m / _GRID).astype(int)
    law = np.ones(_SIZE // 2 + 1, complex)
    for x, own, step in zip(shares(high), n, steps, strict=True):
        item = np.zeros(_SIZE)
        item[0] += 1 - x
        item[step] += x
        law = law * np.fft.rfft(item) ** own
    chances, observed = np.maximum(np.fft.irfft(law, _SIZE), 0), int(steps @ k)
    at = np.arange(_SIZE)
    at = np.where(at < _SIZE // 2, at, at - _SIZE)
    return float(min(1.0, chances[at > observed].sum() + chances[at == observed].sum() / 2))


def resampled(
    sweep: Recorded, by: Callable[[Recorded], Strata], drawn: int, measured: int, runs: int
) -> tuple[float, Float[np.ndarray, "way rate"]]:
    """How much stratified items give at equal cells.

    Returns:
        The mean squared error of Δμ as a share of that of random items; and power and false discovery rate at 0.05 of a
        loss with random items (`discrete_bh`) and with stratified ones (NaN if a stratum mixes right and wrong items).
    """
    generator, strata, truth = np.random.default_rng(0), by(sweep), sweep.changes.mean(axis=0)
    n_strata, losing = int(strata.max()) + 1, truth < -1e-9
    apart = [set(sweep.right[strata == h].tolist()) for h in range(n_strata)]
    sign = tuple(1 if kinds == {True} else -1 for kinds in apart)
    errors, rates = np.zeros(2), np.zeros((2, 2))
    for run in range(runs):
        items = generator.integers(0, len(strata), drawn)
        own, sizes = sweep.changes[items], np.bincount(strata[items], minlength=n_strata)
        # Strata are sampled by what one half of the variants changes and judged on the other.
        other = np.arange(len(truth)) % 2 == run % 2
        spread = [sweep.changes[strata == h][:, other].std(axis=0) for h in range(n_strata)]
        n = allocate(sizes, np.sqrt((np.array(spread) ** 2).mean(axis=1)), measured)
        chosen = [generator.permutation(np.flatnonzero(strata[items] == h))[: n[h]] for h in range(n_strata)]
        weight = sizes / drawn
        means = np.array([own[places].mean(axis=0) if len(places) else 0 * truth for places in chosen])
        found = own[:measured].mean(axis=0), weight @ means
        for way, delta in enumerate(found):
            errors[way] += ((delta - truth)[~other] ** 2).mean()
        named = [discrete_bh(lower_tail(own[:measured][:, ~other])) <= 0.05]
        if all(len(kinds) == 1 for kinds in apart):
            there = n > 0
            changed = np.rint(np.abs(means) * n[:, None]).astype(int)[there][:, ~other].T
            place = tuple(n[there].tolist()), tuple(weight[there].tolist()), tuple(np.array(sign)[there].tolist())
            p = [stratified_p(tuple(row), *place) for row in changed.tolist()]
            named.append(benjamini_hochberg(np.array(p)) <= 0.05)
        for way, those in enumerate(named):
            rates[way] += those[losing[~other]].mean(), (those & ~losing[~other]).sum() / max(1, those.sum())
    rates[len(named) :] = np.nan
    return float(errors[1] / errors[0]), rates / runs


_LAYERS = [f"L{i}.skip" for i in range(30)]
SWEEPS = {
    "layers": ("continuation", _LAYERS),
    "every third head": ("continuation", [f"L{i // 9}.H{i % 9}.zero" for i in range(0, 270, 3)]),
    "layers, generate": ("generate", _LAYERS),
}
"""Protocol and variants."""


def recorded(protocol: str, variants: list[str], folder: Path) -> Recorded:
    """The sweep in `folder`, resumed if it is not complete."""
    records = lp.sweep(MODEL, TASK, protocol, variants, limit=ITEMS, out=folder).records()
    right = {name: own["correct"].to_numpy(float) for name, own in records.groupby("variant", sort=False)}
    clean, asked = right.pop("clean"), records[records["variant"] == "clean"]
    margin = asked["logprob_margin"].to_numpy(float)
    if protocol == "generate":
        kept = folder.with_name(f"{folder.name}.npy")
        if not kept.exists():
            np.save(kept, smallest_gaps(TASK, ITEMS))
        margin = np.load(kept)
    changes = np.stack(list(right.values()), axis=1) - clean[:, None]
    return Recorded(clean > 0, margin, changes, np.unique(asked["cluster"], return_inverse=True)[1])


def smallest_gaps(task: str, items: int) -> Float[np.ndarray, " item"]:
    """Smallest difference between the logits of the best and the second token over the tokens that the clean model
    generates, for each item of a sweep with that limit."""
    model = lp.load_model(MODEL, device="cpu")
    options = SweepOptions.given(tasks=(task,), protocols=("generate",), variants=VariantSelection(), limit=items)
    job = prepare(model, options)
    (condition,) = job.conditions
    (answers,) = make_executor("forked", job.model, None, None).run(condition.requests, [CLEAN])
    gaps = []
    for request, response in zip(condition.requests, answers.responses, strict=True):
        ids = torch.tensor([[*request.context_ids, *response.token_ids]])
        with torch.no_grad():
            logits = job.model.forward(ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None])
        best = logits[0, len(request.context_ids) - 1 : -1].float().topk(2)
        assert best.indices[:, 0].tolist() == list(response.token_ids), request.item
        gaps.append(float((best.values[:, 0] - best.values[:, 1]).min()))
    return np.array(gaps)


def table(sweeps: dict[str, Recorded], runs: int) -> str:
    """What each sweep gains, by both kinds of strata."""
    lines = [
        "| sweep | strata | items that change | of N | measured | variance | power, random items | power, strata |",
        "|" + "---|" * 8,
    ]
    for name, sweep in sweeps.items():
        for words, by in (("quarters of the margin", by_quarters), ("wrong, thirds of right", by_rightness)):
            strata = by(sweep)
            change = [np.abs(sweep.changes[strata == h]).mean() for h in range(4)]
            for drawn, measured in ((200, 100), (400, 100)):
                variance, rates = resampled(sweep, by, drawn, measured, runs)
                power = "–" if np.isnan(rates[1, 0]) else f"{rates[1, 0]:.2f}"
                shares = " / ".join(f"{100 * own:.1f}" for own in change)
                row = [
                    name,
                    words,
                    f"{shares}%",
                    str(drawn),
                    str(measured),
                    f"{variance:.2f}",
                    f"{rates[0, 0]:.2f}",
                    power,
                ]
                lines.append(f"| {' | '.join(row)} |")
                print(lines[-1], rates[:, 1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUNS", help="folder of the sweeps")
    parser.add_argument("--times", type=int, default=400, help="how often the items are resampled")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between the page's marks")
    arguments = parser.parse_args()
    sweeps = {name: recorded(*own, arguments.folder / name.replace(" ", "_")) for name, own in SWEEPS.items()}
    text = table(sweeps, arguments.times)
    if arguments.write is not None:
        write_between(arguments.write, "strata", text)


if __name__ == "__main__":
    main()
