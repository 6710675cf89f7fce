"""The validation of fidelity, on the shipped toy."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from lensprune.cli import main
from lensprune.divergence.scores import AGREEMENT_COLUMNS
from lensprune.divergence.study import MEASURES, FidelityStudy, validate_fidelity
from lensprune.errors import UserError
from tests.helpers.printed import check_json_of

TASK = "kv_retrieval[pairs=4,ending=reopened,answer=text]"


@pytest.fixture(scope="module")
def study() -> FidelityStudy:
    return validate_fidelity(
        "toy-distilled", [TASK], ["continuation", "generate"], limit=12, device="cpu", resamples=50, progress=False
    )


def test_every_measure_meets_every_protocol(study: FidelityStudy) -> None:
    found = study.agreement
    assert set(found["protocol"]) == {"continuation", "generate"}
    assert list(found.loc[found["protocol"] == "generate", "measure"]) == list(MEASURES)
    assert found["p_value"].between(0, 1).all()
    assert found["n_variants"].eq(4).all()
    assert found["accuracy_clean"].gt(0.7).all()
    assert found["ceiling"].between(0, 1).all()
    assert study.scores["perplexity_change"].notna().all()
    row = study.seconds.iloc[0]
    assert row["ratio"] == pytest.approx(row["generate"] / row["fidelity"])
    assert row["few_ratio"] == pytest.approx(row["generate"] / row["few"])


def test_only_right_answers_are_read(study: FidelityStudy) -> None:
    summary = study.summary[(study.summary["protocol"] == "generate") & (study.summary["variant"] == "clean")].iloc[0]
    assert study.scores["n"].eq(round(summary["accuracy"] * summary["n"])).all()
    few = study.sample_efficiency
    assert list(few["score"].unique()) == ["fidelity", "generate", "shuffled"]
    assert (few["n_few"] + few["n_rest"]).eq(12).all()
    mean = few.groupby("score")["spearman"].mean()
    assert mean["fidelity"] > mean["shuffled"] + 0.2


def test_fidelity_follows_what_is_lost(study: FidelityStudy) -> None:
    """Retrieval needs blocks 0 and 1 by construction: both scores put them first."""
    summary = study.summary
    lost = summary[(summary["protocol"] == "generate") & (summary["variant"] != "clean")].set_index("layer")["delta"]
    scores = study.scores.set_index("layer")["fidelity"]
    assert set(lost.sort_values().index[:2]) == {0, 1}
    assert set(scores.sort_values().index[:2]) == {0, 1}


def test_kinds_of_failure_sum_to_what_is_lost(study: FidelityStudy) -> None:
    kinds = study.gap[["no_answer", "degenerate", "wrong_answer", "non_finite"]].sum(axis=1)
    assert kinds.to_numpy() == pytest.approx(study.gap["delta"].to_numpy())
    summary = study.summary[study.summary["protocol"] == "generate"].set_index("variant")["delta"]
    assert study.gap["delta"].to_numpy() == pytest.approx(summary[study.gap["variant"]].to_numpy())


@pytest.mark.slow
def test_heads_have_no_similarity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["fidelity", "--model", "toy-distilled", "--task", TASK, "--limit", "6", "--device", "cpu"]
    assert main([*command, "--over", "heads", "--layers", "0-1", "--validate", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "rank correlation with Δμ over 8 parts" in printed
    assert "block_influence" not in printed
    assert "against the other" in printed
    assert main([*command, "--over", "heads", "--layers", "0-1", "--validate", "--out", str(tmp_path), "--json"]) == 0
    check_json_of(capsys.readouterr().out, tmp_path / "agreement.csv")
    names = ("fidelity", "agreement", "summary", "gap", "sample_efficiency", "seconds")
    assert all(len(pd.read_csv(tmp_path / f"{name}.csv")) for name in names)


SUMS = "arithmetic[operands=3,largest=9,subtract=True]"


def validated(seed: int, out: Path) -> list[str]:
    command = ["fidelity", "--model", "toy-base", "--task", SUMS, "--limit", "10", "--validate", "--device", "cpu"]
    return [*command, "--protocol", "generate", "--seed", str(seed), "--out", str(out)]


@pytest.mark.slow
def test_a_model_at_chance_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With this seed the base is right on 3 of 10 items whose chance is 1 in 10: 0.07 by the binomial law."""
    assert main(validated(0, tmp_path)) == 0
    printed = capsys.readouterr().out
    assert f"{SUMS}, generate: at chance (clean accuracy 0.30, n 10), so Δμ means nothing" in printed
    assert "rank correlation" not in printed
    found = pd.read_csv(tmp_path / "agreement.csv")
    assert list(found.columns) == [*AGREEMENT_COLUMNS, "accuracy_clean", "n", "ceiling"]
    assert found.empty


@pytest.mark.slow
def test_few_items_without_a_right_answer_are_not_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With this seed the base is right on 8 of 10 items, but on neither of the first two."""
    assert main(validated(6, tmp_path)) == 0
    row = pd.read_csv(tmp_path / "seconds.csv").iloc[0]
    assert row["ratio"] > 0
    assert row[["few", "few_ratio"]].isna().all()
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{SUMS}  ")]
    assert line.split()[-2:] == ["-", "-"]


def test_fidelity_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["fidelity", "--model", "toy-distilled", "--task", TASK, "--limit", "6", "--device", "cpu"]
    assert main(command) == 0
    assert "L0.skip" in capsys.readouterr().out
    assert main([*command, "--json", "--out", str(tmp_path)]) == 0
    check_json_of(capsys.readouterr().out, tmp_path / "fidelity.csv")


def test_what_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["fidelity", "--model", "toy-distilled", "--task", TASK, "--protocol", "generate"]
    assert main(command) != 0
    assert "add --validate" in capsys.readouterr().err
    with pytest.raises(UserError, match="did you mean layers"):
        validate_fidelity("toy-base", [TASK], over="layer")
    with pytest.raises(UserError, match="lack generate"):
        validate_fidelity("toy-base", [TASK], ["default"])
