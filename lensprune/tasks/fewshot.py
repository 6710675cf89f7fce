"""Few-shot examples, drawn exactly as lm-eval 0.4.13 draws them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from lensprune.errors import UserError
from lensprune.tasks.base import Doc, FewshotSampler

__all__ = ["LM_EVAL_SEED", "FewshotDraw"]

LM_EVAL_SEED = 1234
"""lm-eval's default ``fewshot_random_seed``."""


class FewshotDraw:
    """A stream of few-shot examples over items in order (lm-eval's ``ContextSampler``).

    The generator is never reset between items: an item's examples depend on its place in the list, so items must be
    requested in lm-eval's order, from the first one. With `exclude_self`, one more example is drawn, the item itself is
    dropped if it was drawn, and the list is cut to `shots`.

    Args:
        pool: few-shot documents, in order.
        shots: examples per item.
        sampler: ``random`` or ``first_n`` (the same first examples for all).
        exclude_self: drop the item itself from its examples.
        seed: seed of the generator.
        where: names the pool in errors.

    Raises:
        UserError: the pool is smaller than the number of examples to draw.
    """

    def __init__(
        self,
        pool: Sequence[Doc],
        shots: int,
        *,
        sampler: FewshotSampler,
        exclude_self: bool,
        seed: int,
        where: str,
    ) -> None:
        drawn = shots + 1 if exclude_self and shots and sampler == "random" else shots
        if drawn > len(pool):
            reason = " (one more is drawn, in case the item itself is among them)" if drawn > shots else ""
            raise UserError(f"{where}: {shots} shots need {drawn} few-shot examples{reason}, but there are {len(pool)}")
        self._pool = list(pool)
        self._shots = shots
        self._sampler = sampler
        self._exclude_self = exclude_self
        self._random = Random(seed)
        self._where = where

    def draw(self, doc: Doc) -> tuple[Doc, ...]:
        """The examples of the next item, `doc`."""
        if self._shots == 0:
            return ()
        if self._sampler == "first_n":
            return tuple(self._others(doc)[: self._shots])
        if not self._exclude_self:
            return tuple(self._random.sample(self._pool, self._shots))
        drawn = self._random.sample(self._pool, self._shots + 1)
        kept = [example for example in drawn if example != doc][: self._shots]
        if len(kept) < self._shots:
            # Several copies of the item were drawn and dropped: lm-eval then draws again from the other rows.
            kept = self._random.sample(self._others(doc), self._shots)
        return tuple(kept)

    def skip(self, doc: Doc) -> None:
        """Skip `doc`, so that the next item gets the examples that it would get after it."""
        if self._sampler == "random":
            self.draw(doc)

    def _others(self, doc: Doc) -> list[Doc]:
        others = [example for example in self._pool if example != doc] if self._exclude_self else self._pool
        if len(others) < self._shots:
            raise UserError(f"{self._where}: {self._shots} shots, but only {len(others)} examples differ from the item")
        return others
