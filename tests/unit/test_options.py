"""Every option is declared once: signatures and commands have the declared names, defaults and texts."""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Unpack, get_args, get_type_hints

import numpy as np
import pytest
import torch

import lensprune as lp
from lensprune.adapters.lm_eval_sweep import sweep_lm_eval
from lensprune.attribution.report import attribution_report
from lensprune.cli import _parser, main
from lensprune.divergence.report import fidelity_report
from lensprune.divergence.study import validate_fidelity
from lensprune.errors import UserError
from lensprune.heads.agreement import importance_agreement
from lensprune.heads.compensation import estimated_compensation, pairwise_compensation
from lensprune.heads.removal import removal_curves
from lensprune.heads.report import heads_report
from lensprune.models.load import open_model
from lensprune.models.model_config import load_model_config
from lensprune.primitives.battery import primitives, task_texts
from lensprune.primitives.report import primitives_report
from lensprune.protocols.arguments import PromptArguments
from lensprune.protocols.prompting import PromptOptions
from lensprune.runs.spec import SweepSpec
from lensprune.runs.variant_json import variant_to_json
from lensprune.studies.paper import paper
from lensprune.sweeps.conditions import Condition
from lensprune.sweeps.distributed import _spec
from lensprune.sweeps.job_spec import sweep_spec
from lensprune.sweeps.options import (
    AnswerArguments,
    Execution,
    Generation,
    Group,
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
    Wording,
    Workers,
    add_options,
    flag_of,
    help_of,
    option_values,
)
from lensprune.sweeps.run import _options_of
from lensprune.sweeps.selection import VariantSelection
from lensprune.tasks import load_task
from tests.helpers.made_runs import layers_run
from tests.helpers.tiny_models import tiny

ROOT = Path(__file__).parents[2]

DECLARED = {own.name: own for own in fields(SweepOptions) if "help" in own.metadata}
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
FUNCTIONS: list[Callable[..., Any]] = [
    lp.sweep,
    lp.resume,
    lp.plan,
    lp.measure_replacement,
    lp.noise,
    lp.fidelity,
    lp.head_scores,
    lp.load_model,
    lp.load_task,
    lp.counterfactual_pairs,
    attribution_report,
    fidelity_report,
    heads_report,
    open_model,
    load_model_config,
    paper,
    primitives,
    primitives_report,
    removal_curves,
    sweep_lm_eval,
    task_texts,
    validate_fidelity,
]
SAMPLED = {own.name for own in fields(TokenSampling)}
WRITTEN = {own.name for group in (Wording, Generation) for own in fields(group)}
SWEEP_ALONE = {
    *(
        "thinking_prefix",
        "reference",
        "mean_mode",
        "screen",
        "screen_rule",
        "lost_more_than",
        "looks",
        "q",
        "until_width",
        "workers",
        "ray_address",
    ),
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
        ("screen_rule", "relb", "did you mean relp"),
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
