"""From a task's items to what a model is asked."""

from __future__ import annotations

from functools import lru_cache, partial

from lensprune.models.base import HookedModel
from lensprune.models.tokenizers import encode, prefix_token_id
from lensprune.protocols.base import ItemRequests, Prompt
from lensprune.protocols.chat import chat_prompt, check_chat_template
from lensprune.protocols.encoding import Encoder, generate_request, loglikelihood_request
from lensprune.protocols.requests import Request
from lensprune.tasks.base import GenerationFormat, Item, LoadedTask, PromptFormat, ProtocolName
from lensprune.tasks.prompts import format_of, prompt_strings

__all__ = ["build_requests"]


def build_requests(
    model: HookedModel, task: LoadedTask, protocol: ProtocolName, chat_template: bool = False
) -> list[ItemRequests]:
    """The requests of every item, with the strings behind them; equal to lm-eval 0.4.13's for the tasks it has.

    Args:
        chat_template: put each prompt into the model's chat format as lm-eval's ``--apply_chat_template`` does:
            the description is the system message, few-shot examples and question together are one user message,
            and a continuation follows without the target delimiter.

    Raises:
        UserError: the task lacks the protocol; an option has no token of its own; a continuation or the new tokens
            do not fit the model's context; a chat template is asked for and the model has none.
    """
    fmt = format_of(task.task, protocol)
    if chat_template:
        check_chat_template(model.tokenizer, model.facts.name)
    built = []
    for item in task.items:
        prompts = _chat_prompts(model, fmt, item) if chat_template else _plain_prompts(fmt, item)
        where = f"task {task.task.name!r}, item {item.id}"
        # Options share their context, and a long one takes longest to encode.
        encoder = lru_cache(maxsize=2)(partial(encode, model))
        pairs = [_request(model, encoder, fmt, prompt, where) for prompt in prompts]
        built.append(
            ItemRequests(
                item=item,
                protocol=protocol,
                prompts=prompts,
                requests=tuple(request for request, _ in pairs),
                # Options share their context, so the largest cut is what the item lost.
                truncated_tokens=max(cut for _, cut in pairs),
            )
        )
    return built


def _plain_prompts(fmt: PromptFormat, item: Item) -> tuple[Prompt, ...]:
    return tuple(Prompt(context, continuation) for context, continuation in prompt_strings(fmt, item))


def _chat_prompts(model: HookedModel, fmt: PromptFormat, item: Item) -> tuple[Prompt, ...]:
    system = fmt.description(item.doc)
    return tuple(
        Prompt(
            chat_prompt(model.tokenizer, system, context.removeprefix(system)),
            continuation.removeprefix(fmt.target_delimiter),
        )
        for context, continuation in prompt_strings(fmt, item)
    )


def _request(
    model: HookedModel, encoder: Encoder, fmt: PromptFormat, prompt: Prompt, where: str
) -> tuple[Request, int]:
    prefix_id, room = prefix_token_id(model), model.facts.n_ctx
    if isinstance(fmt, GenerationFormat):
        return generate_request(encoder, prefix_id, room, prompt.context, fmt.until, fmt.max_new_tokens, where)
    return loglikelihood_request(encoder, prefix_id, room, prompt.context, prompt.continuation, where)
