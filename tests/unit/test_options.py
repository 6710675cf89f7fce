"""Every option is declared once: signatures of functions have the declared names, types and defaults."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, Unpack, get_args, get_type_hints

import pytest
import torch

import lensprune as lp
from lensprune.attribution.report import attribution_report
from lensprune.divergence.report import fidelity_report
from lensprune.divergence.study import validate_fidelity
from lensprune.heads.agreement import importance_agreement
from lensprune.heads.compensation import estimated_compensation, pairwise_compensation
from lensprune.heads.removal import removal_curves
from lensprune.heads.report import heads_report
from lensprune.models.model_config import load_model_config
from lensprune.primitives.battery import primitives, task_texts
from lensprune.primitives.report import primitives_report
from lensprune.protocols.arguments import PromptArguments
from lensprune.protocols.prompting import PromptOptions
from lensprune.sweeps.options import (
    AnswerArguments,
    Execution,
    Generation,
    Items,
    ItemSampling,
    JobArguments,
    Prompts,
    Reference,
    Rows,
    StudyArguments,
    SweepArguments,
    SweepOptions,
    TokenSampling,
)
from tests.helpers.options import DECLARED, FUNCTIONS

# Functions whose measure is defined on fewer items than a sweep has by default, or that load a model without a sweep.
OWN_DEFAULTS: dict[tuple[Callable[..., Any], str], Any] = {
    (validate_fidelity, "limit"): 24,
    (fidelity_report, "limit"): 24,
    (heads_report, "limit"): 20,
    (lp.head_scores, "limit"): 20,
    (attribution_report, "limit"): 10,
    (lp.counterfactual_pairs, "limit"): 20,
    (primitives, "limit"): 24,
    (primitives, "shots"): 4,
    (primitives_report, "limit"): 24,
    (primitives_report, "shots"): 4,
    (task_texts, "limit"): 24,
    (lp.load_model, "dtype"): "float32",
    (lp.load_model, "bos"): "tokenizer",
    (load_model_config, "dtype"): torch.float32,
    (load_model_config, "device"): "cpu",
    (load_model_config, "bos"): "tokenizer",
    (lp.resume, "executor"): None,
}


@pytest.mark.parametrize("function", FUNCTIONS, ids=[f.__name__ for f in FUNCTIONS])
def test_signatures_have_the_declared_options(function: Callable[..., Any]) -> None:
    hints, declared_hints = get_type_hints(function), get_type_hints(SweepOptions)
    for name, parameter in _options_in(function).items():
        expected = OWN_DEFAULTS.get((function, name), DECLARED[name].default)
        assert parameter.default == expected, name
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, name
        if (function, name) not in OWN_DEFAULTS:
            # Some take fewer types, such as a path alone, or more, such as a torch.device.
            kinds, allowed = (set(get_args(hint) or (hint,)) for hint in (hints[name], declared_hints[name]))
            assert kinds <= allowed or kinds >= allowed, name


def _options_in(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {n: p for n, p in parameters.items() if n in DECLARED and p.default is not p.empty}


@cache
def _public_functions() -> set[Callable[..., Any]]:
    """The functions in any module's ``__all__``."""
    functions = set()
    for module in pkgutil.walk_packages(lp.__path__, "lensprune."):
        if not module.name.endswith("__main__"):
            home = importlib.import_module(module.name)
            named = [getattr(home, name) for name in getattr(home, "__all__", ())]
            functions |= {f for f in named if inspect.isfunction(f)}
    return functions


def test_no_function_with_options_is_left_out() -> None:
    found = {function for function in _public_functions() if len(_options_in(function)) > 2}
    assert found == set(FUNCTIONS)
    assert {function for function, _ in OWN_DEFAULTS} <= found


def _takes_anything(function: Callable[..., Any]) -> bool:
    """Whether a function has ``**arguments`` of no type."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.kind is p.VAR_KEYWORD and p.annotation in (Any, "Any", p.empty) for p in parameters)


def test_no_public_function_takes_arguments_of_any_name() -> None:
    assert not [f"{f.__module__}.{f.__name__}" for f in _public_functions() if _takes_anything(f)]

    def planted(limit: int, **options: Any) -> None: ...

    assert _takes_anything(planted)


def test_the_arguments_of_a_prompt_are_its_fields() -> None:
    assert get_type_hints(PromptArguments) == get_type_hints(PromptOptions)


@pytest.mark.parametrize("arguments", [JobArguments, SweepArguments])
def test_arguments_that_are_handed_on_are_a_sweeps_own(arguments: type) -> None:
    hints, of_sweep, declared = get_type_hints(arguments), get_type_hints(lp.sweep), get_type_hints(SweepOptions)
    assert {name: of_sweep[name] for name in hints} == hints
    groups = (Items, ItemSampling, Rows, Prompts, Generation, TokenSampling, Reference, Execution)
    handed_on = {field.name for group in groups for field in fields(group)} - {"seed"}
    assert handed_on == {name for name in hints if name in declared and name != "command"}
    assert inspect.signature(lp.sweep).parameters.keys() >= hints.keys()


@pytest.mark.parametrize(
    ("arguments", "functions"), [(AnswerArguments, (lp.fidelity, validate_fidelity)), (StudyArguments, (lp.sweep,))]
)
def test_arguments_that_are_handed_on_are_taken(arguments: type, functions: tuple[Callable[..., Any], ...]) -> None:
    for function in functions:
        hints = get_type_hints(function)
        assert {name: hints[name] for name in get_type_hints(arguments)} == get_type_hints(arguments)


def test_functions_that_hand_arguments_on_say_which() -> None:
    for function in (importance_agreement, pairwise_compensation, removal_curves):
        assert get_type_hints(function)["options"] == Unpack[SweepArguments]
    assert get_type_hints(estimated_compensation)["options"] == Unpack[JobArguments]


def test_a_sweep_and_its_plan_take_every_option() -> None:
    for function in (lp.sweep, lp.plan):
        assert set(DECLARED) <= set(inspect.signature(function).parameters)
    assert all(own.default is not MISSING for own in DECLARED.values())
