"""The thinking toy that ships: right where it may think, and not where its thought is left out or cut short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

import lensprune as lp
from lensprune.ablation import CLEAN
from lensprune.engine.registry import make_executor
from lensprune.models import BUNDLED, as_hooked_model, load_model
from lensprune.models.base import HookedModel
from lensprune.protocols import build_requests, score_items
from lensprune.protocols.base import ItemRequests
from lensprune.protocols.requests import GenerateRequest, GenerateResponse, Request
from lensprune.tasks import load_task
from lensprune.tasks.base import LoadedTask
from lensprune.toys.study import TASKS
from lensprune.toys.tokenizer import CHAT_TEMPLATE, END_OF_THOUGHT, THOUGHT, make_tokenizer

CHAINS = TASKS[1]
LIMIT = 100
FULL_THOUGHT = 14
"""Tokens of two steps between their markers."""


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return as_hooked_model(load_model("toy-thinker", device="cpu"))


@pytest.fixture(scope="module")
def task() -> LoadedTask:
    return load_task(CHAINS, limit=LIMIT)


@pytest.fixture(scope="module")
def asked(model: HookedModel, task: LoadedTask) -> list[ItemRequests]:
    return build_requests(model, task, "generate", chat_template=True)


def generated(
    model: HookedModel, requests: Sequence[GenerateRequest], executor: str = "forked"
) -> list[GenerateResponse]:
    wanted: list[Request] = list(requests)
    [found] = make_executor(executor, model).run(wanted, [CLEAN])
    return [response for response in found.responses if isinstance(response, GenerateResponse)]


def plain(asked: Sequence[ItemRequests]) -> list[GenerateRequest]:
    requests = [request for item in asked for request in item.requests]
    return [request for request in requests if isinstance(request, GenerateRequest)]


def continued(model: HookedModel, request: GenerateRequest, text: str) -> GenerateRequest:
    return replace(request, context_ids=(*request.context_ids, *model.tokenizer.encode(text)))


def written(model: HookedModel, response: GenerateResponse) -> str:
    return str(model.tokenizer.decode(list(response.token_ids), skip_special_tokens=True))


def accuracy(
    model: HookedModel, task: LoadedTask, asked: Sequence[ItemRequests], responses: Sequence[GenerateResponse]
) -> float:
    """With the answer read after the last end marker."""
    answers = [replace(r, text=written(model, r).rpartition(END_OF_THOUGHT)[2]) for r in responses]
    return sum(outcome.correct for outcome in score_items(task, "generate", asked, answers)) / len(asked)


def forced(model: HookedModel, requests: Sequence[GenerateRequest], budget: int) -> list[GenerateResponse]:
    """The answers after thoughts of at most `budget` tokens: what is written by then is kept, and the end put behind
    it where it is missing."""
    thoughts = generated(model, [replace(request, max_new_tokens=budget) for request in requests])
    followed = []
    for request, thought in zip(requests, thoughts, strict=True):
        text = model.tokenizer.decode(list(thought.token_ids))
        followed.append(continued(model, request, text if END_OF_THOUGHT in text else text + END_OF_THOUGHT))
    return generated(model, followed)


def test_it_is_small_and_its_tokenizer_is_the_recipe_s() -> None:
    folder = BUNDLED["toy-thinker"].folder()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 1.2e6
    tokenizer = load_model("toy-thinker", device="cpu").tokenizer
    assert tokenizer.get_vocab() == make_tokenizer(thinking=True).get_vocab()
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_it_thinks_in_steps_and_then_only_answers(model: HookedModel, asked: list[ItemRequests]) -> None:
    [response] = generated(model, plain(asked)[:1])
    thought, end, answer = written(model, response).partition(END_OF_THOUGHT)
    assert thought.startswith(f"{THOUGHT} ")
    assert end
    assert thought.count("=") == 2
    assert answer.startswith(" The answer is ")
    assert "=" not in answer
    assert response.stop_reason == "eos"


@pytest.mark.slow
def test_it_needs_its_thoughts(model: HookedModel, task: LoadedTask, asked: list[ItemRequests]) -> None:
    requests = plain(asked)
    thinking = accuracy(model, task, asked, generated(model, requests))
    without = accuracy(
        model, task, asked, generated(model, [continued(model, r, f"{THOUGHT}{END_OF_THOUGHT}") for r in requests])
    )
    enough, few = (accuracy(model, task, asked, forced(model, requests, budget)) for budget in (FULL_THOUGHT, 5))
    assert thinking >= 0.9
    assert enough == thinking
    assert without <= thinking - 0.3
    assert few <= thinking - 0.1


@pytest.mark.slow
def test_both_executors_think_the_same(model: HookedModel, asked: list[ItemRequests]) -> None:
    requests = plain(asked)[:10]
    fast, reference = (generated(model, requests, executor) for executor in ("forked", "hooked"))
    assert [response.token_ids for response in fast] == [response.token_ids for response in reference]
    assert len(fast) == 10


@pytest.mark.slow
def test_a_sweep_lets_it_think_or_not() -> None:
    """What the options make of it: thinking off, a budget that is enough, one that is not, and samples of each item."""
    asked = {"limit": 40, "chat_template": True, "device": "cpu", "progress": False}

    def right(**options: object) -> float:
        run = lp.sweep("toy-thinker", [CHAINS], ["generate"], "layers", **{**asked, **options})  # type: ignore[arg-type]
        return float(run.summary()["accuracy"].iloc[0])

    assert right() >= 0.9
    assert right(thinking="on") == right(thinking_budget=FULL_THOUGHT) == right()
    assert right(thinking="off") <= right() - 0.3
    assert right(thinking_budget=5) <= right() - 0.3
    assert right(thinking_budget=FULL_THOUGHT, temperature=0.5, samples=3) >= 0.9


@pytest.mark.slow
def test_a_sweep_asks_it_through_its_template() -> None:
    run = lp.sweep(
        "toy-thinker", [CHAINS], ["generate"], "layers", chat_template=True, limit=40, device="cpu", progress=False
    )
    summary = run.summary().set_index("variant")
    assert summary.loc["clean", "accuracy"] >= 0.9
    assert summary.loc["L0.skip", "accuracy"] <= 0.3
    assert (run.records("clean")["n_tokens"] > FULL_THOUGHT).all()
