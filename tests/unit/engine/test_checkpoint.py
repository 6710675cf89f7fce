"""Decoding that is stopped goes on in the middle of its texts, from the state in its file."""

from __future__ import annotations

import errno
import json
import logging
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lensprune.ablation import CLEAN, Ablation, Layer, Variant, collect_reference, each_head, each_layer, each_mlp
from lensprune.ablation.reference import ReferenceActivations
from lensprune.engine import ForkedExecutor, forked
from lensprune.engine.decoding import ChunkSize, checkpoint, kv
from lensprune.engine.decoding.checkpoint import Checkpoint
from lensprune.engine.decoding.decoder import GroupDecoder
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import ForcedEnd, GenerateRequest, Request, Response, Sampling, Thinking
from tests.helpers.generation import REFERENCE_PROMPTS, requests_for
from tests.helpers.tiny_models import likelihood_requests, tiny

Answers = dict[str, dict[int, Response]]


class Stopped(Exception):
    pass


def texts_of(model: HookedModel) -> list[GenerateRequest]:
    """Greedy and sampled texts, with thinking that goes on too long, and a stop string that is found at once."""
    short = [r for r in requests_for(model) if isinstance(r, GenerateRequest)]
    sampled = Sampling(0.8, seed=1)
    thinking = Thinking((61,), (62,), opened=True)
    return [
        *(replace(r, max_new_tokens=3 + 2 * i) for i, r in enumerate(short[:5])),
        replace(short[1], max_new_tokens=40),
        *(replace(short[i], max_new_tokens=34, sampling=sampled, item=str(i)) for i in (3, 4)),
        replace(short[5], max_new_tokens=24, thinking=thinking, forced_end=ForcedEnd(9, (62, 7), (62,))),
    ]


def variants_of(model: HookedModel) -> list[Variant]:
    # Chosen by a row's own age, which differs between groups.
    late = Variant("late", (Ablation(Layer(1), "skip", at="generated[2:9]"),))
    heads = each_head(model, "mean", layers=[0, 1], heads=[0])
    return [*each_mlp(model, layers=[2]), CLEAN, *each_layer(model, layers=[0, 2]), *heads, late]


class Watched:
    """Runs an executor and stops it before a step; counts steps, and collects answers and work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps, self.stop_at = 0, -1
        self.answers: Answers = {}
        self.answers_before_state: Answers = {}
        self.worked: Counter[str] = Counter()
        self.spared = 0.0
        advance = GroupDecoder._advance

        def watched(decoder: GroupDecoder, rows: Any, tokens: Any) -> Any:
            if decoder._limits is not None:
                if self.steps == self.stop_at:
                    raise Stopped
                self.steps += 1
            return advance(decoder, rows, tokens)

        monkeypatch.setattr(GroupDecoder, "_advance", watched)

    def run(
        self,
        executor: ForkedExecutor,
        requests: Sequence[Request],
        variants: Sequence[Variant],
        reference: ReferenceActivations | None,
        stop_at: int = -1,
        known: Answers | None = None,
        path: Path | None = None,
        every: int = 1,
    ) -> Any:
        self.steps, self.stop_at, self.answers, self.worked, self.spared = 0, stop_at, {}, Counter(), 0.0

        def answered(name: str, new: Any) -> None:
            self.answers.setdefault(name, {}).update(new)

        def worked(name: str, rows: float) -> None:
            self.worked[name] += rows  # type: ignore[assignment]

        def known_work(name: str, rows: float) -> None:
            self.spared += rows
            worked(name, rows)

        def before_write() -> None:
            self.answers_before_state = {name: dict(answers) for name, answers in self.answers.items()}

        saved = None
        if path is not None:
            # A state is due whenever the clock has moved on by 5 seconds.
            saved = Checkpoint(path, before_write, known_work, clock=lambda: 5.0 * (self.steps // every))
        return list(
            executor.run(
                requests,
                variants,
                reference=reference,
                on_answers=answered,
                on_work=worked,
                known=known,
                checkpoint=saved,
            )
        )


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(checkpoint, "MAX_LOSS", 0.0)
    monkeypatch.setattr(Checkpoint, "speed", checkpoint.CAREFUL_SPEED)
    return Watched(monkeypatch)


FAMILIES = ["llama", *(pytest.param(family, marks=pytest.mark.slow) for family in ("gemma3", "mixtral", "gpt2"))]


@pytest.mark.parametrize("groups", ["one group", "several groups", "as on a GPU"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_goes_on_where_it_was(
    family: str, groups: str, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same texts, after as many steps, whenever it is stopped and however often."""
    if groups == "as on a GPU":
        # Where memory that isn't written to is taken all the same.
        monkeypatch.setattr(kv, "_allocated", lambda like, step, most: kv.columns_for(step, most))
    model = tiny(family)
    requests, variants = texts_of(model), variants_of(model)
    reference = collect_reference(model, REFERENCE_PROMPTS, variants)
    budget = ChunkSize(model.facts, requests).kv_bytes(variants)
    executor = ForkedExecutor(model, max_kv_bytes=budget if groups == "one group" else int(0.5 * budget))
    expected = watched.run(executor, requests, variants, reference)
    assert len({r.text for answered in expected for r in answered.responses}) > len(requests)
    n_steps = watched.steps
    path, known, done, resumed = tmp_path / "answers" / "state", {}, 0, 0
    while True:
        try:
            found = watched.run(executor, requests, variants, reference, 9, known, path, every=2)
        except Stopped:
            # The state before the last even step.
            done, resumed = done + 8, resumed + 1
            known = {v.name: known.get(v.name, {}) | watched.answers.get(v.name, {}) for v in variants}
            continue
        break
    assert found == expected
    assert resumed > 3
    assert done + watched.steps == n_steps
    # Each row's prompt and tokens, once.
    for variant in variants:
        missing = len(requests) - len(known.get(variant.name, {}))
        assert watched.worked[variant.name] == pytest.approx(missing)


def stopped(watched: Watched, executor: ForkedExecutor, path: Path, at: int = 9, every: int = 2) -> Answers:
    """The answers of a run that is stopped before step `at`, with a state from before its last even step."""
    requests, variants = texts_of(executor.model), [CLEAN, *each_layer(executor.model)]
    with pytest.raises(Stopped):
        watched.run(executor, requests, variants, None, at, None, path, every)
    return watched.answers


def test_half_precision_and_scores_beside_texts(watched: Watched, tmp_path: Path) -> None:
    model = tiny("llama", dtype="bfloat16")
    executor = ForkedExecutor(model)
    requests, variants = [*likelihood_requests(model), *texts_of(model)], [CLEAN, *each_layer(model)]
    expected = watched.run(executor, requests, variants, None)
    n_steps, path = watched.steps, tmp_path / "state"
    with pytest.raises(Stopped):
        watched.run(executor, requests, variants, None, 9, None, path, 2)
    # With the same rows in the same steps, each bit is the same.
    known = watched.answers_before_state
    assert sum(map(len, known.values())) > len(variants)
    assert watched.run(executor, requests, variants, None, -1, known, path) == expected
    assert watched.steps == n_steps - 8


def test_texts_that_ended_after_the_state_was_stored_are_not_written_again(watched: Watched, tmp_path: Path) -> None:
    executor = ForkedExecutor(tiny("llama"))
    requests, variants = texts_of(executor.model), [CLEAN, *each_layer(executor.model)]
    expected = watched.run(executor, requests, variants, None)
    n_steps = watched.steps
    # The clean model is complete, and its texts were running when the state was stored.
    known = stopped(watched, executor, tmp_path / "state")
    known[CLEAN.name] = dict(enumerate(expected[0].responses))
    assert watched.run(executor, requests, variants, None, -1, known, tmp_path / "state") == expected
    assert watched.steps == n_steps - 8
    assert CLEAN.name not in watched.answers
    assert CLEAN.name not in watched.worked


def test_variants_that_joined_and_ended_after_the_state_was_stored(watched: Watched, tmp_path: Path) -> None:
    """Their cells may be stored; the prompts of the others, which still wait, follow."""
    model = tiny("llama")
    requests, variants = texts_of(model), variants_of(model)
    reference = collect_reference(model, REFERENCE_PROMPTS, variants)
    executor = ForkedExecutor(model, max_kv_bytes=int(0.5 * ChunkSize(model.facts, requests).kv_bytes(variants)))
    expected = watched.run(executor, requests, variants, reference)
    with pytest.raises(Stopped):
        watched.run(executor, requests, variants, reference, 3, None, tmp_path / "state", 2)
    for name in (variant.name for variant in variants):
        kept = tmp_path / f"without {name}"
        kept.write_bytes((tmp_path / "state").read_bytes())
        [answers] = [answered.responses for answered in expected if answered.variant.name == name]
        known = {name: dict(enumerate(answers))}
        assert watched.run(executor, requests, variants, reference, -1, known, kept) == expected
        assert name not in watched.answers
    known = {a.variant.name: dict(enumerate(a.responses)) for a in expected if a.variant not in variants[1::3]}
    assert watched.run(executor, requests, variants, reference, -1, known, tmp_path / "state") == expected
    assert set(watched.answers) == {variant.name for variant in variants[1::3]}


def test_another_layout_of_the_prompts_is_passed_over(watched: Watched, tmp_path: Path) -> None:
    """Which variants have positions may change it: they mark tokens of the prompts."""
    executor = ForkedExecutor(tiny("llama"))
    requests, variants = texts_of(executor.model), [CLEAN, *each_layer(executor.model)]
    other = [replace(request, context_ids=request.context_ids[::-1]) for request in requests]
    with pytest.raises(Stopped):
        watched.run(executor, other, variants, None, 3, None, tmp_path / "state")
    expected = watched.run(executor, requests, variants, None)
    n_steps = watched.steps
    assert watched.run(executor, requests, variants, None, -1, None, tmp_path / "state") == expected
    assert watched.steps == n_steps


@pytest.mark.parametrize("lacking", ["a request", "a variant"])
def test_a_state_of_other_requests_or_variants_is_passed_over(
    lacking: str, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = ForkedExecutor(tiny("llama"))
    requests, variants = texts_of(executor.model), [CLEAN, *each_layer(executor.model)]
    if lacking == "a request":
        requests = requests[:-1]
    else:
        variants = variants[:-1]
        monkeypatch.setattr(forked, "BLOCK_VARIANTS", 2)
    expected = watched.run(executor, requests, variants, None)
    n_steps = watched.steps
    with monkeypatch.context() as patched:
        patched.setattr(forked, "BLOCK_VARIANTS", 64)
        stopped(watched, executor, tmp_path / "state")
    assert watched.run(executor, requests, variants, None, -1, None, tmp_path / "state") == expected
    # In blocks of two, as without the state.
    assert watched.steps == n_steps


def whole_and_stopped(watched: Watched, path: Path) -> Any:
    """An executor with its requests and variants, their answers and steps in a whole run, and the answers of one that
    is `stopped`."""
    executor = ForkedExecutor(tiny("llama"))
    requests, variants = texts_of(executor.model), [CLEAN, *each_layer(executor.model)]
    expected = watched.run(executor, requests, variants, None)
    n_steps = watched.steps
    return executor, requests, variants, expected, n_steps, stopped(watched, executor, path)


def rewritten(path: Path, name: str, data: bytes) -> None:
    """Change one entry of the file, with the right checksum."""
    with zipfile.ZipFile(path) as file:
        entries = {entry: file.read(entry) for entry in file.namelist()}
    assert name in entries
    with zipfile.ZipFile(path, "w") as file:
        for entry, before in entries.items():
            file.writestr(entry, data if entry == name else before)


@pytest.mark.parametrize("damage", ["cut short", "a bit flipped", "not a zip", "another version"])
def test_a_damaged_state_is_passed_over(
    damage: str, watched: Watched, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state"
    executor, requests, variants, expected, n_steps, known = whole_and_stopped(watched, path)
    data = path.read_bytes()
    if damage == "cut short":
        path.write_bytes(data[:-100])
    elif damage == "a bit flipped":
        path.write_bytes(data[:5000] + bytes([data[5000] ^ 4]) + data[5001:])
    elif damage == "not a zip":
        path.write_bytes(b"")
    else:
        with zipfile.ZipFile(path) as file:
            about = file.read("about.json")
        rewritten(path, "about.json", about.replace(checkpoint.__version__.encode(), b"0.0.1"))
    assert watched.run(executor, requests, variants, None, -1, known, path) == expected
    assert watched.steps == n_steps
    assert ("(it is damaged): unfinished texts begin again" in caplog.text) == (damage != "another version")


@pytest.mark.parametrize("about", [b"[]", b"{}", b"[" * 100_000, b'{"variants": [["a"]], "beside": []}', b"\xff"])
def test_facts_that_are_none_are_passed_over(
    about: bytes, watched: Watched, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(watched, ForkedExecutor(tiny("llama")), tmp_path / "state")
    rewritten(tmp_path / "state", "about.json", about)
    assert Checkpoint(tmp_path / "state").variants == frozenset()
    assert "(it is damaged): unfinished texts begin again" in caplog.text


def test_a_flipped_bit_is_found_or_changes_nothing(watched: Watched, tmp_path: Path) -> None:
    """In the arrays as in the zip's own tables."""

    def arrays() -> dict[str, bytes]:
        saved = Checkpoint(path)._saved
        assert saved is not None
        return {name: saved.array(name).tobytes() for name in saved.about["types"]}

    path, rng = tmp_path / "state", np.random.default_rng(0)
    stopped(watched, ForkedExecutor(tiny("llama")), path)
    data, whole, found = path.read_bytes(), arrays(), 0
    places = [*rng.integers(0, len(data), 100), *rng.integers(len(data) - 4000, len(data), 100)]
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << int(rng.integers(8))]) + data[place + 1 :])
        if Checkpoint(path).variants:
            assert arrays() == whole
        else:
            found += 1
    assert found > 0.7 * len(places)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state").mkdir()
    Checkpoint(tmp_path / "state")
    assert "state (Is a directory): unfinished texts begin again" in caplog.text


@pytest.mark.parametrize("changed", ["tokens", "group.0.history_of_row", "group.0.step", "group.0.rows", "about"])
def test_a_state_that_does_not_fit_is_passed_over(
    changed: str, watched: Watched, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state"
    executor, requests, variants, expected, n_steps, known = whole_and_stopped(watched, path)
    with zipfile.ZipFile(path) as file:
        other, about = file.read("clean.0.0.npy"), json.loads(file.read("about.json"))
    if changed == "about":
        rewritten(path, "about.json", json.dumps({**about, "admitted": -1}).encode())
    else:
        rewritten(path, f"{changed}.npy", other)
    assert watched.run(executor, requests, variants, None, -1, known, path) == expected
    assert watched.steps == n_steps
    assert "state is not of this run (" in caplog.text
    for variant in variants:
        missing = len(requests) - len(known.get(variant.name, {}))
        assert watched.worked[variant.name] == pytest.approx(missing)


@pytest.mark.parametrize("what", ["rows", "bytes"])
def test_a_state_larger_than_the_budgets_is_passed_over(what: str, watched: Watched, tmp_path: Path) -> None:
    """As where a run was killed for its memory and is given less."""
    model, path = tiny("llama"), tmp_path / "state"
    requests, variants = texts_of(model), [CLEAN, *each_layer(model)]
    expected = watched.run(ForkedExecutor(model), requests, variants, None)
    known = stopped(watched, ForkedExecutor(model), path)
    with zipfile.ZipFile(path) as file:
        about = json.loads(file.read("about.json"))
    limit = {"rows": {"max_rows": about["rows"]}, "bytes": {"max_kv_bytes": about["kv_bytes"]}}[what]
    less = {name: value - 1 for name, value in limit.items()}
    kept = tmp_path / "copy"
    kept.write_bytes(path.read_bytes())
    assert watched.run(ForkedExecutor(model, **less), requests, variants, None, -1, known) == expected
    without = watched.steps
    assert watched.run(ForkedExecutor(model, **less), requests, variants, None, -1, known, path) == expected
    assert watched.steps == without
    assert watched.run(ForkedExecutor(model, **limit), requests, variants, None, -1, known, kept) == expected
    assert watched.steps < without


def test_texts_of_waiting_variants_must_fit_as_well(watched: Watched, tmp_path: Path) -> None:
    """The chunk of requests was chosen for larger budgets."""
    model, path = tiny("llama"), tmp_path / "state"
    requests, variants = texts_of(model), [CLEAN, *each_layer(model)]
    expected = watched.run(ForkedExecutor(model), requests, variants, None)
    # One variant after another.
    one = ForkedExecutor(model, max_kv_bytes=max(ChunkSize(model.facts, requests).kv_bytes([v]) for v in variants))
    with pytest.raises(Stopped):
        watched.run(one, requests, variants, None, 39, None, path, 1)
    about = Checkpoint(path)._saved.about  # type: ignore[union-attr]
    assert about["admitted"] < len(variants)
    less = ForkedExecutor(model, max_kv_bytes=about["kv_bytes"] // 2)
    known = watched.answers
    found, peaks = [], []
    advance = GroupDecoder._advance

    def watch_peak(decoder: GroupDecoder, rows: Any, tokens: Any) -> Any:
        hidden = advance(decoder, rows, tokens)
        peaks.append(decoder.peak_kv_bytes)
        return hidden

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(GroupDecoder, "_advance", watch_peak)
        found = watched.run(less, requests, variants, None, -1, known, path)
    assert found == expected
    assert watched.spared == 0
    assert 0 < max(peaks) <= about["kv_bytes"] // 2


def test_blocks_of_variants_hold_those_of_the_state_together(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where cells before them are complete, among them one with positions, or one before them is missing again."""
    monkeypatch.setattr(forked, "BLOCK_VARIANTS", 3)
    model, path = tiny("llama"), tmp_path / "state"
    last = Variant("last", (Ablation(Layer(1), "skip", at="last"),))
    requests, variants = texts_of(model)[:6], [last, CLEAN, *each_layer(model), *each_mlp(model), *each_head(model)[:2]]
    executor = ForkedExecutor(model)
    expected = watched.run(executor, requests, variants, None)
    n_steps = watched.steps
    watched.run(executor, requests, variants[:3], None)
    first_block = watched.steps
    # In the second block.
    with pytest.raises(Stopped):
        watched.run(executor, requests, variants, None, first_block + 5, None, path, first_block + 4)
    answers = watched.answers_before_state
    complete = {name for name, own in answers.items() if len(own) == len(requests)}
    assert complete >= {variant.name for variant in variants[:3]}
    kept = path.read_bytes()
    assert {v.name for v in variants if v.name in Checkpoint(path).variants} == {v.name for v in variants[3:6]}
    assert Checkpoint(path).beside == {"last"}
    for lost in ([], [variants[1].name], ["L0.skip", "clean"]):
        path.write_bytes(kept)
        known = {name: own for name, own in answers.items() if name not in lost}
        given = [v for v in variants if v.name not in complete or v.name in (*lost, "last")]
        found = {a.variant: a.responses for a in watched.run(executor, requests, given, None, -1, known, path)}
        assert list(found) == given
        assert all(found[whole.variant] == whole.responses for whole in expected if whole.variant in found)
        assert watched.spared > 0
    assert n_steps > 2 * first_block


@pytest.mark.parametrize(
    ("lacking", "of_state", "blocks"),
    [
        ("abcdefgh", "", ["abc", "def", "gh"]),
        ("bcdefgh", "", ["abcd", "efg", "h"]),
        ("abcdefgh", "abc", ["abc", "def", "gh"]),
        # One of the state's variants is complete, or one before them lacks an answer.
        ("acdefgh", "abc", ["abc", "def", "gh"]),
        ("abefgh", "def", ["abcdef", "gh"]),
        ("abcdefgh", "cde", ["abcde", "fgh"]),
        ("gh", "def", ["abcdef", "gh"]),
        ("", "def", ["abcdefgh"]),
        ("abcdefgh", "fgh", ["abc", "defgh"]),
    ],
)
def test_blocks_by_hand(lacking: str, of_state: str, blocks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked, "BLOCK_VARIANTS", 3)
    found = list(forked._blocks([Variant(name) for name in "abcdefgh"], lacking, of_state))
    assert ["".join(variant.name for variant in block) for block in found] == blocks


def test_out_of_memory_after_resuming_begins_texts_again(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, path = ForkedExecutor(tiny("llama")), tmp_path / "state"
    requests, variants = texts_of(executor.model), [CLEAN, *each_layer(executor.model)]
    expected = watched.run(executor, requests, variants, None)
    known = stopped(watched, executor, path)
    choose, failed = GroupDecoder._choose, []

    def full(decoder: GroupDecoder, *args: Any) -> Any:
        if len(failed) < 1:
            failed.append(decoder)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return choose(decoder, *args)

    monkeypatch.setattr(GroupDecoder, "_choose", full)
    assert watched.run(executor, requests, variants, None, -1, known, path) == expected
    for variant in variants:
        missing = len(requests) - len(known.get(variant.name, {}))
        assert watched.worked[variant.name] == pytest.approx(missing)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system"), "the file system is read-only"),
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
    ],
)
def test_a_state_that_cannot_be_written_is_said_once(
    error: Exception,
    said: str,
    watched: Watched,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    executor, path = ForkedExecutor(tiny("llama")), tmp_path / "state"
    requests, variants = texts_of(executor.model), [CLEAN, *each_layer(executor.model)]
    expected = watched.run(executor, requests, variants, None)
    stopped(watched, executor, path)
    before, calls = path.read_bytes(), []

    def refused(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        raise error

    monkeypatch.setattr(checkpoint, "_fill", refused)
    with caplog.at_level(logging.WARNING):
        assert watched.run(executor, requests, variants, None, -1, None, path) == expected
    assert caplog.text.count(f"{said}; texts that are being written are no longer kept, should the run be stopped") == 1
    assert len(calls) == 1
    # The state before it still serves.
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]
    assert executor.limits == ForkedExecutor(executor.model).limits


def test_a_clock_that_zips_do_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They count from 1980 on; a machine's clock may stand before."""
    monkeypatch.setattr("time.time", lambda: 0.0)
    with zipfile.ZipFile(tmp_path / "zip", "w") as file, pytest.raises(ValueError, match="1980"):
        file.writestr("a", b"")
    now = 0.0
    kept = Checkpoint(tmp_path / "state", clock=lambda: now)
    now = 5.0
    kept.write({}, [("a", torch.ones(3))], 1)
    with zipfile.ZipFile(tmp_path / "state") as written:
        assert written.namelist() == ["a.npy", "about.json"]


def test_when_a_state_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "speed", checkpoint.CAREFUL_SPEED)
    now = 100.0
    kept = Checkpoint(tmp_path / "state", clock=lambda: now)

    def slow(*args: Any) -> Any:
        nonlocal now
        now += 1.0
        yield "a", torch.zeros(3)

    def times(until: float) -> list[float]:
        """When states are stored, each in a second, from the beginning on."""
        nonlocal now
        found = []
        while now < 100 + until:
            now += 0.5
            if kept.due():
                found.append(now - 100)
                kept.write({}, slow(), 1)
        return found

    stored = times(4000)
    # Soon at first; then so that writing takes a fortieth of the time, and then a twentieth of the time so far.
    assert stored[:3] == [5.0, 46.0, 87.0]
    late = [b - a for a, b in pairwise(stored) if a > 2000]
    assert min(late) > 0.05 * 2000
    assert max(late) < 0.06 * 4000
    now += 1000
    before = (tmp_path / "state").read_bytes()
    kept.write({"more": 1}, slow(), checkpoint.MAX_BYTES + 1)
    assert not kept.due()
    assert (tmp_path / "state").read_bytes() == before
    # It would take a minute, of some hours.
    monkeypatch.setattr(Checkpoint, "speed", checkpoint.MAX_BYTES / 60)
    kept.write({"more": 1}, slow(), checkpoint.MAX_BYTES)
    assert (tmp_path / "state").read_bytes() != before


def test_a_short_run_writes_only_what_takes_little_of_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(Checkpoint, "speed", 1e8)
    kept = Checkpoint(tmp_path / "state", clock=lambda: now)

    def in_a_second() -> Any:
        nonlocal now
        now += 1
        yield "a", torch.zeros(3)

    for seconds in (5.0, 10.0, 39.0):
        now = seconds
        assert kept.due()
        kept.write({}, [], 10**8)
        assert not kept.due()
        assert not (tmp_path / "state").exists()
    now = 45.0
    kept.write({}, in_a_second(), 10**8)
    assert (tmp_path / "state").exists()
    assert Checkpoint.speed == 1e8
    # A small state says nothing of the disk's speed.
    kept.write({}, in_a_second(), 10**4)
    assert Checkpoint.speed == 1e8
    kept.write({}, in_a_second(), 7 * 10**7)
    assert Checkpoint.speed == 7e7
