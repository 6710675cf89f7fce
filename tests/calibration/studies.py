"""What is measured: one function per question, each with worlds whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import stats

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.claims import claim_results
from lensprune.analysis.concentration import concentration_statistics, null_effects
from lensprune.analysis.head_effects import ItemEffects
from lensprune.analysis.intervals import bootstrap_means, centred_quantiles, mean_intervals, tango, unit_sums
from lensprune.analysis.multiplicity import discrete_bh
from lensprune.analysis.overlap import on_disjoint_items, spearman
from lensprune.analysis.paired_tests import lower_tail
from lensprune.analysis.randomization import sign_flip_p
from lensprune.analysis.room import ACCURACY_MARGIN
from lensprune.analysis.screening import missed
from lensprune.analysis.signatures import SIGNATURE_COLUMNS, of_task, verdict
from lensprune.analysis.summary import Cell, Group
from lensprune.runs.chance import at_chance
from tests.calibration import before, sequential
from tests.calibration.row import Row

__all__ = ["STUDIES", "Row"]


def false_discovery(scale: float = 1.0) -> list[Row]:
    """Parts that lose, among parts that only flip items as noise does."""
    rows = []
    worlds = [
        (30, 2, 0.2, 50, 0.04, 400),
        (30, 15, 0.1, 50, 0.04, 300),
        (270, 27, 0.1, 100, 0.02, 60),
        (1024, 100, 0.05, 300, 0.01, 12),
    ]
    for parts, losing, loss, n, flips, runs in worlds:
        times = max(4, round(runs * scale))
        generator = np.random.default_rng((parts, losing))
        found = np.zeros((2, 2))
        for _ in range(times):
            clean, variants = _world(generator, parts, losing, loss, n, flips)
            differences = variants.astype(float) - clean[:, None]
            named = before.critical(clean, variants), discrete_bh(lower_tail(differences)) <= 0.05
            for place, own in enumerate(named):
                found[place] += own[:losing].mean(), own[losing:].sum() / max(1, own.sum())
        found /= times
        world = f"{parts} parts, {losing} lose {loss}, n {n}; {flips:.0%} of the items flip by themselves"
        rows.append(Row("critical parts", world, "power", *found[:, 0], "large", times))
        rows.append(Row("critical parts", world, "false discovery rate", *found[:, 1], "≤ 0.05", times))
    return rows


def _world(
    generator: np.random.Generator, parts: int, losing: int, loss: float, n: int, flips: float, accuracy: float = 0.7
) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of the clean model and of each part's removal; flips leave the mean accuracy as it is."""
    clean = generator.random(n) < accuracy
    rate = np.where(np.arange(parts) < losing, loss / accuracy, 0.0) + flips
    lost = clean[:, None] & (generator.random((n, parts)) < rate)
    won = ~clean[:, None] & (generator.random((n, parts)) < flips * accuracy / (1 - accuracy))
    return clean, (clean[:, None] & ~lost) | won


def outcome_intervals(scale: float = 1.0) -> list[Row]:
    """Coverage where few losses are expected, exactly: over all counts of losses."""
    rows = []
    for n in (20, 50, 100, 300):
        counts = np.arange(n + 1)
        low, high = tango(counts, np.zeros(n + 1, int), n)
        unseen = 1 - 0.025 ** (1 / n)
        low[0], high[0], low[-1], high[-1] = -unseen, unseen, -1, -1 + 2 * unseen
        old_low = np.where(counts > 0, -stats.binom.ppf(0.975, n, counts / n) / n, -unseen)
        old_high = np.where(counts > 0, -stats.binom.ppf(0.025, n, counts / n) / n, unseen)
        covered = []
        for own in ((old_low, old_high), (low, high)):
            worst = 1.0
            for rate in np.linspace(2.5, 3.5, 21) / n:
                inside = (own[0] <= -rate + 1e-9) & (own[1] >= -rate - 1e-9)
                worst = min(worst, float(stats.binom.pmf(counts, n, rate)[inside].sum()))
            covered.append(worst)
        world = f"2.5 to 3.5 losses expected, no gains, n {n}"
        rows.append(Row("interval of Δμ", world, "lowest coverage", *covered, "≥ 0.93", 0))
    return rows


def cluster_intervals(scale: float = 1.0) -> list[Row]:
    """Clusters whose rates of loss differ: beta with mean 0.3 and intra-cluster correlation 0.1; 60 items."""
    rows, runs = [], round(3000 * scale)
    for n_clusters in (2, 3, 5, 8, 15):
        generator, size = np.random.default_rng(n_clusters), 60 // n_clusters
        rates = generator.beta(2.7, 6.3, size=(n_clusters, runs))
        lost = -(generator.random((n_clusters * size, runs)) < np.repeat(rates, size, axis=0)).astype(float)
        clusters = np.repeat(np.arange(n_clusters), size)
        now = mean_intervals(lost, clusters)
        covered = [_covered(*own, -0.3) for own in (before.percentile_interval(lost, clusters), (now.low, now.high))]
        rows.append(Row("interval of Δμ", f"{n_clusters} clusters of {size}", "coverage", *covered, "≥ 0.93", runs))
    return rows


def unequal_clusters(scale: float = 1.0) -> list[Row]:
    """One cluster that holds about half of the items; rates of loss are beta with mean 0.2 and correlation 1/6."""
    rows, runs = [], round(3000 * scale)
    for large, small, count in ((40, 3, 11), (50, 5, 9), (30, 1, 30)):
        sizes = [large, *[small] * count]
        generator, clusters = np.random.default_rng(large), np.repeat(np.arange(len(sizes)), sizes)
        rates = generator.beta(1, 4, size=(len(sizes), runs))
        lost = -(generator.random((len(clusters), runs)) < rates[clusters]).astype(float)
        now = mean_intervals(lost, clusters)
        covered = [_covered(*own, -0.2) for own in (before.percentile_interval(lost, clusters), (now.low, now.high))]
        world = f"a cluster of {large} and {count} of {small}"
        rows.append(Row("interval of Δμ, clusters", world, "coverage", *covered, "≥ 0.93", runs))
    return rows


def _covered(low: np.ndarray, high: np.ndarray, truth: float) -> float:
    return float(np.mean((low <= truth) & (truth <= high)))


def band_intervals(scale: float = 1.0) -> list[Row]:
    """Means over nine layers; an item that one layer loses is likely lost by the others too."""
    rows, runs = [], round(3000 * scale)
    for n, rate in ((12, 0.2), (20, 0.1)):
        generator = np.random.default_rng(n)
        share = generator.beta(rate * 4, (1 - rate) * 4, size=(n, runs))
        bands = -generator.binomial(9, share) / 9
        now = mean_intervals(bands)
        covered = [_covered(*own, -rate) for own in (before.percentile_interval(bands), (now.low, now.high))]
        rows.append(Row("band means", f"nine layers that lose {rate}, n {n}", "coverage", *covered, "≥ 0.93", runs))
    return rows


def marks(scale: float = 1.0) -> list[Row]:
    """Models that always answer the same, and models that know something."""
    rows, runs = [], round(200 * scale)
    for share in (0.65, 0.74):
        targets = ["yes"] * round(100 * share) + ["no"] * round(100 * (1 - share))
        correct, half = np.array([own == "yes" for own in targets]), np.full(100, 0.5)
        marked = at_chance(correct, half), at_chance(correct, half, targets, ["yes"] * 100)
        world = f'"yes" to all of 100 questions, right for {share:.0%}'
        rows.append(Row("at chance", world, "marked", *map(float, marked), "1", 1))
    for n in (12, 50):
        generator, found = np.random.default_rng(n), np.zeros(2)
        for _ in range(runs):
            targets = generator.choice(list("ABCD"), n).tolist()
            knows = generator.random(n) < 0.2
            given = np.where(knows, targets, generator.choice(list("ABCD"), n)).tolist()
            correct = np.array([a == b for a, b in zip(targets, given, strict=True)])
            quarter = np.full(n, 0.25)
            found += at_chance(correct, quarter), at_chance(correct, quarter, targets, given)
        world = f"accuracy 0.40 where chance is 0.25, n {n}"
        rows.append(Row("at chance", world, "marked", *(found / runs), "0 with enough items", runs))
    return rows


def _group(protocol: str, clean: np.ndarray, layers: np.ndarray, chance: float, task: str = "facts") -> Group:
    ids = pa.array([str(i) for i in range(len(clean))])

    def cell(correct: np.ndarray, layer: int | None) -> Cell:
        facts = {"component": "layer" if layer is not None else "clean", "layer": layer, "ablation": "skip"}
        return Cell(correct, pa.chunked_array([ids]), dict(facts))

    cells = {CLEAN.name: cell(clean, None)} | {f"L{i}.skip": cell(layers[:, i], i) for i in range(layers.shape[1])}
    chances = np.full(len(clean), chance)
    return Group(task, protocol, cells, chances, None, len(clean), at_chance(clean, chances))


def floors(scale: float = 1.0) -> list[Row]:
    """Both protocols lose half of what is known, the likelihood from 0.30 where chance is 0.25."""
    rows, runs = [], round(200 * scale)
    for n in (200, 800):
        generator, found, tried = np.random.default_rng(n), np.zeros(2), 0
        for _ in range(runs):
            groups = {}
            for protocol, accuracy, chance in (("continuation", 0.30, 0.25), ("generate", 0.7, 0.0)):
                knows = (accuracy - chance) / (1 - chance)
                known, luck = generator.random(n) < knows, generator.random(n) < chance
                forgotten = generator.random((n, 30)) < 0.5
                clean = known | luck
                layers = (known[:, None] & ~forgotten) | luck[:, None]
                groups[protocol] = _group(protocol, clean, layers, chance)
            if groups["continuation"].at_chance:
                continue
            tried += 1
            [row] = [
                own for own in of_task(groups, 30, ACCURACY_MARGIN) if own["signature"].startswith("likelihood flat")
            ]
            flat = float(row["likelihood_ci_low"]) > -ACCURACY_MARGIN
            found += flat and verdict(float(row["ci_low"]), float(row["ci_high"])) == "seen", row["verdict"] == "seen"
        world = f"both protocols lose half, likelihood at 0.30, n {n}"
        rows.append(Row("flat likelihood", world, "seen", *(found / max(1, tried)), "≤ 0.05", tried))
    return rows


def screened(scale: float = 1.0) -> list[Row]:
    """Heads of the strongest tenth that were neither measured as strongest nor as controls."""
    rows = []
    for heads, quality in ((270, 0.7), (270, 0.3), (1024, 0.7)):
        runs = round(400 * scale)
        generator, errors, above = np.random.default_rng(heads), [], 0
        top = heads // 10
        chosen, controls = int(np.ceil(1.5 * top)), top // 2
        for _ in range(runs):
            losses = -generator.gamma(0.5, 1, heads)
            order = np.argsort(losses + generator.normal(0, quality, heads))
            strongest, rest = order[:chosen], generator.permutation(order[chosen:])
            truth = len(set(np.argsort(losses)[:top].tolist()) & set(rest[controls:].tolist()))
            old = before.expected_missed(losses[strongest], losses[rest[:controls]], heads - chosen - controls, top)
            table = pd.DataFrame(
                {
                    "loss": np.concatenate([losses[strongest], losses[rest[:controls]]]),
                    "status": ["measured: strongest"] * chosen + ["measured: control"] * controls,
                }
            ).sort_values("loss")
            _, new, most = missed(table, heads, top)
            errors.append((old - truth, new - truth))
            above += truth > most
        error = np.sqrt((np.array(errors) ** 2).mean(axis=0))
        world = f"{heads} heads, noise {quality} in the estimates"
        rows.append(Row("heads missed", world, "root mean square error", *error, "small", runs))
        rows.append(Row("heads missed", world, "above the upper bound", np.nan, above / runs, "≤ 0.05", runs))
    return rows


def screened_q(scale: float = 1.0) -> list[Row]:
    """Heads ranked by the mean change of the margin of the same items that judge them: q over measured or all heads."""
    rows, heads = [], 270
    for losing, n, size in ((5, 100, 0.5), (5, 200, 1.0)):
        runs, generator, found = max(10, round(200 * scale)), np.random.default_rng(n), np.zeros((2, 2))
        # Margins are normal around 1 with standard deviation 1. This shift leaves the mean accuracy as it is.
        shift = np.sqrt(1 + size**2) - 1 - np.where(np.arange(heads) < losing, 0.6, 0.0)
        for _ in range(runs):
            margin = generator.normal(1, 1, n)
            changes = generator.normal(shift, size, (n, heads))
            order = np.argsort(changes.mean(axis=0))
            measured = np.append(order[:41], generator.choice(order[41:], 13, replace=False))
            right = margin[:, None] + changes[:, measured] > 0
            tests = lower_tail(right.astype(float) - (margin > 0)[:, None])
            for place, q in enumerate((discrete_bh(tests), discrete_bh(tests, hypotheses=heads))):
                named = measured[q <= 0.05]
                found[place] += (named < losing).sum() / losing, (named >= losing).sum() / max(1, len(named))
        found /= runs
        world = (
            f"270 heads, 54 of them measured, {losing} lose, n {n}; margins of the same items change by N(0, {size:g}²)"
        )
        rows.append(Row("screened q", world, "power", *found[:, 0], "large", runs))
        rows.append(Row("screened q", world, "false discovery rate", *found[:, 1], "≤ 0.05", runs))
    return rows


def overlaps(scale: float = 1.0) -> list[Row]:
    """Parts that have nothing in common."""
    rows, runs = [], round(200 * scale)
    generator, small = np.random.default_rng(0), np.zeros(2)
    few = max(10, runs // 4)
    for seed in range(few):
        clean = generator.random((40, 1)) < 0.7
        luck = generator.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=(40, 270)) * np.where(clean, 1, 0.3)
        layers = tuple(np.repeat(np.arange(30), 9).tolist())
        own = [_effects(luck + generator.normal(0, 0.1, luck.shape), layers, name) for name in ("default", "generate")]
        halves = on_disjoint_items(*own)
        small += (
            before.shuffled_spearman_p(own[0].effects, own[1].effects, 200, seed) <= 0.05,
            spearman(*halves, layers, permutations=200, seed=seed)[1] <= 0.05,
        )
    rows.append(Row("overlap", "270 equal heads, two protocols, 40 items", "p ≤ 0.05", *(small / few), "0.05", few))
    for autocorrelation in (0.8, 0.9):
        small = np.zeros(2)
        for seed in range(runs):
            a, b = (_smooth(generator, autocorrelation) for _ in range(2))
            small += (
                before.shuffled_spearman_p(a, b, 200, seed) <= 0.05,
                spearman(a, b, range(30))[1] <= 0.05,
            )
        world = f"two unrelated profiles of 30 layers, autocorrelation {autocorrelation}"
        rows.append(Row("overlap", world, "p ≤ 0.05", *(small / runs), "0.05", runs))
    return rows


def _effects(differences: np.ndarray, layers: tuple[int, ...], protocol: str) -> ItemEffects:
    names = tuple(str(i) for i in range(differences.shape[1]))
    ids = tuple(str(i) for i in range(len(differences)))
    return ItemEffects("t", protocol, "correct", names, layers, layers, differences, None, False, ids)


def _smooth(generator: np.random.Generator, autocorrelation: float) -> np.ndarray:
    steps = generator.normal(size=30)
    for layer in range(1, 30):
        steps[layer] = autocorrelation * steps[layer - 1] + np.sqrt(1 - autocorrelation**2) * steps[layer]
    return steps


def concentrations(scale: float = 1.0) -> list[Row]:
    """Estimates outside their own interval, and spreads that a null should tell from noise."""
    generator, runs = np.random.default_rng(0), max(5, round(40 * scale))
    outside = np.zeros(2)
    for seed in range(runs):
        differences = generator.choice([-1.0, 0.0, 1.0], p=[0.03, 0.95, 0.02], size=(20, 270))
        value = float(concentration_statistics(differences.mean(axis=0))["gini"])
        draws = concentration_statistics(bootstrap_means(differences, resamples=300, seed=seed))["gini"]
        for place, (low, high) in enumerate((np.quantile(draws, [0.025, 0.975]), centred_quantiles(draws, value))):
            outside[place] += not low <= value <= high
    rows = [Row("concentration", "270 heads, 20 items", "Gini outside its interval", *(outside / runs), "0", runs)]
    for world, rate, aim in (
        ("half of 40 parts lose 30% of 60 items", np.where(np.arange(40) < 20, 0.3, 0.0), "large"),
        ("all of 40 parts lose 15% of 60 items", np.full(40, 0.15), "≤ 0.05"),
    ):
        small, runs = np.zeros(2), max(10, round(300 * scale))
        for seed in range(runs):
            differences = -(generator.random((60, 40)) < rate).astype(float)
            value = concentration_statistics(differences.mean(axis=0))["gini"]
            for place, null in enumerate((before.sign_null, null_effects)):
                drawn = concentration_statistics(null(differences, 200, seed))["gini"]
                small[place] += (1 + (drawn >= value - 1e-9).sum()) / 201 <= 0.05
        rows.append(Row("concentration", world, "p of Gini ≤ 0.05", *(small / runs), aim, runs))
    return rows


def contrasts(scale: float = 1.0) -> list[Row]:
    """Solutions differ in how much more a class of their tokens loses; on average it loses no more."""
    generator, runs, small = np.random.default_rng(0), round(300 * scale), np.zeros(2)
    label = np.arange(20) < 6
    for seed in range(runs):
        loss = generator.normal(0, 0.8, (24, 1)) * label + generator.normal(0, 0.5, (24, 20))
        contrast = loss[:, label].mean(axis=1) - loss[:, ~label].mean(axis=1)
        small += (
            before.shuffled_contrast_p(loss, label, 200, seed) <= 0.05,
            sign_flip_p(contrast[:, None], alternative="greater", flips=500, seed=seed)[0] <= 0.05,
        )
    world = "24 solutions of 20 tokens, a contrast of its own in each, mean 0"
    return [Row("contrast of primitives", world, "p ≤ 0.05", *(small / runs), "0.05", runs)]


def claims(scale: float = 1.0) -> list[Row]:
    """No layer matters: removing one flips 4% of the items either way, under three protocols of three tasks."""
    generator, runs, seen = np.random.default_rng(0), round(100 * scale), np.zeros(2)
    for _ in range(runs):
        rows = []
        for task in ("facts", "kv_retrieval", "arithmetic"):
            groups = {}
            for protocol in ("default", "continuation", "generate"):
                clean, layers = _world(generator, 30, 0, 0.0, 50, 0.04)
                groups[protocol] = _group(protocol, clean, layers, 0.25, task)
            rows += of_task(groups, 30, ACCURACY_MARGIN)
        frame = pd.DataFrame(rows, columns=list(SIGNATURE_COLUMNS))
        rowwise = [verdict(low, high) for low, high in zip(frame["ci_low"], frame["ci_high"], strict=True)]
        found = any((own.rows["verdict"] == "seen").any() for own in claim_results(frame))
        seen += "seen" in rowwise, found
    world = "no layer matters; 18 rows of 50 items"
    return [Row("claims", world, "some row seen", *(seen / runs), "small", runs)]


def fidelity(scale: float = 1.0) -> list[Row]:
    """Six items whose fidelity is 1."""
    ones = np.ones((6, 1))
    low = mean_intervals(ones, bounds=(0, 1)).low[0]
    old = float(np.quantile(bootstrap_means(ones), 0.025))
    return [Row("fidelity", "six items, all 1", "lower end of the interval", old, float(low), "below 1", 1)]


def clustered_q(scale: float = 1.0) -> list[Row]:
    """Each part changes most of the items of some clusters, in a direction of its own; some parts also lose."""
    rows, runs = [], max(10, round(200 * scale))
    for n_clusters, size in ((8, 12), (15, 6)):
        generator, found = np.random.default_rng(n_clusters), np.zeros((2, 2))
        clusters = np.repeat(np.arange(n_clusters), size)
        for _ in range(runs):
            differences = _by_cluster(generator, clusters, 30)
            lost = generator.random((len(clusters), 3)) < 0.4
            differences[:, :3] = np.where(lost, -1.0, differences[:, :3])
            for place, counted in enumerate((differences, unit_sums(differences, clusters)[0])):
                named = discrete_bh(lower_tail(counted)) <= 0.05
                found[place] += named[:3].mean(), named[3:].sum() / max(1, named.sum())
        found /= runs
        world = f"{n_clusters} clusters of {size}, 30 parts, 3 lose 0.4; clusters change together"
        rows.append(Row("critical parts, clusters", world, "power", *found[:, 0], "large", runs))
        rows.append(Row("critical parts, clusters", world, "false discovery rate", *found[:, 1], "≤ 0.05", runs))
    return rows


def _by_cluster(generator: np.random.Generator, clusters: np.ndarray, parts: int, share: float = 0.5) -> np.ndarray:
    """Differences that are 0 on average: in each (cluster, part), with chance 0.2, some of the items go one way."""
    n_clusters = int(clusters.max()) + 1
    ways = generator.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=(n_clusters, parts))
    return ways[clusters] * (generator.random((len(clusters), parts)) < share)


def clustered_concentration(scale: float = 1.0) -> list[Row]:
    """Parts that are all alike, whose effects come by clusters of items."""
    generator, runs, small = np.random.default_rng(0), max(10, round(200 * scale)), np.zeros(2)
    clusters = np.repeat(np.arange(15), 6)
    for seed in range(runs):
        differences = _by_cluster(generator, clusters, 60, share=1.0)
        for place, units in enumerate((differences, unit_sums(differences, clusters)[0])):
            value = concentration_statistics(units.mean(axis=0))["gini"]
            drawn = concentration_statistics(null_effects(units, 200, seed))["gini"]
            small[place] += (1 + (drawn >= value - 1e-9).sum()) / 201 <= 0.05
    world = "60 equal parts, 15 clusters of 6 that change together"
    return [Row("concentration, clusters", world, "p of Gini ≤ 0.05", *(small / runs), "0.05", runs)]


def gap_intervals(scale: float = 1.0) -> list[Row]:
    """Gaps between protocols where two to four items are expected to be lost under one of them alone."""
    rows, runs = [], round(1500 * scale)
    for n in (24, 50, 100):
        generator, covered = np.random.default_rng(n), []
        for expected in (2.5, 2.7, 2.9, 3.1, 3.3, 3.5):
            gaps = -(generator.random((n, runs)) < expected / n).astype(float)
            now = mean_intervals(gaps, bounds=(-2, 2))
            old = before.percentile_interval(gaps)
            covered.append([_covered(*own, -expected / n) for own in (old, (now.low, now.high))])
        world = f"2.5 to 3.5 items expected to be lost under one alone, n {n}"
        rows.append(Row("gap between protocols", world, "lowest coverage", *np.min(covered, axis=0), "≥ 0.93", runs))
    return rows


STUDIES: tuple[Callable[[float], list[Row]], ...] = (
    false_discovery,
    clustered_q,
    outcome_intervals,
    cluster_intervals,
    gap_intervals,
    band_intervals,
    marks,
    floors,
    screened,
    screened_q,
    overlaps,
    concentrations,
    clustered_concentration,
    contrasts,
    claims,
    fidelity,
    sequential.planned_looks,
    sequential.at_the_boundary,
    sequential.until_width,
    sequential.any_look,
    sequential.any_look_interval,
    unequal_clusters,
)
