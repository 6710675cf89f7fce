"""`lensprune primitives` end to end on the planted reasoner: files and what is printed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.primitives import task_texts
from lensprune.primitives.report import primitives_report
from tests.helpers.families import save_folder
from tests.helpers.planted.reasoner import TEXTS, WORDING, reasoner
from tests.helpers.printed import check_json_of


@pytest.mark.slow
def test_files_and_lines(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    printed = primitives_report(
        reasoner("llama"),
        tmp_path / "out",
        text_file=tmp_path / "texts.txt",
        limit=20,
        shots=0,
        subtract=False,
        wording=WORDING,
        draws=20,
        where=True,
    )
    assert "L1.H6  moves result" in printed
    assert "L0.H0  routes position" in printed
    assert "16 of 27 heads and MLPs: nothing resolvable" in printed
    assert "class operator: predicted in 0 solutions" in printed
    lines = [line.split()[:2] for line in printed.splitlines()]
    for found in (["L1.H0", "operator"], ["L1.H2", "operator"], ["L1.H4", "last"], ["L1.H6", "words"]):
        assert [line for line in lines if line[:1] == found[:1] and line[1] in ("last", "operator", "words")] == [found]
    names = ("effects", "causal", "evidence", "verdicts", "controls", "selectivity")
    tables = {name: pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in names}
    assert len(tables["verdicts"]) == 27
    assert set(tables["selectivity"]["role"]) == {
        "carries operand",
        "routes position",
        "computes result",
        "moves result",
        "formats answer",
    }
    assert set(pd.read_csv(tmp_path / "out" / "where.csv")["at"]) > {"all", "last", "operator"}
    for name in ("primitives", "where"):
        assert (tmp_path / "out" / "figures" / f"{name}.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_command_on_a_random_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_folder("llama", tmp_path / "tiny")
    task = "kv_retrieval[pairs=2]"
    options = ["--limit", "6", "--shots", "0", "--layers", "1", "--text-task", task, "--device", "cpu"]
    assert main(["primitives", "--model", str(folder), *options]) == 0
    printed = capsys.readouterr().out
    assert "5 of 5 heads and MLPs: nothing resolvable" in printed
    assert "none was patched" in printed
    assert main(["primitives", "--model", str(folder), *options, "--out", str(tmp_path / "out"), "--json"]) == 0
    check_json_of(capsys.readouterr().out, tmp_path / "out" / "verdicts.csv")


def test_texts_of_a_task_are_read_from_the_answer_on() -> None:
    texts = task_texts("arithmetic", limit=3, shots=1)
    assert all(prompt.endswith("=") and answer.strip().isdecimal() for prompt, answer in texts)


def test_two_kinds_of_general_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give only one of them"):
        primitives_report(reasoner("llama"), text_file=tmp_path / "x", text_task="facts")


def test_a_bad_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["primitives", "--model", "toy-base", "--least-share", "2", "--device", "cpu"]) == 2
    assert "threshold share 2.0" in capsys.readouterr().err
