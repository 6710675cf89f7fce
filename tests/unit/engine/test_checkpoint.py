"""Decoding that is stopped goes on in the middle of its texts, from the state in its file."""

from __future__ import annotations

import logging
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lensprune.ablation import CLEAN, Ablation, Layer, Variant, collect_reference, each_head, each_layer, each_mlp
from lensprune.ablation.reference import ReferenceActivations
from lensprune.engine import ForkedExecutor
from lensprune.engine.decoding import ChunkSize, checkpoint, kv
from lensprune.engine.decoding.checkpoint import Checkpoint
from lensprune.engine.decoding.decoder import GroupDecoder
from lensprune.errors import UserError
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
        self.worked: Counter[str] = Counter()
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
        self.steps, self.stop_at, self.answers, self.worked = 0, stop_at, {}, Counter()

        def answered(name: str, new: Any) -> None:
            self.answers.setdefault(name, {}).update(new)

        def worked(name: str, rows: float) -> None:
            self.worked[name] += rows  # type: ignore[assignment]

        saved = None
        if path is not None:
            # A state is due whenever the clock has moved on by 5 seconds.
            saved = Checkpoint(path, on_known=worked, clock=lambda: 5.0 * (self.steps // every))
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
