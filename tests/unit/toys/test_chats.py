"""The thinking toy's training texts: its chat template around the task's own prompts, thoughts between markers."""

from __future__ import annotations

import pytest

from lensprune.tasks import load_task
from lensprune.tasks.prompts import build_context
from lensprune.toys.chats import ChatSource
from lensprune.toys.texts import HELD_OUT_ROWS, LARGEST, text_of
from lensprune.toys.tokenizer import make_tokenizer
from lensprune.toys.training import encode_text

TOKENIZER = make_tokenizer(thinking=True)


def chat(content: str, **arguments: bool) -> str:
    messages = [{"role": "user", "content": content}]
    return str(TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **arguments))


def test_the_template_opens_an_answer_or_writes_an_empty_block() -> None:
    assert chat("3 + 4 =") == "<user>3 + 4 =<eos><assistant>"
    assert chat("3 + 4 =", enable_thinking=True) == chat("3 + 4 =")
    assert chat("3 + 4 =", enable_thinking=False) == "<user>3 + 4 =<eos><assistant><think></think>"


def test_thoughts_of_earlier_turns_are_left_out() -> None:
    messages = [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "</think>1 + 1 ="},
        {"role": "assistant", "content": "<think> 1 + 1 = 2.</think> 2"},
        {"role": "user", "content": "2 + 3 ="},
    ]
    written = TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert written == "<system>Add.<eos><user></think>1 + 1 =<eos><assistant> 2<eos><user>2 + 3 =<eos>"


def test_markers_and_roles_are_new_tokens_behind_the_trio_s() -> None:
    plain = make_tokenizer()
    assert len(TOKENIZER) == len(plain) + 5
    vocabulary = TOKENIZER.get_vocab()
    assert {token: vocabulary[token] for token in plain.get_vocab()} == plain.get_vocab()
    text = "<think> 3 + 4 = 7.</think> 7<eos>"
    ids = TOKENIZER.encode(text)
    assert len(ids) == 10
    assert [TOKENIZER.decode([ids[i]]) for i in (0, 7)] == ["<think>", "</think>"]
    # A reader of the text sees the markers, and neither roles nor the end.
    assert TOKENIZER.decode([*TOKENIZER.encode("<assistant>"), *ids], skip_special_tokens=True) == text[: -len("<eos>")]


@pytest.mark.parametrize("shots", [0, 4])
@pytest.mark.parametrize("operands", [3, 4])
def test_a_chat_asks_what_the_task_asks(operands: int, shots: int) -> None:
    loaded = load_task(f"arithmetic[operands={operands},largest={LARGEST}]", limit=1, shots=shots)
    [item] = loaded.items
    asked = chat(build_context(loaded.task.formats["generate"], item))
    [prompt, *_] = ChatSource(0, TOKENIZER).chat(operands, thinking=True, shots=shots)
    assert not prompt.learnt
    # The same but for the numbers and signs.
    shape = str.maketrans("0123456789+-", "0" * 10 + "+" * 2)
    assert prompt.text.translate(shape) == asked.translate(shape)


def test_thoughts_hold_the_steps_and_answers_nothing_else() -> None:
    source = ChatSource(0, TOKENIZER)
    for operands in (2, 3, 4):
        for _ in range(20):
            thinking = source.chat(operands, thinking=True)
            learnt = "".join(piece.text for piece in thinking if piece.learnt)
            assert learnt.startswith("<think> ")
            thought, answer = learnt.removeprefix("<think>").split("</think>")
            assert thought.count("=") == operands - 1
            number = thought.removesuffix(".").rpartition(" ")[2]
            assert answer == (f" The answer is {number}.<eos>" if operands > 2 else f" {number}<eos>")
            [prompt, short] = source.chat(operands, thinking=False)
            assert prompt.text.endswith("<think></think>")
            assert short.learnt
            assert short.text.startswith(" The answer is " if operands > 2 else " ")
            assert "=" not in short.text


def test_a_cut_thought_is_ended_by_force_and_still_answered() -> None:
    source = ChatSource(1, TOKENIZER)
    lengths = set()
    for _ in range(200):
        prompt, thought, end, answer = source.chat(3, thinking=True, cut=True)
        assert [piece.learnt for piece in (prompt, thought, end, answer)] == [False, True, False, True]
        assert end.text == "</think>"
        assert answer.text.startswith(" The answer is ")
        lengths.add(len(TOKENIZER.encode(thought.text)))
    # `<think>` and none to eleven of the twelve tokens of two steps.
    assert lengths == set(range(1, 13))


def test_texts_fit_the_context_and_marks_cover_what_is_learnt() -> None:
    source = ChatSource(2, TOKENIZER)
    longest = 0
    for _ in range(200):
        text = source.mixed()
        ids, marks = encode_text(TOKENIZER, text, 10**6)
        longest = max(longest, len(ids))
        assert TOKENIZER.decode(ids) == text_of(text)
        learnt = "".join(TOKENIZER.decode([i]) for i, mark in zip(ids, marks, strict=True) if mark)
        assert learnt == "".join(piece.text for piece in text if piece.learnt)
    assert 150 < longest <= 512


def test_no_evaluated_question_is_trained_on() -> None:
    source = ChatSource(5, TOKENIZER)
    asked = {
        part.split(" =")[0]
        for _ in range(300)
        for turn in text_of(source.mixed()).split("<user>")[1:]
        for part in turn.split("<eos>")[0].split("\n\n")
    }
    assert len(asked) > 300
    for operands in (3, 4):
        for subtract in (False, True):
            task = f"arithmetic[operands={operands},largest={LARGEST},subtract={subtract}]"
            loaded = load_task(task, limit=HELD_OUT_ROWS)
            assert not asked & {str(item.doc["question"]) for item in loaded.items}
