"""Fidelity of every variant: the clean model's own greedy answers, read by each variant in one pass a chunk."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lensprune.ablation.reference import collect_reference
from lensprune.ablation.variants import CLEAN, Variant
from lensprune.analysis.fidelity import FIDELITY_COLUMNS, fidelity_items, fidelity_row
from lensprune.engine import make_executor
from lensprune.engine.traces import trace_tokens
from lensprune.errors import LensPruneError, UserError
from lensprune.protocols import score_items
from lensprune.protocols.requests import GenerateRequest, GenerateResponse, LoglikelihoodRequest
from lensprune.sweep.prepare import SweepOptions, ask, load_tasks, open_model, resolved_variants
from lensprune.sweep.run import chosen_variants
from lensprune.sweep.selection import VariantSelection

__all__ = ["fidelity"]

_NAMED = ("component", "layer", "head", "ablation")


def fidelity(
    model: Any,
    tasks: Sequence[str] | str,
    variants: Sequence[Variant] | VariantSelection | str = "layers",
    *,
    limit: int | None = None,
    shots: int | None = None,
    seed: int = 0,
    data_dir: str | None = None,
    device: str | None = None,
    executor: str = "forked",
    progress: bool = True,
) -> pd.DataFrame:
    """How far each variant stays on the clean model's own greedy answers; see `lensprune.analysis.fidelity`.

    Costs the clean model's generation and then one teacher-forced pass a variant, instead of a generation a variant.

    Args:
        model: a name or path for `load_model`, or a loaded model.
        tasks: task names; each must support ``generate``.
        variants, limit, shots, seed, data_dir, device, executor: as for `lensprune.sweep.sweep`.
        progress: show a progress bar.

    Returns:
        One row a (task, variant), clean left out: variant, component, layer, head, ablation, task, and
        `FIDELITY_COLUMNS`. ``attrs["seconds"]`` holds the time of the clean generation and of the traces.

    Raises:
        UserError: whatever the user can mend.
    """
    options = SweepOptions(
        tasks=(tasks,) if isinstance(tasks, str) else tuple(tasks),
        protocols=("generate",),
        variants=chosen_variants(variants),
        limit=limit,
        shots=shots,
        seed=seed,
        data_dir=data_dir,
        device=device,
        executor=executor,
    )
    loaded = load_tasks(options)
    hooked = open_model(model, device=device)
    changed = [v for v in resolved_variants(hooked.facts, options) if not v.is_clean]
    wants_reference = [v for v in changed if v.needs_reference]
    asked = ask(hooked, loaded, options, with_reference=bool(wants_reference))
    runner = make_executor(executor, hooked)
    rows: list[dict[str, object]] = []
    seconds = {"generate": 0.0, "trace": 0.0}
    total = sum(len(cell.requests) for cell in asked) * (len(changed) + 2)
    bar: Any
    with tqdm(total=total, unit="row", disable=not progress, file=sys.stderr, dynamic_ncols=True) as bar:
        for cell in asked:
            task = cell.task.task.name
            bar.set_description(task)
            began = time.perf_counter()
            [clean] = runner.run(cell.requests, [CLEAN], progress=bar.update)
            seconds["generate"] += time.perf_counter() - began
            outcomes = score_items(cell.task, cell.protocol, cell.items, clean.responses)
            right = np.array([outcome.correct for outcome in outcomes])
            answers = _answers(cell.requests, clean.responses, task)
            reference = (
                collect_reference(hooked, cell.reference_prompts, wants_reference, donor_seed=seed)
                if wants_reference
                else None
            )
            began = time.perf_counter()
            traces = trace_tokens(
                hooked, answers, [CLEAN, *changed], reference=reference, executor=runner.name, progress=bar.update
            )
            seconds["trace"] += time.perf_counter() - began
            n_tokens = sum(len(answer.continuation_ids) for answer in answers)
            for variant, own in zip(changed, traces[1:], strict=True):
                row = fidelity_row(fidelity_items(own, traces[0]), n_tokens, right=right)
                rows.append(
                    {**{name: getattr(variant, name) for name in _NAMED}, "variant": variant.name, "task": task, **row}
                )
    frame = pd.DataFrame(rows, columns=["variant", *_NAMED, "task", *FIDELITY_COLUMNS])
    frame.attrs["seconds"] = seconds
    return frame.astype({"layer": "Int64", "head": "Int64"})


def _answers(requests: Sequence[Any], responses: Sequence[Any], task: str) -> list[LoglikelihoodRequest]:
    """The clean model's answers, the tokens that ended them included, as texts to be read."""
    answers = []
    for request, response in zip(requests, responses, strict=True):
        if not isinstance(request, GenerateRequest) or not isinstance(response, GenerateResponse):
            raise LensPruneError(f"task {task}: expected generations")
        if response.stop_reason == "non_finite" or not response.token_ids:
            raise UserError(f"task {task}: the clean model's logits are not finite, so it has no answer to stay on")
        answers.append(LoglikelihoodRequest(request.context_ids, response.token_ids))
    return answers
