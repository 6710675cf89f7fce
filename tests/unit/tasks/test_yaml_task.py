"""Tasks from a YAML file: formats, sources, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lensprune.errors import UserError
from lensprune.tasks import GenerationFormat, MultipleChoiceFormat, get_task, load_task, prompt_strings, register_yaml

COLOURS: dict[str, Any] = {
    "task": "colours",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "test.jsonl", "train": "train.jsonl"}},
    "test_split": "test",
    "training_split": "train",
    "doc_to_text": "Question: {{ thing.strip() }}?\nAnswer:",
    "doc_to_choice": "colours",
    "doc_to_target": "right",
    "description": "Name the colour.\n\n",
    "num_fewshot": 1,
}
OPEN: dict[str, Any] = {
    "task": "sums",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "test.jsonl"}},
    "test_split": "test",
    "doc_to_text": "{{a}} + {{b}} =",
    "doc_to_target": "{{a + b}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5},
    "filter_list": [
        {
            "name": "number",
            "filter": [
                {"function": "regex", "regex_pattern": r"(\d+)", "group_select": -1},
                {"function": "take_first"},
            ],
        }
    ],
    "metric_list": [{"metric": "exact_match", "ignore_punctuation": True}],
}


@pytest.fixture(autouse=True)
def _own_registry(own_registry: dict[str, Any]) -> None:
    """What a test registers is forgotten after it."""


def write(where: Path, config: dict[str, Any], **changes: Any) -> Path:
    path = where / "task.yaml"
    path.write_text(yaml.safe_dump({**config, **changes}))
    return path


def write_rows(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    write_rows(tmp_path, "test", [{"thing": " grass ", "colours": ["red", "green"], "right": 1}])
    write_rows(tmp_path, "train", [{"thing": "blood", "colours": ["red", "blue", "pink"], "right": 0}])
    return tmp_path


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    write_rows(tmp_path, "test", [{"a": 1, "b": 2}, {"a": 3, "b": 4}, {"a": 5, "b": 6}])
    return tmp_path


def test_options_give_three_protocols(colours: Path) -> None:
    assert register_yaml(write(colours, COLOURS)) == "colours"
    loaded = load_task("colours")
    (item,) = loaded.items
    formats = loaded.task.formats
    assert set(formats) == {"default", "continuation", "generate"}
    shown = "Name the colour.\n\nQuestion: blood?\nAnswer: red\n\nQuestion: grass?\nAnswer:"
    assert prompt_strings(formats["continuation"], item) == ((shown, " red"), (shown, " green"))
    lettered = (
        "Name the colour.\n\nQuestion: blood?\nA. red\nB. blue\nC. pink\nAnswer: A\n\n"
        "Question: grass?\nA. red\nB. green\nAnswer:"
    )
    assert prompt_strings(formats["default"], item) == ((lettered, " A"), (lettered, " B"))
    assert prompt_strings(formats["generate"], item) == ((lettered, ""),)
    default, generate = formats["default"], formats["generate"]
    assert isinstance(default, MultipleChoiceFormat)
    assert isinstance(generate, GenerationFormat)
    assert default.gold(item.doc) == 1
    assert generate.target(item.doc) == "B"
    assert loaded.task.chance(item.doc, "default") == 0.5


def test_letters_as_options_are_not_shown_a_second_time(colours: Path) -> None:
    text = "{{thing}}\nA. {{colours[0]}}\nB. {{colours[1]}}\nAnswer:"
    path = write(colours, COLOURS, doc_to_text=text, doc_to_choice=["A", "B"], num_fewshot=0, description="")
    loaded = load_task(str(path))
    formats = loaded.task.formats
    assert set(formats) == {"default", "generate"}
    shown = " grass \nA. red\nB. green\nAnswer:"
    assert prompt_strings(formats["default"], loaded.items[0]) == ((shown, " A"), (shown, " B"))
    assert prompt_strings(formats["generate"], loaded.items[0]) == ((shown, ""),)


def test_an_open_answer_is_generated_filtered_and_matched(sums: Path) -> None:
    loaded = load_task(str(write(sums, OPEN)))
    fmt = loaded.task.formats["generate"]
    assert isinstance(fmt, GenerationFormat)
    assert set(loaded.task.formats) == {"generate"}
    assert [fmt.context(item.doc) for item in loaded.items] == ["1 + 2 =", "3 + 4 =", "5 + 6 ="]
    assert [fmt.target(item.doc) for item in loaded.items] == ["3", "7", "11"]
    (number,) = fmt.filters
    assert (number.name, fmt.primary_filter) == ("number", "number")
    assert number("1 and then 7.") == "7"
    assert number("none") is None
    assert fmt.matches("7.", "7")
    assert not fmt.matches("8", "7")
    assert (fmt.until, fmt.max_new_tokens) == (("\n",), 5)
    assert loaded.task.chance(loaded.items[0].doc, "generate") == 0.0


def test_examples_from_the_evaluated_rows_leave_the_item_out(sums: Path) -> None:
    loaded = load_task(str(write(sums, OPEN)), shots=2)
    for item in loaded.items:
        assert len(item.fewshot) == 2
        assert item.doc not in item.fewshot


def test_digits_are_an_index_only_where_a_template_renders_them(tmp_path: Path) -> None:
    write_rows(tmp_path, "test", [{"q": "x", "options": ["2", "1", "0"], "key": "2", "place": 2}])
    changes: dict[str, Any] = {
        "dataset_kwargs": {"data_files": {"test": "test.jsonl"}},
        "doc_to_text": "q",
        "doc_to_choice": "options",
        "num_fewshot": 0,
    }
    golds = []
    for target in ("key", "{{place}}", "place", 1):
        fmt = load_task(str(write(tmp_path, COLOURS, doc_to_target=target, **changes))).task.formats["continuation"]
        assert isinstance(fmt, MultipleChoiceFormat)
        golds.append(fmt.gold({"q": "x", "options": ["2", "1", "0"], "key": "2", "place": 2}))
    assert golds == [0, 2, 2, 1]


def test_a_data_folder_comes_before_the_files_own_rows(sums: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "adding").mkdir(parents=True)
    write_rows(tmp_path / "data" / "adding", "test", [{"a": 10, "b": 10}])
    loaded = load_task(str(write(sums, OPEN, folder="adding")), data_dir=tmp_path / "data")
    assert [item.doc for item in loaded.items] == [{"a": 10, "b": 10}]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"doc_to_txt": "x"}, "unknown field 'doc_to_txt': did you mean doc_to_text?"),
        ({"doc_to_text": None}, "field 'doc_to_text' is missing"),
        ({"doc_to_text": "{{ a"}, "doc_to_text: not a template"),
        ({"doc_to_text": 3}, "expected text"),
        ({"output_type": "multiple_choice"}, "needs the field 'doc_to_choice'"),
        ({"output_type": "loglikelihood"}, "unknown output_type"),
        ({"num_fewshot": "two"}, "expected a whole number"),
        ({"kind": "reasonning"}, "did you mean reasoning"),
        ({"closed_book": 3}, "expected the name of a task"),
        ({"protocols": ["genrate"]}, "did you mean generate"),
        ({"protocols": ["default"]}, "not possible here; possible: generate"),
        ({"filter_list": [{"name": "x", "filter": [{"function": "regx"}]}]}, "did you mean regex"),
        ({"filter_list": [{"name": "x", "filter": [{"function": "regex", "regex_pattern": "("}]}]}, "regular expr"),
        ({"filter_list": ["x"]}, "expected the fields name and filter"),
        ({"metric_list": [{"metric": "bleu"}]}, "metric 'bleu' is not supported"),
        ({"fewshot_config": {"sampler": "balanced"}}, "unknown sampler"),
        ({"dataset_kwargs": {"data_files": "test.jsonl"}}, "expected a mapping of split to path"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(changes: dict[str, Any], reason: str, sums: Path) -> None:
    with pytest.raises(UserError, match=reason.replace("?", r"\?")) as caught:
        register_yaml(write(sums, OPEN, **changes))
    assert "\n" not in str(caught.value)
    assert "task.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("task: [", "not a task file"),
        ("- a\n- b\n", "expected a mapping"),
        ("task: x\ndoc_to_text: !function utils.text\n", "use @register_task"),
    ],
)
def test_a_file_that_is_no_task_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=reason):
        register_yaml(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: no such file$"):
        load_task(str(tmp_path / "none.yaml"))
    (tmp_path / "one.yaml").touch()
    with pytest.raises(UserError, match=r"no such file; did you mean .*one\.yaml\?"):
        load_task(str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="cannot be read"):
        register_yaml(tmp_path)


@pytest.mark.parametrize("template", ["{{ missing }}", "{{ a.__class__.__mro__ }}", "{{ a / 0 }}"])
def test_a_template_that_fails_on_a_row_names_field_and_item(template: str, sums: Path) -> None:
    with pytest.raises(UserError, match=r"item 1 of .*test\.jsonl cannot be used .*doc_to_text"):
        load_task(str(write(sums, OPEN, doc_to_text=template)))


@pytest.mark.parametrize("chance", [2, -0.5, float("nan")])
def test_a_chance_that_is_no_probability_is_refused(chance: float, sums: Path) -> None:
    """A negative one would be beaten by a model that is never right, NaN would count as 0."""
    with pytest.raises(UserError, match=rf"the chance of item 1 is {chance:g}, expected a number from 0 to 1"):
        load_task(str(write(sums, OPEN, chance=chance)))


def test_kind_and_closed_book_are_declared(sums: Path) -> None:
    task = get_task(register_yaml(write(sums, OPEN, kind="reasoning", closed_book="sums_alone")))
    assert (task.kind, task.closed_book) == ("reasoning", "sums_alone")


def test_two_files_do_not_share_a_name(sums: Path) -> None:
    (sums / "other").mkdir()
    register_yaml(write(sums, OPEN))
    register_yaml(write(sums, OPEN))
    with pytest.raises(UserError, match="'sums' is taken"):
        register_yaml(write(sums / "other", OPEN))
    assert get_task("sums").name == "sums"
