"""The command line: bad input is one line and exit code 2, and nothing is written."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import lensprune
from lensprune import cli
from tests.helpers.made_runs import layers_run

SWEEP = ["sweep", "--model", "smollm2-135m", "--task", "kv_retrieval", "--out", "out"]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder in which no bad command may leave anything."""
    place = tmp_path / "workplace"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("LENSPRUNE_OFFLINE", "1")
    monkeypatch.setenv("LENSPRUNE_CACHE", str(tmp_path / "cache"))
    return place


def _data(folder: Path, name: str, text: str) -> Path:
    target = folder / "data" / name
    target.mkdir(parents=True)
    (target / "test.jsonl").write_text(text)
    return folder / "data"


def _arguments(changes: list[str]) -> list[str]:
    """`SWEEP` with options added or replaced."""
    base = list(SWEEP)
    for option in changes[::2]:
        if option in base:
            at = base.index(option)
            del base[at : at + 2]
    return base + changes


BAD = {
    "unknown command": (["swep"], "did you mean sweep"),
    "no model": (["sweep", "--task", "kv_retrieval"], "--model"),
    "no task": (["sweep", "--model", "smollm2-135m"], "no task given"),
    "option without value": (["sweep", "--model"], "--model"),
    "unknown option": (_arguments(["--colour", "red"]), "--colour"),
    "misspelled option": (_arguments(["--limt", "5"]), "unknown option of sweep '--limt': did you mean --limit"),
    "misspelled option before a missing one": (["sweep", "--modle", "toy-base"], "'--modle': did you mean --model"),
    "missing option": (
        ["attribute", "--model", "toy-base"],
        "--method is missing: dla (direct logit attribution), lens",
    ),
    "two options for one value": (
        _arguments(["--items", "1,2", "--items-file", "ids.txt"]),
        "--items can't be combined with --items-file: leave one of them out",
    ),
    "and in the other order": (
        _arguments(["--items-file=ids.txt", "--items=1,2"]),
        "--items-file can't be combined with --items: leave one of them out",
    ),
    "no whole number": (["power", "--parts", "many"], "--parts: expected a whole number, not 'many'"),
    "no number": (["plan", *SWEEP[1:], "--flops", "fast"], "--flops: expected a number like 0.1, not 'fast'"),
    "too many items": (
        ["power", "--parts", "3", "--n", "1000000000"],
        "is not a number of items: expected 1 to 1000000",
    ),
    "abbreviated option": (["sweep", "--mod", "x"], "--mod"),
    "unknown task": (_arguments(["--task", "kv_retreival"]), "did you mean kv_retrieval"),
    "task twice": ([*SWEEP, "--task", "kv_retrieval"], "given twice"),
    "unknown task parameter": (_arguments(["--task", "kv_retrieval[pears=4]"]), "pairs"),
    "malformed task": (_arguments(["--task", "kv_retrieval[pairs"]), "expected NAME"),
    "task parameter of the wrong kind": (_arguments(["--task", "kv_retrieval[pairs=many]"]), "whole number"),
    "unknown protocol": (_arguments(["--protocol", "generation"]), "did you mean generate"),
    "unknown part": (_arguments(["--over", "layer"]), "did you mean layers"),
    "unknown ablation": (_arguments(["--ablation", "skp"]), "did you mean skip"),
    "skip of a head": (
        _arguments(["--over", "heads", "--ablation", "skip"]),
        "zero, mean, resample, optimal or cut",
    ),
    "heads without heads": (_arguments(["--heads", "0-3"]), "over layers"),
    "layers that are no list": (_arguments(["--layers", "first"]), "numbers and ranges"),
    "layers backwards": (_arguments(["--layers", "9-3"]), "must not exceed"),
    "limit zero": (_arguments(["--limit", "0"]), "limit 0"),
    "limit negative": (_arguments(["--limit", "-3"]), "limit -3"),
    "limit no number": (_arguments(["--limit", "ten"]), "whole number"),
    "limit absurd": (_arguments(["--limit", "9" * 5000]), "whole number"),
    "shots negative": (_arguments(["--shots", "-1"]), "shots -1"),
    "more shots than there are": (
        _arguments(["--task", "facts", "--shots", "900"]),
        "900 shots need",
    ),
    "shots absurd": (_arguments(["--shots", "100000"]), "expected 0 to 1000"),
    "limit beyond any task": (_arguments(["--limit", "10000000"]), "expected 1 to 1000000"),
    "no data folder": (_arguments(["--data-dir", "nowhere"]), "nowhere does not exist"),
    "no reference file": (_arguments(["--reference", "nowhere.txt"]), "nowhere.txt does not exist"),
    "a reference for nothing": (
        _arguments(["--reference", __file__]),
        "choose the ablation mean or optimal or resample",
    ),
    "a mean mode for nothing": (
        _arguments(["--ablation", "resample", "--mean-mode", "per_position"]),
        "nothing is replaced by a mean",
    ),
    "unknown mean mode": (_arguments(["--mean-mode", "poolled"]), "did you mean pooled"),
    "unknown BOS policy": (_arguments(["--bos", "allways"]), "did you mean always"),
    "unknown executor": (_arguments(["--executor", "hoked"]), "did you mean hooked"),
    "no batch": (_arguments(["--batch-tokens", "0"]), "batch tokens 0"),
    "unknown model": (_arguments(["--model", "smolm2-135m"]), "did you mean smollm2-135m"),
    "no such model folder": (_arguments(["--model", "./nowhere"]), "does not exist"),
    "resume of nothing": (["resume", "nowhere"], "not a run folder"),
    "resume without a folder": (["resume"], "FOLDER"),
    "lm-eval task with our protocol": (
        ["sweep", "--model", "smollm2-135m", "--lm-eval-task", "arc_easy", "--protocol", "default"],
        "--protocol has no effect",
    ),
    "lm-eval task with screening": (
        ["sweep", "--model", "smollm2-135m", "--lm-eval-task", "arc_easy", "--over", "heads", "--screen", "0.1"],
        "--screen has no effect",
    ),
    "lm-eval task with no items": (
        ["sweep", "--model", "smollm2-135m", "--lm-eval-task", "arc_easy", "--limit", "0"],
        "limit 0 is not a usable number",
    ),
    "lm-eval task with an unknown mean mode": (
        ["sweep", "--model", "smollm2-135m", "--lm-eval-task", "arc_easy", "--mean-mode", "poolled"],
        "did you mean pooled",
    ),
    "plan without a task": (["plan", "--model", "smollm2-135m"], "no task given"),
    "plan of an unknown model": (["plan", "--model", "smolm2-135m", "--task", "facts"], "did you mean smollm2-135m"),
    "plan at no speed": (["plan", "--model", "smollm2-135m", "--task", "facts", "--flops", "-1"], "flops -1.0"),
    "plan at a speed that is no number": (["plan", "--model", "x", "--task", "facts", "--flops", "fast"], "--flops"),
    "delta of one model": (["delta", "--base", "smollm2-135m", "--task", "facts"], "--distilled"),
    "delta without a task": (["delta", "--base", "toy-base", "--distilled", "toy-distilled"], "no task given"),
    "delta of an unknown component": (
        [
            "delta",
            "--base",
            "toy-base",
            "--distilled",
            "toy-distilled",
            "--task",
            "facts",
            "--component",
            "attention-output",
        ],
        "did you mean attention_output",
    ),
    "control characters": (_arguments(["--task", "evil\x1b[31m\nname"]), "evil"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = BAD[case]
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("lensprune: error: ")
    assert output.err.count("\n") == 1
    assert output.err.endswith("\n")
    assert "\x1b" not in output.err
    assert len(output.err) < 1000
    assert expected in output.err
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("", "no rows"),
        ('{"id": "1", "question_stem": "?"}\n', "column"),
        ('{"id": "1"\n', "line 1 is not JSON"),
        ("[1, 2]\n", "element 1 is a JSON int"),
    ],
)
def test_bad_data_is_one_line(
    rows: str, expected: str, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _data(tmp_path, "openbookqa", rows)
    assert cli.main(_arguments(["--task", "openbookqa", "--data-dir", str(data)])) == 2
    output = capsys.readouterr()
    assert expected in output.err
    assert output.err.count("\n") == 1
    assert list(workplace.iterdir()) == []


def test_out_folder_with_other_things_is_left_alone(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workplace / "out").mkdir()
    (workplace / "out" / "thesis.txt").write_text("x")
    assert cli.main(SWEEP) == 2
    assert "thesis.txt" in capsys.readouterr().err
    assert [p.name for p in (workplace / "out").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "--help"], ["delta", "--help"], ["--version"]])
def test_help_is_quick_and_imports_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys, lensprune.cli as cli\n"
        f"try: cli.main({arguments!r})\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'pandas', 'matplotlib'} & set(sys.modules), 'slow import'\n"
    )
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    # A second is the promise on an idle machine; the test may share its cores.
    assert time.monotonic() - start < 5


def test_a_run_is_read_without_what_takes_long_to_import(tmp_path: Path) -> None:
    layers_run(tmp_path / "run", n=2, tasks=("facts",), n_layers=2)
    code = (
        f"import sys, lensprune as lp; assert len(lp.Run.load({str(tmp_path / 'run')!r}).records())\n"
        "assert not {'torch', 'transformers', 'statsmodels', 'scipy.stats', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"lensprune {lensprune.__version__}\n"


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "resume" in capsys.readouterr().out


@pytest.mark.parametrize(("command", "expected"), [("models", "smollm2-135m"), ("tasks", "kv_retrieval")])
def test_lists(command: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command]) == 0
    assert expected in capsys.readouterr().out


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(folder: str, **options: object) -> None:
        raise KeyboardInterrupt("stopped: 3 of 9 cells are stored; resume with: lensprune resume runs/x")

    monkeypatch.setattr("lensprune.sweeps.run.resume", stopped)
    monkeypatch.setattr("lensprune.runs.folder.read_spec", lambda folder: SimpleNamespace(replaces_weights=False))
    assert cli.main(["resume", "runs/x"]) == 130
    assert capsys.readouterr().err.endswith("resume with: lensprune resume runs/x\n")


_NAMES = """
import inspect, os, sys
import datasets, seaborn, transformer_lens.model_bridge, transformers

# Each in a child of its own, which has the libraries already and nothing of the package.
for first in sys.argv[1:]:
    assert not any(name.partition(".")[0] == "lensprune" for name in sys.modules)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            import lensprune as lp
            eval(first)
            assert callable(lp.sweep)
            lp.Run
            assert callable(lp.sweep)
            assert "variants" in inspect.signature(lp.sweep).parameters
            for name in lp.__all__:
                getattr(lp, name)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0, first
    print(first)
"""


@pytest.mark.slow
def test_public_names_are_found_whatever_is_imported_first() -> None:
    firsts = ["lp.Run", "lp.sweep", "lp.each_layer", "__import__('lensprune.runs.store')"]
    done = subprocess.run([sys.executable, "-c", _NAMES, *firsts], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == firsts
    with pytest.raises(AttributeError, match="no attribute 'swep'"):
        _ = lensprune.swep  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["models"],
        ["tasks"],
        ["sweep", "--model", "nope", "--task", "facts"],
        ["sweep", "--model", "toy-base", "--task", "fcts"],
        ["sweep", "--model", "toy-base", "--task", "facts", "--limit", "0"],
        ["delta", "--base", "nope", "--distilled", "nope", "--task", "facts"],
        ["heads", "--model", "nope"],
        ["resume", "nowhere"],
        ["report", "nowhere"],
        ["analyse", "nowhere", "critical_layers"],
    ],
    ids=" ".join,
)
def test_help_lists_and_refusals_import_no_library_that_takes_seconds(words: list[str]) -> None:
    code = f"""
import contextlib, sys
from lensprune.cli import main
with contextlib.suppress(SystemExit):
    main({words!r})
print(sorted({{"torch", "transformers", "transformer_lens", "datasets", "matplotlib"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
