"""The report's text: whole, escaped, capped as it says, and honest about what is missing."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from lensprune.ablation.variants import Variant
from lensprune.analysis.runs_gap import runs_gap
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.results.browser_rows import browser_rows, shares_of
from lensprune.results.compare import _lead, compare_page
from lensprune.results.page import write_report
from lensprune.runs.records import CellKey
from tests.helpers.made_runs import HOSTILE, N_LAYERS, heads_run, layers_run

mpl.use("agg")


def payload(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="records">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.mark.slow
def test_a_report_holds_everything_and_names_nothing_outside(tmp_path: Path) -> None:
    run = layers_run(tmp_path / "run")
    path = run.report()
    assert path == tmp_path / "run" / "report.html"
    page = path.read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "http://" not in re.sub(r"data:image[^\"]*", "", page)
    assert page.count("<figure>") == 4
    for text in ("What was run", "likelihood scores stay flat", "seen", "Δμ", run.spec.digest):
        assert text in page
    summary = base64.b64decode(re.findall(r'href="data:text/csv;base64,([^"]*)" download="summary.csv"', page)[0])
    assert pd.read_csv(io.BytesIO(summary))["delta"].tolist() == pytest.approx(run.summary()["delta"].tolist())
    everything = pd.read_csv(tmp_path / "run" / "records.csv")
    assert len(everything) == 40 * 4 * (N_LAYERS + 1)
    assert json.loads(everything["metrics"].iloc[0]) == {"acc": 1.0}


@pytest.mark.slow
def test_hostile_text_is_never_markup(tmp_path: Path) -> None:
    run = layers_run(tmp_path / "run", text=HOSTILE, tasks=("facts",), n=4)
    page = run.report().read_text(encoding="utf-8")
    assert "window.hit" in page
    assert "<script>window" not in page
    assert "<img src=x" not in page
    assert page.count("</script>") == 2
    assert "\u202e" not in page
    assert "\x1b" not in page
    shown = payload(page)["rows"][0]
    assert shown[5] == HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\u001b")
    asked = payload(page)["questions"]
    assert asked[0][0] == f"0: {shown[5]}"


@pytest.mark.slow
def test_a_question_is_in_the_page_once_with_the_options_log_probabilities(tmp_path: Path) -> None:
    run = layers_run(tmp_path / "run", tasks=("facts",))
    held = payload(run.report().read_text(encoding="utf-8"))
    assert len(held["questions"]) == 40 * 2
    for row in held["rows"]:
        clean = held["clean"][str(row[0])][row[1]]
        prompt, options, total, gold, reference = held["questions"][clean[7]]
        assert prompt.startswith(f"{row[1].removeprefix('item ')}: ")
        assert reference == ["A"]
        if held["conditions"][row[0]][1] == "generate":
            assert (options, total, gold, clean[6], row[9]) == ([], 0, None, None, None)
        else:
            assert (options, total, gold) == ([" A", " B"], 2, 0)
            assert clean[6] == row[9] == [-1.0, -1.5]
    everything = pd.read_csv(tmp_path / "run" / "records.csv")
    likelihoods = everything[everything["protocol"] == "default"]["option_logprobs"]
    assert set(likelihoods.map(json.loads).map(tuple)) == {(-1.0, -1.5)}


@pytest.mark.slow
def test_prompts_are_cut_in_the_page_to_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = layers_run(tmp_path / "run", tasks=("facts",), protocols=("default",), text="y" * 3000)
    rows = browser_rows(run)
    prompts = [asked[0] for asked in rows.payload["questions"]]
    assert {len(prompt) for prompt in prompts if prompt.startswith("(+2003 characters) … y")} == {1000 + 21}
    assert "prompts to their last 1000" in run.report().read_text(encoding="utf-8")
    monkeypatch.setattr("lensprune.results.browser_rows.MAX_PROMPT_CHARACTERS", 40 * 300)
    few = browser_rows(run)
    assert few.prompt_limit == 300
    assert sum(len(asked[0]) for asked in few.payload["questions"]) < 40 * 330


@pytest.mark.slow
def test_the_browser_is_capped_and_says_so(tmp_path: Path) -> None:
    run = layers_run(tmp_path / "run", tasks=("facts",))
    rows = browser_rows(run, 100)
    assert (rows.shown, rows.total) == (100, 40 * 2 * N_LAYERS)
    clean, cells = rows.payload["clean"], rows.payload["conditions"]
    lost = [row for row in rows.payload["rows"] if clean[str(row[0])][row[1]][3] != row[6]]
    # 20 cells share 100 rows; in the 11 that lose anything all five are losses.
    assert len(lost) == 5 * 11
    assert cells == [["facts", "default"], ["facts", "generate"]]
    page = write_report(run, most_records=100).read_text(encoding="utf-8")
    assert "The table holds 100 of 800 records" in page
    assert len(payload(page)["rows"]) == 100
    assert len(pd.read_csv(tmp_path / "run" / "records.csv")) == 40 * 2 * (N_LAYERS + 1)


def test_shares_are_even_and_used_up() -> None:
    sizes = {CellKey(str(i), "t", "p"): n for i, n in enumerate([1, 100, 100, 0])}
    assert list(shares_of(sizes, 10).values()) == [1, 5, 4, 0]
    assert list(shares_of(sizes, 1000).values()) == [1, 100, 100, 0]
    assert list(shares_of(sizes, 2).values()) == [1, 1, 0, 0]


@pytest.mark.slow
def test_heads_have_a_report_without_verdicts(tmp_path: Path) -> None:
    page = heads_run(folder=tmp_path / "run").report().read_text(encoding="utf-8")
    assert "Can&#39;t be tested" in page
    assert page.count(">not measured<") == 6
    assert "L1.H2.zero" in page


@pytest.mark.slow
def test_a_model_at_chance_ranks_nothing(tmp_path: Path) -> None:
    def right(task: str, protocol: str, variant: Variant, n: int) -> np.ndarray:
        return np.arange(n) % 4 == 0

    page = layers_run(tmp_path / "run", right=right).report().read_text(encoding="utf-8")
    assert "on no task is the clean model known to beat chance" in page
    assert "clean model at chance" in page


@pytest.mark.slow
def test_a_run_in_memory_wants_a_name(tmp_path: Path) -> None:
    run = layers_run(n=4)
    with pytest.raises(UserError, match="name the file"):
        run.report()
    assert run.report(tmp_path / "page.html").is_file()
    with pytest.raises(UserError, match="is a folder"):
        run.report(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        run.report(tmp_path / "nowhere" / "page.html")


def test_two_runs_are_paired_where_their_items_are_the_same(tmp_path: Path) -> None:
    def weaker(task: str, protocol: str, variant: Variant, n: int) -> np.ndarray:
        return np.arange(n) % 2 == 0 if variant.layer == 3 else np.ones(n, bool)

    a = layers_run(tmp_path / "a", tasks=("facts",), protocols=("default",))
    b = layers_run(tmp_path / "b", tasks=("facts",), protocols=("default",), right=weaker)
    gap = runs_gap(a, b).set_index("variant")
    assert gap.loc["L0.skip", "gap"] == 1.0
    assert gap.loc["L3.skip", "gap"] == -0.5
    assert gap.loc["L5.skip", "gap"] == 0.0
    assert gap.loc["L3.skip", "ci_high"] < 0
    changed = {"right": weaker, "items_hash": "j" * 64, "text": "another answer"}
    other = layers_run(tmp_path / "c", tasks=("facts",), protocols=("default",), **changed)  # type: ignore[arg-type]
    unpaired = runs_gap(a, other).set_index("variant")
    assert unpaired.loc["L3.skip", "gap"] == -0.5
    assert unpaired["ci_low"].isna().all()
    assert set(unpaired["note"]) == {"different items: not paired"}
    page = compare_page(a, other)
    assert f"All {len(unpaired)} changes can&#39;t be tested: the runs used different items" in page
    assert "(n 0" not in page
    with pytest.raises(UserError, match="share no"):
        runs_gap(a, layers_run(n=4, tasks=("arithmetic",)))


@pytest.mark.slow
def test_the_command_writes_both_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        layers_run(tmp_path / name, n=8)
    assert main(["report", str(tmp_path / "a")]) == 0
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    printed = capsys.readouterr()
    pages = [Path(line) for line in printed.out.splitlines()]
    assert "figure: Lorenz curves" in printed.err
    assert pages == [tmp_path / "a" / "report.html", tmp_path / "b" / "against-a.html"]
    assert "a (A) and b (B)" in pages[1].read_text(encoding="utf-8")
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "a")]) == 2
    assert "is given twice" in capsys.readouterr().err


def test_the_lead_of_two_runs_counts_only_what_could_be_told() -> None:
    """Ten changes of each cell; a task where the clean model guesses can't differ, whatever its changes do."""

    def guesses(task: str, protocol: str, variant: Variant, n: int) -> np.ndarray:
        if task == "arithmetic":
            return np.arange(n) < (n // 4 if variant.layer is None else 0)
        return np.ones(n, bool) if variant.layer != 3 else np.arange(n) % 2 == 0

    a = layers_run(protocols=("default",))
    b = layers_run(protocols=("default",), right=guesses)
    gap = runs_gap(a, b)
    assert gap.loc[gap["task"] == "arithmetic", "at_chance"].all()
    text = _lead(gap, 2)
    assert text.startswith("2 of 10 changes that both runs measured differ with q ≤ 0.05")
    assert "10 changes are at or near chance in one run" in text


@pytest.mark.slow
def test_five_variants_are_five_names(tmp_path: Path) -> None:
    page = layers_run(tmp_path / "run", tasks=("facts",), n_layers=4).report().read_text(encoding="utf-8")
    assert "5: clean, L0.skip, L1.skip, L2.skip, L3.skip" in page
    page = layers_run(tmp_path / "more", tasks=("facts",), n_layers=8).report().read_text(encoding="utf-8")
    assert "9: clean, L0.skip, L1.skip, L2.skip, …, L7.skip" in page
