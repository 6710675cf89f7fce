"""Which tokens of a request each selector of positions chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import torch
from jaxtyping import Bool, Int

from lensprune.ablation.positions import ALL, positions_named
from lensprune.ablation.variants import Variant
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.models.spans import text_of_tokens
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest, Request

__all__ = ["Marks", "joined", "marked", "marks_of", "prompt_positions", "token_of"]

InPrompt = Callable[[str, tuple[int, ...]], bytes]
"""Which tokens of a prompt, given their ids, a selector chooses: a byte each, 0 or 1."""

_BITS = 32
_TOKEN = 2**_BITS - 1

R = TypeVar("R", bound=Request)


def marked(request: R, marks: Sequence[int]) -> R:
    """The request with its `Marks` joined to the ids of its input tokens.

    Equal ids are then equal tokens that every variant treats alike, so a prefix tree shares no others.
    """
    if not marks:
        return request
    size = len(request.context_ids)
    context = joined(request.context_ids, marks[:size])
    if isinstance(request, GenerateRequest):
        return replace(request, context_ids=context)
    scored = request.continuation_ids
    return replace(request, context_ids=context, continuation_ids=(*joined(scored[:-1], marks[size:]), scored[-1]))


def joined(ids: Sequence[int], marks: Sequence[int]) -> tuple[int, ...]:
    """Tokens with their marks, of which `token_of` and `marks_of` give each."""
    return tuple(token | mark << _BITS for token, mark in zip(ids, marks, strict=True))


def token_of(marked_id: int) -> int:
    """The token's id without its marks."""
    return marked_id & _TOKEN


def marks_of(marked_id: int) -> int:
    """The marks without the token's id."""
    return marked_id >> _BITS


def prompt_positions(model: HookedModel) -> InPrompt:
    """A function of a selector and a prompt that says which tokens are chosen, and caches its results."""

    @lru_cache(maxsize=2**14)
    def in_prompt(at: str, ids: tuple[int, ...]) -> bytes:
        return bytes(positions_named(at).in_prompt(len(ids), lambda: text_of_tokens(model.tokenizer, ids)))

    return in_prompt


def _classes(request: Request, wanted: str) -> tuple[str, ...]:
    classes = request.classes if isinstance(request, LoglikelihoodRequest) else ()
    if not classes:
        raise UserError(
            f"positions {wanted!r} are a class of tokens of worked solutions, which only lensprune primitives --where "
            "knows: use regex:PATTERN"
        )
    return classes


class Marks:
    """The tokens that the selectors of some variants choose; a token's marks have bit i set for selector i."""

    def __init__(self, model: HookedModel, variants: Sequence[Variant], in_prompt: InPrompt | None = None) -> None:
        """`in_prompt`: what `prompt_positions` returned for the model, to share its results."""
        self.selectors = tuple(dict.fromkeys(at for variant in variants for at in variant.selectors))
        self._positions = [positions_named(at) for at in self.selectors]
        self._in_prompt = in_prompt or prompt_positions(model)

    def of(self, request: Request) -> tuple[int, ...]:
        """The marks of each input token: of the prompt, and of the continuation but for its last token. Empty without
        selectors."""
        if not self.selectors:
            return ()
        context = request.context_ids
        chosen = [self._in_prompt(at, context) for at in self.selectors]
        marks = [sum(1 << bit for bit, places in enumerate(chosen) if places[i]) for i in range(len(context))]
        scored = len(request.input_ids) - len(context) if isinstance(request, LoglikelihoodRequest) else 0
        marks += [self.of_generated(step) for step in range(scored)]
        for bit, positions in enumerate(self._positions):
            if positions.classes:
                of_class = positions.in_classes(_classes(request, positions.classes[0]))
                marks = [mark | of_class[i] << bit for i, mark in enumerate(marks)]
        return tuple(marks)

    def reaches(self, request: Request, at: str, source: str | None = None) -> bool:
        """Whether one of the selectors chooses any token of the request, or may choose one that it generates.

        Args:
            source: the token must also be one that the source chooses, or come after one.
        """
        marks = self.of(request)
        if isinstance(request, GenerateRequest):
            # The last token is never fed back.
            marks = (*marks, *(self.of_generated(step) for step in range(request.max_new_tokens - 1)))
        chosen = self.chosen(marks, at)
        if source is None or not chosen:
            return bool(chosen)
        sources = self.chosen(marks, source)
        return bool(sources) and sources[0] <= chosen[-1]

    def of_generated(self, step: int) -> int:
        """The marks of the token that follows the prompt after `step` others."""
        return sum(1 << bit for bit, positions in enumerate(self._positions) if positions.in_generated(step))

    def masks(
        self, rows: Sequence[Sequence[int]], padded: Int[torch.Tensor, "batch pos"]
    ) -> dict[str, Bool[torch.Tensor, "batch pos"]]:
        """By selector, which tokens of left-padded rows it chooses, given the marks of each row without its padding."""
        width = padded.shape[1]
        return {
            at: torch.tensor(
                [[False] * (width - len(row)) + [bool(mark >> bit & 1) for mark in row] for row in rows],
                device=padded.device,
            )
            for bit, at in enumerate(self.selectors)
        }

    def chosen(self, marks: Sequence[int], at: str) -> list[int]:
        """Indices of the tokens, given their marks, that one of the selectors chooses, in ascending order."""
        if at == ALL:
            return list(range(len(marks)))
        bit = self.selectors.index(at)
        return [i for i, mark in enumerate(marks) if mark >> bit & 1]
