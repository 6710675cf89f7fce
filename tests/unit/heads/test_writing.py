"""What heads write towards an answer, by where they read it: sums, and a planted head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lensprune.attribution import PromptPair, direct_logit_attribution, source_attribution
from lensprune.errors import UserError
from lensprune.heads import head_scores
from lensprune.heads.writing import contributions_by_source, logit_contributions
from tests.helpers.planted.circuits import LEAK, ids, model_of
from tests.helpers.planted.models import SHAPES
from tests.helpers.tiny_models import tiny
from tests.helpers.tolerances import assert_tensors_agree, size_of

TOKENS = (5, 9, 30, 41, 77, 12)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt2", "gpt_neox"])
def test_contributions_are_those_of_direct_attribution(family: str) -> None:
    model = tiny(family)
    pair = PromptPair(TOKENS, TOKENS, 100, 101)
    found = contributions_by_source(model, TOKENS, [5, 5], [100, 101])
    assert found.shape == (3, 4, 2, 6)
    difference = found[:, :, 0] - found[:, :, 1]
    table = direct_logit_attribution(model, [pair]).table()
    heads = table[table["head"].notna()]["value"].to_numpy().reshape(3, 4)
    size = size_of(found.sum(-1), heads)
    assert_tensors_agree(difference.sum(-1), heads, torch.float32, size=size, terms=32)
    if family != "gemma3":
        by_source = source_attribution(model, pair)["value"].to_numpy().reshape(3, 4, 6)
        assert_tensors_agree(difference, by_source, torch.float32, size=size, terms=32)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_earlier_steps_do_not_see_later_tokens(family: str) -> None:
    model = tiny(family)
    both = contributions_by_source(model, TOKENS, [3, 5], [100, 7])
    alone = contributions_by_source(model, TOKENS[:4], [3], [100])
    assert_tensors_agree(both[:, :, 0, :4], alone[:, :, 0], torch.float32, terms=32)
    assert not both[:, :, 0, 4:].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_retrieval_head_writes_the_answer(shape: str) -> None:
    model = model_of("retrieval", shape)
    texts = [("k1 = v4 ; k3 = v0 ; ? k3 =", 7, "v0"), ("k0 = v5 ; k2 = v1 ; k4 = v4 ; ? k0 =", 3, "v5")]
    contexts = [ids(model, text) for text, _, _ in texts]
    answers = [ids(model, answer)[1:] for _, _, answer in texts]
    expected = np.zeros((2, 4))
    expected[1, 3] = 10
    for own in logit_contributions(model, contexts, answers, [(place,) for _, place, _ in texts]):
        np.testing.assert_allclose(own, expected, atol=10 * LEAK)
    # The same from elsewhere counts against a head; an answer without the needle's tokens has no score.
    elsewhere = logit_contributions(model, contexts[:1], answers[:1], [(7, 2)])
    np.testing.assert_allclose(elsewhere[0], expected, atol=10 * LEAK)
    other = model.tokenizer.convert_tokens_to_ids("v1")
    assert logit_contributions(model, contexts[:1], [(other,)], [(7,)]).isnan().all()
    with pytest.raises(UserError, match=r"a needle at \[99\] is not in a prompt of 12 tokens"):
        logit_contributions(model, contexts[:1], answers[:1], [(99,)])


def test_a_model_that_answers_nothing_right_has_no_scores() -> None:
    frame = head_scores(tiny("llama"), ["logit_contribution", "retrieval"], limit=2)
    assert set(frame["score"]) == {"logit_contribution", "retrieval"}
    assert frame["value"].isna().all()
