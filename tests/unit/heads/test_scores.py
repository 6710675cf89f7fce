"""Head functions against planted heads and against slow, direct computations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from lensprune.errors import UserError
from lensprune.heads import SCORES, head_scores, top_heads
from lensprune.heads.copying import ov_eigenvalues
from lensprune.heads.positional import measure_attention_stats, measure_positional
from lensprune.heads.registry import ScoreOptions
from lensprune.heads.retrieval import Needle, retrieval_scores
from lensprune.heads.sequences import repeated_random_tokens
from lensprune.models.base import HookedModel
from lensprune.models.spans import encode_with_spans
from lensprune.models.weights import embedding, final_norm, frozen_norm, output_weights, unembedding, value_weights
from lensprune.protocols import GenerateRequest
from tests.helpers.families import FAMILIES
from tests.helpers.planted.circuits import LEAK, ids, model_of
from tests.helpers.planted.models import SHAPES
from tests.helpers.tiny_models import tiny
from tests.helpers.tolerances import assert_tensors_agree, equal

POSITIONAL = ["previous_token", "duplicate_token", "induction"]


def table(frame: pd.DataFrame, score: str) -> np.ndarray:
    return frame[frame["score"] == score].pivot(index="layer", columns="head", values="value").to_numpy()


def only(shape: tuple[int, int], *places: tuple[int, int]) -> np.ndarray:
    expected = np.zeros(shape)
    for place in places:
        expected[place] = 1
    return expected


@pytest.mark.parametrize("shape", SHAPES)
def test_induction_circuit(shape: str) -> None:
    frame = head_scores(model_of("induction", shape), [*POSITIONAL, "copying", "attention_sink"])
    for score, places in (
        ("previous_token", [(0, 1)]),
        ("duplicate_token", []),
        ("induction", [(1, 2)]),
        ("copying", [(1, 2)]),
    ):
        np.testing.assert_allclose(table(frame, score), only((2, 4), *places), atol=LEAK)
    # The induction head rests on BOS for the first half; the previous-token head sees it once in 32 queries.
    sink = np.ones((2, 4))
    sink[0, 1], sink[1, 2] = 1 / 32, 1 / 2
    np.testing.assert_allclose(table(frame, "attention_sink"), sink, atol=LEAK)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_head_that_looks_for_its_own_token(shape: str) -> None:
    frame = head_scores(model_of("duplicate", shape), [*POSITIONAL, "attention_entropy"])
    np.testing.assert_allclose(table(frame, "duplicate_token"), 0.5 * only((2, 4), (0, 2)), atol=LEAK)
    np.testing.assert_allclose(table(frame, "induction"), 0, atol=LEAK)
    np.testing.assert_allclose(table(frame, "previous_token"), 0, atol=LEAK)
    # ln 2 at the 16 repeated tokens of 32 queries, 0 at the others.
    np.testing.assert_allclose(table(frame, "attention_entropy"), np.log(2) / 2 * only((2, 4), (0, 2)), atol=LEAK)


@pytest.mark.parametrize("shape", SHAPES)
def test_backup_is_an_induction_head_only_where_it_is_not_held_back(shape: str) -> None:
    frame = head_scores(model_of("backup", shape), [*POSITIONAL, "copying"])
    np.testing.assert_allclose(table(frame, "induction"), only((3, 4), (1, 2)), atol=LEAK)
    np.testing.assert_allclose(table(frame, "copying"), only((3, 4), (1, 2), (2, 0)), atol=LEAK)


@pytest.mark.parametrize("shape", SHAPES)
def test_arithmetic_circuit_on_the_bundled_sums(shape: str) -> None:
    scores = ["operand_attention", "operator_attention", "result_attention", "operand_at_operator"]
    frame = head_scores(model_of("arithmetic", shape), scores, limit=4)
    expected = {"operator_attention": [(1, 0)], "operand_at_operator": [(0, 3)]}
    for score in scores:
        np.testing.assert_allclose(table(frame, score), only((2, 4), *expected.get(score, [])), atol=5 * LEAK)


@pytest.mark.parametrize("shape", SHAPES)
def test_retrieval_head(shape: str) -> None:
    model = model_of("retrieval", shape)
    needles = []
    for text, place in (("k1 = v4 ; k3 = v0 ; ? k3 =", 7), ("k0 = v5 ; k2 = v1 ; k4 = v4 ; ? k0 =", 3)):
        needles.append(Needle(GenerateRequest(ids(model, text), (), 1), (place,)))
    scores, responses = retrieval_scores(model, needles)
    assert [response.text for response in responses] == ["v0", "v5"]
    for own in scores.numpy():
        np.testing.assert_allclose(own, only((2, 4), (1, 3)), atol=0)
    # One of two needle tokens is copied: half the score.
    halves, _ = retrieval_scores(model, [Needle(needles[0].request, (6, 7))])
    np.testing.assert_allclose(halves[0].numpy(), 0.5 * only((2, 4), (1, 3)), atol=0)


def patterns_of(model: HookedModel, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Every layer's pattern, kept whole."""
    kept: dict[int, torch.Tensor] = {}

    def keep(layer: int):
        def hook(pattern: torch.Tensor, hook: object) -> None:
            kept[layer] = pattern.clone()

        return hook

    hooks = [(f"blocks.{layer}.attn.hook_pattern", keep(layer)) for layer in range(model.facts.n_layers)]
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    with torch.inference_mode(), model.hooks(hooks):
        model.forward(tokens, torch.ones_like(tokens), positions)
    return [kept[layer] for layer in range(model.facts.n_layers)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pattern_scores_equal_loops_over_whole_patterns(family: str) -> None:
    model = tiny(family)
    options = ScoreOptions(sequences=3, length=7, seed=5)
    rows = repeated_random_tokens(model, 3, 7, 5)
    measured = {**measure_positional(model, options), **measure_attention_stats(model, options)}
    size, start = rows.length, rows.prefix
    for layer, pattern in enumerate(patterns_of(model, rows.tokens)):
        n_rows, n_heads, n, _ = pattern.shape
        for head in range(n_heads):
            values: dict[str, list[float]] = {name: [] for name in measured}
            for row in range(n_rows):
                a = pattern[row, head].double()
                for t in range(1, n):
                    values["attention_sink"].append(float(a[t, 0]))
                    values["attention_entropy"].append(-sum(float(p * p.log()) for p in a[t, : t + 1] if p > 0))
                    values["attention_distance"].append(sum(float(a[t, s]) * (t - s) for s in range(t + 1)))
                    if t >= 2:
                        values["previous_token"].append(float(a[t, t - 1]))
                    if t > size + start - 1 and t - size >= 1:
                        assert rows.tokens[row, t] == rows.tokens[row, t - size]
                        values["duplicate_token"].append(float(a[t, t - size]))
                        values["induction"].append(float(a[t, t - size + 1]))
            for name, own in values.items():
                assert_tensors_agree(measured[name][layer, head], np.mean(own), torch.float32)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "qwen3", "olmo2"])
def test_ov_eigenvalues_are_those_of_the_vocabulary_sized_matrix(family: str) -> None:
    model = tiny(family)
    values = ov_eigenvalues(model)
    layer, head = 1, 2
    block = model.module.blocks[layer]
    final, one = final_norm(model), torch.ones(1, 1, device=model.facts.device)
    tokens = frozen_norm(block.ln1).apply(embedding(model), one) if "ln1" in block._modules else embedding(model)
    full = tokens @ value_weights(model, layer)[head] @ output_weights(model, layer)[head]
    if "ln1_post" in block._modules:
        full = frozen_norm(block.ln1_post).apply(full, one)
    full = final.apply(full, one) @ unembedding(model)
    found = torch.linalg.eigvals(full.detach().double())
    largest = found[found.abs().argsort(descending=True)][: model.facts.d_head]
    size = float(largest.abs().sum())
    assert_tensors_agree(found.real.sum(), values[layer, head].real.sum(), torch.float32, size=size)
    assert_tensors_agree(largest.abs().sum(), values[layer, head].abs().sum(), torch.float32, size=size)


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_norm_is_the_module(family: str) -> None:
    model = tiny(family)
    for module in (model.module.ln_final, model.module.blocks[1].ln1):
        norm = frozen_norm(module)
        x, y = torch.randn(2, 1, 5, model.facts.d_model).to(model.facts.device)
        scale = norm.scale(x + y)
        with torch.no_grad():
            whole = norm.module(x + y)
        assert_tensors_agree(norm.apply(x, scale) + norm.apply(y, scale) + norm.bias, whole, torch.float32)


def test_every_score_says_what_it_is() -> None:
    for name, score in SCORES.items():
        assert score.name == name
        assert score.definition
        assert score.source
        assert score.range


def test_whole_table_of_a_tiny_model_without_a_right_answer(caplog: pytest.LogCaptureFixture) -> None:
    frame = head_scores(tiny("llama"), limit=1, shots=0, sequences=2, length=5)
    assert list(frame.columns) == ["layer", "head", "score", "value"]
    assert len(frame) == len(SCORES) * 12
    of_answers = frame["score"].isin(["retrieval", "logit_contribution"])
    retrieval = frame[of_answers]["value"]
    assert retrieval.isna().all()
    assert "answers none" in caplog.text
    rest = frame[~of_answers]["value"]
    assert np.isfinite(rest).all()
    best = top_heads(frame, 2)
    assert len(best) == 2 * (len(SCORES) - 2)
    induction = frame[frame["score"] == "induction"]["value"]
    assert best[best["score"] == "induction"]["value"].tolist() == sorted(induction, reverse=True)[:2]


def test_repeated_tokens_are_distinct_ordinary_and_repeated() -> None:
    model = model_of("induction", "llama")
    rows = repeated_random_tokens(model, 3, 6, seed=1)
    assert (rows.prefix, rows.tokens.shape) == (1, (3, 13))
    for row in rows.tokens.tolist():
        assert row[0] == model.tokenizer.bos_token_id
        assert row[1:7] == row[7:]
        assert len(set(row[1:7])) == 6
        assert not set(row[1:]) & set(model.tokenizer.all_special_ids)
    assert not equal(rows.tokens, repeated_random_tokens(model, 3, 6, seed=2).tokens)


def test_spans_follow_the_characters() -> None:
    model = model_of("retrieval", "llama")
    text = "k1 = v4 ; ? k1 ="
    encoded = encode_with_spans(model, text)
    start = text.index("v4")
    assert encoded.positions(start, start + 2) == [3]
    assert encoded.ids == ids(model, text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": ["indction"]}, "did you mean induction"),
        ({"scores": []}, "no head score"),
        ({"scores": ["induction"], "length": 1000}, "out of range"),
        ({"scores": ["induction"], "sequences": 0}, "not a number of rows"),
        ({"scores": ["copying"], "limit": 0}, "limit 0"),
        ({"scores": ["attention_sink"], "texts": [""]}, "no text has two tokens"),
    ],
)
def test_refusals(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        head_scores(tiny("llama"), **arguments)
