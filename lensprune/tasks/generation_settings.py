"""lm-eval's ``generation_kwargs``: each setting is applied or rejected by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lensprune.errors import UserError, nearest

__all__ = [
    "DEFAULT_NEW_TOKENS",
    "MAX_TEMPERATURE",
    "MIN_TEMPERATURE",
    "GenerationSettings",
    "generation_settings",
    "greedy_settings",
]

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 100
"""Of sampling. Logits over less than the least one overflow; greedy decoding is temperature 0."""

DEFAULT_NEW_TOKENS = 256
"""lm-eval's ``HFLM.max_gen_toks``."""

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_ONLY_SAMPLING = ("top_k", "top_p", "min_p", "typical_p")
_FILTERS = ("top_p", "top_k")
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


@dataclass(frozen=True)
class GenerationSettings:
    """Stop strings, the most new tokens, and how tokens are sampled (see `GenerationFormat`)."""

    until: tuple[str, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None


def generation_settings(given: Mapping[str, Any], default_until: Sequence[str], where: str) -> GenerationSettings:
    """Read ``generation_kwargs``: sampling if ``do_sample`` is true, or if it is absent and ``temperature`` is above 0;
    otherwise greedy decoding.

    Args:
        default_until, where: as for `greedy_settings`.

    Raises:
        UserError: a sampling filter other than ``top_p`` and ``top_k``, and as `greedy_settings`.
    """
    temperature, sampled = given.get("temperature"), given.get("do_sample")
    if not (sampled is True or (sampled is None and _is_number(temperature) and float(temperature or 0) > 0)):
        return GenerationSettings(*greedy_settings(given, default_until, where))
    values: dict[str, Any] = {name: given.get(name) for name in ("temperature", *_FILTERS)}
    if temperature is None:
        values["temperature"] = 1.0
    least = math.nextafter(MIN_TEMPERATURE, 0)
    limits = {"temperature": (least, MAX_TEMPERATURE), "top_p": (0, 1), "top_k": (-1, math.inf)}
    for name, (low, high) in limits.items():
        value = values[name]
        if value is not None and not (_is_number(value) and low < value <= high):
            raise UserError(
                f"{where}: generation setting {name!r} is {value!r}, with which nothing can be sampled: expected a "
                f"number above {low:g}, at most {high:g}"
            )
    for name in _ONLY_SAMPLING:
        if name not in _FILTERS and given.get(name) is not None:
            raise UserError(f"{where}: generation setting {name!r} is not supported: use top_p or top_k")
    rest = {name: value for name, value in given.items() if name not in ("do_sample", *values)}
    until, max_new_tokens = greedy_settings(rest, default_until, where)
    return GenerationSettings(until, max_new_tokens, **values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def greedy_settings(given: Mapping[str, Any], default_until: Sequence[str], where: str) -> tuple[tuple[str, ...], int]:
    """Stop strings and the number of new tokens in ``generation_kwargs``.

    ``until`` is a string, a list, or null for none; the length may have any of the four names that lm-eval accepts.
    Settings that affect only sampling are ignored, as in lm-eval; a setting that changes greedy decoding is accepted
    only at its neutral value.

    Args:
        default_until: stop strings if ``until`` is not given.
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
            raise error(f"{name!r} is {value!r}, but greedy decoding uses {_NEUTRAL[name]!r}: leave it out")
    sampled, temperature = given.get("do_sample"), given.get("temperature") or 0.0
    if sampled is not None and not isinstance(sampled, bool):
        raise error(f"'do_sample' is {sampled!r}, expected false")
    if sampled:
        raise error("'do_sample' is true, but only greedy decoding is supported here: set it to false")
    if not _is_number(temperature) or not temperature >= 0:
        raise error(f"'temperature' is {temperature!r}, expected 0")
    if temperature > 0 and sampled is None:
        raise error(
            f"'temperature' is {temperature!r} (sampling), but only greedy decoding is supported here: set it to 0"
        )
    return _stops(given.get("until", list(default_until)), error), _length(given, error)


def _stops(until: Any, error: Any) -> tuple[str, ...]:
    stops = [] if until is None else [until] if isinstance(until, str) else until
    if not isinstance(stops, (list, tuple)) or not all(isinstance(stop, str) for stop in stops):
        raise error(f"'until' is {until!r}, expected text, a list of texts, or null for none")
    if "" in stops:
        raise error("'until' contains an empty text, which would end every answer immediately")
    return tuple(stops)


def _length(given: Mapping[str, Any], error: Any) -> int:
    lengths = {name: given[name] for name in _LENGTHS if given.get(name) is not None}
    for name, value in lengths.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise error(f"{name!r} is {value!r}, expected a whole number of 1 or more")
    if len(set(lengths.values())) > 1:
        raise error(f"{' and '.join(map(repr, lengths))} give different lengths: keep one of them")
    return next(iter(lengths.values()), DEFAULT_NEW_TOKENS)
