"""Counterfactual pairs: two prompts of equal length that differ in what decides the answer, and the two answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int

from lensprune.errors import UserError
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel
from lensprune.models.tokenizers import encode

__all__ = ["PairBatch", "PromptPair", "logit_difference", "pair_batches", "pair_from_texts"]


@dataclass(frozen=True)
class PromptPair:
    """Two prompts as token ids: `clean` is continued by the token `answer`, `corrupt` by `wrong`.

    Their positions correspond one to one. The metric of every attribution method is the logit of `answer` minus that of
    `wrong` after the last token.

    Raises:
        UserError: prompts of unequal length, an empty prompt, or equal answers.

    Examples:
        >>> pair = lp.PromptPair(clean=(5, 6, 5), corrupt=(5, 7, 5), answer=6, wrong=7)
        >>> len(pair.clean)
        3
    """

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    answer: int
    wrong: int
    label: str = ""

    def __post_init__(self) -> None:
        if len(self.clean) != len(self.corrupt):
            raise UserError(
                f"pair {self.label!r}: the clean prompt has {len(self.clean)} tokens and the corrupt one "
                f"{len(self.corrupt)}: their positions must correspond"
            )
        if not self.clean:
            raise UserError(f"pair {self.label!r}: the prompts are empty")
        if self.answer == self.wrong:
            raise UserError(f"pair {self.label!r}: answer and wrong answer are the same token {self.answer}")


@dataclass(frozen=True)
class PairBatch:
    """Pairs of equal length; `index` holds their indices in the given list."""

    clean: Int[torch.Tensor, "pair pos"]
    corrupt: Int[torch.Tensor, "pair pos"]
    answer: Int[torch.Tensor, " pair"]
    wrong: Int[torch.Tensor, " pair"]
    index: tuple[int, ...]

    def metric(self, logits: Float[torch.Tensor, "pair d_vocab"]) -> Float[torch.Tensor, " pair"]:
        """Logit of the answer minus that of the wrong answer."""
        return logit_difference(logits, self.answer, self.wrong)


def logit_difference(
    logits: Float[torch.Tensor, "row d_vocab"], answer: Int[torch.Tensor, " row"], wrong: Int[torch.Tensor, " row"]
) -> Float[torch.Tensor, " row"]:
    """``logits[answer] − logits[wrong]`` of every row."""
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows, answer] - logits[rows, wrong]


def pair_batches(pairs: Sequence[PromptPair], device: str, size: int) -> Iterator[PairBatch]:
    """Group pairs of equal length into batches of at most `size`, so that nothing is padded.

    Raises:
        UserError: no pairs, or a size that is not positive.
    """
    if not pairs:
        raise UserError("no counterfactual pair: at least one is needed")
    if size < 1:
        raise UserError(f"batch size {size} is not positive")
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        by_length[len(pair.clean)].append(index)
    for indices in by_length.values():
        for start in range(0, len(indices), size):
            chosen = indices[start : start + size]
            chosen_pairs = [pairs[i] for i in chosen]
            yield PairBatch(
                clean=torch.tensor([pair.clean for pair in chosen_pairs], device=device),
                corrupt=torch.tensor([pair.corrupt for pair in chosen_pairs], device=device),
                answer=torch.tensor([pair.answer for pair in chosen_pairs], device=device),
                wrong=torch.tensor([pair.wrong for pair in chosen_pairs], device=device),
                index=tuple(chosen),
            )


def pair_from_texts(model: AnyModel, clean: str, corrupt: str, answer: str, wrong: str) -> PromptPair:
    """Make a pair of prompts and their continuations, leading space included.

    If both answers begin with the same tokens, these are appended to the prompts, so that the first differing token is
    the one to predict.

    Args:
        model: from `load_model`, or anything else that `as_hooked_model` accepts.
        clean, corrupt: two prompts with the same number of tokens that differ in what decides the answer.
        answer, wrong: the continuation of the clean prompt, and that of the corrupt prompt.

    Returns:
        The pair as the model's token ids.

    Raises:
        UserError: prompts of unequal length or without a difference, or answers without a differing token.

    Examples:
        >>> pair = lp.pair_from_texts(model, "3 + 4 =", "5 + 4 =", " 7", " 9")
        >>> len(pair.clean) == len(pair.corrupt), pair.answer != pair.wrong
        (True, True)
    """
    for what, text in (("answer", answer), ("wrong answer", wrong)):
        if not text:
            raise UserError(f"the {what} is empty: expected the prompt's continuation, like ' 7'")
    if clean == corrupt:
        raise UserError(f"both prompts are {clean!r}: expected prompts that differ in what decides the answer")
    hooked = as_hooked_model(model)
    rows = []
    for prompt, text in ((clean, answer), (corrupt, wrong)):
        ids = encode(hooked, prompt)
        whole = encode(hooked, prompt + text)
        rows.append((whole[: len(ids)], whole[len(ids) :]))
    (front, right), (other, false) = rows
    shared = 0
    while shared < min(len(right), len(false)) and right[shared] == false[shared]:
        shared += 1
    if shared == min(len(right), len(false)):
        raise UserError(f"the answers {answer!r} and {wrong!r} have no differing token")
    return PromptPair(
        (*front, *right[:shared]), (*other, *false[:shared]), right[shared], false[shared], label=answer.strip()
    )
