"""Names, typing mistakes and parameters of tasks."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from lensprune.errors import UserError
from lensprune.parameters import parse_spec
from lensprune.tasks import Task, get_task, load_task, register_task, task_names
from tests.helpers.rows import REAL_TASKS


def _task(**parameters: Any) -> Task:
    return Task(
        name="made_up",
        summary="",
        formats={},
        chance=lambda doc, protocol: 0.0,
        load=lambda request: pytest.fail("not asked for rows"),
        parameters=parameters,
    )


def test_all_real_tasks_are_registered_in_order() -> None:
    names = task_names()
    assert set(names) >= REAL_TASKS
    assert names == sorted(names)


def test_every_task_describes_itself_under_three_protocols() -> None:
    for name in task_names():
        task = get_task(name)
        assert task.name == name
        assert task.summary
        assert set(task.formats) == {"default", "continuation", "generate"}, name


@pytest.mark.parametrize(
    ("typo", "meant"), [("opnbookqa", "openbookqa"), ("gsm8", "gsm8k"), ("kv_retreival", "kv_retrieval")]
)
def test_a_typing_mistake_names_the_nearest_task(typo: str, meant: str) -> None:
    with pytest.raises(UserError, match=rf"unknown task '{typo}'.*\b{meant}\b"):
        get_task(typo)
    with pytest.raises(UserError, match=meant):
        load_task(typo)


def test_a_name_like_no_other_lists_all() -> None:
    with pytest.raises(UserError, match=r"choose one of: .*arc_easy.*winogrande"):
        get_task("###")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("gsm8k", ("gsm8k", {})),
        (" gsm8k ", ("gsm8k", {})),
        ("gsm8k[]", ("gsm8k", {})),
        ("a[x=1]", ("a", {"x": "1"})),
        ("a[ x = 1 , y=two ]", ("a", {"x": "1", "y": "two"})),
    ],
)
def test_specs(spec: str, expected: tuple[str, dict[str, str]]) -> None:
    assert parse_spec(spec, "task") == expected


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("", "expected NAME"),
        ("[x=1]", "expected NAME"),
        ("a[x=1", "expected NAME"),
        ("a[x=1]b", "expected NAME"),
        ("a[x]", "not of the form key=value"),
        ("a[x=]", "not of the form key=value"),
        ("a[=1]", "not of the form key=value"),
        ("a[x=1,x=2]", "given twice"),
    ],
)
def test_malformed_specs(spec: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_spec(spec, "task")


def test_parameters_are_converted_and_shown_in_the_name(own_registry: dict[str, Any]) -> None:
    seen: dict[str, Any] = {}

    @register_task
    def made_up(
        pairs: int = 4,
        rate: float = 0.5,
        shown: bool = True,
        label: str = "x",
        kind: Literal["a", "b"] | int = "a",
        size: int | None = None,
    ) -> Task:
        seen.update(pairs=pairs, rate=rate, shown=shown, label=label, kind=kind, size=size)
        return _task(extra="from the task")

    assert get_task("made_up").name == "made_up"
    assert get_task("made_up[pairs=4]").name == "made_up", "a default that is spelled out is still the default"
    task = get_task("made_up[size=3,kind=7,shown=no,rate=0.25,pairs=+10,label=7]")
    assert seen == {"pairs": 10, "rate": 0.25, "shown": False, "label": "7", "kind": 7, "size": 3}
    assert task.name == "made_up[pairs=10,rate=0.25,shown=False,label=7,kind=7,size=3]", "in the signature's order"
    assert task.parameters == {**seen, "extra": "from the task"}


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("kv_retrieval[pears=4]", r"unknown parameter of task 'kv_retrieval' 'pears'.*pairs"),
        ("kv_retrieval[pairs=four]", r"'pairs': 'four' is not a whole number"),
        ("kv_retrieval[pairs=4.5]", r"'pairs': '4.5' is not a whole number"),
        ("kv_retrieval[keys=words]", r"'keys': 'words' is not one of .*word.*uuid"),
        ("kv_retrieval[pairs=1]", r"pairs=1, expected 2 or more"),
        ("kv_retrieval[pairs=4,gold=4]", r"gold=4 is outside the list, expected 0 to 3"),
        ("gsm8k[shots=3]", r"task 'gsm8k' has no parameters"),
        ("mmlu[subject=anatomi]", r"unknown subject of task 'mmlu' 'anatomi'.*anatomy"),
    ],
)
def test_wrong_parameters(spec: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        get_task(spec)


def test_two_functions_cannot_share_a_name(own_registry: dict[str, Any]) -> None:
    def first() -> Task:
        return _task()

    def second() -> Task:
        return _task()

    register_task(name="shared_name")(first)
    register_task(name="shared_name")(first)
    with pytest.raises(UserError, match=r"'shared_name' is taken by .*first"):
        register_task(name="shared_name")(second)
    with pytest.raises(UserError, match="is taken by"):
        register_task(name="gsm8k")(second)


def test_a_parameter_needs_a_default(own_registry: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="'pairs' needs a default"):

        @register_task
        def needs(pairs: int) -> Task:
            return _task()

    assert "needs" not in own_registry


@pytest.mark.parametrize("name", ["a b", "a[x]", "a,b", "a/b", "é"])
def test_names_that_a_spec_or_a_file_could_not_hold(name: str, own_registry: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="use letters, digits"):
        register_task(name=name)(_task)
