"""The part of a study about thinking: each model in its own format, and options where they mean something."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest

import lensprune as lp
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.studies.paper import paper
from lensprune.studies.presets import PRESETS, StudyPart
from lensprune.studies.thinking import (
    CHAT,
    OFF,
    ON,
    PLAIN,
    draw_thinking,
    fitted,
    options_for,
    parts_apart,
    run_thinking,
    thinking_effects,
    thinking_rows,
    ways_of,
)
from tests.helpers.chat_models import save_chat_folder

mpl.use("agg")

BOTH = StudyPart("layers", "?", ("facts",), ("default", "generate"), "layers", "skip", 2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("models")
    return {name: str(save_chat_folder(name, place / name)) for name in ("deepseek", "llama", "channels")}


def test_each_model_is_asked_as_far_as_its_template_goes(folders: dict[str, str]) -> None:
    def asked(model: str, **options: Any) -> dict[str, Any]:
        return {
            way: (given["chat_template"], given["thinking"], given["thinking_budget"])
            for way, given in ways_of(model, (9, 5), {"dtype": "float32", **options}).items()
        }

    budgets = {f"budget {n}": (True, "on", n) for n in (5, 9)}
    assert asked("toy-base", chat_template=True, thinking="on") == {PLAIN: (False, "auto", None)}
    assert asked("toy-thinker") == {OFF: (True, "off", None), **budgets, ON: (True, "on", None)}
    # R1's template opens the block and can't be told not to; gpt-oss's has no switch; Llama knows no thinking.
    assert asked(folders["deepseek"]) == {**budgets, ON: (True, "on", None)}
    always = {f"budget {n}": (True, "auto", n) for n in (5, 9)}
    assert asked(folders["channels"]) == {**always, ON: (True, "auto", None)}
    assert asked(folders["llama"]) == {CHAT: (True, "auto", None)}
    assert ways_of("toy-thinker", (5,), {"dtype": "float32"})[ON]["dtype"] == "float32"


def test_options_fit_each_model(folders: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"chat_template": True, "thinking": "on", "thinking_budget": 5, "system": "Be brief."}
    assert fitted("toy-thinker", options) == options
    assert not caplog.text
    chat = fitted(folders["llama"], options)
    assert (chat["chat_template"], chat["thinking"], chat["thinking_budget"]) == (True, "auto", None)
    assert "is prompted without thinking options: thinking on is requested, but the chat template of" in caplog.text
    caplog.clear()
    plain = fitted("toy-base", options)
    assert (plain["chat_template"], plain["thinking"], plain["system"]) == (False, "auto", "Be brief.")
    [said] = caplog.messages
    assert said.startswith("toy-base is prompted without the chat format: toy-base has no chat template")


def test_options_of_thinking_are_for_what_is_generated() -> None:
    plain: dict[str, Any] = {"chat_template": True, "thinking": "auto", "think_tokens": None, "thinking_budget": None}
    for given in ({}, {"thinking": "off"}):
        assert parts_apart(BOTH, plain | given) == (BOTH,)
        assert options_for(("default",), plain | given) == plain | given
    for given in ({"thinking": "on"}, {"thinking_budget": 7}, {"think_tokens": ("a", "b")}):
        scored, generated = parts_apart(BOTH, plain | given)
        assert (scored.name, scored.protocols) == ("layers", ("default",))
        assert (generated.name, generated.protocols) == ("layers-generate", ("generate",))
        assert options_for(scored.protocols, plain | given) == plain
        assert options_for(generated.protocols, plain | given) == plain | given
        alone = replace(BOTH, protocols=("generate",))
        assert parts_apart(alone, plain | given) == (alone,)


def test_what_the_template_lacks_is_refused_before_any_sweep(folders: dict[str, str], tmp_path: Path) -> None:
    for model, asked, message in (
        (folders["llama"], {"thinking": "on"}, "has no enable_thinking"),
        ("toy-base", {}, "has no chat template"),
        ("toy-thinker", {"base": "toy-base", "distilled": "toy-thinker"}, "different tokenizers"),
        ("toy-thinker", {"base": "toy-bse", "distilled": "toy-thinker"}, "toy-bse"),
    ):
        with pytest.raises(UserError, match=message):
            paper(model, tmp_path / "out", chat_template=True, device="cpu", **asked)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_thinking_is_measured_and_drawn(tmp_path: Path) -> None:
    part = replace(PRESETS["smoke"].thinking[0], limit=4, budgets=(7, 19))
    assert part.pair is not None
    runs = run_thinking(part, part.pair, tmp_path, {"max_new_tokens": None}, device="cpu", progress=False)
    rows = thinking_rows(runs).set_index(["role", "way"])
    assert list(rows.index) == [
        ("base", PLAIN), ("distilled", OFF), ("distilled", "budget 7"), ("distilled", "budget 19"), ("distilled", ON),
    ]  # fmt: skip
    of_distilled = rows.loc["distilled"]
    assert of_distilled["thinking_tokens"].tolist() == [0, 6, 18, 18]
    assert of_distilled.loc[ON, "accuracy"] == of_distilled.loc["budget 19", "accuracy"] == 1
    assert of_distilled.loc["budget 7", "accuracy"] < 1
    assert pd.isna(rows.loc[("base", PLAIN), "thinking_tokens"])
    effects = thinking_effects(runs)
    axes = draw_thinking(effects)
    assert [ax.get_title() for ax in axes] == ["base", "distilled"]
    [labels] = {tuple(text.get_text() for text in legend.get_texts()) for legend in axes[0].figure.legends}
    assert labels == (PLAIN, OFF, "budget 7", "budget 19", ON)
    assert (effects.loc[effects["way"] == ON, "delta"] < 0).any()


@pytest.mark.slow
def test_a_study_with_thinking_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "smoke", replace(PRESETS["smoke"], parts=(BOTH,), pair=None))
    command = ["paper", "--model", "toy-thinker", "--device", "cpu", "--chat-template", "--thinking", "on"]
    assert main([*command, "--max-new-tokens", "40", "--out", str(tmp_path / "study")]) == 0
    scored, generated = (lp.Run.load(tmp_path / "study" / name).spec for name in ("layers", "layers-generate"))
    assert (scored.protocols, scored.thinking, scored.chat_template) == (("default",), "auto", True)
    assert (generated.protocols, generated.thinking, generated.chat_template) == (("generate",), "on", True)
    assert generated.conditions[0].generation["max_new_tokens"] == 40
