"""A task in a few lines, and a model that only has a tokenizer and a context length."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from lensprune.tasks.base import Doc, GenerationFormat, Item, LoadedTask, MultipleChoiceFormat, Rows, Task
from lensprune.tasks.filters import RegexFilter, exact_match
from tests.helpers.families import byte_tokenizer

TOKENIZER = byte_tokenizer()


def model(n_ctx: int = 512, tokenizer: Any = TOKENIZER, bos_policy: str = "tokenizer") -> Any:
    facts = SimpleNamespace(name="toy-model", n_ctx=n_ctx, bos_policy=bos_policy)
    return SimpleNamespace(tokenizer=tokenizer, facts=facts)


def choice_format(**changes: Any) -> MultipleChoiceFormat:
    values: dict[str, Any] = {
        "context": lambda doc: f"Q: {doc['q']}\nA:",
        "choices": lambda doc: doc["options"],
        "gold": lambda doc: doc["gold"],
        "description": lambda doc: "Answer.\n\n",
    }
    return MultipleChoiceFormat(**{**values, **changes})


def generation_format(**changes: Any) -> GenerationFormat:
    values: dict[str, Any] = {
        "context": lambda doc: f"Q: {doc['q']}\nA:",
        "target": lambda doc: doc["options"][doc["gold"]],
        "filters": (RegexFilter("strict", r"is (\w+)"), RegexFilter("flexible", r"(\w+)", -1)),
        "matches": exact_match,
        "primary_filter": "strict",
        "until": ("\n\n", "Q:"),
        "max_new_tokens": 16,
        "display_gold": lambda doc: doc["options"][doc["gold"]],
    }
    return GenerationFormat(**{**values, **changes})


DOCS: tuple[Doc, ...] = (
    {"q": "2+2?", "options": ["three", "four"], "gold": 1},
    {"q": "1+1?", "options": ["two", "eleven"], "gold": 0},
)
EXAMPLE: Doc = {"q": "0+1?", "options": ["one", "ten"], "gold": 0}


def loaded(
    docs: Sequence[Doc] = DOCS, choice: MultipleChoiceFormat | None = None, generation: GenerationFormat | None = None
) -> LoadedTask:
    task = Task(
        name="toy",
        summary="two sums",
        formats={"continuation": choice or choice_format(), "generate": generation or generation_format()},
        chance=lambda doc, protocol: 0.5,
        load=lambda request: Rows(docs, [EXAMPLE], "memory"),
    )
    items = tuple(Item(str(i), doc, fewshot=(EXAMPLE,)) for i, doc in enumerate(docs))
    return LoadedTask(task=task, items=items, fewshot_pool=(EXAMPLE,), shots=1, seed=0, data_source="memory")
