"""Position rules in transformers that depend on a whole call instead of each token, so that rows affect each other.

Llama 4 scales the queries of layers without rotary angles by their index in the row, padding included. ``dynamic`` RoPE
changes its angles for texts past the model's context, and keeps them for the calls that follow.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from lensprune.errors import UserError

__all__ = ["PositionGuard", "row_index_floor"]


def row_index_floor(config: Any) -> int | None:
    """Length from which on Llama 4 scales queries by their index in the row; ``None``: the model does not."""
    text = config.get_text_config()
    tuned = getattr(text, "attn_temperature_tuning", False) and not all(getattr(text, "no_rope_layers", None) or [1])
    return int(text.floor_scale) if tuned else None


class PositionGuard:
    """Refuses calls whose results would depend on padding, or on earlier calls."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._floor = row_index_floor(model.config)
        self._dynamic: list[Any] = [m for m in model.modules() if "dynamic" in str(getattr(m, "rope_type", ""))]

    def check(self, attention_mask: torch.Tensor, position_ids: torch.Tensor) -> None:
        """Check a call before it runs.

        Raises:
            UserError: padding in rows so long that it would shift the scale of queries; a text longer than the context
                of a model with dynamic RoPE.
        """
        floor = self._floor
        if floor is not None and attention_mask.shape[1] >= floor and not bool(attention_mask.all()):
            raise UserError(
                f"this model scales queries by their index in the row from {floor} tokens on, so rows of that length "
                "can't be padded: run texts of equal length together, or one at a time"
            )
        for rotary in self._dynamic:
            longest = int(rotary.original_max_seq_len)
            if int(position_ids.max()) >= longest:
                raise UserError(
                    f"a text of {int(position_ids.max()) + 1} tokens is longer than this model's {longest}, past which "
                    "its dynamic RoPE changes the angles of all texts: give fewer tokens"
                )
            if rotary.max_seq_len_cached > longest:
                # Left over from a longer call outside the package.
                rotary.inv_freq = rotary.original_inv_freq.to(rotary.inv_freq.device)
                rotary.max_seq_len_cached = longest
