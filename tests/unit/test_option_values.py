"""Values of options are checked where the options are declared, and picked by group."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lensprune.errors import UserError
from lensprune.sweeps.options import (
    Group,
    SweepOptions,
    Workers,
    add_options,
    option_values,
)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("limit", 0, "limit 0 is not a usable number of items"),
        ("items", "frist", "did you mean first"),
        ("shots", -1, "shots -1 is not a usable number of examples"),
        ("bos", "alway", "did you mean always"),
        ("mean_mode", "poled", "did you mean pooled"),
        ("batch_tokens", 0, "batch tokens 0 can't hold a token"),
        ("memory", "much", "cannot read an amount of memory"),
        ("data_dir", "nowhere", "data folder nowhere does not exist"),
        ("screen", 2.0, "screen 2 is not a share"),
        ("screen_rule", "relb", "unknown screen rule 'relb': did you mean relp"),
        ("screen_rule", "relp", "screen rule relp is given, but nothing is screened"),
        ("template_date", "26 Jul 2024", "template date '26 Jul 2024' is not a date: expected one like 2024-07-26"),
        ("template_date", "20240726", "is not a date"),
        ("template_date", 2024, "template_date 2024 is of type int: expected text"),
        ("template_date", "2024-07-26", "no prompt is in the chat format"),
        ("thinking", "on", "thinking on is given, but no prompt is in the chat format"),
        ("thinking", "of", "did you mean off"),
        ("thinking_prefix", "own", "unknown thinking prefix 'own'"),
        ("thinking_prefix", "clean", "needs a thinking budget"),
        ("thinking_budget", 0, "thinking budget 0 is not a usable number of tokens"),
        ("think_tokens", ("<think>",), "expected a start and an end"),
        ("think_tokens", "<think>", "expected a start and an end"),
        ("template_args", {"effort": "low"}, "a template argument is given, but no prompt is in the chat format"),
        ("template_args", {"enable_thinking": True}, "choose thinking on, off or auto"),
        ("template_args", {"tools": ["a"]}, "template argument tools is \\['a'\\]: expected text, a number"),
        ("template_args", ["effort"], "are not a mapping of names"),
        ("fewshot_as_multiturn", True, "fewshot_as_multiturn is given, but no prompt is in the chat format"),
        ("system", 3, "system 3 is of type int: expected text"),
        ("max_new_tokens", 0, "max new tokens 0 is not a usable number of tokens"),
        ("until", ["x", ""], "is not a list of stop strings"),
        ("until", "", "is not a list of stop strings"),
        ("generation_config", "non", "did you mean none"),
        ("temperature", -0.1, "temperature -0.1 is not possible: expected 0, which decodes greedily, or a number"),
        ("temperature", float("nan"), "temperature nan is not possible"),
        ("top_p", 0.0, "top-p 0 is not possible: expected a number from above 0 to 1"),
        ("top_k", -1, "top-k -1 is not a usable number of tokens"),
        ("samples", 0, "samples 0 is not a usable number of samples"),
        ("limit", "8", "limit '8' is of type str: expected a whole number"),
        ("limit", 8.0, "limit 8.0 is of type float: expected a whole number"),
        ("limit", True, "limit True is of type bool: expected a whole number"),
        ("seed", None, "seed None is of type NoneType: expected a whole number"),
        ("items", [1, 2], r"items \[1, 2\] is of type list: expected text"),
        ("temperature", "hot", "temperature 'hot' is of type str: expected a number"),
        ("chat_template", "yes", "chat_template 'yes' is of type str: expected True or False"),
        ("data_dir", 3, "data_dir 3 is of type int: expected text or a path"),
    ],
)
def test_a_value_is_refused_where_it_is_declared(option: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SweepOptions.given("facts", "generate", "heads", **{option: value})


def test_numbers_of_other_libraries_are_taken_as_pythons_own() -> None:
    given = SweepOptions.given("facts", "generate", "heads", limit=np.int64(8), temperature=np.float32(0.5), top_p=1)
    assert [type(value) for value in (given.limit, given.temperature, given.top_p)] == [int, float, float]
    assert (given.limit, given.temperature, given.top_p) == (8, 0.5, 1.0)


@pytest.mark.parametrize("given", [lambda capitals: [capitals], lambda capitals: capitals])
def test_a_task_that_is_no_name_is_refused_with_its_name(given: Callable[[Any], Any]) -> None:
    def capitals() -> None: ...

    with pytest.raises(UserError, match=r"task <function .*>: expected a name, such as 'capitals'"):
        SweepOptions.given(given(capitals), "generate", "layers")
    with pytest.raises(UserError, match=r"protocol 3: expected a name$"):
        SweepOptions.given("capitals", 3, "layers")  # type: ignore[arg-type]
    assert SweepOptions.given("facts", ["generate"], "layers").tasks == ("facts",)


def test_values_are_picked_by_their_group() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Workers)
    given = parser.parse_args(["--workers", "3"])
    assert option_values(given, Workers) == {"workers": 3, "ray_address": None}
    assert option_values({"workers": 2, "other": 1}, Workers) == {"workers": 2}
    assert option_values(given, Group) == {}
