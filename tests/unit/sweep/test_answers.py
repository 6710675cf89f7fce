"""Answers of unfinished cells survive a stop, and are not asked for again."""

from __future__ import annotations

import json
import math
import os
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import lensprune as lp
from lensprune.ablation import CLEAN, Variant
from lensprune.engine import ForkedExecutor
from lensprune.engine.base import VariantResponses
from lensprune.engine.decoding import Checkpoint, checkpoint, decoder
from lensprune.protocols.requests import GenerateRequest, GenerateResponse, LoglikelihoodResponse
from lensprune.runs import answers
from lensprune.runs.answers import AnswerLog
from lensprune.runs.store import RunStore
from lensprune.sweeps.answering import answers_of
from tests.helpers.killing import fork, wait

GIVEN = {
    0: LoglikelihoodResponse(-1.1 / 3, True, 2),
    3: LoglikelihoodResponse(-math.inf, False, 1),
    5: GenerateResponse("a\n\ud800 b", (5, 7), "stop_string", "c\ud800", n_thinking_tokens=1, thinking_ended=False),
}
SWEEP: dict[str, Any] = {"variants": "attention", "limit": 6, "progress": False}
CHAINS = "arithmetic[operands=3,largest=9,subtract=True]"
ROWS = 6 * (1 + 4)


def log(path: Path) -> AnswerLog:
    return AnswerLog(path / "answers" / "a.jsonl")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    log(tmp_path).write()
    assert not (tmp_path / "answers").exists()
    first = log(tmp_path)
    first.add("clean", GIVEN)
    first.write()
    second = log(tmp_path)
    second.add("L0.skip", {1: GIVEN[0]})
    second.write()
    assert log(tmp_path).read() == {"clean": GIVEN, "L0.skip": {1: GIVEN[0]}}


def test_not_a_number_is_kept(tmp_path: Path) -> None:
    written = log(tmp_path)
    written.add("clean", {0: LoglikelihoodResponse(math.nan, False, 1)})
    written.write()
    [response] = log(tmp_path).read()["clean"].values()
    assert isinstance(response, LoglikelihoodResponse)
    assert math.isnan(response.logprob)


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_line_cut_short_is_ignored_and_does_not_spoil_the_next(tmp_path: Path, cut: int) -> None:
    written = log(tmp_path)
    written.add("clean", GIVEN)
    written.write()
    path = tmp_path / "answers" / "a.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    kept = {"clean": {0: GIVEN[0], 3: GIVEN[3]}} if cut > 1 else {"clean": GIVEN}
    assert log(tmp_path).read() == kept
    later = log(tmp_path)
    later.add("clean", {9: GIVEN[3]})
    later.write()
    assert log(tmp_path).read() == {"clean": kept["clean"] | {9: GIVEN[3]}}


def test_a_damaged_line_is_ignored(tmp_path: Path) -> None:
    written = log(tmp_path)
    written.add("clean", GIVEN)
    written.write()
    path = tmp_path / "answers" / "a.jsonl"
    path.write_bytes(path.read_bytes().replace(b"-Infinity", b"-1.234567"))
    assert log(tmp_path).read() == {"clean": {0: GIVEN[0], 5: GIVEN[5]}}


def test_writes_are_seconds_apart(tmp_path: Path) -> None:
    now = 0.0
    written = AnswerLog(tmp_path / "answers" / "a.jsonl", clock=lambda: now)
    for now in (1.0, 4.9):
        written.add("clean", {int(now): GIVEN[0]})
    assert log(tmp_path).read() == {}
    now = 5.0
    written.add("clean", {5: GIVEN[0]})
    assert set(log(tmp_path).read()["clean"]) == {1, 4, 5}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> lp.Run:
    out = tmp_path_factory.mktemp("answers") / "whole"
    return lp.sweep("toy-distilled", CHAINS, "generate", out=out, **SWEEP)


def same_as(run: lp.Run, whole: lp.Run) -> int:
    """Fails unless the records are the same; returns how many are missing."""
    missing = len(whole.records()) - len(run.records())
    pd.testing.assert_frame_equal(run.records(), whole.records())
    assert whole.records()["correct"].nunique() == 2
    assert run.folder is not None
    assert not list((run.folder / "answers").glob("*"))
    return missing


def stopping(monkeypatch: pytest.MonkeyPatch, after: int, stop: Any) -> list[int]:
    """Let generation call `stop` after so many rows; returns a list to which each row of a decoder is added."""
    counted: list[int] = []
    run = decoder.GroupDecoder.run

    def counting(self: decoder.GroupDecoder, *arguments: Any, **given: Any) -> Iterator[Any]:
        for answered in run(self, *arguments, **given):
            if len(counted) == after:
                stop()
            counted.append(answered[0])
            yield answered

    monkeypatch.setattr(decoder.GroupDecoder, "run", counting)
    return counted


def interrupt() -> None:
    raise KeyboardInterrupt


def watch_runs(monkeypatch: pytest.MonkeyPatch, *, takes_known: bool) -> list[tuple[int, int]]:
    """A list to which each run of the executor adds how many requests and variants it gets.

    Without `takes_known`, the executor has only the parameters that every executor must have.
    """
    runs: list[tuple[int, int]] = []
    run = ForkedExecutor.run

    def plain(
        self: Any, requests: Any, variants: Any, *, reference: Any = None, progress: Any = None, on_answers: Any = None
    ) -> Any:
        runs.append((len(requests), len(variants)))
        return run(self, requests, variants, reference=reference, progress=progress, on_answers=on_answers)

    def knowing(self: Any, requests: Any, variants: Any, *, known: Any = None, on_work: Any = None, **rest: Any) -> Any:
        runs.append((len(requests), len(variants)))
        return run(self, requests, variants, known=known, on_work=on_work, **rest)

    monkeypatch.setattr(ForkedExecutor, "run", knowing if takes_known else plain)
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("takes_known", [True, False])
@pytest.mark.parametrize("after", [1, 17, ROWS - 1])
def test_a_stopped_sweep_asks_only_for_the_rest(
    whole: lp.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, takes_known: bool
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        stopping(patched, after, interrupt)
        with pytest.raises(KeyboardInterrupt, match="cells and answers of unfinished ones are stored; resume with"):
            lp.sweep("toy-distilled", CHAINS, "generate", out=out, **SWEEP)
    n_missing = 5 - len(list((out / "records").glob("*.parquet")))
    counted = stopping(monkeypatch, -1, interrupt)
    runs = watch_runs(monkeypatch, takes_known=takes_known)
    same_as(lp.resume(out, progress=False), whole)
    assert len(counted) == ROWS - after
    if takes_known:
        assert runs == [(6, n_missing)]
    else:
        # Only variants that lack the same texts run together.
        assert sum(requests * variants for requests, variants in runs) == ROWS - after
        assert min(requests for requests, _ in runs) < 6


@pytest.mark.slow
def test_a_killed_sweep_asks_only_for_the_rest(
    whole: lp.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    out = tmp_path / "run"

    def killed() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(answers, "SECONDS_BETWEEN_WRITES", 0.0)
            stopping(patched, 20, lambda: os.kill(os.getpid(), signal.SIGKILL))
            lp.sweep("toy-distilled", CHAINS, "generate", out=out, **SWEEP)

    assert wait(fork(killed)) == -signal.SIGKILL
    assert len(list((out / "records").glob("*.parquet"))) < ROWS // 6
    counted = stopping(monkeypatch, -1, interrupt)
    record_property("records_lost", same_as(lp.resume(out, progress=False), whole))
    assert len(counted) == ROWS - 20


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which each decode step adds its rows."""
    steps: list[int] = []
    advance = decoder.GroupDecoder._advance

    def counted(self: decoder.GroupDecoder, rows: Any, tokens: Any) -> Any:
        if self._limits is not None:
            steps.append(len(rows))
        return advance(self, rows, tokens)

    monkeypatch.setattr(decoder.GroupDecoder, "_advance", counted)
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("kill", ["in mid-text", "after a cell was stored"])
def test_a_killed_sweep_goes_on_in_the_middle_of_its_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: str, record_property: Callable[[str, object], None]
) -> None:
    options = SWEEP | {"variants": lp.VariantSelection("attention", "mean"), "max_new_tokens": 40}
    steps, out, stored_at = count_steps(monkeypatch), tmp_path / "run", 2
    whole = lp.sweep("toy-distilled", CHAINS, "generate", out=tmp_path / "whole", **options)
    n_steps = len(steps)

    def kill_here(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def due(self: Checkpoint) -> bool:
        if kill == "in mid-text" and len(steps) == stored_at + 2:
            kill_here()
        return len(steps) == stored_at

    def killed() -> None:
        steps.clear()
        with monkeypatch.context() as patched:
            patched.setattr(Checkpoint, "due", due)
            patched.setattr(checkpoint, "MAX_SHARE", math.inf)
            write = RunStore.write
            if kill == "after a cell was stored":
                patched.setattr(RunStore, "write", lambda *cell: kill_here(write(*cell)))
            lp.sweep("toy-distilled", CHAINS, "generate", out=out, **options)

    assert wait(fork(killed)) == -signal.SIGKILL
    assert len(list((out / "records").glob("*.parquet"))) == (kill != "in mid-text")
    steps.clear()
    record_property("records_lost", same_as(lp.resume(out, progress=False), whole))
    assert len(steps) == n_steps - stored_at > 0


@pytest.mark.slow
def test_answers_of_a_stored_cell_are_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under any executor: another one may find the state of texts that this variant wrote."""
    out = tmp_path / "run"
    write = RunStore.write

    def killed() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(answers, "SECONDS_BETWEEN_WRITES", math.inf)
            patched.setattr(RunStore, "write", lambda *cell: kill_after(write(*cell)))
            lp.sweep("toy-distilled", CHAINS, "generate", out=out, executor="hooked", **SWEEP)

    def kill_after(written: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    assert wait(fork(killed)) == -signal.SIGKILL
    [path] = (out / "answers").iterdir()
    assert {name: set(own) for name, own in AnswerLog(path).read().items()} == {"clean": set(range(6))}


@pytest.mark.slow
@pytest.mark.parametrize("again", ["resume", "the same command"])
def test_what_a_kill_after_the_last_cell_leaves_is_removed(tmp_path: Path, again: str) -> None:
    out = tmp_path / "run"
    whole = lp.sweep("toy-distilled", CHAINS, "generate", out=out, **SWEEP)
    [questions] = (out / "questions").iterdir()
    stem = questions.name.rpartition(".")[0].rpartition(".")[0]
    left = [out / "answers" / f"{stem}.0.{ending}" for ending in ("jsonl", "decoding")]
    (out / "answers").mkdir(exist_ok=True)
    for path in left:
        path.write_bytes(b"left")
    if again == "resume":
        run = lp.resume(out, progress=False)
    else:
        run = lp.sweep("toy-distilled", CHAINS, "generate", out=out, **SWEEP)
    same_as(run, whole)


def test_a_checkpoint_goes_only_to_executors_that_know_answers(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = []

    class OnlyCheckpoint:
        name = "only checkpoint"

        def run(self, requests: Any, variants: Any, *, checkpoint: Any = None, **rest: Any) -> Iterator[Any]:
            given.append({"checkpoint": checkpoint, **rest})
            yield from (VariantResponses(v, (GIVEN[5],) * len(requests)) for v in variants)

    class Both(OnlyCheckpoint):
        def run(
            self, requests: Any, variants: Any, *, known: Any = None, checkpoint: Any = None, **rest: Any
        ) -> Iterator[Any]:
            yield from super().run(requests, variants, checkpoint=checkpoint, known=known, **rest)

    requests = [GenerateRequest((1, 2), ("x",), 3)] * 2
    for executor in (OnlyCheckpoint(), Both()):
        list(answers_of(requests, [CLEAN], executor, lambda *_, **__: None, log(tmp_path)))
    assert given[0]["checkpoint"] is None
    assert isinstance(given[1]["checkpoint"], Checkpoint)
    assert given[1]["known"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["forked", "hooked", "without known"])
def test_a_complete_variant_whose_cell_is_missing_needs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    """Killed between its last answer and its cell, a mean ablation's reference is not collected again."""
    out = tmp_path / "run"
    options = SWEEP | {"variants": lp.VariantSelection("attention", "mean"), "executor": executor.split(maxsplit=1)[0]}
    if executor == "without known":
        options["executor"] = "forked"
        watch_runs(monkeypatch, takes_known=False)
    whole = lp.sweep("toy-distilled", CHAINS, "generate", out=tmp_path / "whole", **options)
    stored: list[object] = []

    def stop_at_the_second(self: RunStore, *cell: Any) -> None:
        if stored:
            raise KeyboardInterrupt
        stored.append(write(self, *cell))

    write = RunStore.write
    with monkeypatch.context() as patched:
        patched.setattr(RunStore, "write", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            lp.sweep("toy-distilled", CHAINS, "generate", out=out, **options)
    [path] = (out / "answers").glob("*.jsonl")
    assert max(len(own) for name, own in AnswerLog(path).read().items() if name != "clean") == 6
    same_as(lp.resume(out, progress=False), whole)


def test_a_state_of_variants_that_workers_stored_is_dropped(tmp_path: Path) -> None:
    """No answer of theirs is known: they are not written again."""
    kept, variants = log(tmp_path), [CLEAN, Variant("a"), Variant("b")]
    kept.checkpoint_path.parent.mkdir()
    about = {"variants": ["clean", "a"], "beside": [], "requests": [0], "table": 0, "rows": 1, "kv_bytes": 1}
    with zipfile.ZipFile(kept.checkpoint_path, "w") as file:
        file.writestr("about.json", json.dumps({**about, "types": {}, "version": lp.__version__}))
    given: list[list[str]] = []

    class Knowing:
        name = "knowing"

        def run(self, requests: Any, variants: Any, *, known: Any, checkpoint: Any, **rest: Any) -> Iterator[Any]:
            given.append([v.name for v in variants] + sorted(checkpoint.variants))
            yield from (VariantResponses(v, (GIVEN[5],) * len(requests)) for v in variants)

    requests = [GenerateRequest((1, 2), ("x",), 3)]
    found = answers_of(requests, variants[1:], Knowing(), lambda *_, **__: None, kept, every=variants)
    assert [answered.variant.name for answered in found] == ["a", "b"]
    kept.add("clean", {0: GIVEN[5]})
    kept.write()
    list(answers_of(requests, variants[1:], Knowing(), lambda *_, **__: None, kept, every=variants))
    assert given == [["a", "b"], ["clean", "a", "b", "a", "clean"]]
