"""Commands have the declared options and texts, and hand every value on to their function or the spec."""

from __future__ import annotations

import argparse
import importlib
import inspect
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import lensprune as lp
from lensprune.adapters.lm_eval_sweep import sweep_lm_eval
from lensprune.cli import _parser, main
from lensprune.errors import UserError
from lensprune.runs.spec import SweepSpec
from lensprune.runs.variant_json import variant_to_json
from lensprune.sweeps.conditions import Condition
from lensprune.sweeps.distributed import _spec
from lensprune.sweeps.job_spec import sweep_spec
from lensprune.sweeps.options import (
    Generation,
    SweepOptions,
    TokenSampling,
    Wording,
    flag_of,
    help_of,
)
from lensprune.sweeps.run import _options_of
from lensprune.sweeps.selection import VariantSelection
from lensprune.tasks import load_task
from tests.helpers.made_runs import layers_run
from tests.helpers.options import DECLARED
from tests.helpers.tiny_models import tiny

ROOT = Path(__file__).parents[2]

SAMPLED = {option.name for option in fields(TokenSampling)}
WRITTEN = {option.name for group in (Wording, Generation) for option in fields(group)}
SWEEP_ALONE = {
    *("thinking_prefix", "reference", "mean_mode", "screen", "screen_rule", "lost_more_than", "looks", "q"),
    *("until_width", "workers", "ray_address"),
}
LIKE_A_SWEEP = {
    "sweep": set(DECLARED),
    "plan": set(DECLARED),
    "delta": set(DECLARED) - SWEEP_ALONE,
    "fidelity": set(DECLARED) - SWEEP_ALONE - SAMPLED,
    "noise": set(DECLARED) - SWEEP_ALONE,
    "removal": set(DECLARED) - SWEEP_ALONE | {"reference", "mean_mode"},
    "heads": {"limit", "shots", "seed", "dtype", "device", "bos"},
    "attribute": {"limit", "shots", "seed", "dtype", "device", "bos"},
    "primitives": {"limit", "shots", "seed", "dtype", "device", "bos"},
    "paper": {"seed", "data_dir", "dtype", "device", "bos", *WRITTEN, *SAMPLED},
    "resume": {"workers", "ray_address"},
    "power": {"data_dir"},
}


def commands() -> dict[str, argparse.ArgumentParser]:
    [actions] = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(actions.choices)


@pytest.mark.parametrize("name", LIKE_A_SWEEP)
def test_commands_have_the_declared_options(name: str) -> None:
    # What has no default of its own is another way to write an option.
    own = [action for action in commands()[name]._actions if action.default is not argparse.SUPPRESS]
    actions = {action.dest: action for action in own}
    assert {dest for dest in actions if dest in DECLARED} == LIKE_A_SWEEP[name] | ({"executor"} & set(actions))
    for dest in LIKE_A_SWEEP[name]:
        action, declared = actions[dest], DECLARED[dest]
        assert action.metavar == declared.metadata["metavar"]
        assert action.help is not None
        assert (action.help % vars(action)).startswith(help_of(declared).partition(" (default")[0])


def test_every_command_is_compared() -> None:
    others = {"models", "tasks", "report", "analyse", "demo", "runs", "completion"}
    assert set(commands()) == set(LIKE_A_SWEEP) | others
    for name in others:
        assert not {action.dest for action in commands()[name]._actions} & set(DECLARED)


SOME_VALUES: dict[str, Any] = {
    "limit": 3,
    "items": "first",
    "shots": 2,
    "seed": 7,
    "data_dir": ROOT,
    "leave_out_repeated": True,
    "chat_template": True,
    "template_date": "2031-01-02",
    "template_args": {"effort": "low", "turns": 3, "tools": True, "note": None},
    "fewshot_as_multiturn": True,
    "system": "Be brief.",
    "keep_eos": True,
    "thinking": "on",
    "think_tokens": ("<a>", "</a>"),
    "thinking_budget": 77,
    "thinking_prefix": "clean",
    "primary_metric": "equal,boxed",
    "max_new_tokens": 9,
    "until": ("x",),
    "until_only": True,
    "generation_config": "none",
    "temperature": 0.5,
    "top_p": 0.6,
    "top_k": 7,
    "samples": 3,
    "reference": str(ROOT / "LICENSE"),
    "mean_mode": "per_position",
    "dtype": "bfloat16",
    "device": "cuda:3",
    "n_devices": 2,
    "bos": "never",
    "executor": "hooked",
    "batch_tokens": 99,
    "memory": "3GB",
    "screen": 0.2,
    "screen_rule": "relp",
    "lost_more_than": 0.1,
    "looks": "2,3",
    "q": 0.1,
    "until_width": 0.2,
    "workers": 5,
    "ray_address": "auto",
}
"""A value for each option that is not its default."""
WITH: dict[str, list[str]] = {
    "reference": ["--ablation", "mean", "--over", "heads"],
    "mean_mode": ["--ablation", "mean", "--over", "heads"],
    "template_date": ["--chat-template"],
    "template_args": ["--chat-template"],
    "fewshot_as_multiturn": ["--chat-template"],
    "thinking": ["--chat-template"],
    "thinking_prefix": ["--thinking-budget", "9"],
    "screen": ["--over", "heads"],
    "screen_rule": ["--over", "heads", "--screen", "0.1"],
    "lost_more_than": ["--limit", "9"],
    "looks": ["--lost-more-than", "0.1"],
    "q": ["--lost-more-than", "0.1", "--limit", "9"],
    "until_width": ["--limit", "9"],
    "workers": ["--executor", "ray"],
    "ray_address": ["--executor", "ray"],
}
"""What else has to be given where a sweep takes the option."""
WITH_OF = {("removal", name): ["--ablation", "mean"] for name in ("reference", "mean_mode")}
MODEL, TASK = ["--model", "smollm2-135m"], ["--task", "facts"]
CALLED: dict[str, tuple[str, list[str]]] = {
    "sweep": ("lensprune.sweeps.run.sweep", [*MODEL, *TASK]),
    "plan": ("lensprune.planning.plan", [*MODEL, *TASK]),
    "delta": (
        "lensprune.replacement.measure_replacement",
        ["--base", "toy-base", "--distilled", "toy-distilled", *TASK],
    ),
    "fidelity": ("lensprune.divergence.report.fidelity_report", [*MODEL, *TASK]),
    "noise": ("lensprune.sweeps.noise.noise", [*MODEL, *TASK]),
    "removal": ("lensprune.heads.removal.removal_curves", [*MODEL, *TASK]),
    "heads": ("lensprune.heads.report.heads_report", MODEL),
    "attribute": ("lensprune.attribution.report.attribution_report", [*MODEL, "--method", "dla"]),
    "primitives": ("lensprune.primitives.report.primitives_report", MODEL),
    "paper": ("lensprune.studies.paper.paper", MODEL),
    "resume": ("lensprune.sweeps.run.resume", []),
    "power": ("lensprune.results.power.power_report", ["--parts", "3"]),
}


def given_as(option: str) -> list[str]:
    """The value of `SOME_VALUES` on the command line."""
    flag, value = flag_of(DECLARED[option]), SOME_VALUES[option]
    if isinstance(value, dict):
        words = {None: "null", True: "true"}
        return [word for key, one in value.items() for word in (flag, f"{key}={words.get(one, one)}")]
    if DECLARED[option].metadata["repeated"]:
        return [word for one in value for word in (flag, one)]
    return [flag] if value is True else [flag, *(value if isinstance(value, tuple) else [str(value)])]


def test_there_is_a_value_for_every_option() -> None:
    assert set(SOME_VALUES) == set(DECLARED)
    assert all(value != DECLARED[name].default for name, value in SOME_VALUES.items())
    assert set(CALLED) == set(LIKE_A_SWEEP)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (c, o)
        for c, options in LIKE_A_SWEEP.items()
        for o in sorted(options | ({"executor"} if c == "resume" else set()))
    ],
)
def test_what_a_command_is_given_reaches_its_function(
    command: str, option: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place, arguments = CALLED[command]
    module, _, name = place.rpartition(".")
    called = inspect.signature(getattr(importlib.import_module(module), name))
    seen: dict[str, Any] = {}

    def record(*args: Any, **values: Any) -> None:
        called.bind(*args, **values)
        seen.update(values)
        raise UserError("recorded")

    monkeypatch.setattr(place, record)
    if command == "resume":
        layers_run(tmp_path / "run", n=2, tasks=("facts",), n_layers=2)
        arguments = [str(tmp_path / "run")]
    else:
        arguments = [*arguments, *WITH_OF.get((command, option), WITH.get(option, []))]
    if command == "removal":
        ranking = tmp_path / "ranking.csv"
        ranking.write_text("layer,head,value\n0,0,1\n", encoding="utf-8")
        arguments += ["--ranking", str(ranking)]
    value = SOME_VALUES[option]
    assert main([command, *arguments, *given_as(option)]) == 2
    assert _plain(seen[option]) == _plain(value)
    assert type(seen[option]) in (type(value), str, list)


def _plain(value: Any) -> str:
    return str(list(value)) if isinstance(value, (tuple, list)) else str(value)


@pytest.mark.parametrize("option", sorted(DECLARED))
def test_a_sweep_over_tasks_of_lm_eval_takes_an_option_or_refuses_it(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    def record(*args: Any, **values: Any) -> None:
        seen.update(values)
        raise UserError("recorded")

    monkeypatch.setattr("lensprune.adapters.lm_eval_sweep.sweep_lm_eval", record)
    flag = flag_of(DECLARED[option])
    assert main(["sweep", *MODEL, "--lm-eval-task", "arc_easy", *given_as(option)]) == 2
    if option in inspect.signature(sweep_lm_eval).parameters:
        assert _plain(seen[option]) == _plain(SOME_VALUES[option])
    else:
        assert f"{flag} has no effect with --lm-eval-task" in capsys.readouterr().err
        assert not seen


def test_resume_asks_for_what_the_spec_holds() -> None:
    """Every option that is declared: stored in a spec under the way in which it was given, and read back."""
    model = tiny("llama")
    spread = {"executor": "ray:hooked", "workers": 5, "ray_address": "auto"}
    narrow = {"until_width": 0.2, "limit": 3}
    # Those that a sweep that stops early refuses.
    drawn = {name: SOME_VALUES[name] for name in (*SAMPLED, "items")}
    here = {name: value for name, value in SOME_VALUES.items() if name not in {*spread, *drawn, "until_width"}}
    here |= {"executor": "hooked"}
    assert {*here, *spread, *narrow, *drawn} == set(DECLARED)
    for given in (here, narrow, drawn, {**spread, "limit": 3}):
        options = SweepOptions.given("facts", "generate", VariantSelection("heads", "mean"), **given)
        asked = [Condition(load_task("facts", limit=2), "generate", (), ())]
        spec = sweep_spec(model, model.facts, asked, options, [variant_to_json(lp.CLEAN)], with_reference=True)
        if options.screen is not None:
            spec = replace(spec, screen={"fraction": options.screen, "rule": options.screen_rule})
        back = _options_of(SweepSpec.from_json(_spec(spec, options).to_json()))
        # A model is loaded as it was, whatever was said of it.
        resolved = {"dtype": "float32", "bos": "tokenizer", "device": None if options.n_devices else "cpu"}
        # A date is recorded only where the template reads a clock, and tokens that mark thinking as they were found.
        resolved["template_date"] = resolved["think_tokens"] = None
        for name in DECLARED:
            assert str(getattr(back, name)) == str(resolved.get(name, getattr(options, name))), name
        assert (back.backend, back.tasks, back.protocols) == (options.backend, options.tasks, options.protocols)
