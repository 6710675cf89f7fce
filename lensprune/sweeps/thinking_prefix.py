"""Score options after the clean model's thinking, the same under every variant."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import cast

from lensprune.ablation.variants import CLEAN
from lensprune.engine.base import Executor
from lensprune.engine.greedy import GreedyRules
from lensprune.errors import LensPruneError, UserError
from lensprune.models.base import HookedModel
from lensprune.models.tokenizers import encode, prefix_token_id
from lensprune.protocols.base import ItemRequests, Prompt
from lensprune.protocols.encoding import generate_request
from lensprune.protocols.prompting import PromptOptions, prompting_of
from lensprune.protocols.registry import protocol_named
from lensprune.protocols.requests import GenerateRequest, GenerateResponse, GenerationConfigUse, Response
from lensprune.protocols.thinking import ThinkingMarkers
from lensprune.runs.folder import check_out_folder
from lensprune.runs.outcomes import Outcomes
from lensprune.sweeps.answering import answers_of, rows_done
from lensprune.sweeps.conditions import Condition
from lensprune.sweeps.job_spec import condition_specs
from lensprune.sweeps.options import SweepOptions, Wording, option_values
from lensprune.sweeps.prepare import SweepJob
from lensprune.sweeps.reached import check_positions
from lensprune.tasks.base import MultipleChoiceFormat
from lensprune.terminal import work_bar

__all__ = ["thinking_requests", "with_clean_thinking", "with_longest_thinking"]

logger = logging.getLogger("lensprune")

AFTER_END = 4
"""Number of tokens after the end of thinking that may be white space written by the model."""


def with_clean_thinking(job: SweepJob, executor: Executor, folder: Path | None, progress: bool) -> SweepJob:
    """`job` with the clean model's thinking between each prompt and its options.

    It is generated once, up to the thinking budget, followed by the end marker and the model's white space; a run in
    `folder` has it in its questions and reuses it.

    Raises:
        UserError: as `thinking_requests`.
    """
    texts = {} if folder is None or check_out_folder(folder) is None else _stored(job, Outcomes.load(folder))
    made = []
    for condition in job.conditions:
        if not condition.generates:
            place = condition.key
            thoughts = texts.get(place) or _generated(job, condition, executor, progress)
            condition = _after(job.model, condition, thoughts, job.options)  # noqa: PLW2901
        made.append(condition)
    conditions = tuple(made)
    check_positions(job.model, conditions, job.variants)
    decoding = GreedyRules(job.model, job.options.generation_config).recorded
    spec = replace(job.spec, conditions=condition_specs(conditions), decoding=decoding)
    return replace(job, conditions=conditions, spec=spec)


def with_longest_thinking(
    model: HookedModel, conditions: Sequence[Condition], options: SweepOptions
) -> tuple[Condition, ...]:
    """`conditions` with the maximum number of thinking tokens before the options, for cost estimates."""
    markers = _markers(model, options)
    longest = markers.end * ((options.thinking_budget or 0) // len(markers.end_ids))
    return tuple(
        condition
        if condition.generates
        else _after(model, condition, {i.item.id: longest for i in condition.items}, options)
        for condition in conditions
    )


def _markers(model: HookedModel, options: SweepOptions) -> ThinkingMarkers:
    markers = prompting_of(model, PromptOptions(**option_values(options, Wording))).markers
    if markers is None:
        raise LensPruneError("a thinking prefix without think tokens was not refused")
    return markers


def _stored(job: SweepJob, run: Outcomes) -> dict[tuple[str, str], dict[str, str]]:
    """The thinking in a run's questions, of the conditions whose items and prompts are those of `job`."""
    stored = {}
    for condition in job.conditions:
        place = condition.key
        if condition.generates or place not in run.conditions:
            continue
        rows = run.questions(*place).select(["item_id", "prompt"]).to_pylist()
        prompts = {row["item_id"]: row["prompt"] for row in rows}
        contexts = {item.item.id: item.prompts[0].context for item in condition.items}
        if all(prompts.get(name, "").startswith(context) for name, context in contexts.items()):
            stored[place] = {name: prompts[name][len(context) :] for name, context in contexts.items()}
    return stored


def thinking_requests(model: HookedModel, condition: Condition, options: SweepOptions) -> list[GenerateRequest]:
    """Requests for the clean model's thinking, one per item.

    Raises:
        UserError: options that stand in the prompts themselves (winogrande); prompts that leave too little room for
            thinking in the model's context.
    """
    markers, task, budget = _markers(model, options), condition.task.task.name, options.thinking_budget or 0
    encoder = partial(encode, model, keep_eos=options.keep_eos)
    room = budget + len(markers.forced_ids) + AFTER_END
    requests: list[GenerateRequest] = []
    cuts: list[int] = []
    for item in condition.items:
        context, where = item.prompts[0].context, f"task {task!r}, item {item.item.id}"
        if any(prompt.context != context for prompt in item.prompts):
            raise UserError(
                f"task {task!r} has its options in the prompts under protocol {condition.protocol}, so no thinking can "
                "precede them: leave the thinking prefix out"
            )
        request, cut = generate_request(encoder, prefix_token_id(model), model.facts.n_ctx, context, (), room, where)
        cuts += [cut] if cut else []
        requests.append(
            replace(
                request,
                thinking=markers.in_answer_to(context),
                forced_end=markers.forced_after(budget),
                item=item.item.id,
                generation_config=cast(GenerationConfigUse, options.generation_config),
            )
        )
    if cuts:
        most = budget - max(cuts)
        raise UserError(
            f"{len(cuts)} of {len(requests)} prompts of task {task!r} with {budget} tokens of thinking exceed the "
            f"context of {model.facts.n_ctx} tokens, by {max(cuts)} at most: "
            + (f"give a thinking budget of at most {most}" if most > 0 else "give fewer examples")
        )
    return requests


def _generated(job: SweepJob, condition: Condition, executor: Executor, progress: bool) -> dict[str, str]:
    """The clean model's thinking on each item, by id."""
    model, task, budget = job.model, condition.task.task.name, job.options.thinking_budget or 0
    markers, requests = _markers(model, job.options), thinking_requests(model, condition, job.options)
    with work_bar({"": len(requests)}, shown=progress) as bar:
        bar.stage(f"{task} thinking")
        [answered] = answers_of(requests, [CLEAN], executor, rows_done(bar))
    thoughts = {
        item.item.id: _thought(model, request, response, markers, budget)
        for item, request, response in zip(condition.items, requests, answered.responses, strict=True)
    }
    empty = sum(not text for text in thoughts.values())
    if empty:
        logger.warning(
            f"task {task!r}, {condition.protocol}: the clean model thinks in {len(thoughts) - empty} of "
            f"{len(thoughts)} items; in the others the options follow the prompt"
        )
    return thoughts


def _thought(
    model: HookedModel, request: GenerateRequest, response: Response, markers: ThinkingMarkers, budget: int
) -> str:
    """The text of the thinking with both markers and the white space after it; empty if there is none."""
    if not isinstance(response, GenerateResponse) or request.thinking is None:
        raise LensPruneError("expected a generation with thinking")
    ids, end, start = list(response.token_ids), list(markers.end_ids), list(markers.start_ids)
    ended = next((i for i in range(len(end), len(ids) + 1) if ids[i - len(end) : i] == end), None)
    thought = ids[:ended] if ended is not None else ids[: -1 if response.stop_reason == "eos" else budget]
    begun = any(thought[i : i + len(start)] == start for i in range(len(thought)))
    if not request.thinking.opened and not begun:
        return ""
    decode = partial(model.tokenizer.decode, skip_special_tokens=False)
    if ended is None:
        return str(decode([*thought, *markers.forced_ids]))
    behind = str(decode(ids)).removeprefix(str(decode(thought)))
    return str(decode(thought)) + behind[: len(behind) - len(behind.lstrip())]


def _after(model: HookedModel, condition: Condition, thoughts: Mapping[str, str], options: SweepOptions) -> Condition:
    """`condition` with a text between each item's prompt and its options."""
    row = protocol_named(condition.protocol)
    fmt = row.format_of(condition.task.task)
    if not isinstance(fmt, MultipleChoiceFormat):
        raise LensPruneError(f"protocol {condition.protocol} scores no options")
    items: list[ItemRequests] = []
    for item in condition.items:
        where = f"task {condition.task.task.name!r}, item {item.item.id}"
        prompts = tuple(Prompt(p.context + thoughts[item.item.id], p.continuation) for p in item.prompts)
        encoder = lru_cache(maxsize=2)(partial(encode, model, keep_eos=options.keep_eos))
        pairs = [row.ask(model, encoder, fmt, prompt, where) for prompt in prompts]
        requests = tuple(replace(request, item=item.item.id) for request, _ in pairs)
        items.append(replace(item, prompts=prompts, requests=requests, truncated_tokens=max(cut for _, cut in pairs)))
    return replace(condition, items=tuple(items))
