"""Encode strings as token ids by lm-eval 0.4.13's rules, including truncation."""

from __future__ import annotations

from collections.abc import Callable

from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.models.tokenizers import prefix_token_id
from lensprune.protocols.base import Prompt
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest, Request
from lensprune.tasks.base import GenerationFormat, PromptFormat

__all__ = ["Encoder", "ask_prompt", "generate_request", "loglikelihood_request", "needed_prefix"]

Encoder = Callable[[str, bool | None], list[int]]
"""``encode(text, add_special_tokens)``; ``None`` follows the model's BOS policy."""


def loglikelihood_request(
    encode: Encoder, prefix_id: int | None, max_length: int, context: str, continuation: str, where: str
) -> tuple[LoglikelihoodRequest, int]:
    """Encode one (context, continuation) pair (``TemplateLM.loglikelihood``, ``HFLM._loglikelihood_tokens``).

    Spaces at the end of the context move to the continuation; the continuation's ids are those of the whole text after
    the first len(context ids); an empty context becomes the prefix token (`prefix_id`; `None` if the tokenizer has
    none). Tokens in excess of `max_length` + 1 are cut from the left of the context (the last token is never fed to the
    model).

    Args:
        where: names the item in an error.

    Returns:
        The request, and the number of context tokens cut.

    Raises:
        UserError: no token is left to score or to condition on (such as an empty context without a prefix token); the
            continuation alone exceeds the context; or the text contains half a surrogate pair.
    """
    _check_text(context + continuation, where)
    if context == "":
        continuation_ids = encode(continuation, False)
        # A continuation that starts with the prefix token doesn't get a second one.
        if continuation_ids[:1] == [prefix_id]:
            context_ids, continuation_ids = continuation_ids[:1], continuation_ids[1:]
        else:
            context_ids = [needed_prefix(prefix_id, where)]
    else:
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        context_ids = encode(stripped, None)
        continuation_ids = encode(stripped + continuation, None)[len(context_ids) :]
    if not continuation_ids:
        raise UserError(f"{where}: the continuation {continuation!r} adds no token to the context")
    if not context_ids:
        raise UserError(f"{where}: the context {context!r} is only white space, so there is no token to start from")
    if len(continuation_ids) > max_length:
        raise UserError(
            f"{where}: the continuation has {len(continuation_ids)} tokens, but the model's context is only "
            f"{max_length}"
        )
    cut = max(0, len(context_ids) + len(continuation_ids) - (max_length + 1))
    return LoglikelihoodRequest(tuple(context_ids[cut:]), tuple(continuation_ids)), cut


def generate_request(
    encode: Encoder,
    prefix_id: int | None,
    max_length: int,
    context: str,
    until: tuple[str, ...],
    max_new_tokens: int,
    where: str,
) -> tuple[GenerateRequest, int]:
    """Encode one prompt for generation (``HFLM.generate_until``), leaving room for `max_new_tokens` on the right.

    Returns:
        The request, and the number of context tokens cut on the left.

    Raises:
        UserError: `max_new_tokens` is not positive, or leaves no room for a prompt; or the text contains half a
            surrogate pair.
    """
    if max_new_tokens <= 0:
        raise UserError(f"{where}: the number of new tokens must be positive, not {max_new_tokens}")
    room = max_length - max_new_tokens
    if room <= 0:
        raise UserError(
            f"{where}: {max_new_tokens} new tokens leave no room for a prompt in a context of {max_length} tokens"
        )
    _check_text(context, where)
    ids = encode(context, None) or [needed_prefix(prefix_id, where)]
    cut = max(0, len(ids) - room)
    return GenerateRequest(tuple(ids[cut:]), tuple(until), max_new_tokens), cut


def needed_prefix(prefix_id: int | None, where: str) -> int:
    """The prefix token for an empty context; `UserError` where the tokenizer has none."""
    if prefix_id is None:
        raise UserError(
            f"{where}: the context is empty, and the tokenizer has neither a BOS nor an EOS token to use instead"
        )
    return prefix_id


def _check_text(text: str, where: str) -> None:
    # JSON can contain half of a surrogate pair, and every tokenizer fails on it differently.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise UserError(
            f"{where}: the text contains {half!r}, half of a surrogate pair, which is not a character"
        ) from None


def ask_prompt(
    model: HookedModel, encode: Encoder, fmt: PromptFormat, prompt: Prompt, where: str
) -> tuple[Request, int]:
    """Make a prompt's request (the log-likelihood of its continuation, or a generation), with the number of tokens cut.

    Args:
        where: names the item in an error.

    Raises:
        UserError: an option has no token of its own; a continuation or the new tokens do not fit the model's context.
    """
    prefix_id, room = prefix_token_id(model), model.facts.n_ctx
    if isinstance(fmt, GenerationFormat):
        return generate_request(encode, prefix_id, room, prompt.context, fmt.until, fmt.max_new_tokens, where)
    return loglikelihood_request(encode, prefix_id, room, prompt.context, prompt.continuation, where)
