"""Fidelity of every variant: score the clean model's right answers under each variant, in one pass per chunk."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lensprune.ablation.variants import CLEAN, Variant, VariantsLike
from lensprune.divergence.scores import FIDELITY_COLUMNS, fidelity_items, fidelity_row
from lensprune.engine import make_executor
from lensprune.engine.greedy import GreedyRules
from lensprune.engine.traces import trace_tokens
from lensprune.errors import LensPruneError, UserError
from lensprune.models.base import HookedModel, ModelOrName
from lensprune.models.load import open_model
from lensprune.protocols.answer_span import answer_spans
from lensprune.protocols.requests import GenerateRequest, GenerateResponse, LoglikelihoodRequest
from lensprune.sweeps.cells import reference_of
from lensprune.sweeps.conditions import Condition, conditions_of
from lensprune.sweeps.options import FEWSHOT, Loading, Splitting, SweepOptions, option_values
from lensprune.sweeps.prepare import check_before_loading, resolved_variants
from lensprune.sweeps.reached import check_positions
from lensprune.sweeps.selection import VariantSelection
from lensprune.tasks.item_choice import DRAWN
from lensprune.terminal import progress_bar

__all__ = ["AnswerReading", "fidelity", "read_answers"]

_NAMED = ("component", "layer", "head", "ablation")


@dataclass(frozen=True)
class AnswerReading:
    """One task's answers, scored under every variant.

    `item_ids`: of the answers read, in order; `items`: by variant (clean left out), see `fidelity_items`; `n_tokens`:
    read of each variant; `seconds`: of the clean generation
    (``generate``) and the reading (``trace``).
    """

    task: str
    item_ids: tuple[str, ...]
    variants: tuple[Variant, ...]
    items: dict[str, dict[str, Float[np.ndarray, " item"]]]
    n_tokens: int
    seconds: dict[str, float]


def fidelity(
    model: ModelOrName,
    tasks: Sequence[str] | str,
    variants: VariantsLike | VariantSelection = "layers",
    *,
    limit: int | None = None,
    items: str = DRAWN,
    shots: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    leave_out_repeated: bool = False,
    primary_metric: str | None = None,
    chat_template: bool = False,
    template_date: str | None = None,
    template_args: Mapping[str, Any] | None = None,
    fewshot_as_multiturn: bool = False,
    system: str | None = None,
    keep_eos: bool = False,
    thinking: str = "auto",
    think_tokens: tuple[str, str] | None = None,
    thinking_budget: int | None = None,
    max_new_tokens: int | None = None,
    until: Sequence[str] = (),
    until_only: bool = False,
    generation_config: str = "model",
    reference: str | Path = FEWSHOT,
    mean_mode: str = "pooled",
    dtype: str | None = None,
    device: str | None = None,
    n_devices: int | None = None,
    bos: str | None = None,
    executor: str = "forked",
    batch_tokens: int | None = None,
    memory: str | None = None,
    whole: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Score how closely each variant follows the clean model's own right answers; see `lensprune.divergence.scores`.

    It costs the clean model's generation and one teacher-forced pass per variant, instead of one generation per
    variant.

    Args:
        model: a name or path for `load_model`, or a loaded model.
        tasks: task names; each must support ``generate``.
        whole: score every answer to its last token, including wrong ones.
        progress: show a progress bar.

    The other arguments are those of `lensprune.sweep`.

    Returns:
        One row per (task, variant), without clean: variant, component, layer, head, ablation, task, and
        `FIDELITY_COLUMNS`. ``attrs["seconds"]`` holds the time of the clean generation and of the traces.

    Raises:
        UserError: invalid input; a task for which the clean model has no right answer.

    Examples:
        >>> task = "kv_retrieval[pairs=4,ending=reopened,answer=text]"
        >>> scores = lp.fidelity(model, task, lp.each_layer(model, layers=[0, 3]), limit=4, progress=False)
        >>> scores["variant"].tolist(), bool(scores["fidelity"].between(0, 1).all())
        (['L0.skip', 'L3.skip'], True)
    """
    options = SweepOptions.given(protocols="generate", **option_values(locals(), SweepOptions))
    rows: list[dict[str, object]] = []
    seconds = {"generate": 0.0, "trace": 0.0}
    for reading in read_answers(model, options, whole=whole, progress=progress):
        for name, taken in reading.seconds.items():
            seconds[name] += taken
        for variant in reading.variants:
            row = fidelity_row(reading.items[variant.name], reading.n_tokens)
            named = {name: getattr(variant, name) for name in _NAMED}
            rows.append({**named, "variant": variant.name, "task": reading.task, **row})
    frame = pd.DataFrame(rows, columns=["variant", *_NAMED, "task", *FIDELITY_COLUMNS])
    frame.attrs["seconds"] = seconds
    return frame.astype({"layer": "Int64", "head": "Int64"})


def read_answers(
    model: ModelOrName, options: SweepOptions, *, whole: bool = False, progress: bool = True
) -> list[AnswerReading]:
    """Generate with the clean model, and score its right answers under every variant; one reading per task.

    Args:
        model: a name or path for `load_model`, or a loaded model.
        options: of a sweep under ``generate``.
        whole: read every answer to its last token, wrong ones too.
        progress: show a progress bar.

    Raises:
        UserError: invalid input; a task for which the clean model has no right answer; penalties or suppressed tokens
            in the model's generation config, unless it is ignored.
    """
    if options.thinking_budget is not None:
        raise UserError(
            f"fidelity reads the tokens that a model chooses; a thinking budget of {options.thinking_budget} forces "
            "some: leave thinking_budget out"
        )
    # One greedy answer of each item is read, whatever a task samples by itself.
    options = replace(options, samples=1, temperature=0.0)
    loaded, text = check_before_loading(options)
    hooked = open_model(model, **option_values(options, Loading, Splitting))
    changed = tuple(v for v in resolved_variants(hooked.facts, options) if not v.is_clean)
    _check_plain_decoding(hooked, options.generation_config)
    conditions = conditions_of(hooked, loaded, options, text, with_reference=any(v.needs_reference for v in changed))
    check_positions(hooked, conditions, changed)
    runner = make_executor(options.executor, hooked, options.batch_tokens, options.memory)
    readings = []
    bar: Any
    with progress_bar(shown=progress, total=len(conditions[0].requests)) as bar:
        for cell in conditions:
            task = cell.task.task.name
            bar.reset(total=len(cell.requests))
            bar.set_description(f"{task}: the clean model's answers")
            began = time.perf_counter()
            [clean] = runner.run(cell.requests, [CLEAN], progress=bar.update)
            generated = time.perf_counter() - began
            item_ids, answers = _answers(hooked.tokenizer, cell, clean.responses, whole)
            reference = reference_of(hooked, cell, changed, options)
            bar.reset(total=len(answers) * (1 + len(changed)))
            bar.set_description(f"{task}: {len(changed)} variants read {len(answers)} answers")
            began = time.perf_counter()
            clean_trace, *others = trace_tokens(
                hooked, answers, [CLEAN, *changed], reference=reference, executor=runner.name, progress=bar.update
            )
            readings.append(
                AnswerReading(
                    task=task,
                    item_ids=item_ids,
                    variants=changed,
                    items={
                        v.name: fidelity_items(trace, clean_trace) for v, trace in zip(changed, others, strict=True)
                    },
                    n_tokens=sum(len(answer.continuation_ids) for answer in answers),
                    seconds={"generate": generated, "trace": time.perf_counter() - began},
                )
            )
    return readings


def _check_plain_decoding(model: HookedModel, use: str) -> None:
    """Refuse a generation config under which the model does not choose the token of the largest logit."""
    changed = GreedyRules(model, use).settings
    if changed:
        name, value = next(iter(changed.items()))
        raise UserError(
            f"the generation config of {model.facts.name} sets {name} to {value!r}, and fidelity compares logits "
            "without it: ignore it with --generation-config none"
        )


def _answers(
    tokenizer: Any, cell: Condition, responses: Sequence[Any], whole: bool
) -> tuple[tuple[str, ...], list[LoglikelihoodRequest]]:
    """The clean model's right answers, up to where they become right, as texts to be read, and their items."""
    task = cell.task.task.name
    if whole:
        spans = [len(response.token_ids) for response in responses]
    else:
        spans = answer_spans(tokenizer, cell.task, cell.items, responses)
    item_ids, answers = [], []
    for item, request, response, span in zip(cell.items, cell.requests, responses, spans, strict=True):
        if not isinstance(request, GenerateRequest) or not isinstance(response, GenerateResponse):
            raise LensPruneError(f"task {task}: expected generations")
        if response.stop_reason == "non_finite" or not response.token_ids:
            raise UserError(f"task {task}: the clean model's logits are not finite, so there is no answer to score")
        if span:
            item_ids.append(item.item.id)
            answers.append(LoglikelihoodRequest(request.context_ids, response.token_ids[:span], request.item))
    if not answers:
        raise UserError(
            f"task {task}: the clean model answers none of {len(cell.items)} items right, so there is no right answer "
            "to follow: take more items or an easier task"
        )
    return tuple(item_ids), answers
