"""How a model's generation config changes decoding: penalties and suppressed tokens, as in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from lensprune.engine.scoring import eos_token_ids
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.precision import widened

__all__ = ["GreedyRules", "sampling_defaults"]

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "sequence_bias": (None,),
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
}
"""The supported settings, in transformers' order, and the values that turn each off."""
_REFUSED: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "guidance_scale": (None, 1, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "remove_invalid_values": (None, False),
    "watermarking_config": (None,),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "constraints": (None,),
    "force_words_ids": (None,),
    "num_beam_groups": (None, 1),
    "diversity_penalty": (None, 0, 0.0),
    "num_return_sequences": (None, 1),
    "stop_strings": (None, "", []),
    "max_time": (None,),
    "token_healing": (None, False),
}
_SAMPLING_REFUSED: dict[str, tuple[Any, ...]] = {
    "min_p": (None, 0, 0.0),
    "typical_p": (None, 1, 1.0),
    "epsilon_cutoff": (None, 0, 0.0),
    "eta_cutoff": (None, 0, 0.0),
    "top_h": (None,),
}


def _generation_config(model: HookedModel) -> Any:
    # A plan has no module, and plans are the same with any filter of sampling.
    return getattr(getattr(getattr(model, "module", None), "original_model", None), "generation_config", None)


def sampling_defaults(model: HookedModel) -> dict[str, Any]:
    """``top_p`` and ``top_k`` of a model's generation config, where it sets them.

    Raises:
        UserError: it sets another sampling filter.
    """
    config = _generation_config(model)
    for name, off in _SAMPLING_REFUSED.items():
        value = getattr(config, name, None)
        if value not in off:
            raise UserError(
                f"the generation config of {model.facts.name} samples with {name} {value!r}, and only temperature, "
                "top_p and top_k are supported: ignore it with --generation-config none"
            )
    defaults = {name: getattr(config, name, None) for name in ("top_p", "top_k")}
    return {name: value for name, value in defaults.items() if value is not None}


class GreedyRules:
    """The settings of a model's generation config that change a row's scores before a token is chosen.

    Sampling settings are not included (see `sampling_defaults`). Each row is treated as transformers treats a single
    row: its prompt counts for penalties and n-grams, and padding does not.

    Raises:
        UserError: a setting selects another decoding algorithm (beams, guidance, forced tokens, …).
    """

    def __init__(self, model: HookedModel, use: str = "model") -> None:
        """`use`: ``model``, or ``none`` to ignore its generation config."""
        config = _generation_config(model) if use == "model" else None
        for name, off in _REFUSED.items():
            value = getattr(config, name, None)
            if value not in off:
                raise UserError(
                    f"the generation config of {model.facts.name} sets {name} to {value!r}, which is not "
                    f"supported: ignore it with --generation-config none, or set it to {off[-1]!r} there"
                )
        self._eos = sorted(eos_token_ids(model, use))
        ends = getattr(config, "eos_token_id", None)
        self._held_back = [ends] if isinstance(ends, int) else list(ends or ())
        """End tokens that a minimal length holds back: transformers holds back those of the generation config alone."""
        self.settings = {
            name: value for name, off in _NEUTRAL.items() if (value := getattr(config, name, None)) not in off
        }
        """The settings in effect, by name."""
        self.max_new_tokens: int | None = getattr(config, "max_new_tokens", None)
        """Not applied: a request has its own number."""
        self._processors: dict[int, LogitsProcessorList] = {}

    @property
    def recorded(self) -> dict[str, Any]:
        """Everything in the generation config that affects a generated text, for a run's spec."""
        return {"eos_token_ids": self._eos, **self.settings}

    def scores(
        self, logits: Float[torch.Tensor, " d_vocab"], prompt: Sequence[int], generated: Sequence[int]
    ) -> Float[torch.Tensor, " d_vocab"]:
        """Apply the settings to one row's logits, given its prompt and the tokens generated so far."""
        ids = torch.tensor([[*prompt, *generated]], device=logits.device)
        processors = self._of_length(len(prompt), logits.device)
        return processors(ids, widened(logits[None]).clone())[0]  # type: ignore[arg-type]

    def _of_length(self, size: int, device: torch.device) -> LogitsProcessorList:
        """The logits processors for a row whose prompt has `size` tokens."""
        if size not in self._processors:
            eos: Any = torch.tensor(self._held_back, device=device)
            made: dict[str, Any] = {
                "sequence_bias": SequenceBiasLogitsProcessor,
                "repetition_penalty": RepetitionPenaltyLogitsProcessor,
                "no_repeat_ngram_size": NoRepeatNGramLogitsProcessor,
                "bad_words_ids": lambda value: NoBadWordsLogitsProcessor(value, eos),
                "min_length": lambda value: MinLengthLogitsProcessor(value, eos, device=str(device)),
                "min_new_tokens": lambda value: MinNewTokensLengthLogitsProcessor(size, value, eos, device=str(device)),
                "suppress_tokens": lambda value: SuppressTokensLogitsProcessor(value, device=str(device)),
                "begin_suppress_tokens": lambda value: SuppressTokensAtBeginLogitsProcessor(
                    value, size, device=str(device)
                ),
            }
            # Lists without an end to wait for have no minimum length, as in transformers.
            names = [n for n in self.settings if self._held_back or n not in ("min_length", "min_new_tokens")]
            processors: list[LogitsProcessor] = [made[name](self.settings[name]) for name in names]
            self._processors[size] = LogitsProcessorList(processors)
        return self._processors[size]
