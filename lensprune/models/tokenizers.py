"""Encode text as token ids under an explicit BOS policy."""

from __future__ import annotations

import hashlib
import json
from typing import get_args

from transformers import PreTrainedTokenizerBase

from lensprune.errors import UserError, unknown_name
from lensprune.models.base import BosPolicy, HookedModel

__all__ = ["appended_ids", "check_bos_policy", "encode", "hash_tokenizer", "prefix_token_id"]


def prefix_token_id(model: HookedModel) -> int | None:
    """The token that represents an empty context: BOS, else EOS (lm-eval 0.4.13, ``HFLM.prefix_token_id``).

    `None` for a tokenizer with neither; only an empty context needs one.
    """
    return _prefix_token_id(model.tokenizer)


def encode(
    model: HookedModel, text: str, add_special_tokens: bool | None = None, *, keep_eos: bool = False
) -> list[int]:
    """Token ids of `text` under the model's BOS policy.

    Under ``tokenizer`` this is lm-eval 0.4.13's ``HFLM.tok_encode`` with ``add_bos_token=None``: the tokenizer adds its
    special tokens, or none if `text` already starts with the prefix token. What it appends to the text, such as EOS, is
    left out: a continuation would follow an end, and lose its first token to it. Under ``always`` exactly one BOS token
    comes first; under ``never`` no special token is added.

    Args:
        text: the text; special tokens spelled out in it are read as special tokens.
        add_special_tokens: ``None`` follows the policy; ``False`` adds nothing; ``True`` adds the tokenizer's special
            tokens (one BOS under ``always``).
        keep_eos: keep what the tokenizer appends to the text, as lm-eval does.
    """
    tokenizer, policy = model.tokenizer, model.facts.bos_policy
    if add_special_tokens is False or (policy == "never" and add_special_tokens is None):
        return list(tokenizer.encode(text, add_special_tokens=False))
    if policy == "always":
        ids = list(tokenizer.encode(text, add_special_tokens=False))
        bos = tokenizer.bos_token_id
        return ids if ids[:1] == [bos] else [bos, *ids]
    if add_special_tokens:
        ids = list(tokenizer.encode(text, add_special_tokens=True))
        return ids if keep_eos else _without_suffix(tokenizer, text, ids)
    prefix_id = _prefix_token_id(tokenizer)
    prefix = None if prefix_id is None else tokenizer.decode(prefix_id)
    if isinstance(prefix, str) and text.startswith(prefix):
        return list(tokenizer.encode(text, add_special_tokens=False))
    ids = list(tokenizer.encode(text))
    return ids if keep_eos else _without_suffix(tokenizer, text, ids)


def appended_ids(model: HookedModel) -> tuple[int, ...]:
    """The special tokens that the tokenizer appends to a prompt, under the model's BOS policy."""
    whole, kept = (encode(model, "a", keep_eos=keep_eos) for keep_eos in (True, False))
    return tuple(whole[len(kept) :])


def _without_suffix(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
    """`ids` of `text` without the special tokens that the tokenizer appended."""
    if not ids or ids[-1] not in tokenizer.all_special_ids:
        return ids
    plain = list(tokenizer.encode(text, add_special_tokens=False))
    if not plain:
        return ids[:1]
    starts = (i for i in range(len(ids) - len(plain) + 1) if ids[i : i + len(plain)] == plain)
    return ids[: next(starts, len(ids) - len(plain)) + len(plain)]


def check_bos_policy(bos: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `UserError` for an unknown policy, or for ``always`` without a BOS token."""
    if bos not in get_args(BosPolicy):
        raise unknown_name("BOS policy", str(bos), get_args(BosPolicy))
    if bos == "always" and tokenizer.bos_token_id is None:
        raise UserError(
            "bos='always' needs a tokenizer with a BOS token, but this one has none: use 'tokenizer' or 'never'"
        )


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over everything that determines ids and prompts: vocabulary, rules, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    description = {
        "backend": json.loads(backend.to_str()) if backend is not None else sorted(tokenizer.get_vocab().items()),
        "class": None if backend is not None else type(tokenizer).__name__,
        "special": {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())},
        "chat_template": tokenizer.chat_template,
    }
    # Truncation and padding are switched on and off by calls, and change no token of a prompt.
    if isinstance(description["backend"], dict):
        description["backend"].update(truncation=None, padding=None)
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _prefix_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return next((int(token_id) for token_id in ids if token_id is not None), None)
