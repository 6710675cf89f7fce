"""Items by offset, by place and by id: each is the item that it is in a whole run, examples included."""

from __future__ import annotations

from pathlib import Path

import pytest

import lensprune as lp
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.tasks import load_task
from lensprune.tasks.base import Item
from lensprune.tasks.item_choice import ItemChoice
from tests.helpers.tiny_models import folder, tiny


def items(choice: str = "first", task: str = "facts", **options: object) -> tuple[Item, ...]:
    return load_task(task, items=choice, shots=2, **options).items  # type: ignore[arg-type]


def test_places_and_ids_are_the_items_that_they_are_among_all(tmp_path: Path) -> None:
    whole = items()
    assert len(whole) > 60
    wanted = [whole[place] for place in (17, *range(40, 61))]
    assert list(items("17,40-60")) == list(items("40-60,17,17")) == wanted
    assert all(len(item.fewshot) == 2 for item in wanted)
    named = tmp_path / "hard.txt"
    named.write_text("\n".join([item.id for item in reversed(wanted)] + [""]))
    assert list(items(f"@{named}")) == wanted


@pytest.mark.parametrize("order", ["drawn", "first"])
def test_an_offset_takes_the_next_items_of_the_order(order: str) -> None:
    both = items(order, limit=30)
    assert items(order, limit=10) + items(f"{order}+10", limit=20) == both
    assert len({item.id for item in both}) == 30
    rest = items(f"{order}+30")
    assert {item.id for item in rest} | {item.id for item in both} == {item.id for item in items()}
    assert not {item.id for item in rest} & {item.id for item in both}


def test_a_task_that_makes_its_rows_makes_enough() -> None:
    first = items("first", "kv_retrieval", limit=30)
    assert items("first+20", "kv_retrieval", limit=10) == first[20:]
    assert items("3,29", "kv_retrieval") == (first[3], first[29])


@pytest.mark.parametrize("task", ["kv_retrieval", "arithmetic"])
def test_ids_beyond_the_usual_number_of_generated_rows(task: str, tmp_path: Path) -> None:
    usual = len(items("first", task))
    named = tmp_path / "ids.txt"
    named.write_text(f"{usual + 5}\n2\n")
    assert items(f"@{named}", task) == items(f"2,{usual + 5}", task)
    assert [item.id for item in items(f"@{named}", task)] == ["2", str(usual + 5)]


def test_a_long_number_as_an_id_generates_no_more_than_can_be_asked(tmp_path: Path) -> None:
    named = tmp_path / "ids.txt"
    named.write_text("20260401123456789\n")
    assert ItemChoice.parse(f"@{named}").rows_needed(None) == 1_000_000


def test_two_runs_over_some_of_the_same_items_are_paired_on_them() -> None:
    model = tiny("llama")
    a = lp.sweep(model, "facts", variants="L1.skip", limit=20, items="first", shots=0, progress=False)
    b = lp.sweep(model, "facts", variants="L1.skip", items="10-29", shots=0, progress=False)
    gap = a.compare(b)
    assert gap["n"].tolist() == [10]
    assert gap["gap"].tolist() == [0.0]
    assert gap["note"].iloc[0].startswith("10 items shared, of 20 and 20")
    c = lp.sweep(model, "facts", variants="L1.skip", items="19-24", shots=0, progress=False)
    assert a.compare(c)["note"].iloc[0].startswith("1 item shared, of 20 and 6")
    for other in ("runs/first", None):
        with pytest.raises(UserError, match="is not a run to compare with: expected a Run"):
            a.compare(other)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_command_takes_them_and_resumes_with_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ids.txt").write_text("\n".join(item.id for item in items("3,5")))
    arguments = ["--model", str(folder("llama")), "--task", "facts", "--shots", "0", "--layers", "0", "--out", "run"]
    assert main(["sweep", *arguments, "--items-file", "ids.txt"]) == 0
    run = lp.Run.load("run")
    assert run.spec.items == f"@{tmp_path / 'ids.txt'}"
    assert run.records("clean")["item_id"].tolist() == [item.id for item in items("3,5")]
    next(iter((tmp_path / "run" / "records").glob("*.parquet"))).unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["resume", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("frist", "did you mean first"),
        ("first+x", "unknown choice of items 'first\\+x'"),
        ("17,x", "cannot read items '17,x' at 'x'"),
        ("17,", "cannot read items '17,' at an empty entry: write indices"),
        ("17,,18", "at an empty entry"),
        ("17,40 - x", "at '40 - x'"),
        ("9-3", "items 9-3 runs backwards: did you mean 3-9\\?"),
        ("0-99999999999", "items 0-99999999999 is out of range: expected indices below 1000000"),
        ("99999999999", "is out of range"),
        ("@", "items '@' names no file"),
        ("@ ", "items '@' names no file"),
        ("@nowhere.txt", "file of items nowhere.txt does not exist"),
        ("99999", r"task 'facts' has items 0 to \d+, not 99999"),
        ("first+99999", r"first\+99999 leaves none of the \d+ items"),
    ],
)
def test_what_is_no_choice_is_refused(choice: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        items(choice)


def test_a_limit_beside_named_items_is_refused() -> None:
    with pytest.raises(UserError, match="limit 5 can't be combined with items 1,2"):
        items("1,2", limit=5)


def test_an_unknown_id_names_the_nearest(tmp_path: Path) -> None:
    named = tmp_path / "ids.txt"
    named.write_text("none such\n")
    with pytest.raises(UserError, match=r"task 'facts' has no item 'none such': the nearest of \d+ ids is"):
        items(f"@{named}")
    named.write_text(" \n")
    with pytest.raises(UserError, match="contains no id"):
        ItemChoice.parse(f"@{named}")
