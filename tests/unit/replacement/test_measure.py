"""Shares of a gain by hand, and delta runs on tiny models from folder to figures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from transformers import AutoModelForCausalLM

import lensprune as lp
from lensprune import cli
from lensprune.ablation.variants import CLEAN, Variant
from lensprune.engine.decoding import Checkpoint, GroupDecoder, checkpoint
from lensprune.errors import UserError
from lensprune.replacement import COMPONENTS, Part
from lensprune.replacement.outcomes import ReplacementOutcomes
from lensprune.replacement.parts import WeightChange
from lensprune.replacement.shares import gain_shares, share_intervals
from lensprune.replacement.variants import DISTILLED, Replacement, enumerate_replacements
from lensprune.runs.cell_store import MemoryStore
from lensprune.runs.records import CellKey, cell_table
from lensprune.terminal import WorkBar
from tests.helpers.chat_models import chat_tokenizer, save_chat_folder
from tests.helpers.families import hf_model
from tests.helpers.made_cells import outcome, outcomes_of, requests
from tests.helpers.model_pairs import fresh, pair_logits
from tests.helpers.printed import check_json_of

mpl.use("Agg")


def store(outcomes: dict[Any, list[bool]]) -> MemoryStore:
    made = MemoryStore()
    for variant, correct in outcomes.items():
        key = CellKey(variant.name, "t", "default")
        answers = [outcome(i, c) for i, c in enumerate(correct)]
        made.write(key, cell_table(key, variant, answers, requests(len(correct)), [0.0] * len(correct)))
    return made


def replaced(
    cells: dict[Any, list[bool]], replacements: list[Replacement], changes: dict[str, WeightChange]
) -> ReplacementOutcomes:
    stored = store(cells)
    spec = outcomes_of(stored, [variant.name for variant in cells]).spec
    return ReplacementOutcomes(spec, stored, None, replacements, changes, ("a", "b"), ())


def replacement(host: Any, layer: int) -> Replacement:
    return Replacement(host, (Part("mlp", layer),))


def answers(right: int, n: int = 40) -> list[bool]:
    return [i < right for i in range(n)]


CHANGES = {f"L{i}.mlp": WeightChange(i + 1.0, 0.1) for i in range(4)}


def test_shares_by_hand() -> None:
    replacements = [replacement("base", 0), replacement("distilled", 0), replacement("base", 1)]
    cells = {
        CLEAN: answers(8),
        Variant(DISTILLED): answers(28),
        replacements[0]: answers(18),
        replacements[1]: answers(13),
    }
    cells[replacements[2]] = answers(8)
    table = gain_shares(replaced(cells, replacements, CHANGES))
    forward, backward, nothing = (row for _, row in table.iterrows())
    assert forward["gain"] == pytest.approx(0.5)
    assert forward["gain_is_clear"]
    assert (forward["effect"], forward["share"]) == (pytest.approx(0.25), pytest.approx(0.5))
    assert forward["share_ci_low"] < 0.5 < forward["share_ci_high"] < 1
    # Taking the part away loses 15 of the 20 items that distillation brought.
    assert (backward["effect"], backward["share"]) == (pytest.approx(15 / 40), pytest.approx(0.75))
    assert (nothing["effect"], nothing["share"]) == (0, 0)
    # Not one of 40 items differs: 1 − 0.025^(1/40) either way, over a gain of one half.
    assert nothing["share_ci_high"] == pytest.approx(2 * (1 - 0.025 ** (1 / 40)))
    assert nothing["share_ci_low"] == pytest.approx(-nothing["share_ci_high"])
    assert nothing["weight_change"] == 2.0
    assert not table["at_chance"].any()


def test_no_share_of_an_unclear_gain() -> None:
    replacements = [replacement("base", 0)]
    cells = {CLEAN: answers(20), Variant(DISTILLED): [*answers(19, 20), *answers(2, 20)], replacements[0]: answers(30)}
    [row] = gain_shares(replaced(cells, replacements, CHANGES)).to_dict("records")
    assert row["gain"] == pytest.approx(0.025)
    assert not row["gain_is_clear"]
    assert np.isnan(row["share"])
    assert row["effect"] == pytest.approx(0.25)


def test_a_whole_swap_carries_exactly_the_gain() -> None:
    rng = np.random.default_rng(0)
    gains = rng.integers(0, 2, 50).astype(float)
    low, high = share_intervals(gains[:, None], gains, None)
    assert (low[0], high[0]) == (1, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> lp.ReplacementRun:
    out = tmp_path_factory.mktemp("delta") / "run"
    return lp.measure_replacement(
        fresh("llama", 0), fresh("llama", 1), "facts", ["default", "generate"], component="layer", mode="cumulative",
        limit=3, shots=0, out=out, progress=False, batch_tokens=2048,
    )  # fmt: skip


@pytest.mark.slow
def test_run_folder(run: lp.ReplacementRun) -> None:
    assert run.folder is not None
    for name in ("spec.json", "summary.csv", "replacement.csv", "figures/replacements_by_depth.png"):
        assert (run.folder / name).stat().st_size > 0
    assert (run.folder / "figures/replacements_by_weight_change.png").is_file()
    shares = run.shares()
    assert len(shares) == 2 * 3 * 2
    assert list(shares["weight_change"].unique()) == sorted(shares["weight_change"].unique())
    names = ["clean", "distilled", "base+L0", "distilled-L0", "base+L0..L1", "distilled-L0..L1", "base+L0..L2"]
    assert list(run.summary()["variant"].unique()) == [*names, "distilled-L0..L2"]
    assert set(run.records("base+L0")["ablation"]) == {"from_distilled"}
    assert len(run.weights_against_effect()) == 4


def test_a_folder_gives_the_exchange_back(run: lp.ReplacementRun) -> None:
    assert run.folder is not None
    again = lp.ReplacementRun.load(run.folder)
    pd.testing.assert_frame_equal(again.shares(), run.shares())
    pd.testing.assert_frame_equal(again.weights_against_effect(), run.weights_against_effect())
    assert (again.base, again.distilled, again.notes) == (run.base, run.distilled, run.notes)
    # The figure of a sweep would hold one direction alone, under the name of losses.
    assert not (run.folder / "figures" / "depth.png").exists()


@pytest.mark.slow
def test_report_and_resume_know_an_exchange(
    run: lp.ReplacementRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert cli.main(["report", str(run.folder), "--out", str(page)]) == 0
    assert "the distilled model gains" in page.read_text(encoding="utf-8")
    assert cli.main(["resume", str(run.folder)]) == 0
    assert f"{run.base} → {run.distilled}" in capsys.readouterr().out
    assert cli.main(["report", str(run.folder), str(tmp_path)]) == 2
    capsys.readouterr()
    assert cli.main(["analyse", str(run.folder), "depth"]) == 2
    assert "contains a weight replacement, but only sweeps can be analysed" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"ReplacementRun\.load"):
        lp.resume(run.folder)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "pair.json").unlink(), "has no pair.json"),
        (lambda folder: (folder / "pair.json").write_text("{", encoding="utf-8"), "pair.json is damaged"),
        (lambda folder: (folder / "pair.json").write_text("[]", encoding="utf-8"), "pair.json is damaged"),
        (lambda folder: next((folder / "records").glob("*.parquet")).unlink(), "is not finished"),
    ],
)
def test_a_folder_that_gives_no_exchange(run: lp.ReplacementRun, tmp_path: Path, harm: Any, message: str) -> None:
    folder = Path(shutil.copytree(run.folder, tmp_path / "copy"))  # type: ignore[arg-type]
    harm(folder)
    with pytest.raises(UserError, match=message):
        lp.ReplacementRun.load(folder)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_part_is_found_by_its_label(component: str) -> None:
    parts = [Part(component)] if component in ("embed", "unembed") else [Part(component, 12)]
    if component == "head":
        parts = [Part("head", 12, 3)]
    if component == "norms":
        parts.append(Part("norms"))
    for part in parts:
        assert Part.parse(part.label) == part
    with pytest.raises(ValueError, match="not the label"):
        Part.parse(f"{parts[0].label}.x")


@pytest.mark.slow
def test_figures_by_kind_and_the_page(run: lp.ReplacementRun) -> None:
    import matplotlib.pyplot as plt

    axes = run.plot(protocol="default")
    data = run.plot_data(protocol="default")
    assert not isinstance(axes, list)
    # Cumulative replacements stand at their number of parts, though the first of them is one layer.
    assert axes.get_xlabel() == "number of replaced parts, beginning with L0"
    lines = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 3]  # type: ignore[arg-type]
    assert lines == [[1, 2, 3], [1, 2, 3]]
    assert len(data) == 6
    assert "weight_change" in run.plot_data("weights").columns
    assert len(run.plot("weights")) == 2  # type: ignore[arg-type]
    plt.close("all")
    with pytest.raises(UserError, match="did you mean weights"):
        run.plot("weight")
    with pytest.raises(UserError, match="did you mean generate"):
        run.plot_data("depth", protocol="generat")
    page = run.report().read_text(encoding="utf-8")
    assert page.count("<figure>") == 2
    assert "distilled" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    # Random models answer at chance, so the page says so and no part is ranked.
    assert "at chance" in page
    assert "6 replacements, 2 cells each" in run._repr_html_()
    assert "L0" not in run._repr_html_()


def test_both_directions_are_mirror_images(tmp_path: Path) -> None:
    """Base + a part of distilled is distilled + the rest of base: here all layers against embeddings and final norm."""
    options: dict[str, Any] = {"limit": 4, "shots": 0, "progress": False, "mode": "range"}
    pair = fresh("llama", 0), fresh("llama", 1)
    before = [pair_logits(model) for model in pair]  # type: ignore[arg-type]
    layers = lp.measure_replacement(*pair, "facts", component="layer", **options).records()
    swapped = lp.measure_replacement(pair[1], pair[0], "facts", component="layer", **options).records()

    def logprobs(frame: Any, variant: str) -> list[float]:
        return list(frame[frame["variant"] == variant]["gold_logprob"])

    assert logprobs(layers, "base+L0..L2") == logprobs(swapped, "distilled-L0..L2")
    assert logprobs(layers, "clean") == logprobs(swapped, "distilled")
    assert logprobs(layers, "base+L0..L2") != logprobs(layers, "clean")
    for model, old in zip(pair, before, strict=True):
        assert (pair_logits(model) == old).all()  # type: ignore[arg-type]


@pytest.mark.slow
def test_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lensprune.replacement.measure as measure

    pair = fresh("llama", 0), fresh("llama", 1)
    before = [pair_logits(model) for model in pair]  # type: ignore[arg-type]
    options: dict[str, Any] = {"component": "mlp", "limit": 3, "shots": 0, "progress": False, "out": tmp_path / "run"}
    measured: list[str] = []
    original = measure._measure

    def counted(executor: Any, variant: Any, *rest: Any) -> None:
        if variant.name == "distilled-L1.mlp" and "stopped" not in measured:
            measured.append("stopped")
            raise KeyboardInterrupt
        measured.append(variant.name)
        original(executor, variant, *rest)

    monkeypatch.setattr(measure, "_measure", counted)
    with pytest.raises(KeyboardInterrupt, match="same arguments"):
        lp.measure_replacement(*pair, "facts", **options)
    for model, old in zip(pair, before, strict=True):
        assert (pair_logits(model) == old).all()  # type: ignore[arg-type]
    stopped = len(list((tmp_path / "run" / "records").iterdir()))
    assert stopped == 2 + 3
    with pytest.raises(UserError, match="lensprune delta again"):
        lp.resume(tmp_path / "run")
    again = lp.measure_replacement(*pair, "facts", **options)
    assert len(again.shares()) == 6
    with pytest.raises(UserError, match="contains another run"):
        lp.measure_replacement(pair[1], pair[0], "facts", **options)


@pytest.mark.slow
def test_goes_on_in_the_middle_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = fresh("llama", 0), fresh("llama", 1)
    options: dict[str, Any] = {"component": "mlp", "limit": 4, "shots": 0, "max_new_tokens": 12}
    steps: list[int] = []
    advance = GroupDecoder._advance
    stored_at = stop_at = -1

    def counted(self: GroupDecoder, rows: Any, tokens: Any) -> Any:
        if self._limits is not None:
            if len(steps) == stop_at:
                raise KeyboardInterrupt
            steps.append(len(rows))
        return advance(self, rows, tokens)

    monkeypatch.setattr(GroupDecoder, "_advance", counted)
    monkeypatch.setattr(Checkpoint, "due", lambda self: len(steps) == stored_at)
    monkeypatch.setattr(checkpoint, "MAX_SHARE", np.inf)
    reported: list[float] = []
    monkeypatch.setattr(WorkBar, "done", lambda self, work, kind: reported.append(work))
    whole = lp.measure_replacement(*pair, "arithmetic", "generate", progress=False, **options).records()
    # Two models and six exchanges, in tokens.
    assert sum(reported) == pytest.approx(8 * 4)
    assert len(reported) > 2 * 8
    n_steps, out = len(steps), tmp_path / "run"
    # In the third exchange.
    stored_at, stop_at = n_steps * 9 // 16, n_steps * 9 // 16 + 3
    steps.clear()
    with pytest.raises(KeyboardInterrupt, match="and answers of unfinished ones are stored"):
        lp.measure_replacement(*pair, "arithmetic", "generate", progress=False, out=out, **options)
    assert list((out / "answers").glob("*.decoding"))
    steps.clear()
    reported.clear()
    stored_at, n_stored, stop_at = -1, stored_at, -1
    again = lp.measure_replacement(*pair, "arithmetic", "generate", progress=False, out=out, **options)
    pd.testing.assert_frame_equal(again.records(), whole)
    assert len(steps) == n_steps - n_stored
    assert 0 < sum(reported) < 4 * 4
    assert not list((out / "answers").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"component": "attention_ouput"}, "did you mean attention_output"),
        ({"mode": "cumulativ"}, "did you mean cumulative"),
        ({"alpha": 2}, "expected 0 to 1"),
        ({"executor": "forkd"}, "did you mean forked"),
        ({"layers": "7"}, "out of range"),
        ({"component": "head", "heads": "9"}, "out of range"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lp.measure_replacement(fresh("llama", 0), fresh("llama", 1), "facts", limit=1, progress=False, **options)


def test_unembedding_of_a_tied_model() -> None:
    with pytest.raises(UserError, match="use component embed"):
        lp.measure_replacement(
            fresh("gpt2", 0), fresh("gpt2", 1), "facts", component="unembed", limit=1, progress=False
        )


@pytest.mark.slow
def test_command(family_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(family_folder("llama"))
    arguments = ["delta", "--base", folder, "--distilled", folder, "--task", "facts", "--limit", "2", "--shots", "0"]
    arguments += ["--component", "mlp", "--layers", "0-1", "--direction", "forward"]
    assert cli.main([*arguments, "--out", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert "gain +0.000" in output
    assert "the same weights, so no replacement changes anything" in output
    assert "replacement.csv" in output
    capsys.readouterr()
    for shown in (["resume", str(tmp_path / "run")], [*arguments, "--out", str(tmp_path / "run")]):
        assert cli.main([*shown, "--json"]) == 0
        check_json_of(capsys.readouterr().out, tmp_path / "run" / "replacement.csv")
    assert cli.main([*arguments, "--direction", "foward"]) == 2
    assert "did you mean forward" in capsys.readouterr().err


def test_figures_of_every_kind() -> None:
    import matplotlib.pyplot as plt

    from lensprune.replacement.figures import effect_against_weights, effect_by_depth

    for parts in ([Part("mlp", i) for i in range(3)], [Part("head", 0, i) for i in range(3)]):
        replacements = enumerate_replacements(parts)
        changes = {s.label: WeightChange(1.0, 0.1) for s in replacements}
        cells: dict[Any, list[bool]] = {CLEAN: answers(5), Variant(DISTILLED): answers(30)}
        cells |= {s: answers(10 + i) for i, s in enumerate(replacements)}
        shares = gain_shares(replaced(cells, replacements, changes))
        [ax] = effect_by_depth(shares, n_layers=3, title="a → b")
        labels = [text.get_text() for text in ax.get_legend().get_texts()]
        assert labels[:3] == ["whole gain +0.62 (n 40)", "into the base", "out of the distilled"]
        drawn = [line for line in ax.lines if len(line.get_xdata()) == 3]  # type: ignore[arg-type]
        assert len(drawn) == (2 if parts[0].component == "mlp" else 0)
        if drawn:
            assert list(drawn[0].get_ydata()) == pytest.approx([(5 + 2 * i) / 40 for i in range(3)])  # type: ignore[arg-type]
        effect_against_weights(shares)
        plt.close("all")
    with pytest.raises(UserError, match="nothing to draw"):
        effect_by_depth(shares[:0], n_layers=3)


@pytest.fixture(scope="module")
def thinkers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base without a chat template, and a distilled model with one and a penalty; they differ in blocks alone."""
    place = tmp_path_factory.mktemp("thinkers")
    distilled = save_chat_folder("qwen", place / "distilled")
    (distilled / "generation_config.json").write_text('{"repetition_penalty": 1.6, "eos_token_id": [5, 9]}')
    tokenizer = chat_tokenizer("qwen")
    tokenizer.chat_template = None
    base = hf_model("qwen3", 1, vocab_size=len(tokenizer), max_position_embeddings=1024)
    others = AutoModelForCausalLM.from_pretrained(distilled).state_dict()
    base.load_state_dict({name: w for name, w in others.items() if ".layers." not in name}, strict=False)
    base.save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    return place / "base", distilled


@pytest.mark.slow
def test_both_models_have_one_models_settings(
    thinkers: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, distilled = (lp.load_model(folder, device="cpu", self_check=False) for folder in thinkers)
    configs = [model.original_model.generation_config for model in (base, distilled)]
    asked: dict[str, Any] = {
        "component": "layer", "mode": "range", "limit": 3, "shots": 0, "max_new_tokens": 12, "chat_template": True,
        "thinking": "on", "out": tmp_path / "run", "progress": False,
    }  # fmt: skip
    run = lp.measure_replacement(base, distilled, "arithmetic", "generate", **asked)
    assert [model.original_model.generation_config for model in (base, distilled)] == configs
    assert (run.spec.settings_of, run.spec.think_tokens) == ("distilled", ("<think>", "</think>"))
    assert run.spec.decoding["repetition_penalty"] == 1.6
    assert "generation config of both: those of" in run.notes[-1]
    columns = ["item_id", "text", "thinking", "n_tokens", "stop_reason"]
    rows = {name: run.records(name)[columns].reset_index(drop=True) for name in run.spec.variant_names}
    # With every differing weight the one model is the other, to the last token.
    pd.testing.assert_frame_equal(rows["base+L0..L2"], rows["distilled"])
    pd.testing.assert_frame_equal(rows["distilled-L0..L2"], rows["clean"])
    assert not rows["clean"].equals(rows["distilled"])
    prompts = run.records(prompts=True)["prompt"]
    assert prompts.nunique() == 3
    assert prompts.str.startswith("<|im_start|>user").all()
    assert "distilled" in run.report(tmp_path / "page.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r'whose settings count \(settings_of\): "distilled" there, "base" here'):
        lp.measure_replacement(
            base, distilled, "arithmetic", "generate",
            **{**asked, "chat_template": False, "thinking": "auto", "settings_of": "base"},
        )  # fmt: skip
    free = lp.measure_replacement(
        base, distilled, "arithmetic", "generate",
        **{**asked, "chat_template": False, "thinking": "auto", "out": None, "settings_of": "base"},
    )  # fmt: skip
    assert "repetition_penalty" not in free.spec.decoding
    with pytest.raises(UserError, match="has no chat template"):
        lp.measure_replacement(base, distilled, "arithmetic", "generate", **{**asked, "settings_of": "base"})
    with pytest.raises(UserError, match="unknown model whose settings count 'bse': did you mean base"):
        lp.measure_replacement(base, distilled, "arithmetic", "generate", **{**asked, "settings_of": "bse"})
