"""Kernels, and waits of the host, of decode steps and of scoring, counted on the pretend GPU.

``LENSPRUNE_TEST_DEVICE=pretend python -m tests.pretend_gpu.counts --write docs/explanation/performance.md`` writes them
as a table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from lensprune.ablation import CLEAN, Variant, collect_reference, each_head, each_layer
from lensprune.engine import ForkedExecutor
from lensprune.engine.attention import TreeAttention
from lensprune.engine.decoding.decoder import GroupDecoder
from lensprune.engine.last_layer import TreeQueries
from lensprune.engine.tree_scoring import TreeScorer
from lensprune.models import as_hooked_model, load_model
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest, Request
from tests.helpers.families import save_folder
from tests.helpers.markdown import write_between
from tests.helpers.pretend_gpu import Counts, counting
from tests.helpers.tiny_models import scratch

__all__ = [
    "CHANGES",
    "FAMILIES",
    "StepCounts",
    "counted_attention",
    "counted_decoding",
    "counted_scoring",
    "with_graphs",
]

FAMILIES = ("llama", "gpt2", "gemma3", "mixtral")
CHANGES = ("layers skip", "layers mean", "heads zero")
_PREFIX = "The quick brown fox jumps over the lazy dog and runs away from all it ever knew. "
_QUESTIONS = ("one", "another", "x and y", "a long one that goes on and on and on")


@dataclass(frozen=True)
class StepCounts:
    """Of one decode step: kernels and waits of the layers' part, and of choosing tokens."""

    layers: Counts
    choice: Counts

    @property
    def kernels(self) -> int:
        return self.layers.kernels.total()

    @property
    def syncs(self) -> int:
        return self.layers.syncs.total() + self.choice.syncs.total()


@cache
def model(family: str, n_layers: int) -> HookedModel:
    name = {"gpt2": "n_layer"}.get(family, "num_hidden_layers")
    overrides: dict[str, Any] = {name: n_layers}
    if family == "gemma3":
        overrides["layer_types"] = ["sliding_attention"] * n_layers
    folder = save_folder(family, scratch(f"{family}-{n_layers}"), **overrides)
    return as_hooked_model(load_model(folder, device="cuda", dtype="bfloat16"))


def variants_of(own: HookedModel, changes: str) -> list[Variant]:
    what, _, kind = changes.partition(" ")
    return [CLEAN, *(each_layer if what == "layers" else each_head)(own, kind)]


def counted_decoding(
    family: str, n_layers: int, changes: str, n_tokens: int = 6, *, graphs: bool = False
) -> list[StepCounts]:
    """Counts of each decode step of four prompts with a shared prefix, under a sweep over layers or heads."""
    own = model(family, n_layers)
    requests = [GenerateRequest(tuple(own.tokenizer.encode(_PREFIX + q)), ("\x00",), n_tokens) for q in _QUESTIONS]
    executor = ForkedExecutor(own, graphs=graphs)
    with _counted(GroupDecoder, "_advance") as layers, _counted(GroupDecoder, "_choose") as choices:
        _run(executor, requests, changes)
    # The first tokens are chosen after the prompts' pass.
    return [StepCounts(*pair) for pair in zip(layers, choices[1:], strict=True)]


def with_graphs(family: str, n_layers: int, changes: str) -> list[StepCounts]:
    """Counts of the last ten of 20 decode steps that replay graphs, when most are captured."""
    return counted_decoding(family, n_layers, changes, 20, graphs=True)[-10:]


def counted_scoring(family: str, n_layers: int, changes: str) -> list[Counts]:
    """Counts of the scoring of each variant: final norm, unembedding and log-probabilities of all questions."""
    own = model(family, n_layers)
    encode = own.tokenizer.encode
    requests = [
        LoglikelihoodRequest(tuple(encode(_PREFIX + q)), tuple(encode(option)))
        for q in _QUESTIONS
        for option in (" yes", " no")
    ]
    executor = ForkedExecutor(own)
    with _counted(TreeScorer, "score") as counts:
        _run(executor, requests, changes)
    return counts


def counted_attention(family: str, n_layers: int, n_questions: int) -> tuple[list[Counts], list[Counts]]:
    """Counts of each call that attends, of the last layer and of others, in scoring one-letter answers to questions
    with a shared prefix, with no layer and with the first one skipped."""
    own = model(family, n_layers)
    prefix = tuple(own.tokenizer.encode(_PREFIX))
    requests = [
        LoglikelihoodRequest((*prefix, 20 + i, *range(10, 22 + i % 3)), (option,))
        for i in range(n_questions)
        for option in (7, 8)
    ]
    executor = ForkedExecutor(own)
    with _counted(TreeQueries, "attend") as last, _counted(TreeAttention, "attend") as others:
        for _ in executor.run(requests, variants_of(own, "layers skip")[:2]):
            pass
    return last, others


def _run(executor: ForkedExecutor, requests: Sequence[Request], changes: str) -> None:
    variants = variants_of(executor.model, changes)
    reference = None
    if "mean" in changes:
        reference = collect_reference(executor.model, [[10, 11, 12], [13, 14, 15, 16]], variants)
    for _ in executor.run(requests, variants, reference=reference):
        pass


@contextmanager
def _counted(owner: type, name: str) -> Iterator[list[Counts]]:
    """Counts of each call of a method meanwhile."""
    method, calls = getattr(owner, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        with counting() as counts:
            result = method(*args, **kwargs)
        calls.append(counts)
        return result

    with mock.patch.object(owner, name, call):
        yield calls


def table(n_layers: int = 5) -> str:
    """Markdown: medians over decode steps; of scoring, the most that any layer's attention takes."""
    lines = [
        "| model | kernels per layer and decode step: layers skipped | layers replaced by means | heads zeroed "
        "| waits per step | with graphs: layers skipped | layers replaced by means | heads zeroed "
        "| kernels of attention: 10 questions | 40 questions |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        kernels, syncs, launches = [], [], []
        for changes in CHANGES:
            steps = counted_decoding(family, n_layers, changes)
            kernels.append(f"{median(step.kernels for step in steps) / n_layers:.0f}")
            syncs += [step.syncs for step in steps]
            replayed = with_graphs(family, n_layers, changes)
            launches.append(f"{median(step.kernels for step in replayed) / n_layers:.0f}")
        attention = []
        for n_questions in (10, 40):
            calls = [call for calls in counted_attention(family, n_layers, n_questions) for call in calls]
            attention.append(str(max(call.kernels.total() for call in calls)))
        row = [family, *kernels, str(max(syncs)), *launches, *attention]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="a page to write the table into")
    arguments = parser.parse_args()
    text = table()
    print(text)
    if arguments.write is not None:
        write_between(arguments.write, "counts", text)


if __name__ == "__main__":
    main()
