"""Prompts, options and their log-probabilities of a sweep, from its records, items and page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import lensprune as lp
from lensprune.errors import UserError
from lensprune.models.adapt import as_hooked_model
from lensprune.protocols import build_requests
from lensprune.tasks import registry
from tests.helpers.logits import hooked_logits
from tests.helpers.sweeps import sweep
from tests.helpers.tolerances import assert_tensors_agree

TASKS = ("facts", "arithmetic")
PROTOCOLS = ("default", "continuation", "generate")


@pytest.fixture(scope="module")
def folder(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> lp.Run:
    return sweep(folder, tmp_path_factory.mktemp("runs") / "run", tasks=TASKS, protocols=PROTOCOLS, shots=1)


def test_records_hold_what_the_protocol_sends(folder: Path, run: lp.Run) -> None:
    model = as_hooked_model(lp.load_model(str(folder), device="cpu"))
    records = run.records(prompts=True)
    assert len(records) == len(run.records())
    for task in TASKS:
        loaded = lp.load_task(task, limit=3, shots=1)
        for protocol in PROTOCOLS:
            asked = build_requests(model, loaded, protocol)
            for variant in run.spec.variant_names:
                chosen = (records[["variant", "task", "protocol"]] == [variant, task, protocol]).all(axis=1)
                own = records[chosen]
                assert own["item_id"].tolist() == [a.item.id for a in asked]
                assert own["prompt"].tolist() == [a.prompts[0].context for a in asked]
                continuations = [[p.continuation for p in a.prompts if p.continuation] for a in asked]
                assert own["options"].tolist() == continuations
    # A prompt is held once, however many variants there are.
    assert len({id(prompt) for prompt in records["prompt"]}) == 3 * len(TASKS) * len(PROTOCOLS)


def test_log_probabilities_are_those_of_the_model_itself(folder: Path, run: lp.Run) -> None:
    model = as_hooked_model(lp.load_model(str(folder), device="cpu"))
    variants = [lp.CLEAN, lp.each_layer(model, "skip")[1]]
    records = run.records(prompts=True)
    scored = records[(records["item_id"] == records["item_id"].iloc[0]) & (records["protocol"] != "generate")]
    for variant in variants:
        for record in scored[scored["variant"] == variant.name].itertuples():
            direct = []
            for option, n_tokens in zip(record.options, record.option_tokens, strict=True):
                ids = model.tokenizer.encode(record.prompt + option)
                logprobs = hooked_logits(model, ids, variant).reshape(len(ids), -1).log_softmax(-1)
                places = range(len(ids) - n_tokens, len(ids))
                direct.append(sum(float(logprobs[place - 1, ids[place]]) for place in places))
            assert_tensors_agree(record.option_logprobs, direct, torch.float32)
            assert record.option_logprobs[record.gold] == record.gold_logprob
            assert len(set(record.option_logprobs)) > 1
    assert set(scored["protocol"]) == {"default", "continuation"}


def test_lengths_give_back_the_normalised_metric(run: lp.Run) -> None:
    records = run.records(task="facts", protocol="continuation", prompts=True)
    normalised = [
        float(np.argmax(np.array(r.option_logprobs) / np.array(r.option_characters)) == r.gold)
        for r in records.itertuples()
    ]
    assert normalised == [metrics["acc_norm"] for metrics in records["metrics"]]


def test_a_run_read_from_disk_and_one_in_memory_have_the_same(folder: Path, run: lp.Run) -> None:
    assert run.folder is not None
    memory = sweep(folder, None, tasks=TASKS, protocols=PROTOCOLS, shots=1)
    pd.testing.assert_frame_equal(memory.records(prompts=True), run.records(prompts=True))
    pd.testing.assert_frame_equal(lp.Run.load(run.folder).records(prompts=True), run.records(prompts=True))


def test_a_copy_has_the_questions(run: lp.Run, tmp_path: Path) -> None:
    run.save(tmp_path / "copy")
    copied = lp.Run.load(tmp_path / "copy")
    pd.testing.assert_frame_equal(copied.records(prompts=True), run.records(prompts=True))


def test_an_item_shows_every_protocol_and_variant(run: lp.Run) -> None:
    item = run.item(1, task="arithmetic")
    assert item.item_id == "1"
    assert list(item.questions) == list(PROTOCOLS)
    assert len(item.answers) == len(PROTOCOLS) * len(run.spec.variant_names)
    records = run.records(task="arithmetic", prompts=True)
    wanted = records[records["item_id"] == "1"].set_index(["protocol", "variant"])
    options = item.options()
    assert len(options) == 2 * 4 * len(run.spec.variant_names)
    assert options.groupby(["protocol", "variant"])["right"].sum().eq(1).all()
    for place, own in options.groupby(["protocol", "variant"]):
        assert own["logprob"].tolist() == wanted.loc[place, "option_logprobs"]
    shown = repr(item)
    for text in ("Item 1 of arithmetic", *PROTOCOLS, *run.spec.variant_names, f"{options['logprob'].iloc[0]:.3f}"):
        assert text in shown
        assert text in item._repr_html_()
    assert list(run.item("1", "arithmetic", "generate").questions) == ["generate"]


def test_a_name_in_two_tasks_or_in_none(folder: Path, run: lp.Run) -> None:
    two = sweep(folder, None, tasks=("arithmetic", "kv_retrieval[pairs=2]"), protocols="continuation")
    name = two.records()["item_id"].iloc[0]
    with pytest.raises(UserError, match=rf"item '{name}' is in 2 tasks .*task='arithmetic'"):
        two.item(name)
    assert two.item(name, task="arithmetic").task == "arithmetic"
    known = run.records(task="facts")["item_id"].iloc[0]
    with pytest.raises(UserError, match=rf"unknown item '{known}x': did you mean {known}"):
        run.item(f"{known}x")
    with pytest.raises(UserError, match=r"choose one of: .*\(6 items\)"):
        run.item("???")
    with pytest.raises(UserError, match="unknown task of this run 'fact'"):
        run.item("1", task="fact")


def test_missing_questions_are_written_by_resuming(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = sweep(folder, out, tasks=("facts",))
    before = first.records(prompts=True)
    for path in (out / "questions").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"lacks the questions of facts.*lensprune resume"):
        lp.Run.load(out).records(prompts=True)
    assert len(lp.Run.load(out).records()) == len(before)
    pd.testing.assert_frame_equal(lp.resume(out, progress=False).records(prompts=True), before)


def test_another_right_answer_to_the_same_prompt_is_another_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_builders", {})
    (tmp_path / "rows.jsonl").write_text('{"q": "1+1", "a": "2", "b": "3"}\n')
    text = (
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        'doc_to_text: "{{q}}="\ndoc_to_target: a\ngeneration_kwargs: {max_gen_toks: 2}\n'
    )
    path, out = tmp_path / "mine.yaml", tmp_path / "run"
    path.write_text(text)
    first = sweep(folder, out, tasks=(str(path),), protocols=("generate",))
    assert first.item("0").questions["generate"].reference == ("2",)
    path.write_text(text.replace("doc_to_target: a", "doc_to_target: b"))
    monkeypatch.setattr(registry, "_builders", {})
    with pytest.raises(UserError, match=r"another run .*prompts of mine generate: questions_hash"):
        sweep(folder, out, tasks=(str(path),), protocols=("generate",))


def test_a_folder_of_the_layout_before_is_one_line(run: lp.Run, tmp_path: Path) -> None:
    assert run.folder is not None
    spec = json.loads((run.folder / "spec.json").read_text(encoding="utf-8"))
    for cell in spec["conditions"]:
        del cell["questions_hash"]
    (tmp_path / "spec.json").write_text(json.dumps({**spec, "format": 3}), encoding="utf-8")
    with pytest.raises(UserError, match=r"has format 3: this version of lensprune reads format 7"):
        lp.Run.load(tmp_path)


def test_an_exchange_of_weights_has_its_items(folder: Path, family_folder: Callable[[str], Path]) -> None:
    model = lp.load_model(str(folder), device="cpu")
    other = lp.load_model(str(folder), device="cpu")
    with torch.no_grad():
        for parameter in other.original_model.parameters():
            parameter.mul_(1.5)
    changed = lp.measure_replacement(model, other, "facts", "continuation", component="layer", limit=2, progress=False)
    name = changed.records()["item_id"].iloc[0]
    item = changed.item(name)
    logprobs = item.options().set_index("variant")["logprob"]
    assert not np.allclose(logprobs["clean"], logprobs["distilled"])
    assert name in repr(item)
