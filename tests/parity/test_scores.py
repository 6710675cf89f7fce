"""Every task that lm-eval 0.4.13 has, on the same rows, number for number: prompts, ids, scores, texts, aggregates.

Both sides read the same weights. lm-eval's runs as plain transformers, without any hook point; its skipped layer is a
forward hook that returns the block's input.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from lensprune.ablation.components import Layer
from lensprune.ablation.variants import CLEAN, Ablation, Variant
from lensprune.engine import make_executor
from lensprune.engine.base import Executor
from lensprune.models import BridgeModel, as_hooked_model
from lensprune.protocols import GenerateRequest, ItemRequests, Outcome, build_requests, score_items
from lensprune.protocols.aggregation import aggregate
from lensprune.tasks.base import GenerationFormat, LoadedTask, ProtocolName, Task
from lensprune.tasks.loading import load_task
from lensprune.tasks.registry import get_task
from tests.helpers import lm_eval_tasks
from tests.parity.conftest import ParityRow

SKIPPED = 12
VARIANTS = (CLEAN, Variant(f"L{SKIPPED}.skip", (Ablation(Layer(SKIPPED), "skip"),)))
TOLERANCE = 1e-4
"""On log-probabilities, which are float32 sums that reach −100: 13 units in the last place."""


@dataclass(frozen=True)
class Case:
    """What is compared. `form` is MMLU's suffix in lm-eval's task names."""

    task: str
    protocol: ProtocolName
    limit: int
    shots: int = 0
    max_new_tokens: int | None = None
    subjects: tuple[str, ...] = ()
    form: str = ""

    def __str__(self) -> str:
        return f"{self.task}{self.form}" + (f" {self.shots}-shot" if self.shots else "")


SUBJECTS = ("anatomy", "philosophy")
CASES = (
    Case("mmlu", "default", 2, 5, subjects=(*SUBJECTS, "virology")),
    Case("mmlu", "continuation", 2, 2, subjects=SUBJECTS, form="_continuation"),
    Case("mmlu", "generate", 2, 5, 8, subjects=SUBJECTS, form="_generative"),
    Case("hellaswag", "continuation", 5),
    Case("hellaswag", "continuation", 2, 2),
    Case("mathqa", "continuation", 5),
    Case("openbookqa", "continuation", 8),
    Case("openbookqa", "continuation", 3, 2),
    Case("arc_easy", "continuation", 6),
    Case("arc_challenge", "continuation", 6),
    Case("boolq", "continuation", 4),
    Case("commonsense_qa", "default", 6),
    Case("winogrande", "continuation", 8),
    Case("winogrande", "continuation", 3, 2),
    Case("gsm8k", "generate", 2, 5, 32),
    Case("gsm8k_cot", "generate", 2, 8, 32),
)


@pytest.fixture(scope="module")
def model(smollm2: Any) -> BridgeModel:
    return as_hooked_model(smollm2)


@pytest.fixture(scope="module")
def plain(model: BridgeModel) -> Any:
    """Plain transformers over the same weight tensors."""
    assert model.raw_model is not None
    config = copy.deepcopy(model.raw_model.config)
    # The executor sets an attention of its own on the model that it runs.
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        twin = type(model.raw_model)(config).eval()
    twin.load_state_dict(model.raw_model.state_dict(), assign=True)
    twin.tie_weights()
    twin.model.rotary_emb = type(model.raw_model.model.rotary_emb)(config)
    return twin


@pytest.fixture(scope="module")
def executor(model: BridgeModel) -> Executor:
    """The default one: what a sweep's numbers come from."""
    return make_executor("forked", model)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lm_eval_rows")


class RecordingHFLM(HFLM):
    """HFLM that remembers the ids it was asked to score, and those it generated from."""

    def __init__(self, plain: Any, tokenizer: Any, batch_size: int) -> None:
        # HFLM sets a padding token on the tokenizer it is given.
        super().__init__(pretrained=plain, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, device="cpu")
        self.scored: dict[tuple[str, str], tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self.prompted: dict[str, tuple[int, ...]] = {}

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        for strings, context, continuation in requests:
            self.scored[strings] = (tuple(context), tuple(continuation))
        return super()._loglikelihood_tokens(requests, *args, **kwargs)

    def tok_batch_encode(self, strings: Any, *args: Any, **kwargs: Any) -> Any:
        ids, mask = super().tok_batch_encode(strings, *args, **kwargs)
        for string, row, kept in zip(strings, ids, mask, strict=True):
            self.prompted[string] = tuple(row[kept.bool()].tolist())
        return ids, mask


@contextmanager
def block_bypassed(plain: Any, variant: Variant) -> Iterator[None]:
    """Plain transformers without one block, for the variants that skip one."""
    if variant.is_clean:
        yield
        return

    def skip(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        entering = args[0] if args else kwargs["hidden_states"]
        return (entering, *output[1:]) if isinstance(output, tuple) else entering

    handle = plain.model.layers[SKIPPED].register_forward_hook(skip, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Theirs:
    """lm-eval's run: samples by (document index, filter) of each task in order, and the aggregates."""

    lm: RecordingHFLM
    samples: list[dict[str, dict[str, Any]]]
    aggregates: dict[str, Any]


def run_lm_eval(case: Case, plain: Any, tokenizer: Any, variant: Variant, data_dir: Path, cache_dir: Path) -> Theirs:
    if case.subjects:
        tasks = lm_eval_tasks.load_mmlu(case.form, case.subjects, data_dir, cache_dir, case.shots, case.max_new_tokens)
    else:
        tasks = lm_eval_tasks.load(case.task, data_dir, cache_dir, case.shots, case.max_new_tokens)
    # Alone in its batch, so that a text ends where its own stop string ends it.
    lm = RecordingHFLM(plain, tokenizer, batch_size=1 if case.protocol == "generate" else 8)
    with block_bypassed(plain, variant), torch.inference_mode():
        results = evaluate(lm, tasks, limit=case.limit, bootstrap_iters=1)
    samples = []
    for name in tasks["tasks"]:
        documents: dict[int, dict[str, Any]] = {}
        for sample in results["samples"][name]:
            documents.setdefault(sample["doc_id"], {})[sample["filter"]] = sample
        samples += [documents[index] for index in sorted(documents)]
    (name,) = tasks["groups"] if case.subjects else tasks["tasks"]
    return Theirs(lm, samples, results["results"][name])


@dataclass(frozen=True)
class Ours:
    task: LoadedTask
    asked: list[ItemRequests]
    responses: list[list[Any]]
    outcomes: list[Outcome]


def run_ours(case: Case, model: BridgeModel, executor: Executor, variant: Variant, data_dir: Path) -> Ours:
    task = get_task(case.task)
    if case.max_new_tokens is not None:
        task = with_new_tokens(task, case.protocol, case.max_new_tokens)
    limit = None if case.subjects else case.limit
    loaded = load_task(task, data_dir=data_dir, limit=limit, items="first", shots=case.shots)
    if case.subjects:
        loaded = replace(loaded, items=subject_items(loaded, case))
    asked = build_requests(model, loaded, case.protocol)
    (answered,) = executor.run([r for item in asked for r in item.requests], [variant])
    responses = list(answered.responses)
    outcomes = score_items(loaded, case.protocol, asked, responses)
    left = iter(responses)
    return Ours(loaded, asked, [[next(left) for _ in item.requests] for item in asked], outcomes)


def with_new_tokens(task: Task, protocol: ProtocolName, count: int) -> Task:
    fmt = task.formats[protocol]
    assert isinstance(fmt, GenerationFormat)
    return replace(task, formats={**task.formats, protocol: replace(fmt, max_new_tokens=count)})


def subject_items(loaded: LoadedTask, case: Case) -> tuple[Any, ...]:
    return tuple(
        item
        for subject in case.subjects
        for item in [item for item in loaded.items if item.cluster == subject][: case.limit]
    )


@pytest.mark.real_model
@pytest.mark.data_dir
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_scores(
    case: Case,
    variant: Variant,
    model: BridgeModel,
    plain: Any,
    executor: Executor,
    data_dir: Path,
    cache_dir: Path,
    parity_rows: list[ParityRow],
) -> None:
    if not variant.is_clean:
        case = replace(case, limit=max(2, case.limit // 2))
    theirs = run_lm_eval(case, plain, model.tokenizer, variant, data_dir, cache_dir)
    ours = run_ours(case, model, executor, variant, data_dir)
    assert len(theirs.samples) == len(ours.asked) == case.limit * max(1, len(case.subjects))

    mismatches = {
        "prompt": count_prompt_mismatches(theirs, ours),
        "ids": count_id_mismatches(theirs, ours),
        **({"text": count_text_mismatches(theirs, ours)} if case.protocol == "generate" else {}),
        "metric": count_metric_mismatches(theirs, ours),
        "aggregate": count_aggregate_mismatches(theirs, ours),
    }
    difference = None if case.protocol == "generate" else max_logprob_difference(theirs, ours)
    requests = sum(len(item.requests) for item in ours.asked)
    parity_rows.append(ParityRow(str(case), variant.name, len(ours.asked), requests, difference, mismatches))

    assert mismatches == dict.fromkeys(mismatches, 0)
    if case.protocol != "generate":
        assert difference is not None
        assert difference < TOLERANCE


@pytest.mark.real_model
@pytest.mark.data_dir
def test_the_skipped_layer_changes_the_scores(model: BridgeModel, executor: Executor, data_dir: Path) -> None:
    case = Case("openbookqa", "continuation", 1)
    clean, skipped = (run_ours(case, model, executor, variant, data_dir).responses[0] for variant in VARIANTS)
    assert all(abs(a.logprob - b.logprob) > 0.1 for a, b in zip(clean, skipped, strict=True))


def pairs(theirs: Theirs, ours: Ours) -> Iterator[tuple[dict[str, Any], ItemRequests, list[Any], Outcome]]:
    return zip(theirs.samples, ours.asked, ours.responses, ours.outcomes, strict=True)


def any_filter(sample: dict[str, Any]) -> dict[str, Any]:
    return next(iter(sample.values()))


def count_prompt_mismatches(theirs: Theirs, ours: Ours) -> int:
    wrong = 0
    for sample, asked, _, _ in pairs(theirs, ours):
        for arguments, prompt, request in zip(
            any_filter(sample)["arguments"], asked.prompts, asked.requests, strict=True
        ):
            if isinstance(request, GenerateRequest):
                context, kwargs = arguments
                wrong += context != prompt.context or set(kwargs["until"]) != set(request.until)
            else:
                wrong += tuple(arguments) != (prompt.context, prompt.continuation)
    return wrong


def count_id_mismatches(theirs: Theirs, ours: Ours) -> int:
    wrong = 0
    for asked in ours.asked:
        assert asked.truncated_tokens == 0
        for prompt, request in zip(asked.prompts, asked.requests, strict=True):
            if isinstance(request, GenerateRequest):
                wrong += theirs.lm.prompted[prompt.context] != request.context_ids
            else:
                expected = theirs.lm.scored[prompt.context, prompt.continuation]
                wrong += expected != (request.context_ids, request.continuation_ids)
    return wrong


def count_text_mismatches(theirs: Theirs, ours: Ours) -> int:
    return sum(
        any_filter(sample)["resps"] != [[response.text] for response in responses]
        for sample, _, responses, _ in pairs(theirs, ours)
    )


def max_logprob_difference(theirs: Theirs, ours: Ours) -> float:
    return max(
        abs(float(theirs_response[0]) - response.logprob)
        for sample, _, responses, _ in pairs(theirs, ours)
        for (theirs_response,), response in zip(any_filter(sample)["resps"], responses, strict=True)
    )


def count_metric_mismatches(theirs: Theirs, ours: Ours) -> int:
    wrong = 0
    for sample, _, _, outcome in pairs(theirs, ours):
        expected = {
            metric if name == "none" else f"{metric},{name}": float(filtered[metric])
            for name, filtered in sample.items()
            for metric in filtered["metrics"]
        }
        wrong += expected != {metric: outcome.metrics[metric] for metric in expected}
    return wrong


def count_aggregate_mismatches(theirs: Theirs, ours: Ours) -> int:
    """Of the metrics that lm-eval has; ours has some beside them."""
    mine = {
        (name.partition(",")[0], name.partition(",")[2] or "none"): values
        for name, values in aggregate(ours.outcomes, ours.task).items()
    }
    named = [key.partition(",") for key in theirs.aggregates if "," in key]
    expected = {(metric, name) for metric, _, name in named if not metric.endswith("_stderr")}
    assert expected
    wrong = len(expected - mine.keys())
    for metric, name in expected & mine.keys():
        mean, stderr = mine[metric, name]
        wrong += not math.isclose(theirs.aggregates[f"{metric},{name}"], mean, abs_tol=1e-12)
        wrong += not math.isclose(theirs.aggregates[f"{metric}_stderr,{name}"], stderr, abs_tol=1e-12)
    return wrong
