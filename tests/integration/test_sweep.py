"""The main job from model folder to figure on a tiny model: stopped, resumed, and by either executor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from gguf import GGMLQuantizationType

import lensprune as lp
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.runs.store import RunStore
from lensprune.sweeps.selection import VariantSelection
from lensprune.tasks import prompt_strings, registry
from tests.helpers.families import byte_tokenizer
from tests.helpers.gguf_files import write_gguf
from tests.helpers.sweeps import sweep as tiny_sweep
from tests.helpers.tolerances import assert_records_agree, assert_tensors_agree

TASKS = ("facts", "kv_retrieval[pairs=2]", "arithmetic")
PROTOCOLS = ("default", "continuation", "generate")
LIMIT = 3


@pytest.fixture(scope="module")
def folder(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


sweep = partial(tiny_sweep, tasks=TASKS, protocols=PROTOCOLS, limit=LIMIT, shots=1)


def record_files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "records").glob("*.parquet"))}


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> lp.Run:
    return sweep(folder, tmp_path_factory.mktemp("whole") / "run")


def test_every_cell_is_recorded_and_summed_up(whole: lp.Run) -> None:
    records = whole.records()
    cells = records.groupby(["variant", "task", "protocol"]).size()
    assert len(cells) == 4 * len(TASKS) * len(PROTOCOLS)
    assert set(cells) == {LIMIT}
    summary = whole.summary()
    assert len(summary) == len(cells)
    means = records.groupby(["variant", "task", "protocol"])["correct"].mean()
    for row in summary.itertuples():
        key = (row.variant, row.task, row.protocol)
        assert row.accuracy == pytest.approx(means[key])
        assert row.delta == pytest.approx(means[key] - means[("clean", row.task, row.protocol)], abs=1e-12)
    assert whole.folder is not None
    assert pd.read_csv(whole.folder / "summary.csv")["delta"].tolist() == pytest.approx(summary["delta"].tolist())
    assert list((whole.folder / "figures").glob("*.png"))


def test_removing_a_layer_changes_what_is_measured(whole: lp.Run) -> None:
    logprobs = whole.records(task="facts", protocol="continuation").pivot(
        index="item_id", columns="variant", values="gold_logprob"
    )
    assert (logprobs.drop(columns="clean").sub(logprobs["clean"], axis=0).abs() > 1e-3).all().all()


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 7, 20])
def test_stopped_and_resumed_gives_identical_records(
    folder: Path, whole: lp.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out, written = tmp_path / "run", 0
    write = RunStore.write

    def stop(store: RunStore, *args: Any) -> None:
        nonlocal written
        if written == after:
            raise KeyboardInterrupt
        written += 1
        write(store, *args)

    monkeypatch.setattr(RunStore, "write", stop)
    stored = f"{after} of 36 cells( and answers of unfinished ones)? are stored"
    with pytest.raises(KeyboardInterrupt, match=f"{stored}; resume with: lensprune resume"):
        sweep(folder, out)
    monkeypatch.setattr(RunStore, "write", write)
    assert len(record_files(out)) == after
    resumed = lp.resume(out, progress=False)
    assert whole.folder is not None
    assert record_files(out) == record_files(whole.folder)
    pd.testing.assert_frame_equal(resumed.summary(), whole.summary())


def test_the_same_call_goes_on_and_a_changed_one_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = sweep(folder, out, tasks=["facts"], protocols=["continuation"])
    before = record_files(out)
    again = sweep(folder, out, tasks=["facts"], protocols=["continuation"])
    assert record_files(out) == before
    pd.testing.assert_frame_equal(first.summary(), again.summary())
    with pytest.raises(UserError, match="contains another run"):
        sweep(folder, out, tasks=["facts"], protocols=["continuation"], limit=LIMIT + 1)
    assert record_files(out) == before


def test_a_task_given_by_its_file_is_found_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_builders", {})
    (tmp_path / "rows.jsonl").write_text('{"q": "1+1", "a": "2"}\n{"q": "2+2", "a": "4"}\n')
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        'doc_to_text: "{{q}}="\ndoc_to_target: a\ngeneration_kwargs: {max_gen_toks: 2}\n'
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["sweep", "--model", str(folder), "--task", "mine.yaml", "--protocol", "generate", "--layers", "0"]
    assert main([*arguments, "--out", "run"]) == 0
    out = tmp_path / "run"
    whole = record_files(out)
    (cell,) = (path for path in (out / "records").iterdir() if "L0" in path.name)
    cell.unlink()
    monkeypatch.setattr(registry, "_builders", {})
    monkeypatch.chdir(tmp_path.parent)
    resumed = lp.resume(out, progress=False)
    assert record_files(out) == whole
    assert set(resumed.summary()["task"]) == {"mine"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"executor": "hooked"}, {"batch_tokens": 64}, {"executor": "hooked", "batch_tokens": 64}]
)
def test_executor_and_batch_size_do_not_change_the_numbers(
    folder: Path, whole: lp.Run, changes: dict[str, Any]
) -> None:
    other = sweep(folder, None, **changes).records()
    expected = whole.records()
    assert_records_agree(other, expected, torch.float32, at_most=1e-4)


@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_reference_ablations_by_both_executors(folder: Path, tmp_path: Path, kind: str) -> None:
    text = tmp_path / "reference.txt"
    text.write_text("A river runs to the sea.\n\nSeven hens and three cows.\n")
    runs = []
    for reference in ("fewshot", text):
        pair = [
            sweep(
                folder,
                None,
                tasks=["facts"],
                variants=VariantSelection("attention", kind),
                reference=reference,
                executor=executor,
            ).records()
            for executor in ("hooked", "forked")
        ]
        assert_records_agree(*pair, torch.float32, at_most=1e-4)
        runs.append(pair[0])
    likelihood = runs[0]["protocol"] == "continuation"
    ablated = likelihood & (runs[0]["variant"] != "clean")
    apart = (runs[0]["gold_logprob"] - runs[1]["gold_logprob"]).abs()
    # The clean rows know no reference; the ablated ones depend on which one it was.
    assert apart[likelihood & ~ablated].max() == 0
    assert apart[ablated].max() > 1e-4


def test_the_users_own_hook_is_a_variant(folder: Path) -> None:
    model = lp.load_model(str(folder))

    def forget(pattern: Any, hook: Any) -> Any:
        return pattern * 0

    variants = [
        lp.Variant("no pattern", hooks=(("blocks.1.attn.hook_pattern", forget),)),
        *lp.each_attention(model, "zero")[1:2],
    ]
    run = lp.sweep(model, ["facts"], ["continuation"], variants, limit=LIMIT, shots=1, progress=False)
    logprobs = run.records().pivot(index="item_id", columns="variant", values="gold_logprob")
    # An attention pattern of zeros moves nothing, and this family's output projection has no bias.
    assert_tensors_agree(logprobs["no pattern"], logprobs["L1.attention.zero"], torch.float32)
    assert (logprobs["no pattern"] - logprobs["clean"]).abs().min() > 1e-3


def test_weights_that_are_not_numbers_are_recorded_as_such(folder: Path) -> None:
    model = lp.load_model(str(folder))

    def spoil(z: Any, hook: Any) -> Any:
        return z * float("nan")

    variants = [lp.Variant("spoilt", hooks=(("blocks.1.attn.hook_z", spoil),)), *lp.each_layer(model)[:1]]
    run = lp.sweep(model, ["facts"], ["continuation", "generate"], variants, limit=LIMIT, shots=1, progress=False)
    failures = run.records().groupby("variant")["failure"].agg(set)
    assert failures["spoilt"] == {"non_finite"}
    assert "non_finite" not in failures["clean"] | failures["L0.skip"]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_gguf_file_is_swept_by_its_path(family: str, tmp_path: Path) -> None:
    path = tmp_path / f"{family}.gguf"
    expected = write_gguf(path, family, GGMLQuantizationType.Q8_0)
    arguments = [
        "sweep",
        "--model",
        str(path),
        "--task",
        "facts",
        "--protocol",
        "continuation",
        "--protocol",
        "generate",
    ]
    options = ["--over", "layers", "--ablation", "skip", "--limit", "2", "--shots", "1", "--device", "cpu"]
    assert main([*arguments, *options, "--out", str(tmp_path / "run")]) == 0
    run = lp.Run.load(tmp_path / "run")
    assert len(run.summary()) == 2 * 4
    # The clean row is that of the dequantised weights in plain transformers.
    item = run.records(variant="clean", protocol="continuation").iloc[0]
    loaded = lp.load_task("facts", limit=1, shots=1)
    context, continuation = prompt_strings(loaded.task.formats["continuation"], loaded.items[0])[0]
    choices = loaded.task.formats["continuation"].choices(loaded.items[0].doc)  # type: ignore[union-attr]
    tokenizer = byte_tokenizer()
    head = tokenizer.encode(context)
    tail = tokenizer.encode(continuation.replace(choices[0], item["target"]))
    with torch.inference_mode():
        logprobs = expected(torch.tensor([head + tail])).logits[0].log_softmax(-1)
    total = sum(float(logprobs[len(head) + i - 1, token]) for i, token in enumerate(tail))
    assert_tensors_agree(item["gold_logprob"], total, torch.float32)
