"""Score a model's responses into one outcome per item, with lm-eval 0.4.13's metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lensprune.errors import LensPruneError, UserError, unknown_name
from lensprune.protocols.base import Failure, Outcome
from lensprune.protocols.degenerate import is_degenerate
from lensprune.protocols.requests import GenerateResponse, LoglikelihoodResponse, Response
from lensprune.tasks.base import GenerationFormat, Item, MultipleChoiceFormat, PromptFormat

__all__ = ["LIKELIHOOD_METRICS", "score_answer", "score_choices", "score_generation"]

LIKELIHOOD_METRICS = ("acc", "acc_norm", "acc_bytes")


def score_answer(fmt: PromptFormat, item: Item, responses: Sequence[Response]) -> Outcome:
    """Score one item by its format: `score_choices` or `score_generation`.

    Raises:
        LensPruneError: the number or kind of the responses does not match the format.
    """
    if isinstance(fmt, MultipleChoiceFormat):
        likelihoods = [r for r in responses if isinstance(r, LoglikelihoodResponse)]
        if len(likelihoods) != len(responses):
            raise LensPruneError(f"item {item.id}: a generation was returned for a log-likelihood request")
        return score_choices(fmt, item, likelihoods)
    if len(responses) != 1 or not isinstance(responses[0], GenerateResponse):
        raise LensPruneError(f"item {item.id}: a log-likelihood was returned for a generation request")
    return score_generation(fmt, item, responses[0])


def score_choices(fmt: MultipleChoiceFormat, item: Item, responses: Sequence[LoglikelihoodResponse]) -> Outcome:
    """Score the options of one item (``ConfigurableTask.process_results``, ``multiple_choice``).

    ``acc`` chooses the highest summed log-probability; ``acc_norm`` divides it by the option's length in characters,
    ``acc_bytes`` by its length in bytes; ties go to the lowest index. `logprob_margin` is gold minus best other of the
    plain sums, whichever metric decides `correct`. If a log-probability is not finite, every metric is 0 and the
    failure is ``non_finite``.
    """
    choices = list(fmt.choices(item.doc))
    gold = fmt.gold(item.doc)
    if not 0 <= gold < len(choices):
        raise UserError(f"item {item.id}: the right option has index {gold}, but there are only {len(choices)} options")
    logprobs = np.array([response.logprob for response in responses])
    shown = _without_shared_start(choices) if fmt.per_choice_context else [choice.strip() for choice in choices]
    n_tokens = sum(response.n_tokens for response in responses)
    if not np.isfinite(logprobs).all():
        return Outcome(
            item_id=item.id,
            cluster=item.cluster,
            target=shown[gold],
            prediction=None,
            correct=False,
            gold_logprob=math.nan,
            logprob_margin=math.nan,
            failure="non_finite",
            n_tokens=n_tokens,
            text="",
            metrics={metric: 0.0 for metric in fmt.metrics},
        )
    picks = {metric: _pick(metric, logprobs, choices) for metric in {*fmt.metrics, fmt.primary_metric}}
    pick = picks[fmt.primary_metric]
    others = np.delete(logprobs, gold)
    return Outcome(
        item_id=item.id,
        cluster=item.cluster,
        target=shown[gold],
        prediction=shown[pick],
        correct=pick == gold,
        gold_logprob=float(logprobs[gold]),
        logprob_margin=float(logprobs[gold] - others.max()) if others.size else None,
        failure="none" if pick == gold else "wrong_answer",
        n_tokens=n_tokens,
        text=choices[pick],
        metrics={metric: float(picks[metric] == gold) for metric in fmt.metrics},
    )


def _without_shared_start(contexts: Sequence[str]) -> list[str]:
    """The contexts from their first differing word on (winogrande's options)."""
    words = [context.split(" ") for context in contexts]
    shared = 0
    while all(len(text) > shared + 1 and text[shared] == words[0][shared] for text in words):
        shared += 1
    return [" ".join(text[shared:]) for text in words]


def _pick(metric: str, logprobs: np.ndarray, choices: Sequence[str]) -> int:
    if metric == "acc":
        return int(np.argmax(logprobs))
    if metric not in LIKELIHOOD_METRICS:
        raise unknown_name("log-likelihood metric", metric, LIKELIHOOD_METRICS)
    lengths = [len(choice) if metric == "acc_norm" else len(choice.encode()) for choice in choices]
    return int(np.argmax(logprobs / np.array(lengths, dtype=float)))


def score_generation(fmt: GenerationFormat, item: Item, response: GenerateResponse) -> Outcome:
    """Score one generated answer: each filter gives one metric ``exact_match,<filter name>``, and, where the format
    compares values, ``equal,<filter name>``; the format's `measures` add theirs.

    The failure is the first of these that applies: ``non_finite`` (a logit was NaN or infinite), ``cut_off`` (thinking
    began and never ended, so there is no answer and every metric is 0; lm-eval would read the thinking as the answer),
    ``none`` (the primary metric is 1), ``degenerate`` (`lensprune.protocols.degenerate`), ``cut_off`` or ``no_answer``
    (the primary filter extracts nothing, or nothing that the format's `is_answer` accepts, from a text that ran out of
    new tokens or from one that ended), ``wrong_answer``. So a right answer counts even in a text that repeats itself,
    and repetition counts as degenerate even if the filter extracts a wrong answer from it.
    """
    target = fmt.target(item.doc)
    finite = response.stop_reason != "non_finite"
    answered = finite and response.thinking_ended
    answers = {f.name: f(response.text) for f in (*fmt.filters, *fmt.own_filters)}
    if fmt.primary_filter not in answers:
        raise unknown_name("primary filter", fmt.primary_filter, answers)
    metrics = {
        f"exact_match,{name}": float(answered and answer is not None and fmt.matches(answer, target))
        for name, answer in answers.items()
    }
    if fmt.equals is not None:
        metrics |= {
            f"equal,{name}": float(answered and answer is not None and fmt.equals(answer, item.doc))
            for name, answer in answers.items()
        }
    for name, measure in fmt.measures.items():
        metrics[name] = float(answered and measure(response.text, item.doc))
    prediction = answers[fmt.primary_filter] if response.thinking_ended else None
    correct = metrics[f"{fmt.primary_match},{fmt.primary_filter}"] == 1.0
    failure: Failure
    if not finite:
        failure = "non_finite"
    elif not response.thinking_ended:
        failure = "cut_off"
    elif correct:
        failure = "none"
    elif not response.text.strip() and response.stop_reason == "length":
        failure = "cut_off"
    elif is_degenerate(response.text):
        failure = "degenerate"
    elif prediction is None or not fmt.is_answer(prediction):
        failure = "cut_off" if response.stop_reason == "length" else "no_answer"
    else:
        failure = "wrong_answer"
    return Outcome(
        item_id=item.id,
        cluster=item.cluster,
        target=fmt.display_gold(item.doc),
        prediction=prediction,
        correct=correct,
        gold_logprob=None,
        logprob_margin=None,
        failure=failure,
        n_tokens=len(response.token_ids),
        text=response.text,
        metrics=metrics,
        thinking=response.thinking,
        n_thinking_tokens=None if response.thinking is None else response.n_thinking_tokens,
    )
