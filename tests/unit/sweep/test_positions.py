"""Sweeps over parts at some positions."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

import lensprune as lp
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.planning import plan
from tests.helpers.sweeps import sweep
from tests.helpers.tiny_models import folder

LAST = lp.VariantSelection("heads", layers="1", heads="0-1", at="last")


def test_a_run_says_where() -> None:
    run = sweep(folder("llama"), tasks="facts", protocols="continuation", variants=LAST)
    summary = run.summary()
    assert list(summary["variant"]) == ["clean", "L1.H0@last.zero", "L1.H1@last.zero"]
    assert set(summary["ablation"]) == {"", "zero@last"}
    assert [v["ablations"][0]["at"] for v in run.spec.variants[1:]] == ["last", "last"]
    whole = sweep(folder("llama"), tasks="facts", protocols="continuation", variants=["L1.H0.zero", "L1.H1.zero"])
    assert list(whole.summary()["mean_gold_logprob"])[1:] != list(summary["mean_gold_logprob"])[1:]


@pytest.mark.slow
def test_a_run_of_positions_is_resumed(tmp_path: Path) -> None:
    at = LAST.at + ",regex:[A-Z/]+"
    whole = sweep(
        folder("llama"), tmp_path / "run", tasks="facts", protocols="continuation", variants=replace(LAST, at=at)
    ).summary()
    lost = list((tmp_path / "run" / "records").glob("*H1*"))
    assert len(lost) == 1
    lost[0].unlink()
    assert lp.resume(tmp_path / "run").summary().equals(whole)


def test_positions_that_no_prompt_has_are_refused() -> None:
    with pytest.raises(UserError, match=r"task 'facts', generate: no token of the 3 items is at 'regex:xyzzy'"):
        sweep(folder("llama"), tasks="facts", protocols="generate", variants="L0.H0@regex:xyzzy.zero")
    with pytest.raises(UserError, match=r"no token of the 3 items is at 'generated\[4:\]'"):
        sweep(folder("llama"), tasks="facts", protocols="generate", max_new_tokens=5, variants="L0@generated[4:].skip")
    with pytest.raises(UserError, match="no token of the 3 items is at 'regex:xyzzy'"):
        plan(str(folder("llama")), "facts", "default", "L0.H0@regex:xyzzy.zero", limit=3, flops=1e12, bandwidth=1e11)
    with pytest.raises(UserError, match="screen estimates the removal of whole parts, not at 'last'"):
        sweep(folder("llama"), variants=lp.VariantSelection("heads", at="last"), screen=0.5)


def test_positions_that_some_prompts_lack_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lensprune"):
        sweep(folder("llama"), tasks="facts", protocols="continuation", variants="L0.H0@generated[5:].zero", limit=8)
    assert "items is at 'generated[5:]'; on these, what is removed there changes nothing" in caplog.text


def test_the_command_line_takes_positions(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", str(folder("llama")), "--task", "facts", "--protocol", "default", "--limit", "2"]
    options += ["--shots", "0", "--device", "cpu", "--layers", "0", "--json"]
    assert main(["sweep", *options, "--at=-2:"]) == 0
    assert "L0@-2:.skip" in capsys.readouterr().out
    assert main(["sweep", *options, "--at", "lst"]) == 2
    assert "did you mean last" in capsys.readouterr().err
