"""LongRoPE: rotary angles that depend on the longest row of a call; Llama 4: queries scaled by their index in the row.

transformers uses one set of angles for a whole call, chosen by the largest position in it, so a short row batched with
a long one would be scored with the long one's angles. Rows on different sides of the switch must not share a call. The
other length-dependent rule, ``dynamic``, changes angles only past the model's context. Llama 4's scale counts padding,
so its long rows share a call only with rows of equal length.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from lensprune.models.base import HookedModel
from lensprune.models.positions import row_index_floor
from lensprune.protocols.requests import GenerateRequest, Request

__all__ = ["LongRopeBuckets"]


class LongRopeBuckets:
    """Which requests of a model may share a call; for most models, all of them.

    `longest` is the length in tokens up to which the short-text angles apply, at most the model's context.
    """

    def __init__(self, model: HookedModel) -> None:
        config: Any = getattr(getattr(model.module, "original_model", None), "config", None)
        parameters = {} if config is None else getattr(config.get_text_config(), "rope_parameters", None) or {}
        # Some families have one set per layer type.
        sets = [rules for rules in parameters.values() if isinstance(rules, dict)] or [parameters]
        self._switches = {
            rules["original_max_position_embeddings"] for rules in sets if rules.get("rope_type") == "longrope"
        }
        self._floor = None if config is None else row_index_floor(config)
        ends = self._switches | ({self._floor - 1} if self._floor else set())
        self.longest: int = max(1, min(ends | {model.facts.n_ctx}))

    def of_length(self, length: int) -> int:
        """A label for texts of `length` tokens: switches passed, or the length itself where rows can't be padded."""
        past = sum(length > switch for switch in self._switches)
        return past if self._floor is None or length < self._floor else past + 256 * length

    def of(self, request: Request) -> Hashable:
        """A label for a request; requests with equal labels may share calls, and 0 is for short texts.

        A generation that passes the switch does so at a step determined by its prompt's length.
        """
        if not isinstance(request, GenerateRequest):
            return self.of_length(len(request.input_ids))
        length = len(request.context_ids)
        first, last = self.of_length(length), self.of_length(length + request.max_new_tokens - 1)
        return first if first == last else ("passes", length)
