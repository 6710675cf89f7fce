"""`lensprune attribute` end to end on the planted sums, whose heads are known."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import lensprune as lp
from lensprune.attribution import counterfactual_pairs
from lensprune.attribution.methods import METHODS, AttributionOptions, passes
from lensprune.attribution.report import PairTexts
from lensprune.cli import main
from lensprune.models import as_hooked_model
from tests.helpers.planted.circuits import ARITHMETIC, model_of
from tests.helpers.planted.models import build, word_tokenizer
from tests.helpers.printed import check_json_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "planted"
    build(ARITHMETIC, "llama").save_pretrained(path)
    word_tokenizer(ARITHMETIC.vocabulary).save_pretrained(path)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_what_it_prints(method: str, folder: Path, tmp_path: Path, capsys) -> None:
    options = ["--task", "arithmetic", "--limit", "4", "--shots", "0", "--bos", "always", "--out", str(tmp_path)]
    options += {"path": ["--total"], "qk": ["--receiver", "L1.H0"]}.get(method, [])
    assert main(["attribute", "--model", str(folder), "--method", method, *options]) == 0
    assert (tmp_path / "direct_and_total.csv").exists() == (method == "path")
    printed = capsys.readouterr().out
    assert "4 pairs of arithmetic" in printed
    files = [path for path in printed.split() if path.startswith(str(tmp_path))]
    assert files
    assert all(Path(path).is_file() for path in files)


def test_the_first_table_as_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--task", "arithmetic", "--limit", "2", "--shots", "0", "--bos", "always", "--out", str(tmp_path)]
    assert main(["attribute", "--model", str(folder), "--method", "dla", *options, "--top", "1", "--json"]) == 0
    check_json_of(capsys.readouterr().out, tmp_path / "dla_head.csv")


def test_exact_patching_finds_the_planted_heads(folder: Path, tmp_path: Path) -> None:
    options = ["--task", "arithmetic", "--limit", "6", "--shots", "0", "--bos", "always", "--out", str(tmp_path)]
    assert main(["attribute", "--model", str(folder), "--method", "patch", *options]) == 0
    frame = pd.read_csv(tmp_path / "patching.csv")
    found = frame[frame["effect"].abs() > 1e-3]
    assert set(zip(found["layer"], found["head"], strict=True)) <= {(0, 3), (1, 0)}


def test_refusals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--method", "eap"], "did you mean eap-ig"),
        (["--method", "dla", "--task", "facts"], "unknown task with counterfactuals"),
        (["--method", "path", "--task", "arithmetic", "--receiver", "L0.H0.k"], "unknown reader"),
        (["--method", "qk", "--task", "arithmetic"], "give the head as receiver, from L0.H0 to"),
        (["--method", "dla", "--receiver", "L0.H0.q"], "receiver is an option of method path or qk, not of dla"),
        (["--method", "patch", "--steps", "7"], "steps is an option of method eap-ig, not of patch"),
    ):
        assert main(["attribute", "--model", str(folder), "--bos", "always", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_that_does_not_prefer_the_answer_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--task", "kv_retrieval[pairs=4]", "--limit", "4", "--device", "cpu", "--out", str(tmp_path)]
    for method in ("patch", "eap-ig"):
        assert main(["attribute", "--model", "toy-base", "--method", method, *options]) == 0
        printed = capsys.readouterr().out
        assert "does not clearly prefer the right answer" in printed
        assert "greedy circuits" not in printed
    assert (tmp_path / "edges.csv").exists()
    assert pd.read_csv(tmp_path / "patching.csv")["share"].isna().all()
    assert not (tmp_path / "faithfulness.csv").exists()


def test_the_preference_is_that_of_the_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--task", "kv_retrieval[pairs=4,ending=reopened,answer=text]", "--limit", "6", "--device", "cpu"]
    assert main(["attribute", "--model", "toy-distilled", "--method", "dla", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    mean = re.search(r"difference, which is ([+-][\d.]+) on average", "\n".join(lines))
    assert mean is not None
    assert any(line.startswith(f"logit difference of the answer: clean {mean[1]} ±") for line in lines)
    assert not any("does not clearly prefer" in line for line in lines)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("patch", AttributionOptions()),
        ("path", AttributionOptions(total=True)),
        ("path", AttributionOptions(receiver="L1.KV0.k")),
        ("eap-ig", AttributionOptions(steps=2)),
        ("eap-ig", AttributionOptions(steps=3, curve=False)),
    ],
)
def test_the_bar_ends_where_it_said_it_would(method: str, options: AttributionOptions) -> None:
    model = as_hooked_model(model_of("arithmetic", "llama"))
    pairs = counterfactual_pairs(model, "arithmetic", limit=5, shots=0)
    done: list[int] = []
    METHODS[method](model, pairs, options, done.append)
    assert len(done) > 1
    assert sum(done) == passes(method, model, len(pairs), options)


def test_pairs_of_ones_own(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The texts of a task's first two pairs give the effects that the task gives."""
    model = as_hooked_model(lp.load_model(folder, bos="always"))
    pairs = counterfactual_pairs(model, "arithmetic", limit=2, shots=0)
    decode = model.tokenizer.decode
    texts: list[str] = []
    for pair in pairs:
        for name, ids in (("clean", pair.clean[1:]), ("corrupt", pair.corrupt[1:])):
            texts += [f"--{name}", decode(list(ids))]
        for name, token in (("answer", pair.answer), ("wrong", pair.wrong)):
            texts += [f"--{name}", " " + decode([token]).strip()]
    assert [text.pair(model) for text in _texts_of(texts)] == [
        replace(pair, label=decode([pair.answer])) for pair in pairs
    ]
    base = ["attribute", "--model", str(folder), "--method", "patch", "--bos", "always"]
    assert main([*base, *texts, "--out", str(tmp_path / "mine")]) == 0
    assert "patch on 2 pairs of your own" in capsys.readouterr().out
    assert main([*base, "--task", "arithmetic", "--limit", "2", "--shots", "0", "--out", str(tmp_path / "task")]) == 0
    mine, theirs = (pd.read_csv(tmp_path / name / "patching.csv") for name in ("mine", "task"))
    pd.testing.assert_frame_equal(mine, theirs)


def _texts_of(options: list[str]) -> list[PairTexts]:
    values = options[1::2]
    return [PairTexts(*values[i : i + 4]) for i in range(0, len(values), 4)]


def test_a_single_pair_finds_planted_heads(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The planted model answers with the first operand. One pair has no standard error, and nothing is not a number."""
    pair = ["--clean", "3 + 4 =", "--corrupt", "5 + 4 =", "--answer", " 3", "--wrong", " 5"]
    base = ["attribute", "--model", str(folder), "--method", "patch", "--bos", "always", *pair]
    assert main([*base, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "patch on 1 pair of your own" in printed
    assert "(one pair)" in printed
    for wrong in ("±", "nan", "does not clearly prefer"):
        assert wrong not in printed
    frame = pd.read_csv(tmp_path / "patching.csv")
    found = frame[frame["effect"].abs() > 1e-3]
    assert set(zip(found["layer"], found["head"], strict=True)) == {(0, 3), (1, 0)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clean", "1 + 2 =", "--corrupt", "1 + 3 =", "--answer", " 3"], "--wrong is missing"),
        (["--clean", "a", "--clean", "b", "--corrupt", "c", "--answer", "d", "--wrong", "e"], "is missing"),
        (
            ["--clean", "a", "--corrupt", "b", "--answer", "c", "--wrong", "d", "--task", "arithmetic"],
            "--task can't be combined",
        ),
        (
            ["--clean", "a", "--corrupt", "b", "--answer", "c", "--wrong", "d", "--limit", "3"],
            "--limit can't be combined",
        ),
    ],
)
def test_half_a_pair_is_refused(
    options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attribute", "--model", str(folder), "--method", "dla", *options]) == 2
    assert message in capsys.readouterr().err
