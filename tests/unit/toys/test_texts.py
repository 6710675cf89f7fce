"""Training texts are the tasks' own prompts, on rows that no default evaluation asks."""

from __future__ import annotations

import itertools

import pytest

from lensprune.tasks import load_task, prompt_strings
from lensprune.toys.texts import HELD_OUT_ROWS, PHRASES, TextSource, text_of
from lensprune.toys.tokenizer import train_tokenizer
from lensprune.toys.training import batches, encode_text


def questions(text: str) -> list[str]:
    """Chains that an arithmetic text asks."""
    return [part.split(" =")[0] for part in text.split("\n\n") if part]


def test_arithmetic_is_the_task_s_prompt() -> None:
    loaded = load_task("arithmetic[operands=3]", limit=3)
    source = TextSource(0, worked=True)
    for item in loaded.items:
        [(context, _)] = prompt_strings(loaded.task.formats["generate"], item)
        assert source.example_prompt(3, item.fewshot, item.doc) == context
    text = source.arithmetic(3)
    learnt = [piece.text for piece in text if piece.learnt]
    assert all(piece.startswith(" ") and piece.endswith(".\n\n") and "The answer is" in piece for piece in learnt)
    assert all(piece.text.endswith(" =") for piece in text if not piece.learnt)


def test_answers_alone_or_worked_steps() -> None:
    for worked in (True, False):
        learnt = [piece.text for piece in TextSource(1, worked).arithmetic(4) if piece.learnt]
        assert all((" = " in piece) == worked for piece in learnt)


def test_base_and_distilled_see_the_same_questions() -> None:
    steps, answers = TextSource(3, worked=True), TextSource(3, worked=False)
    for progress in (0.0, 0.5, 1.0) * 20:
        one, other = (text_of(source.mixed(progress)) for source in (steps, answers))
        assert questions(one) == questions(other)


def test_no_evaluated_question_is_trained_on() -> None:
    source = TextSource(5, worked=True)
    asked = {q for n in (3, 4) for _ in range(300) for q in questions(text_of(source.arithmetic(n)))}
    for operands, subtract in itertools.product((3, 4), (False, True)):
        loaded = load_task(f"arithmetic[operands={operands},subtract={subtract}]", limit=HELD_OUT_ROWS)
        assert not asked & {str(item.doc["question"]) for item in loaded.items}


def test_retrieval_is_the_task_s_prompt_with_every_key_asked() -> None:
    source = TextSource(0, worked=True)
    for pairs in (2, 4, 6):
        text = text_of(source.retrieval(pairs))
        start = "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n{"
        assert text.startswith(start)
        assert text.count("JSON data") == 1
        records = dict(part.split('": "') for part in text[len(start) + 1 : text.index('"}')].split('",\n "'))
        assert len(records) == pairs
        pieces = source.retrieval(pairs)
        assert sum(piece.learnt for piece in pieces) == 2 * pairs
    prompts = {piece.text for _ in range(20) for piece in source.retrieval(2)[:1]}
    assert {prompt.endswith("Corresponding value:") for prompt in prompts} == {True, False}


def test_phrases_do_not_cross_the_edge_of_a_prompt() -> None:
    """What an evaluation encodes as context must be the same tokens that training saw in front of the answer."""
    source = TextSource(2, worked=True)
    tokenizer = train_tokenizer([text_of(source.mixed(1.0)) for _ in range(60)], 540, PHRASES)
    for draw in (source.mixed, source.mixed, lambda progress: source.arithmetic(2)):
        for _ in range(30):
            text = draw(1.0)
            place = next(i for i, piece in enumerate(text) if piece.learnt)
            context = tokenizer.encode(text_of(text[:place]))
            assert tokenizer.encode(text_of(text))[: len(context)] == context


def test_rows_are_not_those_of_evaluation() -> None:
    seen = {text_of(TextSource(0, True).retrieval(4)[:1]) for _ in range(3)}
    loaded = load_task("kv_retrieval", limit=200)
    prompts = {prompt_strings(loaded.task.formats["generate"], item)[0][0] for item in loaded.items}
    assert not seen & prompts
    assert len(seen) == 1, "the same seed gives the same first text"


def test_marks_cover_exactly_the_learnt_pieces() -> None:
    source = TextSource(2, worked=True)
    texts = [source.mixed(1.0) for _ in range(60)]
    tokenizer = train_tokenizer(map(text_of, texts), 512)
    for text in texts:
        ids, marks = encode_text(tokenizer, text, 512)
        assert tokenizer.decode(ids) == text_of(text)
        learnt = "".join(tokenizer.decode([i]) for i, mark in zip(ids, marks, strict=True) if mark)
        assert learnt == "".join(piece.text for piece in text if piece.learnt)


@pytest.mark.parametrize("text", ["", "naïve café 日本語 🙂\t\x00", "  12 + 345 = 357.\n\n"])
def test_tokenizer_reads_any_text(text: str) -> None:
    tokenizer = train_tokenizer(["The answer is 12."], 400, PHRASES)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("90125")) == ["90", "12", "5"]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode('"car": "81')) == ['"', 'car": "', "81"]


def test_batches_hold_the_asked_number_of_tokens() -> None:
    source = TextSource(4, worked=True)
    tokenizer = train_tokenizer([text_of(source.mixed(1.0)) for _ in range(20)], 400)
    found = list(batches(tokenizer, lambda step: source.mixed(1.0), steps=40, batch_tokens=1500, most=256, seed=0))
    assert len(found) == 40
    assert all(batch.ids.shape[1] <= 256 and batch.ids.numel() <= 1500 for batch in found)
    assert all(bool(batch.learnt.any(dim=1).all()) for batch in found)
    assert all(not bool((batch.learnt & (batch.ids == tokenizer.pad_token_id)).any()) for batch in found)
