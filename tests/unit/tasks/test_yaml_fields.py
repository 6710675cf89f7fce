"""Every field of lm-eval's task files is honoured or refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lensprune.errors import UserError
from lensprune.tasks import GenerationFormat, MultipleChoiceFormat, load_task, prompt_strings, yaml_fields
from lensprune.tasks.filters import RegexFilter, answers_of
from lensprune.tasks.generation_settings import greedy_settings
from lensprune.tasks.yaml_scoring import CHOICE_METRICS, STEP_KEYS

ROWS = [
    {"q": f"{i}+{i}", "a": str(2 * i), "all": [str(2 * i), f" {2 * i}"], "steps": f"twice {i}"} for i in range(1, 7)
]
OPEN: dict[str, Any] = {
    "task": "doubles",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test",
    "doc_to_text": "Q: {{q}}\nA:",
    "doc_to_target": "a",
}
OPTIONS: dict[str, Any] = {"doc_to_choice": ["no", "yes"], "doc_to_target": "right"}


@pytest.fixture(autouse=True)
def _own_registry(own_registry: dict[str, Any]) -> None:
    """What a test registers is forgotten after it."""


def write(folder: Path, rows: list[dict[str, Any]] = ROWS, **changes: Any) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump({**OPEN, **changes}))
    return str(path)


def generation(path: str) -> GenerationFormat:
    fmt = load_task(path).task.formats["generate"]
    assert isinstance(fmt, GenerationFormat)
    return fmt


def test_the_list_of_fields_is_lm_evals() -> None:
    """Fails when lm-eval has a field, a filter or a metric that nobody has decided about."""
    for module in ("lm_eval.filters", "lm_eval.api.metrics"):
        pytest.importorskip(module)
    from lm_eval.api.registry import filter_registry, metric_registry
    from lm_eval.config.task import FewshotConfig, TaskConfig

    ours = {*yaml_fields.USED, *yaml_fields.WITHOUT_EFFECT, *yaml_fields.REFUSED}
    theirs = {field.name for field in dataclasses.fields(TaskConfig)}
    not_of_a_task = {"aggregate_metric_list", "class", "group", "group_alias", "include", "task_list"}
    assert ours == theirs | not_of_a_task
    groups = [set(yaml_fields.USED), set(yaml_fields.WITHOUT_EFFECT), set(yaml_fields.REFUSED), set(yaml_fields.OWN)]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert {field.name for field in dataclasses.fields(FewshotConfig)} == {
        *yaml_fields.FEWSHOT_USED,
        *yaml_fields.FEWSHOT_REFUSED,
    }
    # lm-eval has this filter's file and does not import it.
    filters = {*filter_registry.keys(), "decontaminate"}
    assert filters == {*STEP_KEYS, *yaml_fields.FILTERS_REFUSED}
    assert set(metric_registry.keys()) >= {*CHOICE_METRICS, "exact_match"}
    assert set(metric_registry.keys()) - {*CHOICE_METRICS, "exact_match"} == set(yaml_fields.METRICS_REFUSED)


@pytest.mark.parametrize("field", sorted(yaml_fields.REFUSED))
def test_a_refused_field_is_named_with_its_reason(field: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_task(write(tmp_path, **{field: "x"}))
    assert f"{field!r} is not supported: {yaml_fields.REFUSED[field]}" in str(caught.value)
    assert load_task(write(tmp_path, **{field: None})).items


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": ["one", "two"]}, "lists several"),
        ({"fewshot_config": {"fewshot_indices": [1]}}, "'fewshot_indices' is not supported"),
        ({"fewshot_config": {"gen_prefix": "x"}}, "'gen_prefix' is not supported"),
        ({"fewshot_config": {"sample": []}}, "did you mean samples"),
        ({"fewshot_config": {"samples": "x"}}, "expected a list of rows"),
        ({"fewshot_config": {"doc_to_choice": ["x", "y"]}}, "options exactly where the question has them"),
        ({"dataset_kwargs": {"revision": "main"}}, "unknown setting 'revision'"),
        ({"dataset_kwargs": {"trust_remote_code": True}}, "code from the hub is never run"),
        ({"dataset_path": "csv"}, "expected json"),
        ({"dataset_kwargs": {"data_files": {"test": 3}}}, "expected a path or a list of paths"),
        ({"generation_kwargs": {"do_sample": "yes"}}, "'do_sample' is 'yes'"),
        ({"generation_kwargs": {"temperature": "hot"}}, "'temperature' is 'hot'"),
        ({"generation_kwargs": {"temperature": float("nan")}}, "'temperature' is nan"),
        ({"generation_kwargs": {"temperature": -1}}, "'temperature' is -1"),
        ({"generation_kwargs": {"do_sample": True, "temperature": 0}}, "'temperature' is 0, with which nothing"),
        ({"generation_kwargs": {"do_sample": True, "top_p": 1.5}}, "'top_p' is 1.5, with which nothing"),
        ({"generation_kwargs": {"temperature": 0.7, "top_k": True}}, "'top_k' is True, with which nothing"),
        ({"generation_kwargs": {"temperature": 0.7, "min_p": 0.1}}, "'min_p' is not supported"),
        ({"generation_kwargs": {"temperature": 0.7}, "repeats": 0}, "'repeats' is 0"),
        ({"generation_kwargs": {"num_beams": 4}}, "'num_beams' is 4"),
        ({"generation_kwargs": {"repetition_penalty": 1.3}}, "'repetition_penalty' is 1.3"),
        ({"generation_kwargs": {"max_gen_tok": 4}}, "did you mean max_gen_toks"),
        ({"generation_kwargs": {"max_gen_toks": 0}}, "expected a whole number of 1 or more"),
        ({"generation_kwargs": {"max_gen_toks": 4, "max_tokens": 5}}, "different lengths"),
        ({"generation_kwargs": {"until": [1]}}, "'until' is"),
        ({"generation_kwargs": {"until": ""}}, "empty text"),
        ({"fewshot_delimiter": ""}, "empty text"),
        ({"metric_list": [{"metric": "exact_match", "aggregation": "median"}]}, "aggregation is 'median'"),
        ({"metric_list": [{"metric": "exact_match", "higher_is_better": False}]}, "higher_is_better is False"),
        ({"metric_list": [{"metric": "exact_match", "hf_evaluate": True}]}, "hf_evaluate is True"),
        ({"metric_list": [{"metric": "exact_match", "ignore_cas": True}]}, "did you mean ignore_case"),
        ({"metric_list": [{"metric": "exact_match", "ignore_case": "no"}]}, "expected true or false"),
        ({"metric_list": [{"metric": "exact_match", "regexes_to_ignore": ["("]}]}, "not a regular expression"),
        ({"metric_list": [{"metric": "exact_match", "regexes_to_ignore": ","}]}, "expected a list"),
        ({"metric_list": [{"metric": "exact_match"}] * 2}, "listed twice"),
        ({"metric_list": [{"metric": "acc"}]}, "expected a metric: exact_match"),
        ({"metric_list": [{"metric": "f1"}]}, "metric 'f1' is not supported"),
        ({"filter_list": [{"name": "x", "filter": [{"function": "custom"}]}]}, "filter 'custom' is not supported"),
        ({"filter_list": [{"name": "x", "filter": [{"function": "regex", "pattern": "x"}]}]}, "did you mean regex_pat"),
        ({"filter_list": [{"name": "x", "filter": [{"function": "regex", "group_select": "last"}]}]}, "whole number"),
        ({"filter_list": [{"name": "x", "filter": []}] * 2}, "given twice"),
        ({**OPTIONS, "generation_kwargs": {"until": "x"}}, "generation_kwargs have no effect"),
        (
            {**OPTIONS, "filter_list": [{"name": "f", "filter": [{"function": "lowercase"}]}]},
            "filter 'f' has no effect",
        ),
        ({**OPTIONS, "metric_list": [{"metric": "exact_match"}]}, "not measured with output_type multiple_choice"),
    ],
)
def test_what_is_not_honoured_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        load_task(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_any_of_several_answers_is_right(tmp_path: Path) -> None:
    for target in ("all", "{{all}}"):
        loaded = load_task(write(tmp_path, doc_to_target=target, num_fewshot=1, fewshot_config={"sampler": "first_n"}))
        fmt = loaded.task.formats["generate"]
        assert isinstance(fmt, GenerationFormat)
        item = loaded.items[2]
        reference = fmt.target(item.doc)
        assert answers_of(reference) == ("6", " 6")
        assert [fmt.matches(text, reference) for text in ("6", " 6", "['6', ' 6']", "4")] == [True, True, False, False]
        assert prompt_strings(fmt, item)[0][0] == "Q: 1+1\nA: 2\n\nQ: 3+3\nA:"
        assert fmt.display_gold(item.doc) == "6 |  6"
    fixed = generation(write(tmp_path, doc_to_target=["yes", "Yes"]))
    assert answers_of(fixed.target(ROWS[0])) == ("yes", "Yes")
    with pytest.raises(UserError, match="list of right answers is empty"):
        load_task(write(tmp_path, [{"q": "x", "a": []}]))
    with pytest.raises(UserError, match="only one of several options can be right"):
        load_task(write(tmp_path, [{"q": "x", "right": [0, 1]}], **OPTIONS))


def test_examples_are_written_as_fewshot_config_says(tmp_path: Path) -> None:
    shots = {
        "sampler": "first_n",
        "doc_to_text": "Example: {{q}}",
        "doc_to_target": "steps",
        "target_delimiter": " => ",
        "fewshot_delimiter": " ## ",
    }
    loaded = load_task(write(tmp_path, num_fewshot=2, fewshot_config=shots))
    (prompt,) = prompt_strings(loaded.task.formats["generate"], loaded.items[3])
    assert prompt[0] == "Example: 1+1 => twice 1 ## Example: 2+2 => twice 2 ## Q: 4+4\nA:"


def test_options_of_the_examples_may_differ(tmp_path: Path) -> None:
    rows = [{"q": f"q{i}", "right": i % 2} for i in range(3)]
    shots = {"sampler": "first_n", "doc_to_choice": ["wrong", "correct"]}
    loaded = load_task(write(tmp_path, rows, **OPTIONS, num_fewshot=2, fewshot_config=shots))
    own = prompt_strings(loaded.task.formats["continuation"], loaded.items[2])
    assert own[0][0] == "Q: q0\nA: wrong\n\nQ: q1\nA: correct\n\nQ: q2\nA:"
    assert [continuation for _, continuation in own] == [" no", " yes"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (("\n\n",), 256)),
        ({"until": None}, ((), 256)),
        ({"until": []}, ((), 256)),
        ({"until": "x", "max_new_tokens": 5}, (("x",), 5)),
        ({"max_tokens": 7, "max_gen_toks": 7}, (("\n\n",), 7)),
        ({"do_sample": False, "temperature": 0.8, "top_p": 0.9, "num_beams": 1}, (("\n\n",), 256)),
        ({"temperature": 0.0, "repetition_penalty": 1.0}, (("\n\n",), 256)),
    ],
)
def test_settings_that_leave_greedy_decoding_as_it_is(given: dict[str, Any], expected: tuple[Any, int]) -> None:
    assert greedy_settings(given, ["\n\n"], "here") == expected


def test_a_task_may_ask_for_sampling(tmp_path: Path) -> None:
    kwargs = {"temperature": 0.7, "top_p": 0.9, "max_gen_toks": 5}
    for settings, expected in (
        ({**kwargs, "do_sample": True}, (0.7, 0.9, None, 3)),
        (kwargs, (0.7, 0.9, None, 3)),
        ({"do_sample": True, "top_k": 4}, (1.0, None, 4, 3)),
        ({**kwargs, "do_sample": False}, (0.0, None, None, 1)),
    ):
        form = generation(write(tmp_path, generation_kwargs=settings, repeats=3))
        assert (form.temperature, form.top_p, form.top_k, form.samples) == expected


def test_a_boolean_is_an_index_with_options_and_a_word_without(tmp_path: Path) -> None:
    rows = [{"q": "x", "right": True}, {"q": "y", "right": False}]
    fmt = load_task(write(tmp_path, rows, **OPTIONS)).task.formats["continuation"]
    assert isinstance(fmt, MultipleChoiceFormat)
    assert [fmt.gold(row) for row in rows] == [1, 0]
    assert [generation(write(tmp_path, rows, doc_to_target="right")).target(row) for row in rows] == ["True", "False"]


def test_a_mapping_of_options_gives_its_values(tmp_path: Path) -> None:
    rows = [{"q": "x", "right": 1}]
    fmt = load_task(write(tmp_path, rows, **{**OPTIONS, "doc_to_choice": {"a": "no", "b": "yes"}})).task.formats
    assert fmt["continuation"].choices(rows[0]) == ["no", "yes"]  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["{{right}}", "right"])
def test_options_that_are_questions_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="options as questions are not supported"):
        load_task(write(tmp_path, [{"q": "x", "right": 1}], **OPTIONS, doc_to_text=text))


def test_a_match_that_is_not_there_is_no_answer(tmp_path: Path) -> None:
    assert RegexFilter("r", r"(\d)", 2)("1 and 2") is None
    assert RegexFilter("r", r"(\d)", 2)("1, 2, 3") == "3"
    assert RegexFilter("r", r"(\d)", -3)("1 and 2") is None
    assert RegexFilter("r", r"(\d)", 5, fallback="0")("1 and 2") == "0"
    steps = [
        {"function": "regex", "regex_pattern": r"(\w+)", "fallback": "NONE"},
        {"function": "lowercase"},
        {"function": "map", "mapping_dict": {"none": "0", "two": 2}},
        {"function": "majority_vote"},
        {"function": "uppercase"},
    ]
    (chain,) = generation(write(tmp_path, filter_list=[{"name": "x", "filter": steps}], doc_to_target="Two")).filters
    assert [chain(text) for text in ("Two of them", "!", "three")] == ["2", "0", None]


def test_included_files_lie_below_the_files_own_fields(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "base.yaml").write_text(yaml.safe_dump({**OPEN, "include": "deep.yaml", "task": "base"}))
    (tmp_path / "below" / "deep.yaml").write_text("description: 'Double it. '\ntask: deep\n")
    write(tmp_path)
    path = tmp_path / "top.yaml"
    path.write_text("include: below/base.yaml\ntask: top\n")
    loaded = load_task(str(path))
    assert loaded.task.name == "top"
    assert prompt_strings(loaded.task.formats["generate"], loaded.items[0])[0][0] == "Double it. Q: 1+1\nA:"
    path.write_text("include: [top.yaml]\ntask: top\n")
    with pytest.raises(UserError, match="includes itself"):
        load_task(str(path))
    path.write_text("include: nowhere.yaml\ntask: top\n")
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        load_task(str(path))
