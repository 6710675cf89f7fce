"""Help with examples, tables as JSON, the list of runs, completion, and tables that say what they leave out."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import subprocess
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from lensprune import cli
from lensprune.ablation.components import Head
from lensprune.ablation.variants import Ablation, Variant
from lensprune.analysis.summary import summarise
from lensprune.commands.examples import EXAMPLES
from lensprune.heads.report import _concentration, _overlap
from lensprune.output.tables import frame_json, of_how_many
from lensprune.results.concentration import head_tables
from lensprune.results.listing import RUN_COLUMNS, runs_in
from lensprune.results.text import run_report, top_variants
from tests.helpers.made_runs import HOSTILE, heads_run, layers_run

mpl.use("agg")


def commands() -> dict[str, argparse.ArgumentParser]:
    parser = cli._parser()
    return {name: inner for action in parser._subparsers._group_actions for name, inner in action.choices.items()}  # type: ignore


def test_every_command_has_examples_that_it_can_read() -> None:
    assert set(EXAMPLES) == set(commands())
    for name, lines in EXAMPLES.items():
        assert lines
        for line in lines:
            program, *arguments = shlex.split(line.partition(" > ")[0])
            assert program == "lensprune"
            assert arguments[0] == name
            cli._parser().parse_args(arguments)


def test_help_is_in_groups_and_ends_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["sweep", "--help"])
    shown = capsys.readouterr().out
    for heading in ("what is measured:", "what is removed:", "how it runs:"):
        assert f"\n{heading}\n" in shown
    assert shown.rstrip().splitlines()[-len(EXAMPLES["sweep"]) :] == [f"  {line}" for line in EXAMPLES["sweep"]]


def test_tables_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = layers_run(tmp_path / "run", tasks=("facts",))
    for command, rows in (
        (["analyse", str(tmp_path / "run"), "critical_layers"], run.critical_layers()),
        (["resume", str(tmp_path / "run")], run.summary()),
        (["runs", str(tmp_path)], runs_in(tmp_path)),
    ):
        assert cli.main([*command, "--json"]) == 0
        found = pd.DataFrame(json.loads(capsys.readouterr().out))
        assert list(found.columns) == list(rows.columns)
        assert len(found) == len(rows) > 0
        for name in rows.columns:
            for mine, theirs in zip(found[name], rows[name], strict=True):
                assert (pd.isna(mine) and pd.isna(theirs)) or mine == theirs
    for command in (["tasks"], ["models"], ["power", "--parts", "30", "--n", "50"]):
        assert cli.main([*command, "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)) >= 1
    assert cli.main(["analyse", str(tmp_path / "run"), "--json"]) == 2


def test_json_has_no_number_that_json_lacks_and_no_letter_that_a_terminal_obeys() -> None:
    frame = pd.DataFrame(
        {
            "a": [1.5, np.nan, np.inf], "b": pd.array([1, None, 3], "Int64"), "c": [HOSTILE, None, "x"],
            "d": [[1.0, math.nan], {"e": np.float64(2)}, np.bool_(True)],
        }
    )  # fmt: skip
    text = frame_json(frame)
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert json.loads(text) == [
        {"a": 1.5, "b": 1, "c": HOSTILE, "d": [1.0, None]},
        {"a": None, "b": None, "c": None, "d": {"e": 2.0}},
        {"a": None, "b": 3, "c": "x", "d": True},
    ]


def test_runs_are_listed_with_model_tasks_n_and_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers_run(tmp_path / "whole", tasks=("facts", "arithmetic"), n=7)
    layers_run(tmp_path / "deep" / "er" / "part", tasks=("facts",), n=9)
    record = sorted((tmp_path / "deep" / "er" / "part" / "records").glob("*.parquet"))[0]
    record.unlink()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "spec.json").write_text("{")
    (tmp_path / "no run").mkdir()
    listed = runs_in(tmp_path).set_index("folder")
    assert list(listed.index) == ["broken", "deep/er/part", "whole"]
    assert listed.loc["whole"].to_dict() == {
        "model": listed.loc["whole", "model"], "tasks": "facts, arithmetic", "protocols": "default, generate",
        "n": "7, 7", "variants": 10, "state": "finished",
    }  # fmt: skip
    assert listed.loc["deep/er/part", "state"] == "21 of 22 cells"
    assert "spec.json" in listed.loc["broken", "state"]
    assert cli.main(["runs", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == list(RUN_COLUMNS)
    assert len(printed) == 4
    assert cli.main(["runs", str(tmp_path / "no run")]) == 2
    assert "contains no run" in capsys.readouterr().err
    assert cli.main(["runs", str(tmp_path / "nowhere")]) == 2


def test_what_is_left_out_is_counted() -> None:
    assert of_how_many(5, 5, "rows") == ""
    assert of_how_many(5, 30, "rows", "a.csv") == "5 of 30 rows; a.csv has all"
    run = layers_run(tasks=("facts",), protocols=("default",))
    printed = top_variants(summarise(run), "facts", "default")
    assert printed.splitlines()[-1] == "  5 of 10 variants, largest losses first; summary.csv has all"
    assert "of 10 variants" not in top_variants(summarise(run), "facts", "default", most=10)
    assert "5 of 10 variants, largest losses first; --out FOLDER writes all to summary.csv" in run_report(run)
    assert of_how_many(5, 30, "rows", "a.csv", kept=False) == "5 of 30 rows; --out FOLDER writes all to a.csv"
    assert (
        "10 of 20 changes; summary() has all"
        in layers_run(tasks=("facts",), protocols=("default", "generate"))._repr_html_()
    )


def test_heads_without_any_effect_are_a_line_and_not_nan() -> None:
    variants = [Variant(a.name, (a,)) for head in range(4) for a in (Ablation(Head(0, head), "zero"),)]
    run = layers_run(variants=variants, right=lambda task, protocol, variant, n: np.arange(n) % 4 > 0)
    tables = head_tables(run, "zero")
    said = _concentration(tables.concentration, "zero")
    assert said.splitlines() == [
        f"{task}, {protocol}: removing single heads changes no answer (zero), so nothing is concentrated"
        for task in ("facts", "arithmetic")
        for protocol in ("default", "generate")
    ]
    assert tables.overlap is not None
    assert "nan" not in _overlap(tables.overlap, "zero")
    needed = head_tables(heads_run(tasks=("facts",)), "zero")
    assert "nan" not in _concentration(needed.concentration, "zero")
    assert "gini" in _concentration(needed.concentration, "zero")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_shell_can_read_the_completion(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("--over", "kv-groups", "kv_retrieval", "smollm2-135m", "analyse"):
        assert word in script
    if shell == "bash" and shutil.which("bash"):
        path = tmp_path / "lensprune"
        path.write_text(script)
        asked = f"source {path}; COMP_WORDS=(lensprune sw); COMP_CWORD=1; _shtab_lensprune; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["sweep"]


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "fish"]) == 2
    assert "unknown shell 'fish'" in capsys.readouterr().err
