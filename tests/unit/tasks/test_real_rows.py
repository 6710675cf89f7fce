"""Every real task, over the rows that people really use."""

from __future__ import annotations

from pathlib import Path

import pytest

from lensprune.tasks import (
    GenerationFormat,
    MultipleChoiceFormat,
    ProtocolName,
    build_context,
    load_task,
    prompt_hash,
    prompt_strings,
)
from tests.helpers.rows import REAL_TASKS

pytestmark = pytest.mark.data_dir

PROTOCOLS: tuple[ProtocolName, ...] = ("default", "continuation", "generate")
CHANCE = {
    "arc_challenge": None,
    "arc_easy": None,
    "boolq": 1 / 2,
    "commonsense_qa": 1 / 5,
    "mathqa": 1 / 5,
    "winogrande": 1 / 2,
}
"""Where it is not one in four; ``None`` where rows differ in the number of their options."""
OPEN_ANSWERS = {"gsm8k", "gsm8k_cot", "svamp"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", sorted(REAL_TASKS))
def test_prompts_of_real_rows(name: str, protocol: ProtocolName, data_dir: Path) -> None:
    loaded = load_task(name, data_dir=data_dir, limit=5)
    fmt = loaded.task.formats[protocol]
    assert len(loaded.items) == (285 if name == "mmlu" else 5)
    assert loaded.data_source.startswith(str(data_dir))
    for item in loaded.items:
        assert len(item.fewshot) == loaded.shots
        context = build_context(fmt, item)
        assert context.endswith(fmt.context(item.doc))
        chance = loaded.task.chance(item.doc, protocol)
        if isinstance(fmt, MultipleChoiceFormat):
            choices, gold = list(fmt.choices(item.doc)), fmt.gold(item.doc)
            assert 0 <= gold < len(choices)
            assert all(choice.strip() for choice in choices)
            assert chance == pytest.approx(1 / len(choices))
            pairs = prompt_strings(fmt, item)
            assert len(pairs) == len(choices)
            assert all(continuation.strip() for _, continuation in pairs)
            if protocol == "default":
                assert choices == [chr(65 + index) for index in range(len(choices))]
                assert all(f"\n{letter}. " in context for letter in choices)
        else:
            assert isinstance(fmt, GenerationFormat)
            assert not any(context.endswith(stop) for stop in fmt.until)
            assert fmt.max_new_tokens > 0
            assert fmt.display_gold(item.doc).strip()
            assert fmt.primary_filter in [one.name for one in fmt.filters]
            assert fmt.matches(fmt.display_gold(item.doc), fmt.target(item.doc)), "the answer is right"
            assert fmt.is_answer(fmt.display_gold(item.doc))
        if name in OPEN_ANSWERS and protocol == "generate":
            assert chance == 0.0
        elif (expected := CHANCE.get(name, 1 / 4)) is not None:
            assert chance == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(REAL_TASKS))
def test_whole_split_can_be_asked(name: str, data_dir: Path) -> None:
    loaded = load_task(name, data_dir=data_dir, shots=0)
    assert len(loaded.items) >= 200
    assert len({item.id for item in loaded.items}) == len(loaded.items)


@pytest.mark.parametrize("name", sorted(REAL_TASKS))
def test_protocols_ask_about_the_same_items(name: str, data_dir: Path) -> None:
    loaded = load_task(name, data_dir=data_dir, limit=5)
    letter, text, written = (loaded.task.formats[protocol] for protocol in PROTOCOLS)
    assert isinstance(letter, MultipleChoiceFormat)
    assert isinstance(text, MultipleChoiceFormat)
    assert isinstance(written, GenerationFormat)
    for item in loaded.items:
        assert letter.gold(item.doc) == text.gold(item.doc)
        answer = written.display_gold(item.doc)
        if name in OPEN_ANSWERS or name == "kv_retrieval":
            assert text.choices(item.doc)[text.gold(item.doc)] == answer
        else:
            assert letter.choices(item.doc)[letter.gold(item.doc)] == answer
    assert len({prompt_hash(loaded, protocol) for protocol in PROTOCOLS}) == 3


@pytest.mark.parametrize("name", ["gsm8k", "openbookqa", "hellaswag", "mathqa", "boolq"])
def test_seed_and_nothing_else_changes_the_examples(name: str, data_dir: Path) -> None:
    first, again, other = (
        [item.fewshot for item in load_task(name, data_dir=data_dir, limit=4, shots=2, seed=seed).items]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
