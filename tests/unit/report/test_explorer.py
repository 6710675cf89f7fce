"""The explorer of a page: maps, a second run's answers, attention patterns, and the page in a notebook."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import lensprune as lp
from lensprune.ablation.variants import Variant
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.results import explorer
from lensprune.results.explorer import Page, attention_patterns, effects_map
from lensprune.results.run import Run
from tests.helpers.made_runs import HOSTILE, heads_run, layers_run
from tests.helpers.tiny_models import folder, tiny

mpl.use("agg")


def payload(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="records">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Heads of the first layer of a random model."""
    out = tmp_path_factory.mktemp("run") / "heads"
    return lp.sweep(
        folder("llama"), "facts", "continuation", lp.each_head(tiny("llama"), "zero", [0]),
        limit=3, shots=0, out=out, progress=False,
    )  # fmt: skip


def test_the_map_has_every_change_and_marks_what_is_critical() -> None:
    run = heads_run()
    summary = run.summary().set_index(["task", "protocol", "variant"])
    maps = effects_map(run)
    assert [(cell["task"], cell["protocol"]) for cell in maps] == run.conditions
    critical = set()
    for cell in maps:
        assert len(cell["parts"]) == 8
        for layer, column, variant, delta, q, named in cell["parts"]:
            row = summary.loc[cell["task"], cell["protocol"], variant]
            assert (row["layer"], f"head {row['head']}", row["delta"]) == (layer, column, delta)
            assert q == pytest.approx(row["q_loss"], abs=1e-4)
            critical |= {(variant, delta)} if named else set()
    assert critical == {("L1.H2.zero", -0.5)}


def test_two_ablations_have_columns_of_their_own_and_hooks_none() -> None:
    both = [lp.Ablation(lp.Layer(0), kind) for kind in ("skip", "zero")]
    variants = [Variant(one.name, (one,)) for one in both] + [
        Variant("set", (both[0], lp.Ablation(lp.Layer(1), "skip")))
    ]
    [cell] = effects_map(layers_run(variants=variants, tasks=("facts",), protocols=("default",), n=4))
    assert [part[:3] for part in cell["parts"]] == [
        [0, "whole layer, skip", "L0.skip"], [0, "whole layer, zero", "L0.zero"]
    ]  # fmt: skip


@pytest.mark.slow
def test_a_second_runs_answers_stand_beside_the_first_ones(tmp_path: Path) -> None:
    def weaker(task: str, protocol: str, variant: Variant, n: int) -> np.ndarray:
        return np.arange(n) % 4 != 1

    a = heads_run(folder=tmp_path / "a", n=8, text="the first")
    b = layers_run(tmp_path / "b", variants=_variants(a), right=weaker, n=8, text="the first")
    held = payload(a.explore(b).html)
    assert held["two"]
    assert [one["name"] for one in held["maps"]] == ["A: a", "B: b"]
    assert len(held["rows"]) == 8 * 8 * 4
    for row in held["rows"]:
        number = int(row[1].removeprefix("item "))
        prediction, text, correct, *_ = row[10]
        assert (text, bool(correct)) == ("the first", number % 4 != 1)
        assert prediction == ("the first" if number % 2 else None)
    page = layers_run(n=4, tasks=("facts",)).explore().html
    assert not payload(page)["two"]
    assert "changed model, B" not in page


def _variants(run: Run) -> list[Variant]:
    from lensprune.runs.variant_json import variant_from_json

    return [variant_from_json(one) for one in run.spec.variants[1:]]


def test_only_items_that_both_asked_have_a_second_answer(tmp_path: Path) -> None:
    a = layers_run(n=4, tasks=("facts",), protocols=("default",), n_layers=2, folder=tmp_path / "a")
    other = layers_run(n=4, tasks=("facts",), protocols=("default",), n_layers=2, items_hash="j" * 64, text="else")
    rows = payload(a.explore(other).html)["rows"]
    assert len(rows) == 8
    assert all(row[10] is None for row in rows)


def test_hostile_text_of_a_second_run_is_inert(tmp_path: Path) -> None:
    a = layers_run(tmp_path / "a", n=2, n_layers=2, tasks=("facts",), text=HOSTILE)
    b = layers_run(tmp_path / "b", n=2, n_layers=2, tasks=("facts",), text=HOSTILE)
    page = a.explore(b)
    assert page.html.count("</script>") == 2
    assert "<script>window" not in page.html
    assert "\u202e" not in page.html
    frame = page._repr_html_()
    assert frame.count("<") == 2
    found = re.search(r'srcdoc="([^"]*)"', frame)
    assert found is not None
    assert html.unescape(found[1]) == page.html
    assert "allow-same-origin" not in frame


def test_a_page_to_look_at_names_no_file_and_can_be_saved(tmp_path: Path) -> None:
    page = layers_run(n=4, tasks=("facts",), n_layers=2).explore()
    assert isinstance(page, Page)
    assert not re.search(r'(src|href)="(?!data:|#)', page.html)
    assert "summary.csv" in page.html
    assert page.save(tmp_path / "page.html").read_text(encoding="utf-8") == page.html
    with pytest.raises(UserError):
        page.save(tmp_path / "nowhere" / "page.html")


def test_patterns_are_those_of_the_model(heads: Run) -> None:
    """Against attention weights as transformers computes them."""
    found = attention_patterns(heads, 2)
    assert "stored for the 2 heads with the largest losses" in found.note
    reference = AutoModelForCausalLM.from_pretrained(folder("llama"), attn_implementation="eager")
    tokenizer = tiny("llama").tokenizer
    checked = 0
    for item in found.items:
        question = heads.item(item["item"], "facts").questions["continuation"]
        assert "".join(item["tokens"]).replace("\u2581", " ").endswith(question.prompt.rstrip()[-5:])
        ids = tokenizer.encode(question.prompt.rstrip())
        assert len(ids) == len(item["tokens"])
        with torch.no_grad():
            weights = reference(torch.tensor([ids]), output_attentions=True).attentions[0][0]
        for name, packed in item["heads"].items():
            head = int(name.split(".")[1].removeprefix("H"))
            rows = np.frombuffer(base64.b64decode(packed), np.uint8) / 255
            mine = np.zeros((len(ids), len(ids)))
            mine[np.tril_indices(len(ids))] = rows
            # Half of a byte's step, and rounding of sums in float32.
            assert np.abs(mine - weights[head].numpy()).max() < 0.5 / 255 + 1e-4
            assert mine[1:, 0].max() < 1
            checked += 1
    assert checked == 2


def test_of_long_prompts_the_end_is_kept(heads: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attention_patterns(heads, 1).items[0]
    monkeypatch.setattr(explorer, "MAX_TOKENS", 4)
    short = attention_patterns(heads, 1).items[0]
    cut = len(whole["tokens"]) - 4
    assert short["tokens"] == [f"… {cut} earlier tokens", *whole["tokens"][cut:]]
    [(name, packed)] = short["heads"].items()
    last = np.frombuffer(base64.b64decode(packed), np.uint8)[-5:].astype(int)
    of_whole = np.frombuffer(base64.b64decode(whole["heads"][name]), np.uint8)[-len(whole["tokens"]) :].astype(int)
    assert last[1:].tolist() == of_whole[cut:].tolist()
    # Each weight is rounded to a byte.
    assert abs(last[0] - of_whole[:cut].sum()) <= cut
    assert last.sum() == pytest.approx(255, abs=5)


@pytest.mark.slow
def test_a_model_that_cannot_be_reached_is_said_to_be(
    heads: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = heads_run(n=2)
    assert "can't be loaded (the run's model was given as an object" in attention_patterns(made, 1).note
    assert "has different weights" in attention_patterns(heads, 1, tiny("gpt2").module).note
    assert "removes no single head" in attention_patterns(layers_run(n=2), 1).note
    assert "stored with lensprune report --patterns N" in made.explore().html
    with pytest.raises(UserError, match="patterns -1 keeps no attention pattern"):
        made.report(tmp_path / "none.html", patterns=-1)
    assert not (tmp_path / "records.csv").exists()
    with pytest.raises(UserError, match="patterns 0 keeps no attention pattern"):
        made.explore(model="toy-base")
    assert main(["report", str(heads.folder), "--patterns", "1"]) == 0
    page = Path(capsys.readouterr().out.strip()).read_text(encoding="utf-8")
    assert len(payload(page)["patterns"]["items"]) == 1
