"""A task of three lines: rows, a prompt and an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import lensprune as lp
from lensprune.errors import UserError
from lensprune.tasks import build_context, load_task, registry
from lensprune.tasks.base import GenerationFormat
from tests.helpers.tiny_models import tiny

ROWS = [
    {"country": "France", "capital": "Paris", "cities": ["Lyon", "Paris"]},
    {"country": "Peru", "capital": "Lima", "cities": ["Lima", "Cusco"]},
    {"country": "Chad", "capital": "N'Djamena", "cities": ["Moundou", "N'Djamena"]},
]


def row_capitals(most: int = 3) -> list[dict[str, Any]]:
    """Capitals."""
    return ROWS[:most]


def row_cities() -> list[dict[str, Any]]:
    return ROWS


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """The two tasks, which no other test sees."""
    registry._import_built_in()
    before = dict(registry._builders)
    lp.task(prompt="The capital of {country} is", answer="{capital}")(row_capitals)
    lp.task(prompt=lambda row: f"Which city governs {row['country']}?", answer="{capital}", options="cities", shots=1)(
        row_cities
    )
    yield
    registry._builders.clear()
    registry._builders.update(before)


def test_an_open_answer_is_generated() -> None:
    loaded = load_task("row_capitals")
    assert list(loaded.task.formats) == ["generate"]
    form = loaded.task.formats["generate"]
    assert isinstance(form, GenerationFormat)
    assert [item.id for item in loaded.items] == ["0", "1", "2"]
    assert build_context(form, loaded.items[1]) == "The capital of Peru is"
    assert form.target(loaded.items[1].doc) == "Lima"
    found = form.filters[0](" lima.\nThe capital")
    assert found is not None
    assert form.matches(found, "Lima")
    assert not form.matches("Limasol", "Lima")
    assert loaded.task.chance(ROWS[0], "generate") == 0
    assert loaded.task.summary == "Capitals."


def test_its_parameters_are_the_functions_own() -> None:
    loaded = load_task("row_capitals[most=2]")
    assert (loaded.task.name, len(loaded.items)) == ("row_capitals[most=2]", 2)
    assert loaded.parameters["most"] == 2


def test_options_give_all_protocols_and_shots_are_other_rows() -> None:
    loaded = load_task("row_cities")
    assert list(loaded.task.formats) == ["default", "continuation", "generate"]
    assert loaded.task.chance(ROWS[0], "default") == 0.5
    for item in loaded.items:
        assert len(item.fewshot) == 1
        assert item.fewshot[0] != item.doc
    assert build_context(loaded.task.formats["continuation"], loaded.items[0]).endswith("Which city governs France?")


def test_it_is_swept_like_any_other() -> None:
    run = lp.sweep(tiny("llama"), "row_cities", ["default", "continuation"], progress=False)
    assert run.summary()["n"].unique().tolist() == [3]
    assert set(run.records(protocol="continuation")["target"]) == {"Paris", "Lima", "N'Djamena"}


def _decorated(rows: Any, **changes: Any) -> Callable[[], Any]:
    def build() -> Any:
        @lp.task(**{"prompt": "{x}", "answer": "{y}", "name": "row_bad", **changes})
        def row_bad() -> Any:
            return rows

        return load_task("row_bad")

    return build


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_decorated([], prompt="What?"), "prompt 'What\\?' contains no column"),
        (_decorated([], answer="y"), "answer 'y' contains no column"),
        (_decorated([], prompt="{x"), "can't be read"),
        (_decorated([]), "returned no rows, expected a list of one or more rows"),
        (_decorated("rows"), "returned str"),
        (_decorated([{"x": 1, "y": 2}, "row"]), "returned str"),
        (_decorated([{"x": 1}]), "unknown column 'y': choose one of: x"),
        (_decorated([{"x": 1, "why": 2}]), r"unknown column 'y': did you mean why\?"),
        (_decorated([{"x": 1, "y": "a"}], options=["b", "c"]), "'a' is not one of the options"),
        (
            _decorated([{"x": 1, "y": "a", "z": "abc"}], options="z"),
            r"options are 'abc' \(column 'z'\), expected a list",
        ),
        (
            _decorated([{"x": 1, "y": "a"}], options=lambda row: "abc"),
            r"options are 'abc' \(its function\), expected a",
        ),
        (_decorated([{"x": 1, "y": "a", "z": 5}], options="z"), "options are 5"),
        (_decorated([{"x": 1, "y": "a"}], options={"a": 1}), r"options are \{'a': 1\}"),
        (_decorated([{"x": 1, "y": "a"}], prompt=lambda row: row["x"]), "the prompt is int, expected text"),
        (_decorated([{"x": 1, "y": 2}], answer=lambda row: row["y"]), "the answer is int, expected text"),
        (_decorated([{"x": 1, "y": "a"}], name="no name"), "use letters, digits"),
    ],
)
def test_what_is_wrong_is_said(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()
