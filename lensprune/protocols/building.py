"""Build the requests for a task's items, and score the responses: one outcome per item."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Unpack

from lensprune.errors import LensPruneError, UserError
from lensprune.models.base import HookedModel
from lensprune.models.tokenizers import encode
from lensprune.protocols.arguments import PromptArguments
from lensprune.protocols.base import ItemRequests, Outcome, Prompt
from lensprune.protocols.chat import chat_prompt
from lensprune.protocols.prompting import Prompting, PromptOptions, prompting_of
from lensprune.protocols.registry import protocol_named
from lensprune.protocols.requests import GenerateRequest, GenerateResponse, LoglikelihoodResponse, Request, Response
from lensprune.protocols.votes import with_votes
from lensprune.tasks.base import Item, LoadedTask, PromptFormat, ProtocolName
from lensprune.tasks.prompts import example_turns, prompt_strings

__all__ = ["build_requests", "score_items"]

logger = logging.getLogger("lensprune")

MAX_LEFT_OUT = 0.1
"""Largest share of a task's items that may be left out because the model can't be given them."""


def build_requests(
    model: HookedModel,
    task: LoadedTask,
    protocol: ProtocolName,
    **options: Unpack[PromptArguments],
) -> list[ItemRequests]:
    """Build the requests of every item, with their strings; equal to lm-eval 0.4.13's for tasks that it has.

    An item that this model can't be given (an option adds no token of its own, a continuation does not fit) is left out
    with a warning, as long as at most `MAX_LEFT_OUT` of the items are.

    Args:
        options: see `lensprune.sweep`. ``chat_template`` puts each prompt into the model's chat format as lm-eval's
            ``--apply_chat_template`` does: the description is the system message, few-shot examples and question
            together are one user message, and a continuation follows without the target delimiter. A description that
            the template rejects is left out, with a warning. ``template_date``: the date that a chat template with a
            clock writes, YYYY-MM-DD; ``None`` is `DEFAULT_DATE`.

    Raises:
        UserError: an unknown protocol, or one that the task lacks; in too many items, an option has no token of its
            own, or a continuation or the new tokens do not fit the model's context; a chat template is requested and
            the model has none, or its template drops the question, or has no clock although a date is given; a system
            prompt that the template drops; a thinking budget that leaves no room for an answer; and whatever
            `prompting_of` rejects.
    """
    row = protocol_named(protocol)
    fmt = row.format_of(task.task)
    wording = PromptOptions(**options)
    prompting = prompting_of(model, wording)
    built: list[ItemRequests] = []
    left_out: list[UserError] = []
    undescribed = 0
    for item in task.items:
        where = f"task {task.task.name!r}, item {item.id}"
        if wording.chat_template:
            prompts, described = _chat_prompts(model, fmt, item, prompting)
        else:
            prompts, described = _plain_prompts(fmt, item, wording.system or ""), True
        if wording.system and not described:
            raise UserError(
                f"the chat template of {model.facts.name} takes no system message, but a system prompt is given: leave "
                "it out"
            )
        undescribed += not described
        # Options share their context, and encoding a long one is slow.
        encoder = lru_cache(maxsize=2)(partial(encode, model, keep_eos=wording.keep_eos))
        try:
            pairs = [row.ask(model, encoder, fmt, prompt, where) for prompt in prompts]
        except UserError as error:
            left_out.append(error)
            continue
        built.append(
            ItemRequests(
                item=item,
                protocol=protocol,
                prompts=prompts,
                requests=tuple(
                    replace(_with_thinking(request, prompt, prompting), item=item.id)
                    for (request, _), prompt in zip(pairs, prompts, strict=True)
                ),
                # Options share their context, so the largest cut is what the item lost.
                truncated_tokens=max(cut for _, cut in pairs),
            )
        )
    if len(left_out) > MAX_LEFT_OUT * len(task.items):
        raise left_out[0]
    if left_out:
        logger.warning(
            f"task {task.task.name!r}, {protocol}: {len(left_out)} of {len(task.items)} items can't be given to this "
            f"model and are left out; the first: {left_out[0]}"
        )
    if undescribed:
        logger.warning(
            f"task {task.task.name!r}: the chat template of {model.facts.name} takes no system message, so "
            f"{undescribed} of {len(task.items)} prompts lack the task's description (as in lm-eval)"
        )
    return built


def _with_thinking(request: Request, prompt: Prompt, prompting: Prompting) -> Request:
    """Add to `request` what is needed to separate thinking from the answer."""
    markers, budget = prompting.markers, prompting.wording.thinking_budget
    if not isinstance(request, GenerateRequest) or markers is None:
        return request
    forced = None if budget is None else markers.forced_after(budget)
    return replace(request, thinking=markers.in_answer_to(prompt.context), forced_end=forced)


def _system_text(fmt: PromptFormat, item: Item, system: str) -> str:
    """The system prompt and the task's description, joined as lm-eval joins them."""
    description = fmt.description(item.doc)
    if not system or not description or system[-1].isspace() or description[0].isspace():
        return system + description
    return f"{system}{fmt.fewshot_delimiter}{description}"


def _plain_prompts(fmt: PromptFormat, item: Item, system: str) -> tuple[Prompt, ...]:
    head, description = _system_text(fmt, item, system), fmt.description(item.doc)
    return tuple(
        Prompt(head + context.removeprefix(description), continuation)
        for context, continuation in prompt_strings(fmt, item)
    )


def _chat_prompts(
    model: HookedModel, fmt: PromptFormat, item: Item, prompting: Prompting
) -> tuple[tuple[Prompt, ...], bool]:
    """The prompts of `item`, and whether all of them hold the task's description."""
    system, description = _system_text(fmt, item, prompting.wording.system or ""), fmt.description(item.doc)
    turns: list[tuple[str, str]] = []
    if prompting.wording.fewshot_as_multiturn:
        for doc in item.fewshot:
            question, answer = example_turns(fmt.example or fmt, doc)
            turns += [("user", question), *([("assistant", answer)] if answer else [])]
        item = replace(item, fewshot=())
    prompts, described = [], True
    for context, continuation in prompt_strings(fmt, item):
        messages = [*turns, ("user", context.removeprefix(description))]
        text, whole = chat_prompt(
            model.tokenizer, system, messages, prompting.wording.template_date, prompting.template_args
        )
        prompts.append(Prompt(text, continuation.removeprefix(fmt.target_delimiter)))
        described &= whole or not system
    return tuple(prompts), described


def score_items(
    task: LoadedTask, protocol: ProtocolName, item_requests: Sequence[ItemRequests], responses: Sequence[Response]
) -> list[Outcome]:
    """Score the responses: one outcome per entry of `item_requests`, with the metrics of `with_votes` for sampled
    items.

    Args:
        responses: the answers to all requests of all items, concatenated in the same order.

    Raises:
        UserError: the task lacks the protocol.
        LensPruneError: the number or kind of the responses does not match the requests.
    """
    row = protocol_named(protocol)
    fmt = row.format_of(task.task)
    expected = sum(len(item.requests) for item in item_requests)
    if len(responses) != expected:
        raise LensPruneError(f"{expected} requests were sent and {len(responses)} responses came back")
    outcomes, start = [], 0
    for built in item_requests:
        answers = responses[start : start + len(built.requests)]
        start += len(built.requests)
        outcome = row.score(fmt, built.item, answers)
        logprobs = tuple(response.logprob for response in answers if isinstance(response, LoglikelihoodResponse))
        ends = [response.stop_reason for response in answers if isinstance(response, GenerateResponse)]
        outcomes.append(
            replace(
                outcome,
                option_logprobs=logprobs or outcome.option_logprobs,
                sample=built.sample,
                stop_reason=ends[0] if ends else None,
            )
        )
    samples = 1 + max((built.sample for built in item_requests), default=0)
    if samples == 1:
        return outcomes
    return [one for i in range(0, len(outcomes), samples) for one in with_votes(fmt, outcomes[i : i + samples])]
