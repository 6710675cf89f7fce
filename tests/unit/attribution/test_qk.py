"""QK attribution adds up to the real attention score, and gives what the weights say by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import lensprune as lp
from lensprune.attribution import QKAttribution, qk_attribution
from lensprune.attribution.figures.writers import writers_data, writers_figure
from lensprune.attribution.qk import mean_contributions
from lensprune.attribution.runs import capture
from lensprune.errors import LensPruneError, UserError
from lensprune.models import as_hooked_model
from lensprune.models import hooked_transformer as module
from lensprune.models.base import HookedModel
from tests.helpers.families import hf_model, save_folder
from tests.helpers.planted.circuits import ids, model_of
from tests.helpers.planted.models import SHAPES
from tests.helpers.tiny_models import tiny
from tests.helpers.tolerances import assert_tensors_agree

TOKENS = tuple(range(4, 20))
HEAD = lp.Head(2, 1)
HEAD_WIDTH = 8
DESTINATION, SOURCE = 11, 5
ADDS_UP = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "gpt_neox", "mixtral", "granite", "cohere",
           "olmo2", "falcon", "bloom", "mpt")  # fmt: skip
ALIBI = ("bloom", "mpt")


def attribution(model: HookedModel, **options: bool) -> QKAttribution:
    return qk_attribution(model, TOKENS, HEAD, destination=DESTINATION, source=SOURCE, **options)


def scores_of(model: HookedModel) -> torch.Tensor:
    """The head's own scores from the destination, out of a plain forward pass."""
    _, kept = capture(model, torch.tensor([TOKENS]), ["blocks.2.attn.hook_attn_scores"])
    scores: torch.Tensor = kept["blocks.2.attn.hook_attn_scores"][0, HEAD.head, DESTINATION, : DESTINATION + 1]
    return scores


def check_sums(found: QKAttribution, scores: torch.Tensor) -> None:
    seen = scores > -1e4
    others = seen.clone()
    others[SOURCE] = False
    expected = torch.stack([scores[SOURCE], scores[SOURCE] - scores[others].mean()])
    size = float(found.table[["value", "relative"]].abs().max().max() + scores[seen].abs().max())
    for side in ("query", "key"):
        sums = found.table.loc[found.table["side"] == side, ["value", "relative"]].sum()
        assert_tensors_agree(sums.to_numpy(), expected, torch.float32, size=size, terms=len(found.table))
    assert_tensors_agree([found.score, found.relative], expected, torch.float32, size=size, terms=HEAD_WIDTH)


@pytest.mark.parametrize("family", ADDS_UP)
def test_both_sides_add_up_to_the_score(family: str) -> None:
    found = attribution(tiny(family))
    check_sums(found, scores_of(tiny(family)))
    heads = found.table.dropna(subset="head")
    assert (heads["value"].abs() > 0).all()
    at_score = found.table.loc[found.table["writer"] == "position", "value"].abs()
    assert (at_score > 0.1).all() if family in ALIBI else (at_score < 1e-5).all()


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2"])
def test_products_of_writers_add_up_to_each_writer(family: str) -> None:
    found = attribution(tiny(family), pairs=True)
    assert found.pairs is not None
    size = float(found.pairs["value"].abs().max())
    for side, column in (("query", "query_writer"), ("key", "key_writer")):
        of_side = found.table[found.table["side"] == side].set_index("writer")["value"]
        sums = found.pairs.groupby(column)["value"].sum().reindex(of_side.index)
        assert_tensors_agree(sums, of_side, torch.float32, size=size, terms=len(of_side))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_heads_contribution_by_hand(family: str) -> None:
    """W_O of L0.H1, the norm at its scale, W_Q, the norm on queries at its scale, and rotation, with transformers'
    own weights."""
    hf = hf_model(family)
    block, kept = hf.model.layers[2], []
    hf.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda _, given: kept.append(given[0][0]))
    with torch.no_grad():
        x = hf(torch.tensor([TOKENS]), output_hidden_states=True).hidden_states[2][0]
        write = kept[0][:, 8:16] @ hf.model.layers[0].self_attn.o_proj.weight[:, 8:16].T
        scale = (x.square().mean(-1, keepdim=True) + block.input_layernorm.variance_epsilon).rsqrt()

        def projected(part: torch.Tensor, name: str, rows: slice) -> torch.Tensor:
            weights = getattr(block.self_attn, f"{name}_proj").weight[rows]
            whole, own = ((p * scale * block.input_layernorm.weight) @ weights.T for p in (x, part))
            if family == "qwen3":
                norm = getattr(block.self_attn, f"{name}_norm")
                own = own * (whole.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt() * norm.weight
            return own[None, None]

        rotation = hf.model.rotary_emb(x, torch.arange(len(TOKENS))[None])

        def score(at_query: torch.Tensor, at_key: torch.Tensor) -> float:
            q, k = projected(at_query, "q", slice(8, 16)), projected(at_key, "k", slice(0, 8))
            q, k = apply_rotary_pos_emb(q, k, *rotation)
            return float(q[0, 0, DESTINATION] @ k[0, 0, SOURCE]) * 8**-0.5

        expected = [score(write, x), score(x, write), score(x, x), score(write, write)]
    found = attribution(tiny(family), pairs=True)
    assert found.pairs is not None
    of_head = found.table[found.table["writer"] == "L0.H1"].set_index("side")["value"]
    product = found.pairs.query("query_writer == 'L0.H1' and key_writer == 'L0.H1'")["value"].item()
    values = [of_head["query"], of_head["key"], found.score, product]
    assert_tensors_agree(values, expected, torch.float32, terms=32)


@pytest.mark.parametrize("shape", SHAPES)
def test_induction_is_the_previous_token_head_on_the_key_side(shape: str) -> None:
    """From the repeated a to the b after its first occurrence: L0.H1 tells that b came after a (score 60), and BOS is
    worth 30 to every query, a fifth of it in the mean of the five other positions."""
    model = model_of("induction", shape)
    found = qk_attribution(model, ids(model, "a b c d a"), lp.Head(1, 2), pairs=True)
    assert (found.destination, found.source) == (5, 2)
    assert found.score == pytest.approx(60, abs=0.01)
    assert found.relative == pytest.approx(54, abs=0.01)
    assert found.attention == pytest.approx(1, abs=1e-4)
    table = found.table.set_index(["side", "writer"])
    assert table.loc[("key", "L0.H1"), "value"] == pytest.approx(60, abs=0.01)
    assert table.loc[("key", "L0.H1"), "relative"] == pytest.approx(60, abs=0.01)
    assert table.loc[("key", "embed"), "relative"] == pytest.approx(-6, abs=0.01)
    assert table.loc[("query", "embed"), "value"] == pytest.approx(60, abs=0.01)
    others = table.drop(index=[("key", "L0.H1"), ("key", "embed"), ("query", "embed")])
    assert others["value"].abs().max() < 0.01
    assert found.pairs is not None
    assert tuple(found.pairs.loc[0, ["query_writer", "key_writer"]]) == ("embed", "L0.H1")
    assert found.pairs.loc[0, "value"] == pytest.approx(60, abs=0.01)


def test_scores_are_taken_before_their_cap(tmp_path: Path) -> None:
    cap = 0.1
    model = as_hooked_model(lp.load_model(save_folder("gemma2", tmp_path / "capped", attn_logit_softcapping=cap)))
    capped = scores_of(model)[SOURCE]
    found = attribution(model)
    assert abs(found.score) > 1.01 * abs(float(capped))
    assert cap * torch.tanh(torch.tensor(found.score / cap)) == pytest.approx(float(capped), rel=1e-3)
    assert found.table.groupby("side")["value"].sum().tolist() == pytest.approx([found.score] * 2, rel=1e-3)
    never = as_hooked_model(lp.load_model(save_folder("gemma2", tmp_path / "flat", attn_logit_softcapping=0.02)))
    with pytest.raises(UserError, match=r"has reached its cap of 0\.02"):
        attribution(never)


@pytest.mark.skipif(module.HookedTransformer is None, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_hooked_transformer_gives_the_bridges_contributions(family: str) -> None:
    expected = attribution(tiny(family)).table["value"]
    found = attribution(tiny(family, hooked_transformer=True)).table["value"]
    assert_tensors_agree(found, expected, torch.float32, terms=32)


@pytest.mark.parametrize("family", ["gpt_oss", "opt", "llama4", "afmoe", "falcon_h1"])
def test_refused_families(family: str) -> None:
    with pytest.raises(LensPruneError, match=r"attn\.hook_attn_scores|L2Norm|not the sum of its parts"):
        attribution(tiny(family))


def test_refused_places() -> None:
    model = tiny("mistral")
    for options, message in (
        ({"destination": 16}, "destination 16 is not a position of a prompt of 16 tokens: expected -16 to 15"),
        ({"source": 2}, "source 2 is not visible to L2.H1 from position 15: expected one of 8 to 15"),
        ({"source": 12, "destination": 11}, "expected one of 4 to 11"),
    ):
        with pytest.raises(UserError, match=message):
            qk_attribution(model, TOKENS, HEAD, **options)
    with pytest.raises(UserError, match="head 9"):
        qk_attribution(model, TOKENS, lp.Head(0, 9))


def test_the_first_token_by_itself() -> None:
    found = qk_attribution(tiny("gpt2"), TOKENS[:1], HEAD)
    assert (found.destination, found.source, found.relative, found.attention) == (0, 0, 0, 1)
    assert found.table.groupby("side")["value"].sum().tolist() == pytest.approx([found.score] * 2, rel=1e-4)


def test_means_over_prompts_and_their_figure() -> None:
    model = tiny("llama")
    both = [qk_attribution(model, TOKENS[:n], HEAD) for n in (12, 16)]
    means = mean_contributions(both)
    assert len(means) == len(both[0].table)
    relative = pd.concat([one.table["relative"] for one in both], axis=1, keys=[0, 1])
    assert_tensors_agree(means["relative"], (relative[0] + relative[1]) / 2, torch.float64)
    assert_tensors_agree(means["standard_error"], (relative[1] - relative[0]).abs() / 2, torch.float64)
    drawn = writers_data(means, most=3)
    assert drawn["writer"].tolist().count("others") == 2
    assert drawn.groupby("side")["relative"].sum().tolist() == pytest.approx([relative.sum().mean() / 2] * 2)
    axes = writers_figure(means, most=3)
    assert [len(ax.patches) for ax in axes] == [4, 4]
