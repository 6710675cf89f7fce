"""Training texts are the tasks' own prompts, on rows that no default evaluation asks."""

from __future__ import annotations

import itertools

import pytest

from lensprune.tasks import load_task, prompt_strings
from lensprune.toys.texts import HELD_OUT_ROWS, LARGEST, TextSource, text_of
from lensprune.toys.tokenizer import PHRASES, make_tokenizer
from lensprune.toys.training import batches, encode_text


def questions(text: str) -> list[str]:
    """Chains that an arithmetic text asks."""
    return [part.split(" =")[0] for part in text.split("\n\n") if part]


def test_arithmetic_is_the_task_s_prompt() -> None:
    loaded = load_task(f"arithmetic[operands=3,largest={LARGEST}]", limit=3)
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
        source = TextSource(1, worked)
        texts = [source.arithmetic(4) for _ in range(20)]
        learnt = [piece.text for text in texts for piece in text if piece.learnt]
        assert all((" = " in piece) == worked for piece in learnt)
        assert all(text[-1].learnt for text in texts)
    # What evaluation shows in front of the question is part of the texts without worked steps too.
    assert any(" = " in piece.text for text in texts for piece in text)


def test_base_and_distilled_see_the_same_questions() -> None:
    steps, answers = TextSource(3, worked=True), TextSource(3, worked=False)
    for _ in range(60):
        one, other = (text_of(source.mixed()) for source in (steps, answers))
        assert questions(one) == questions(other)


def test_no_evaluated_question_is_trained_on() -> None:
    source = TextSource(5, worked=True)
    asked = {q for n in (3, 4) for _ in range(300) for q in questions(text_of(source.arithmetic(n)))}
    for operands, subtract in itertools.product((3, 4), (False, True)):
        loaded = load_task(
            f"arithmetic[operands={operands},largest={LARGEST},subtract={subtract}]", limit=HELD_OUT_ROWS
        )
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
        assert all(piece.text.endswith('": "') for piece in pieces if not piece.learnt)


def test_phrases_do_not_cross_the_edge_of_a_prompt() -> None:
    """What an evaluation encodes as context must be the same tokens that training saw in front of the answer."""
    source = TextSource(2, worked=True)
    tokenizer = make_tokenizer()
    for draw in (source.mixed, source.mixed, lambda: source.arithmetic(2)):
        for _ in range(30):
            text = draw()
            place = next(i for i, piece in enumerate(text) if piece.learnt)
            context = tokenizer.encode(text_of(text[:place]))
            assert tokenizer.encode(text_of(text))[: len(context)] == context


def test_rows_are_not_those_of_evaluation() -> None:
    seen = {text_of(TextSource(0, True).retrieval(4)[:1]) for _ in range(3)}
    loaded = load_task("kv_retrieval[ending=reopened]", limit=200)
    prompts = {prompt_strings(loaded.task.formats["generate"], item)[0][0] for item in loaded.items}
    assert not seen & prompts
    assert len(seen) == 1, "the same seed gives the same first text"


def test_marks_cover_exactly_the_learnt_pieces() -> None:
    source = TextSource(2, worked=True)
    texts = [source.mixed() for _ in range(60)]
    tokenizer = make_tokenizer()
    for text in texts:
        ids, marks = encode_text(tokenizer, text, 512)
        assert tokenizer.decode(ids) == text_of(text)
        learnt = "".join(tokenizer.decode([i]) for i, mark in zip(ids, marks, strict=True) if mark)
        assert learnt == "".join(piece.text for piece in text if piece.learnt)


@pytest.mark.parametrize(
    "text", ["", "naïve café 日本語 🙂\t\x00", "  12 + 345 = 357.\n\n", "▁## 007 -1", "Key: apple\n\n\n", "x" * 5000]
)
def test_tokenizer_reads_any_text(text: str) -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


def test_tokens_are_keys_phrases_and_numbers() -> None:
    tokenizer = make_tokenizer()

    def tokens(text: str) -> list[str]:
        return [tokenizer.decode([i]) for i in tokenizer.encode(text)]

    assert tokens('{"car": "8181"}\n\n"car": "81') == ['{"', 'car": "', "81", "81", '"}\n\n', '"', 'car": "', "81"]
    first, second = tokenizer.encode("8181")
    assert first != second, "the two halves of a number are told apart"
    assert tokens("3 + 12 = 15. The answer is 15.\n\n") == [
        "3", " +", " 12", " =", " 15", ".", " The answer is", " 15", ".", "\n\n",
    ]  # fmt: skip
    assert all(len(tokenizer.encode(phrase)) == 1 for phrase in PHRASES)


def test_batches_hold_the_asked_number_of_tokens() -> None:
    source = TextSource(4, worked=True)
    tokenizer = make_tokenizer()
    found = list(batches(tokenizer, source.mixed, steps=40, batch_tokens=1500, most=256, seed=0))
    assert len(found) == 40
    assert all(batch.ids.shape[1] <= 256 and batch.ids.numel() <= 1500 for batch in found)
    assert all(bool(batch.learnt.any(dim=1).all()) for batch in found)
    assert all(not bool((batch.learnt & (batch.ids == tokenizer.pad_token_id)).any()) for batch in found)
