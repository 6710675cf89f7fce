"""Effects on classes by hand, and what the battery refuses."""

from __future__ import annotations

from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lensprune.ablation import Ablation, Head, Variant
from lensprune.errors import UserError
from lensprune.models import as_hooked_model, load_model
from lensprune.models.base import HookedModel
from lensprune.primitives import primitives
from lensprune.primitives.effects import TokenLosses, class_effects
from lensprune.primitives.verdicts import Thresholds, role_evidence, verdict_table
from tests.helpers.families import save_folder

UNITS = 10
KINDS = ("operand", "operand", "result", "words", "words", "words")
VARIANTS = [Variant(f"L0.H{h}.zero", (Ablation(Head(0, h), "zero"),)) for h in range(3)]


def losses(seed: int = 0) -> TokenLosses:
    """Head 0 costs 2 nats on operands; head 1 costs 1 nat on everything; head 2 nothing. Noise 0.1."""
    generator = np.random.default_rng(seed)
    kind = np.array(KINDS * UNITS)
    loss = generator.normal(0, 0.1, (len(kind), 3))
    loss[:, 0] += 2 * (kind == "operand")
    loss[:, 1] += 1
    predicted = np.ones(len(kind), bool)
    # Tokens that the model doesn't predict don't count, however much they lose.
    loss[3::6], predicted[3::6] = 50.0, False
    return TokenLosses(loss, np.repeat(np.arange(UNITS), len(KINDS)), kind, predicted)


def texts(seed: int = 1) -> TokenLosses:
    loss = np.random.default_rng(seed).normal([0, 1, 0], 0.1, (40, 3))
    return TokenLosses(loss, np.repeat(np.arange(10), 4), np.full(40, "text"), np.ones(40, bool))


def table() -> pd.DataFrame:
    return class_effects(losses(), texts(), VARIANTS)


def test_effects_contrast_and_specificity() -> None:
    found = table().set_index(["head", "class"])
    assert found.loc[(0, "operand"), "effect"] == pytest.approx(2, abs=0.1)
    assert found.loc[(0, "operand"), "contrast"] == pytest.approx(2, abs=0.1)
    # Of the signs of ten solutions one pattern is as extreme.
    assert found.loc[(0, "operand"), "contrast_p"] == pytest.approx(1 / 2**10)
    assert found.loc[(0, "operand"), "specificity_q"] < 0.05
    assert found.loc[(0, "operand"), "rank_p"] == pytest.approx(1 / 3)
    assert found.loc[(1, "operand"), "effect"] == pytest.approx(1, abs=0.1)
    assert found.loc[(1, "operand"), "q_value"] < 0.05
    assert found.loc[(1, "operand"), "contrast_p"] > 0.05
    assert found.loc[(1, "operand"), "specificity_q"] > 0.05
    assert found.loc[(1, "text"), "effect"] == pytest.approx(1, abs=0.1)
    assert found.loc[(2, "operand"), "q_value"] > 0.05
    assert found.loc[(0, "words"), "effect"] == pytest.approx(0, abs=0.1)
    assert found.loc[(0, "words"), "predicted"] == pytest.approx(2 / 3)
    assert found.loc[(0, "words"), "n_tokens"] == 2 * UNITS
    assert np.isnan(found.loc[(0, "operator"), "effect"])
    assert found.loc[(0, "operator"), "n_solutions"] == 0


def test_a_lone_effect_among_many_parts_is_found() -> None:
    """One of 120 heads costs 5 nats on operands alone: all three of its q-values there say so, and no other's do."""
    heads, units = 120, 16
    generator = np.random.default_rng(3)
    kind = np.array(KINDS * units)
    loss = generator.normal(0, 0.1, (len(kind), heads))
    loss[kind == "operand", 7] += 5
    found = TokenLosses(loss, np.repeat(np.arange(units), len(KINDS)), kind, np.ones(len(kind), bool))
    general = generator.normal(0, 0.1, (60, heads))
    text = TokenLosses(general, np.repeat(np.arange(15), 4), np.full(60, "text"), np.ones(60, bool))
    variants = [Variant(f"L0.H{h}.zero", (Ablation(Head(0, h), "zero"),)) for h in range(heads)]
    effects = class_effects(found, text, variants)
    named = effects[(effects[["q_value", "contrast_q", "specificity_q"]] <= 0.05).all(axis=1)]
    assert list(zip(named["head"], named["class"], strict=True)) == [(7, "operand")]


def test_the_effect_on_text_is_the_mean_over_its_tokens_everywhere() -> None:
    """Two texts of ten tokens cost 1 nat a token, six of two cost 0: 20 / 32 over tokens, 1 / 4 over texts."""
    unit = np.repeat(np.arange(8), [10, 10, 2, 2, 2, 2, 2, 2])
    loss = np.repeat((unit < 2)[:, None].astype(float), 3, axis=1)
    text = TokenLosses(loss, unit, np.full(len(unit), "text"), np.ones(len(unit), bool))
    effects = class_effects(losses(), text, VARIANTS)
    assert effects["text_effect"].dropna().to_numpy() == pytest.approx(20 / 32)
    assert set(effects.loc[effects["text_effect"].notna(), "class"]) == {"operand", "result", "words", "text"}


def test_a_difference_without_spread_has_the_permutation_p() -> None:
    """Every operand costs head 0 exactly 1 nat and no text anything: 1 of C(10 + 8, 8) divisions is as far apart."""
    kind = np.array(KINDS * UNITS)
    loss = np.repeat((kind == "operand")[:, None].astype(float), 3, axis=1) * [1, 0, -1]
    found = TokenLosses(loss, np.repeat(np.arange(UNITS), len(KINDS)), kind, np.ones(len(kind), bool))
    text = TokenLosses(np.zeros((16, 3)), np.repeat(np.arange(8), 2), np.full(16, "text"), np.ones(16, bool))
    effects = class_effects(found, text, VARIANTS).set_index(["head", "class"])["specificity_p"]
    assert [effects[head, "operand"] for head in range(3)] == pytest.approx([1 / comb(18, 8), 1, 1])


def test_tokens_of_one_solution_are_no_evidence_of_their_own() -> None:
    """Each solution has a contrast of its own, of mean zero, on all of its many tokens: p ≤ 0.05 in about 5%."""
    generator, units, tokens = np.random.default_rng(5), 12, 20
    kind = np.tile(np.repeat(["operand", "words"], tokens // 2), units)
    unit = np.repeat(np.arange(units), tokens)
    variants = [Variant(f"L0.H{h}.zero", (Ablation(Head(0, h), "zero"),)) for h in range(600)]
    shift = generator.normal(0, 1, (units, len(variants)))[unit] * (kind == "operand")[:, None]
    loss = shift + generator.normal(0, 0.3, shift.shape)
    text = TokenLosses(np.zeros((16, 600)), np.repeat(np.arange(8), 2), np.full(16, "text"), np.ones(16, bool))
    effects = class_effects(TokenLosses(loss, unit, kind, np.ones(len(unit), bool)), text, variants)
    share = (effects.loc[effects["class"] == "operand", "contrast_p"] <= 0.05).mean()
    assert share == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 600))


def causal(share: float, q: float, placebo: float = 0.0) -> pd.DataFrame:
    rows = [("head", 0, head, "operand", share if head < 2 else 0.0, q, placebo, 0.01) for head in range(3)]
    columns = ["component", "layer", "head", "test", "share", "q_value", "placebo_share", "placebo_q"]
    return pd.DataFrame(rows, columns=columns).astype({"layer": "Int64", "head": "Int64"})


def test_a_role_needs_removal_and_patching() -> None:
    effects, bounds = table(), Thresholds()
    for share, q, named in ((0.5, 0.01, True), (0.05, 0.01, False), (0.5, 0.2, False), (-0.5, 0.01, False)):
        evidence = role_evidence(effects, causal(share, q), bounds)
        by_head = evidence.set_index("head")["named"]
        assert by_head.to_dict() == {0: named, 1: False, 2: False}
    verdicts = verdict_table(effects, role_evidence(effects, causal(0.5, 0.01), bounds), bounds)
    assert list(verdicts["verdict"]) == ["carries operand", "keeps coherence", "nothing resolvable"]
    assert "operand 50%" in verdicts["because"][0]


def test_a_placebo_that_moves_is_counted() -> None:
    evidence = role_evidence(table(), causal(0.0, 1.0, placebo=-0.5), Thresholds(), placebo=True)
    assert evidence.set_index("head")["named"].to_dict() == {0: True, 1: False, 2: False}


@pytest.fixture(scope="module")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return as_hooked_model(load_model(save_folder("llama", tmp_path_factory.mktemp("model") / "llama"), device="cpu"))


@pytest.mark.slow
def test_a_random_model_has_no_roles(random_llama: HookedModel) -> None:
    found = primitives(random_llama, limit=8, shots=1)
    assert set(found.verdicts["verdict"]) == {"nothing resolvable"}
    assert any("none was patched" in note for note in found.notes)
    assert any("general text" in note for note in found.notes)
    assert len(found.verdicts) == 3 * 4 + 3
    assert set(found.effects["component"]) == {"head", "mlp", "layer"}


def test_mean_ablation_and_a_choice_of_layers(random_llama: HookedModel) -> None:
    found = primitives(random_llama, limit=6, shots=0, ablation="mean", layers=[1])
    heads = found.effects[found.effects["component"] == "head"]
    assert set(heads["variant"]) == {f"L1.H{h}.mean" for h in range(4)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": 3}, "limit 3 is too few"),
        ({"largest": 20}, "largest 20"),
        ({"operands": 2}, "operands 2"),
        ({"shots": 60}, "use fewer shots"),
        ({"ablation": "resample"}, "ablation 'resample'"),
        ({"texts": ["a few"]}, "general texts"),
        ({"layers": [7]}, "layer"),
    ],
)
def test_what_is_refused(random_llama: HookedModel, options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        primitives(random_llama, **{"limit": 6, "shots": 0, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"effect": 0}, {"share": 1.5}, {"q": -1}])
def test_thresholds_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="threshold"):
        Thresholds(**options)


def test_an_unknown_role(random_llama: HookedModel, tmp_path: Path) -> None:
    found = primitives(random_llama, limit=6, shots=0, layers=[0])
    with pytest.raises(UserError, match="did you mean carries operand"):
        found.heads("carries operands")
    assert len(found.heads("nothing resolvable")) == 4


def test_what_a_patch_moves_beside_its_role_is_told() -> None:
    effects, bounds = table(), Thresholds()
    verdicts = verdict_table(effects, role_evidence(effects, causal(0.5, 0.01), bounds), bounds)
    assert list(verdicts["also"]) == ["", "operand 50%", ""]
