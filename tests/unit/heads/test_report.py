"""`lensprune heads` end to end on planted heads: files, the joined table, and what is printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from lensprune.ablation import each_head, each_layer
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.heads import HeadTable, head_scores, scores_with_effects
from lensprune.heads.report import heads_report
from lensprune.heads.table import check_same_model
from lensprune.models import as_hooked_model
from lensprune.results.run import Run
from lensprune.sweeps.run import sweep
from tests.helpers.planted.circuits import ARITHMETIC, LEAK, model_of
from tests.helpers.planted.models import build, word_tokenizer
from tests.helpers.printed import check_json_of

mpl.use("agg")

SCORES = ["operator_attention", "operand_at_operator"]


@pytest.fixture(scope="module")
def head_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Sums of the planted model, whose answer is the first operand: it is never right, and sometimes nearest."""
    model = model_of("arithmetic", "llama")
    out = tmp_path_factory.mktemp("run") / "heads"
    protocols = ["continuation", "default"]
    return sweep(model, ["arithmetic"], protocols, each_head(model), limit=12, shots=0, out=out, progress=False)


def test_table_of_scores_and_effects(head_run: Run) -> None:
    scores = head_scores(model_of("arithmetic", "llama"), SCORES, limit=3)
    joined = scores_with_effects(scores, head_run)
    joined = joined[joined["protocol"] == "continuation"]
    assert len(joined) == 8
    assert list(joined.columns[:4]) == ["layer", "head", *SCORES]
    row = joined[(joined["layer"] == 0) & (joined["head"] == 3)].iloc[0]
    assert row["operand_at_operator"] == pytest.approx(1, abs=LEAK)
    summary = head_run.summary().query("protocol == 'continuation'").set_index("variant")
    for own in joined.itertuples():
        assert own.delta == summary.loc[f"L{own.layer}.H{own.head}.zero", "delta"]


def test_figures_by_kind(head_run: Run) -> None:
    scores = head_scores(model_of("arithmetic", "llama"), SCORES, limit=3)
    table = HeadTable(scores, head_run)
    assert len(table.plot()) == len(SCORES)  # type: ignore[arg-type]
    assert len(table.plot_data("map", "operand_at_operator")) == 8
    axes = table.plot("scatter", "operand_at_operator")
    assert [ax.get_xlabel() for ax in axes] == ["operand at operator"] * 2  # type: ignore[union-attr]
    data = table.plot_data("scatter", "operand_at_operator")
    assert len(data) == 2 * 8
    assert {"operand_at_operator", "delta", "q_loss", "q_gain"} <= set(data.columns)
    assert "operator_attention" not in data.columns
    plt.close("all")
    assert "HeadTable(8 heads, 2 scores, beside" in table._repr_html_()
    for options, message in (
        (("scater",), "did you mean scatter"),
        (("map", "operator_atention"), "did you mean operator_attention"),
        (("scatter",), "give score, one of operator_attention"),
    ):
        with pytest.raises(UserError, match=message):
            table.plot(*options)
    with pytest.raises(UserError, match="give HeadTable a run"):
        HeadTable(scores).plot("scatter", "operand_at_operator")


def test_effects_concentrate_on_the_planted_heads(head_run: Run) -> None:
    frame = head_run.concentration(protocol="continuation", measure="gold_logprob", top=(2,)).set_index("statistic")
    # All other heads are idle, so their shares are rounding over a loss of several nats.
    assert frame.loc["share_top_2", "value"] == pytest.approx(1, abs=1e-4)
    assert frame.loc["participation_ratio", "value"] == pytest.approx(2, abs=10 * LEAK)
    # All other heads are idle, so their shares are rounding over a loss of several nats.
    assert frame.loc["share_top_2", "n_parts"] == 8


@pytest.mark.slow
def test_report_writes_what_it_names(head_run: Run, tmp_path: Path) -> None:
    text = heads_report(model_of("arithmetic", "llama"), tmp_path, scores=SCORES, run=head_run.folder, limit=3, most=2)
    assert "L0.H3 1.00" in text
    assert "participation_ratio" in text
    assert "shared of the top 4" in text
    for name in ("heads.csv", "heads_and_effects.csv", "concentration.csv", "overlap.csv", "figures/heads.png"):
        assert (tmp_path / name).is_file()
        assert name in text
    assert len(pd.read_csv(tmp_path / "heads.csv")) == 16
    text = heads_report(
        model_of("arithmetic", "llama"), tmp_path, scores=SCORES, run=head_run.folder, limit=3, as_json=True
    )
    check_json_of(text, tmp_path / "heads_and_effects.csv")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    build(ARITHMETIC, "gpt2").save_pretrained(folder)
    word_tokenizer(ARITHMETIC.vocabulary).save_pretrained(folder)
    out = tmp_path / "out"
    options = ["--score", "operand_at_operator", "--limit", "3", "--bos", "always", "--out", str(out)]
    assert main(["heads", "--model", str(folder), *options]) == 0
    assert "L0.H3 1.00" in capsys.readouterr().out
    assert main(["heads", "--model", str(folder), *options, "--json"]) == 0
    check_json_of(capsys.readouterr().out, out / "heads.csv")
    assert main(["heads", "--model", str(folder), "--score", "nonsense"]) == 2
    assert "unknown head score" in capsys.readouterr().err


def test_refusals(tmp_path: Path) -> None:
    model = model_of("arithmetic", "llama")
    layers = sweep(model, ["arithmetic"], ["continuation"], each_layer(model), limit=2, shots=0, progress=False)
    scores = head_scores(model, ["copying"])
    with pytest.raises(UserError, match="removes no single head"):
        scores_with_effects(scores, layers)
    with pytest.raises(UserError, match="cannot read"):
        heads_report(model, text_file=tmp_path / "missing.txt")
    # Before anything is measured: the name of a score is looked at later.
    with pytest.raises(UserError, match="removes no single head"):
        heads_report(model, run=layers, scores=["no such score"], progress=False)


def test_a_sweep_of_another_model_is_refused(head_run: Run) -> None:
    other = Run.load(head_run.folder)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"the run measured .* but the scores are of toy-base"):
        heads_report("toy-base", scores=["induction"], run=other, device="cpu")
    facts = as_hooked_model(model_of("arithmetic", "llama")).facts
    check_same_model(other, facts)
    # Another number type has other bytes, and the same name.
    check_same_model(other, replace(facts, dtype="bfloat16", weights_hash="0" * 64))
    with pytest.raises(UserError, match="give a run of the same model"):
        check_same_model(other, replace(facts, dtype="bfloat16", weights_hash="0" * 64, name="another"))
