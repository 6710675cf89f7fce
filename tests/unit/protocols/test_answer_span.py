"""Where an answer ends: a tokenizer with a token a byte, and answers whose length can be counted."""

from __future__ import annotations

import pytest

from lensprune.errors import LensPruneError
from lensprune.protocols import GenerateResponse, LoglikelihoodResponse, build_requests
from lensprune.protocols.answer_span import answer_spans
from tests.helpers.toy_task import DOCS, TOKENIZER, generation_format, loaded, model


def span(written: str, kept: str | None = None, **changes: object) -> int:
    """Tokens of the answer `written`, of which the stop rule keeps `kept`; the right answer is "four"."""
    task = loaded(DOCS[:1], generation=generation_format(**changes))
    items = build_requests(model(), task, "generate")
    ids = tuple(TOKENIZER.encode(written, add_special_tokens=False))
    assert len(ids) == len(written.encode())
    text = written if kept is None else kept
    [found] = answer_spans(TOKENIZER, task, items, [GenerateResponse(text, ids, "stop_string")])
    return found


def test_what_follows_the_answer_does_not_count() -> None:
    assert span("It is four\n\n", "It is four") == len("It is four")
    assert span("It is four. I hope so.") == len("It is four")


def test_a_start_that_is_right_by_accident_does_not_end_it() -> None:
    # The last word decides: "four" is right, "four or five" is not, and the second "four" is again.
    assert span("four or five, so four!", primary_filter="flexible") == len("four or five, so four")


def test_a_wrong_answer_has_no_span() -> None:
    assert span("It is five") == 0
    # Right in its first half only.
    assert span("four or five", primary_filter="flexible") == 0


def test_a_likelihood_is_refused() -> None:
    task = loaded(DOCS[:1])
    items = build_requests(model(), task, "generate")
    with pytest.raises(LensPruneError, match="log-likelihood"):
        answer_spans(TOKENIZER, task, items, [LoglikelihoodResponse(-1.0, True, 1)])
