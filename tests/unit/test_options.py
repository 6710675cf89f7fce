"""Every option is declared once: signatures and commands have the declared names, defaults and texts."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

import pytest

import lensprune as lp
from lensprune.attribution.report import attribution_report
from lensprune.cli import _parser
from lensprune.divergence.study import validate_fidelity
from lensprune.errors import UserError
from lensprune.heads.report import heads_report
from lensprune.primitives.report import primitives_report
from lensprune.studies.paper import paper
from lensprune.sweeps.options import Group, SweepOptions, Workers, add_options, help_of, option_values

DECLARED = {own.name: own for own in fields(SweepOptions) if "help" in own.metadata}
# Functions whose measure is defined on fewer items than a sweep has by default.
OWN_DEFAULTS = {
    (validate_fidelity, "limit"): 24,
    (heads_report, "limit"): 20,
    (attribution_report, "limit"): 10,
    (primitives_report, "limit"): 24,
    (primitives_report, "shots"): 4,
}
FUNCTIONS: list[Callable[..., Any]] = [
    lp.sweep,
    lp.plan,
    lp.measure_replacement,
    lp.fidelity,
    validate_fidelity,
    heads_report,
    attribution_report,
    primitives_report,
    paper,
]
LIKE_A_SWEEP = {
    "sweep": set(DECLARED),
    "plan": set(DECLARED),
    "delta": set(DECLARED) - {"reference", "mean_mode", "screen", "workers", "ray_address"},
    "fidelity": set(DECLARED) - {"reference", "mean_mode", "screen", "workers", "ray_address"},
    "heads": {"limit", "shots", "seed", "dtype", "device", "bos"},
    "attribute": {"limit", "shots", "seed", "dtype", "device", "bos"},
    "primitives": {"limit", "shots", "seed", "dtype", "device", "bos"},
    "paper": {"seed", "data_dir", "dtype", "device", "bos"},
    "resume": {"workers", "ray_address"},
    "power": {"data_dir"},
}


def commands() -> dict[str, argparse.ArgumentParser]:
    [actions] = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(actions.choices)


@pytest.mark.parametrize("function", FUNCTIONS, ids=[f.__name__ for f in FUNCTIONS])
def test_signatures_have_the_declared_options(function: Callable[..., Any]) -> None:
    shared = {n: p for n, p in inspect.signature(function).parameters.items() if n in DECLARED}
    assert len(shared) >= 5
    hints, declared_hints = get_type_hints(function), get_type_hints(SweepOptions)
    for name, parameter in shared.items():
        expected = OWN_DEFAULTS.get((function, name), DECLARED[name].default)
        assert parameter.default == expected, name
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, name
        if (function, name) not in OWN_DEFAULTS:
            assert hints[name] == declared_hints[name], name


def test_a_sweep_and_its_plan_take_every_option() -> None:
    for function in (lp.sweep, lp.plan):
        assert set(DECLARED) <= set(inspect.signature(function).parameters)
    assert all(own.default is not MISSING for own in DECLARED.values())


@pytest.mark.parametrize("name", LIKE_A_SWEEP)
def test_commands_have_the_declared_options(name: str) -> None:
    actions = {action.dest: action for action in commands()[name]._actions}
    assert {dest for dest in actions if dest in DECLARED} == LIKE_A_SWEEP[name] | ({"executor"} & set(actions))
    for dest in LIKE_A_SWEEP[name]:
        action, declared = actions[dest], DECLARED[dest]
        assert action.metavar == declared.metadata["metavar"]
        assert action.help is not None
        assert action.help.startswith(help_of(declared).partition(" (default")[0])


def test_every_command_is_compared() -> None:
    others = {"models", "tasks", "report", "demo"}
    assert set(commands()) == set(LIKE_A_SWEEP) | others
    for name in others:
        assert not {action.dest for action in commands()[name]._actions} & set(DECLARED)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("limit", 0, "limit 0 is not a usable number of items"),
        ("shots", -1, "shots -1 is not a usable number of examples"),
        ("bos", "alway", "did you mean always"),
        ("mean_mode", "poled", "did you mean pooled"),
        ("batch_tokens", 0, "batch tokens 0 can't hold a token"),
        ("memory", "much", "cannot read an amount of memory"),
        ("data_dir", "nowhere", "data folder nowhere does not exist"),
        ("screen", 2.0, "screen 2 is not a share"),
    ],
)
def test_a_value_is_refused_where_it_is_declared(option: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SweepOptions.given("facts", "generate", "heads", **{option: value})


def test_values_are_picked_by_their_group() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Workers)
    given = parser.parse_args(["--workers", "3"])
    assert option_values(given, Workers) == {"workers": 3, "ray_address": None}
    assert option_values({"workers": 2, "other": 1}, Workers) == {"workers": 2}
    assert option_values(given, Group) == {}
