"""Concentration and overlap against numbers worked out by hand and against other formulas."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats

from lensprune.ablation.components import Head
from lensprune.ablation.variants import CLEAN, Ablation, Variant
from lensprune.analysis.concentration import concentration, concentration_statistics, lorenz, null_effects
from lensprune.analysis.concentration_change import Comparison, compare
from lensprune.analysis.head_effects import ItemEffects, read_effects
from lensprune.analysis.overlap import jaccard_top_k, on_disjoint_items, overlap, relabellings, spearman
from lensprune.errors import UserError
from lensprune.results.figures.concentration import lorenz_curves, lorenz_data
from lensprune.runs.cell_store import MemoryStore
from lensprune.runs.records import CellKey
from tests.helpers.made_cells import outcomes_of, table


def effects_of(differences: np.ndarray, task: str = "t") -> ItemEffects:
    parts = differences.shape[1]
    names = tuple(f"L0.H{i}.zero" for i in range(parts))
    ids = tuple(str(i) for i in range(len(differences)))
    return ItemEffects(
        task, "default", "correct", names, (0,) * parts, tuple(range(parts)), differences, None, False, ids
    )


def test_by_hand() -> None:
    found = concentration_statistics(np.array([-0.6, 0.3, 0.1, 0.0]), top=(1, 2, 9))
    assert found["share_top_1"] == pytest.approx(0.6)
    assert found["share_top_2"] == pytest.approx(0.9)
    assert "share_top_9" not in found
    # Ascending 0, .1, .3, .6 with weights −3, −1, 1, 3 over 4.
    assert found["gini"] == pytest.approx((-0.1 + 0.3 + 1.8) / 4)
    assert found["participation_ratio"] == pytest.approx(1 / (0.36 + 0.09 + 0.01))
    assert found["entropy"] == pytest.approx(stats.entropy([0.6, 0.3, 0.1]))


def test_extremes() -> None:
    equal = concentration_statistics(np.full(8, -0.2))
    assert equal["gini"] == pytest.approx(0)
    assert equal["participation_ratio"] == pytest.approx(8)
    assert equal["entropy"] == pytest.approx(np.log(8))
    single = concentration_statistics(np.eye(8)[3])
    assert single["gini"] == pytest.approx(7 / 8)
    assert single["participation_ratio"] == pytest.approx(1)
    assert single["entropy"] == pytest.approx(0)
    assert all(np.isnan(value) for value in concentration_statistics(np.zeros(8)).values())


def test_gini_is_the_mean_difference_over_twice_the_mean() -> None:
    effects = np.random.default_rng(1).normal(size=30)
    sizes = np.abs(effects)
    expected = np.abs(sizes[:, None] - sizes[None]).mean() / (2 * sizes.mean())
    assert concentration_statistics(effects)["gini"] == pytest.approx(expected)


def test_gini_is_twice_the_area_between_lorenz_curve_and_diagonal() -> None:
    effects = np.random.default_rng(2).normal(size=25)
    area = np.trapezoid(lorenz(effects), np.linspace(0, 1, 26)) - 0.5
    assert concentration_statistics(effects)["gini"] == pytest.approx(2 * area)


def test_a_planted_head_is_concentrated_and_noise_is_not() -> None:
    generator = np.random.default_rng(0)
    noise = generator.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=(150, 40))
    frame = concentration(noise, seed=1).set_index("statistic")
    assert (frame["p_value"] > 0.05).all()
    assert (frame["null_low"] <= frame["value"]).all()
    assert (frame["value"] <= frame["null_high"]).all()
    planted = noise.copy()
    planted[:, 7] = -1.0
    frame = concentration(planted, seed=1).set_index("statistic")
    assert (frame["p_value"] < 0.01).all()
    assert frame.loc["share_top_1", "value"] > frame.loc["share_top_1", "null_high"]
    assert frame.loc["participation_ratio", "value"] < frame.loc["participation_ratio", "null_low"]
    assert (frame["ci_low"] <= frame["ci_high"]).all()


def test_the_null_deals_each_items_differences_out_to_all_parts() -> None:
    differences = np.array([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0], [0.0, 2.0, -2.0], [1.0, 0.0, 0.0]])
    # Of 20,000 draws a mean is off by 0.004 and a variance by 1% (one standard error); allowed are at least four.
    null = null_effects(differences, 20_000, seed=3)
    np.testing.assert_allclose(null.sum(1), differences.mean(0).sum())
    np.testing.assert_allclose(null.mean(0), differences.mean(), atol=0.02)
    np.testing.assert_allclose(null.var(0), differences.var(axis=1).sum() / 16, rtol=0.05)


def test_the_null_has_the_power_that_signs_lack() -> None:
    """Half of 40 parts lose 30% of the items and the others none: a spread that random signs call noise."""
    generator = np.random.default_rng(7)
    differences = -(generator.random((60, 40)) < np.where(np.arange(40) < 20, 0.3, 0.0)).astype(float)
    frame = concentration(differences, seed=1).set_index("statistic")
    assert frame.loc["gini", "p_value"] < 0.002
    assert frame.loc["participation_ratio", "p_value"] < 0.002


def test_the_estimate_lies_in_its_interval() -> None:
    generator = np.random.default_rng(8)
    for _ in range(10):
        differences = generator.choice([-1.0, 0.0, 1.0], p=[0.1, 0.85, 0.05], size=(20, 270))
        frame = concentration(differences, resamples=200)
        assert ((frame["ci_low"] <= frame["value"]) & (frame["value"] <= frame["ci_high"])).all()


def test_a_comparison_of_losses_leaves_gains_out() -> None:
    """One part loses and one gains in the base, one loses in the other: the same single part carries both."""
    base, other = np.zeros((30, 4)), np.zeros((30, 4))
    base[:10, 0], base[10:25, 1], other[:12, 0] = -1, 1, -1
    comparison = Comparison("s", 0, "head", effects_of(base), effects_of(other), 0.8, 0.8)
    both = compare(comparison, resamples=50).set_index("statistic")
    losses = compare(comparison, losses=True, resamples=50).set_index("statistic")
    assert both.loc["participation_ratio", "base"] == pytest.approx(1 / (0.4**2 + 0.6**2))
    assert losses.loc["participation_ratio", ["base", "value"]].tolist() == pytest.approx([1, 1])


def test_all_zero_effects_say_nothing() -> None:
    frame = concentration(np.zeros((5, 4)))
    assert frame[["value", "ci_low", "null_mean", "p_value"]].isna().all().all()
    with pytest.raises(UserError, match="nothing to draw"):
        lorenz_data([effects_of(np.zeros((5, 4)))])


def test_overlap_of_a_task_with_itself_and_with_a_shuffled_one() -> None:
    generator = np.random.default_rng(4)
    one = generator.normal(size=(20, 60)) * np.linspace(0.1, 3, 60)
    other = generator.normal(size=(20, 60))
    frame = overlap([effects_of(one, "a"), effects_of(one, "b"), effects_of(other, "c")], k=6)
    same, apart = frame.iloc[0], frame.iloc[1]
    assert (same["spearman"], same["jaccard"], same["shared"]) == (pytest.approx(1), 1, 6)
    assert same["spearman_p"] < 0.001
    assert same["jaccard_p"] < 1e-6
    assert apart["jaccard_p"] > 0.01


def test_relabellings_of_layers_are_all_turns_of_the_circle() -> None:
    dealt = relabellings([3, 1, 2, 0])
    assert dealt[0].tolist() == [0, 1, 2, 3]
    assert len({tuple(own) for own in dealt.tolist()}) == len(dealt) == 8
    order = np.argsort([3, 1, 2, 0])
    for own in dealt:
        steps = np.diff([[3, 1, 2, 0][place] for place in own[order]]) % 4
        assert set(steps) in ({1}, {3})
    heads = relabellings([0, 0, 1, 1, 2, 2], draws=2000)
    layers = np.array([0, 0, 1, 1, 2, 2])[heads]
    assert (layers[:, ::2] == layers[:, 1::2]).all()
    assert len({tuple(own) for own in heads.tolist()}) == 6 * 8


def test_smooth_profiles_are_not_called_alike() -> None:
    """Two independent profiles over 30 layers with autocorrelation 0.85: shuffled layers find them alike in a third."""
    generator = np.random.default_rng(3)
    runs, small, shuffled = 300, 0, 0
    for _ in range(runs):
        profiles = generator.normal(size=(2, 30))
        for layer in range(1, 30):
            profiles[:, layer] = 0.85 * profiles[:, layer - 1] + np.sqrt(1 - 0.85**2) * profiles[:, layer]
        small += spearman(*profiles, layers=range(30))[1] <= 0.05
        shuffled += spearman(*profiles, permutations=200)[1] <= 0.05
    assert shuffled / runs > 0.2
    assert small / runs < 0.1


@pytest.mark.slow
def test_equal_heads_under_two_protocols_do_not_overlap() -> None:
    """270 heads that are all alike, and items whose luck both protocols share."""
    generator, found = np.random.default_rng(4), []
    for _ in range(20):
        luck = generator.choice([-1.0, 0.0, 1.0], p=[0.15, 0.7, 0.15], size=(40, 270))
        both = [effects_of(luck), replace(effects_of(luck), protocol="generate")]
        assert spearman(both[0].effects, both[1].effects)[0] == pytest.approx(1)
        halves = on_disjoint_items(*both)
        assert (halves[0] + halves[1]) / 2 == pytest.approx(luck.mean(axis=0))
        found.append(overlap(both)["spearman_p"].iloc[0])
    assert np.mean(np.array(found) <= 0.05) <= 0.2


def test_halves_keep_clusters_whole() -> None:
    differences = np.repeat(np.arange(6.0)[:, None], 4, axis=0).reshape(24, 1)
    clusters = np.repeat(np.arange(6), 4)
    a = replace(effects_of(differences), clusters=clusters)
    first, second = on_disjoint_items(a, replace(a, protocol="generate"))
    assert {float(first[0]), float(second[0])} <= {sum(own) / 3 for own in combinations(range(6), 3)}
    assert first[0] + second[0] == pytest.approx(5)


def test_a_task_is_halved_with_the_one_that_it_declares_as_its_closed_book_twin() -> None:
    a = effects_of(np.arange(8.0).reshape(8, 1), "reading[hops=2]")
    for task, closed_book, halved in (("with_text[hops=2]", a.task, True), ("reading_open", None, False)):
        twin = replace(a, task=task, closed_book=closed_book)
        [first], [second] = on_disjoint_items(a, twin)
        assert first + second == pytest.approx(7)
        assert (first != 3.5) == halved, task


def test_jaccard_by_hand() -> None:
    a, b = np.array([5.0, -4, 0, 0]), np.array([5.0, 0, 3, 0])
    of_a, of_b, shared, jaccard, expected, p_value = jaccard_top_k(a, b, 2)
    assert (of_a, of_b, shared, jaccard) == (2, 2, 1, pytest.approx(1 / 3))
    # Of 6 pairs, 1 shares both, 4 share one, 1 shares none.
    assert expected == pytest.approx((1 * 1 + 4 / 3) / 6)
    assert p_value == pytest.approx(5 / 6)
    with pytest.raises(UserError, match="top 5"):
        jaccard_top_k(a, b, 5)


def test_ties_do_not_overlap_by_their_order() -> None:
    """Each side has one head of its own and ties otherwise: broken by order, 9 of 10 would be shared."""
    a, b = np.zeros(50), np.zeros(50)
    a[40], b[45] = -1, -1
    of_a, of_b, shared, jaccard, expected, p_value = jaccard_top_k(a, b, 10)
    assert (of_a, of_b, shared, jaccard) == (1, 1, 0, 0)
    assert expected == pytest.approx(1 / 50)
    assert p_value == pytest.approx(1)
    assert np.isnan(jaccard_top_k(a, np.zeros(50), 10)[3])


def test_spearman_is_scipys_with_a_permutation_p() -> None:
    generator = np.random.default_rng(5)
    a = generator.normal(size=40)
    b = a + generator.normal(size=40) * 2
    rho, p_value = spearman(a, b)
    expected = stats.spearmanr(a, b)
    assert rho == pytest.approx(expected.statistic)
    # One is a share of permutations, the other an approximation by t.
    assert p_value == pytest.approx(expected.pvalue, abs=0.02)
    assert np.isnan(spearman(a, np.zeros(40))).all()


def head(place: int, kind: str = "zero") -> Variant:
    ablation = Ablation(Head(0, place), kind)  # type: ignore[arg-type]
    return Variant(ablation.name, (ablation,))


def test_effects_are_read_from_records() -> None:
    store = MemoryStore()
    answers = {CLEAN: [True, True, False], head(0): [False, True, False], head(1): [True, True, True]}
    for variant, correct in answers.items():
        store.write(CellKey(variant.name, "t", "default"), table(variant, correct))
    names = [variant.name for variant in answers]
    outcomes = outcomes_of(store, names)
    found = read_effects(outcomes, "t", "default")
    assert found.variants == ("L0.H0.zero", "L0.H1.zero")
    assert found.heads == (0, 1)
    assert found.item_ids == tuple(store.read(CellKey("clean", "t", "default"), ["item_id"])["item_id"].to_pylist())
    np.testing.assert_array_equal(found.differences, [[-1, 0], [0, 0], [0, 1]])
    np.testing.assert_allclose(found.effects, [-1 / 3, 1 / 3])
    assert (read_effects(outcomes, "t", "default", measure="gold_logprob").differences == 0).all()
    plt.close(lorenz_curves(lorenz_data([found])).figure)
    for arguments, message in (
        ({"component": "mlp"}, "no mlp was removed on t under default; single parts removed there: head by zero$"),
        ({"component": "layr"}, r"unknown component 'layr': did you mean layer\?"),
        ({"ablation": "mean"}, "by mean on t under default; single parts removed there: head by zero$"),
        ({"measure": "corect"}, "did you mean correct"),
    ):
        with pytest.raises(UserError, match=message):
            read_effects(outcomes, "t", "default", **arguments)
    store.write(CellKey("L0.H1.mean", "t", "default"), table(head(1, "mean"), [True, True, True]))
    with pytest.raises(UserError, match="by several ablations"):
        read_effects(outcomes_of(store, [*names, "L0.H1.mean"]), "t", "default")


def test_copies_of_an_item_in_a_cluster_say_no_more_than_the_item() -> None:
    items = np.random.default_rng(0).choice([-1.0, 0.0, 0.0, 1.0], size=(12, 20))
    alone = concentration(items)
    copied = concentration(np.repeat(items, 6, axis=0), np.repeat(np.arange(12), 6))
    assert 0.01 < alone["p_value"].min() < 0.99
    np.testing.assert_allclose(copied["p_value"], alone["p_value"], rtol=0, atol=1e-12)


def test_the_band_of_the_curves_counts_clusters_too() -> None:
    items = np.random.default_rng(0).choice([-1.0, 0.0, 0.0, 1.0], size=(12, 20))
    names, places = tuple(f"L{i}.H0.zero" for i in range(20)), tuple(range(20))
    alone = ItemEffects("t", "p", "correct", names, places, (0,) * 20, items, None, False, ())
    copied = replace(alone, differences=np.repeat(items, 6, axis=0), clusters=np.repeat(np.arange(12), 6))
    columns = ["null_low", "null_high"]
    first, second = (lorenz_data([effects])[columns].to_numpy() for effects in (alone, copied))
    assert first.max() > 0
    np.testing.assert_allclose(second, first, rtol=0, atol=1e-12)
