"""Classes of worked solutions, by hand, and on tokens of every make."""

from __future__ import annotations

import pytest
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers

from lensprune.errors import UserError
from lensprune.primitives.chains import Chain, ChainOptions, Wording, draw_chains
from lensprune.primitives.classes import mark_solution, token_classes
from lensprune.toys.tokenizer import make_tokenizer

CHAIN = (
    "3 + 4 - 2 =",
    " 3 + 4 = 7. 7 - 2 = 5. The answer is 5.",
    [
        ("3", "operand"),
        ("+", "operator"),
        ("4", "operand"),
        ("7", "result"),
        ("7", "carried"),
        ("-", "operator"),
        ("2", "operand"),
        ("5", "result"),
        ("The answer is ", "conclusion"),
        ("5", "answer"),
    ],
)
# The 7 that opens the second step is the carried one although the question has a 7 too.
TWICE = (
    "3 + 4 - 7 =",
    " 3 + 4 = 7. 7 - 7 = 0. The answer is 0.",
    [
        ("3", "operand"),
        ("+", "operator"),
        ("4", "operand"),
        ("7", "result"),
        ("7", "carried"),
        ("-", "operator"),
        ("7", "operand"),
        ("0", "result"),
        ("The answer is ", "conclusion"),
        ("0", "answer"),
    ],
)
STORY = (
    "Question: Ann has 3 boxes of 12 pens and gives 6 away. How many are left?\nAnswer:",
    " Ann has 3 * 12 = 36 pens.\nShe keeps 36 - 6 = 30.\n#### 30",
    [
        ("3", "operand"),
        ("*", "operator"),
        ("12", "operand"),
        ("36", "result"),
        ("36", "carried"),
        ("-", "operator"),
        ("6", "operand"),
        ("30", "result"),
        ("#### ", "conclusion"),
        ("30", "answer"),
    ],
)
# A number from nowhere has no class; a later operand that is an earlier result is carried; 1,200 is one number.
LONG = (
    "A shop sells 1,200 and 30.5",
    "1,200 + 30.5 = 1230.5, 2 * 3 = 6 and 6 + 1230.5 + 2 = 1238.5 so it is 1238.5!",
    [
        ("1,200", "operand"),
        ("+", "operator"),
        ("30.5", "operand"),
        ("1230.5", "result"),
        ("2", ""),
        ("*", "operator"),
        ("3", ""),
        ("6", "result"),
        ("6", "carried"),
        ("+", "operator"),
        ("1230.5", "carried"),
        ("+", "operator"),
        ("2", ""),
        ("1238.5", "result"),
        ("so it is ", "conclusion"),
        ("1238.5", "answer"),
    ],
)


@pytest.mark.parametrize(("question", "solution", "expected"), [CHAIN, TWICE, STORY, LONG])
def test_classes_by_hand(question: str, solution: str, expected: list[tuple[str, str]]) -> None:
    marks = mark_solution(question, solution)
    assert [(solution[m.start : m.stop], m.kind) for m in marks if m.kind != "words"] == expected
    assert "".join(solution[m.start : m.stop] for m in marks) == solution


def test_a_text_without_steps_has_no_result_and_no_conclusion() -> None:
    kinds = {m.kind for m in mark_solution("What is 3 and 4?", " It is 7, from 3 and 4.")}
    assert kinds == {"words", "operand", ""}


def test_calculator_marks_are_refused() -> None:
    with pytest.raises(UserError, match="calculator marks"):
        mark_solution("3 + 4", "3 + 4 = <<3+4=7>>7.")


def characters() -> transformers.PreTrainedTokenizerFast:
    vocabulary = {chr(code): code for code in range(32, 127)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), behavior="isolated")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def merged() -> transformers.PreTrainedTokenizerFast:
    """Tokens that hold a result and its full stop, and an operator with both blanks."""
    words = ["3", " + ", "4", " =", " 7.", " 7", " - ", "2", " 5.", " The", " answer", " is"]
    tokenizer = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="3"))
    parts = r" \+ | - | =| 7\.| 5\.| 7(?!\.)| [A-Za-z]+|\d|."
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(parts), behavior="isolated")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def classes(tokenizer: transformers.PreTrainedTokenizerFast) -> list[tuple[str, str]]:
    question, solution, _ = CHAIN
    text = question + solution
    spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    own = [(a, b) for a, b in spans if a >= len(question)]
    kinds = token_classes(text, len(question), mark_solution(question, solution), own)
    return [(text[a:b], kind) for (a, b), kind in zip(own, kinds, strict=True)]


def test_a_tokenizer_with_blanks_in_front() -> None:
    assert classes(make_tokenizer()) == [
        (" 3", "operand"),
        (" +", "operator"),
        (" 4", "operand"),
        (" =", "words"),
        (" 7", "result"),
        (".", "words"),
        (" 7", "carried"),
        (" -", "operator"),
        (" 2", "operand"),
        (" =", "words"),
        (" 5", "result"),
        (".", "words"),
        (" The answer is", "conclusion"),
        (" 5", "answer"),
        (".", "words"),
    ]


def test_a_tokenizer_of_characters() -> None:
    found = classes(characters())
    assert [kind for text, kind in found if text == " "] == ["words"] * sum(c == " " for c in CHAIN[1])
    assert "".join(text for text, kind in found if kind == "conclusion") == "Theansweris"
    assert [text for text, kind in found if kind in ("result", "carried", "answer")] == list("7755")


def test_a_token_of_two_classes_has_none() -> None:
    found = classes(merged())
    assert (" 7.", "") in found
    assert (" 5.", "") in found
    assert (" - ", "operator") in found
    assert (" 7", "carried") in found


def test_a_chain_is_written_as_the_task_writes_it() -> None:
    chain = Chain((3, 4, 2), ("+", "-"))
    assert chain.results == (7, 5)
    assert chain.question(Wording()) + chain.solution(Wording()) == CHAIN[0] + CHAIN[1]
    assert chain.prefix(Wording(), "left1", {"result0": " 8"}) == "3 + 4 - 2 = 3 + 4 = 8."


def test_drawn_chains_hold_no_number_twice() -> None:
    for chain in draw_chains(20, 3, 9, True, seed=1, distinct=True):
        values = (*chain.numbers, *chain.results)
        assert len(set(values)) == len(values)
        assert all(0 <= value <= 9 for value in values)
    with pytest.raises(UserError, match="there are only"):
        draw_chains(10_000, 3, 4, False, seed=0)


@pytest.mark.parametrize(
    ("changed", "said"), [({"largest": 10}, "largest 10"), ({"operands": 2}, "operands 2"), ({"shots": -1}, "shots -1")]
)
def test_options_out_of_range_are_refused(changed: dict[str, int], said: str) -> None:
    options = {"operands": 3, "largest": 9, "subtract": True, "limit": 8, "shots": 0, "wording": Wording(), "seed": 0}
    with pytest.raises(UserError, match=said):
        ChainOptions(**{**options, **changed})  # type: ignore[arg-type]
