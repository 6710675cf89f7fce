"""Metrics, margins and failures from given responses."""

from __future__ import annotations

import math

import pytest

from lensprune.errors import LensPruneError, UserError
from lensprune.protocols import GenerateResponse, LoglikelihoodResponse, build_requests, score_items
from lensprune.protocols.scoring import score_choices, score_generation
from lensprune.tasks.base import Item
from tests.helpers.toy_task import DOCS, choice_format, generation_format, loaded, model

ITEM = Item("0", {"q": "?", "options": ["a", "bbbb", "cc"], "gold": 1})


def choose(*logprobs: float, **changes):
    return score_choices(choice_format(**changes), ITEM, [LoglikelihoodResponse(lp, False, 2) for lp in logprobs])


def generated(text: str, stop_reason="stop_string", **changes):
    item = Item("1", DOCS[1], cluster="sums")
    return score_generation(generation_format(**changes), item, GenerateResponse(text, (5, 6, 7), stop_reason))


class TestChoices:
    def test_acc_and_acc_norm_can_disagree(self):
        outcome = choose(-1.0, -2.0, -3.0)
        assert outcome.metrics == {"acc": 0.0, "acc_norm": 1.0}
        assert (outcome.correct, outcome.failure, outcome.prediction) == (False, "wrong_answer", "a")
        outcome = choose(-1.0, -2.0, -3.0, primary_metric="acc_norm")
        assert (outcome.correct, outcome.failure, outcome.prediction) == (True, "none", "bbbb")

    def test_gold_logprob_and_margin_are_plain_sums(self):
        outcome = choose(-1.5, -2.0, -3.0, primary_metric="acc_norm")
        assert (outcome.gold_logprob, outcome.logprob_margin) == (-2.0, -0.5)
        assert choose(-4.0, -2.0, -3.0).logprob_margin == 1.0

    def test_ties_go_to_the_lowest_index(self):
        assert choose(-2.0, -2.0, -3.0).prediction == "a"
        assert choose(-3.0, -2.0, -2.0).prediction == "bbbb"

    def test_acc_norm_counts_characters_and_acc_bytes_bytes(self):
        item = Item("0", {"q": "?", "options": ["éé", "abc"], "gold": 0})
        fmt = choice_format(metrics=("acc_norm", "acc_bytes"))
        outcome = score_choices(fmt, item, [LoglikelihoodResponse(lp, False, 1) for lp in (-2.4, -3.0)])
        assert outcome.metrics == {"acc_norm": 0.0, "acc_bytes": 1.0}

    def test_tokens_and_strings(self):
        outcome = choose(-4.0, -2.0, -3.0)
        assert (outcome.n_tokens, outcome.text, outcome.target) == (6, "bbbb", "bbbb")

    def test_options_in_the_context_are_shown_without_their_shared_start(self):
        item = Item("0", {"q": "?", "options": ["He met Sam Hill", "He met Sally"], "gold": 1})
        fmt = choice_format(continuation=lambda doc: "today.", metrics=("acc",))
        outcome = score_choices(fmt, item, [LoglikelihoodResponse(lp, False, 1) for lp in (-2.0, -3.0)])
        assert (outcome.prediction, outcome.target) == ("Sam Hill", "Sally")

    @pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
    def test_not_finite(self, bad: float):
        outcome = choose(-4.0, -2.0, bad)
        assert (outcome.correct, outcome.failure, outcome.prediction) == (False, "non_finite", None)
        assert outcome.metrics == {"acc": 0.0, "acc_norm": 0.0}
        assert math.isnan(outcome.gold_logprob)
        assert math.isnan(outcome.logprob_margin)

    def test_unknown_metric(self):
        with pytest.raises(UserError, match=r"log-likelihood metric 'acc_nrm'.*acc_norm"):
            choose(-1.0, -2.0, -3.0, metrics=("acc_nrm",))

    def test_gold_out_of_range(self):
        with pytest.raises(UserError, match=r"item 0.*index 3.*3 options"):
            choose(-1.0, -2.0, -3.0, gold=lambda doc: 3)


class TestGeneration:
    def test_each_filter_is_a_metric_and_the_primary_decides(self):
        outcome = generated("it is eleven or two")
        assert outcome.metrics == {"exact_match,strict": 0.0, "exact_match,flexible": 1.0}
        assert (outcome.correct, outcome.failure, outcome.prediction) == (False, "wrong_answer", "eleven")
        outcome = generated("it is eleven or two", primary_filter="flexible")
        assert (outcome.correct, outcome.failure, outcome.prediction) == (True, "none", "two")

    def test_fields(self):
        outcome = generated("it is two")
        assert (outcome.item_id, outcome.cluster, outcome.target) == ("1", "sums", "two")
        assert (outcome.gold_logprob, outcome.logprob_margin, outcome.n_tokens) == (None, None, 3)

    def test_nothing_found(self):
        outcome = generated("two, I think")
        assert (outcome.correct, outcome.failure, outcome.prediction) == (False, "no_answer", None)
        assert outcome.metrics["exact_match,strict"] == 0.0

    def test_what_the_format_does_not_call_an_answer(self):
        outcome = generated("it is eleven", is_answer=lambda text: text in ("two", "three"))
        assert (outcome.failure, outcome.prediction) == ("no_answer", "eleven")

    def test_an_answer_that_ran_out_of_tokens_is_cut_off(self):
        outcome = generated("two, I think", stop_reason="length")
        assert (outcome.failure, outcome.prediction) == ("cut_off", None)
        never = {"is_answer": lambda text: False}
        assert generated("it is eleven", stop_reason="length", **never).failure == "cut_off"
        assert generated("it is eleven", stop_reason="length").failure == "wrong_answer"
        assert generated("it is two", stop_reason="length").failure == "none"

    @pytest.mark.parametrize("text", [" \n", "so so " * 40, "it is eleven. " * 20])
    def test_degenerate_comes_before_no_answer_and_wrong_answer(self, text: str):
        assert generated(text).failure == "degenerate"

    def test_a_right_answer_in_a_loop_is_right(self):
        outcome = generated("it is two. " * 20)
        assert (outcome.correct, outcome.failure) == (True, "none")

    def test_not_finite_comes_first(self):
        outcome = generated("it is two", "non_finite")
        assert (outcome.correct, outcome.failure) == (False, "non_finite")
        assert set(outcome.metrics.values()) == {0.0}

    def test_primary_filter_must_exist(self):
        with pytest.raises(UserError, match=r"primary filter 'strickt'.*strict"):
            generated("it is two", primary_filter="strickt")


class TestItems:
    def test_responses_are_dealt_in_order(self):
        task = loaded()
        asked = build_requests(model(), task, "continuation")
        responses = [LoglikelihoodResponse(lp, False, 1) for lp in (-2.0, -1.0, -3.0, -4.0)]
        outcomes = score_items(task, "continuation", asked, responses)
        assert [(o.item_id, o.correct, o.gold_logprob) for o in outcomes] == [("0", True, -1.0), ("1", True, -3.0)]

    def test_generation(self):
        task = loaded()
        asked = build_requests(model(), task, "generate")
        outcomes = score_items(task, "generate", asked, [GenerateResponse("is four", (1,), "eos")] * 2)
        assert [o.correct for o in outcomes] == [True, False]

    def test_a_missing_response(self):
        task = loaded()
        asked = build_requests(model(), task, "continuation")
        with pytest.raises(LensPruneError, match=r"4 requests.*3 responses"):
            score_items(task, "continuation", asked, [LoglikelihoodResponse(-1.0, False, 1)] * 3)

    def test_a_response_of_the_wrong_kind(self):
        task = loaded()
        text, likelihood = GenerateResponse("is two", (1,), "eos"), LoglikelihoodResponse(-1.0, False, 1)
        with pytest.raises(LensPruneError, match="item 0: a generation was returned"):
            score_items(task, "continuation", build_requests(model(), task, "continuation"), [text] * 4)
        with pytest.raises(LensPruneError, match="item 0: a log-likelihood was returned"):
            score_items(task, "generate", build_requests(model(), task, "generate"), [likelihood] * 2)
