"""What the compiled programs mean, in plain Python, and pairs of inputs on which their answers differ."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lensprune.attribution import PromptPair
from lensprune.models.base import HookedModel
from tests.helpers.planted.compiled import program

__all__ = ["answers", "counterfactuals", "token_ids"]


def answers(name: str, text: Sequence[str], place: int) -> list[str]:
    """What the program gives at a position, from the words up to there: no value where it is undefined, and several
    where it is a mean of several."""
    seen = list(text[: place + 1])
    if name == "induction":
        return [seen[i] for i in range(1, len(seen)) if seen[i - 1] == seen[-1]]
    if name == "pair":
        return ["same" if seen[-2] == seen[-3] else "other"] if place >= 2 else []
    times = [seen[: i + 1].count(word) for i, word in enumerate(seen)]
    return [str(times[-1] if name == "count" else times.count(times[-1]))]


def token_ids(model: HookedModel, words: Sequence[str]) -> tuple[int, ...]:
    """BOS and words as ids."""
    return tuple(model.tokenizer.convert_tokens_to_ids(word) for word in ("<bos>", *words))


def counterfactuals(model: HookedModel, name: str, count: int, seed: int = 0) -> list[PromptPair]:
    """Random inputs of full length with one answer at the end, beside the same input with one word exchanged such that
    the answer is another, or there is none."""
    own = program(name)
    words, length = own.facts["words"], own.facts["length"]
    generator = random.Random(seed)
    pairs = []
    while len(pairs) < count:
        clean = [generator.choice(words) for _ in range(length)]
        corrupt = list(clean)
        corrupt[generator.randrange(length)] = generator.choice(words)
        right, other = set(answers(name, clean, length - 1)), set(answers(name, corrupt, length - 1))
        if len(right) != 1 or len(other) > 1 or right == other:
            continue
        # Where there is no answer any wrong one will do.
        wrong = other or {next(word for word in words if word not in right)}
        answer, instead = (model.tokenizer.convert_tokens_to_ids(*only) for only in (right, wrong))
        pairs.append(PromptPair(token_ids(model, clean), token_ids(model, corrupt), answer, instead, "".join(clean)))
    return pairs
