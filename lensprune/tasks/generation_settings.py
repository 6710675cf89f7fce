"""lm-eval's ``generation_kwargs``, read for greedy decoding: each setting is honoured or refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lensprune.errors import UserError, nearest

__all__ = ["DEFAULT_NEW_TOKENS", "greedy_settings"]

DEFAULT_NEW_TOKENS = 256
"""lm-eval's ``HFLM.max_gen_toks``."""

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_ONLY_SAMPLING = ("top_k", "top_p", "min_p", "typical_p")
_NEUTRAL = {
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1,
    "use_cache": True,
}


def greedy_settings(given: Mapping[str, Any], default_until: Sequence[str], where: str) -> tuple[tuple[str, ...], int]:
    """Stop strings and the number of new tokens that ``generation_kwargs`` ask for.

    ``until`` is a string, a list, or null for none; the length has any of the four names that lm-eval knows. Settings
    that only sampling uses mean nothing to greedy decoding, as in lm-eval; a setting that changes greedy decoding is
    accepted where its value leaves it as it is.

    Args:
        default_until: stop strings where ``until`` is not given.
        where: names the task in errors.

    Raises:
        UserError: sampling, beams, a penalty, a setting that is not known, or a value of the wrong kind.
    """

    def error(message: str) -> UserError:
        return UserError(f"{where}: generation setting {message}")

    for name, value in given.items():
        if name in ("until", "do_sample", "temperature", *_LENGTHS, *_ONLY_SAMPLING):
            continue
        if name not in _NEUTRAL:
            close = nearest(str(name), ["until", "do_sample", *_LENGTHS, *_NEUTRAL], n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise error(f"{name!r} is not supported: only greedy decoding is{hint}")
        if value is not None and value != _NEUTRAL[name]:
            raise error(f"{name!r} is {value!r}, and greedy decoding has {_NEUTRAL[name]!r}: leave it out")
    sampled, temperature = given.get("do_sample"), given.get("temperature") or 0.0
    if sampled is not None and not isinstance(sampled, bool):
        raise error(f"'do_sample' is {sampled!r}, expected false")
    if sampled:
        raise error("'do_sample' is true, and lensprune only decodes greedily: set it to false")
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise error(f"'temperature' is {temperature!r}, expected 0")
    if temperature > 0 and sampled is None:
        raise error(f"'temperature' is {temperature!r} (sampling), and lensprune only decodes greedily: set it to 0")
    return _stops(given.get("until", list(default_until)), error), _length(given, error)


def _stops(until: Any, error: Any) -> tuple[str, ...]:
    stops = [] if until is None else [until] if isinstance(until, str) else until
    if not isinstance(stops, (list, tuple)) or not all(isinstance(stop, str) for stop in stops):
        raise error(f"'until' is {until!r}, expected text, a list of texts, or null for none")
    if "" in stops:
        raise error("'until' holds an empty text, which would end every answer at once")
    return tuple(stops)


def _length(given: Mapping[str, Any], error: Any) -> int:
    lengths = {name: given[name] for name in _LENGTHS if given.get(name) is not None}
    for name, value in lengths.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise error(f"{name!r} is {value!r}, expected a whole number from 1 on")
    if len(set(lengths.values())) > 1:
        raise error(f"{' and '.join(map(repr, lengths))} name different lengths: keep one of them")
    return next(iter(lengths.values()), DEFAULT_NEW_TOKENS)
