"""Sampling whose random numbers depend only on the request, not on what else runs.

With the Gumbel-max trick, the next token is the one with the largest score plus noise. A token's noise is a pure
function of (seed, item, sample, position) and the token, so a variant that changes nothing samples the clean model's
tokens, and two variants differ only as far as their distributions do (common random numbers).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lensprune.precision import doubled, has_float64
from lensprune.protocols.requests import Sampling

__all__ = ["draw", "gumbel_noise", "noise_key", "warped"]

_GOLDEN, _FIRST, _SECOND = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_BITS = 52
_ROWS = 16
"""Rows whose noise is computed at once; bounds the memory used besides the logits."""


def noise_key(sampling: Sampling, item: str | None, position: int) -> int:
    """A signed 64-bit key for one token; `position` is the number of tokens that the row has generated before it."""
    what = repr((sampling.seed, item, sampling.sample, position)).encode()
    return int.from_bytes(hashlib.blake2b(what, digest_size=8).digest(), "little", signed=True)


def gumbel_noise(keys: Sequence[int], n: int, device: torch.device | str) -> Float[torch.Tensor, "row token"]:
    """Standard Gumbel noise of tokens 0 to `n` − 1, in double precision, one row per key; on the CPU if the device
    has no float64.

    SplitMix64 (Steele, Lea & Flood 2014) seeded with `key`: its i-th number belongs to token i, whatever `n` is. It
    uses integers only, so it is the same on every device; the logarithms may differ by rounding.
    """
    device = device if has_float64(torch.device(device)) else "cpu"
    tokens = torch.arange(1, n + 1, device=device) * _GOLDEN
    bits = tokens[None] + torch.tensor(list(keys), device=device)[:, None]
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, None)):
        bits ^= _shifted(bits, shift)
        if factor is not None:
            bits *= factor
    # The midpoint of one of 2^52 steps: never 0 or 1, and exact.
    uniform = (_shifted(bits, 64 - _BITS).double() + 0.5) * 2.0**-_BITS
    return uniform.log_().neg_().log_().neg_()


def _shifted(bits: Int[torch.Tensor, "row token"], by: int) -> Int[torch.Tensor, "row token"]:
    """Logical (unsigned) right shift."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def warped(scores: Float[torch.Tensor, "row token"], sampling: Sampling) -> Float[torch.Tensor, "row token"]:
    """`scores` divided by the temperature, −∞ for tokens excluded by `top_k` and then `top_p`, as in transformers."""
    warpers: list[LogitsProcessor] = []
    if sampling.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        warpers.append(TopPLogitsWarper(float(sampling.top_p)))
    ids = torch.empty(len(scores), 0, dtype=torch.long, device=scores.device)
    for warper in warpers:
        scores = warper(ids, scores)
    return scores


def draw(scores: Float[torch.Tensor, "row token"], keys: Sequence[int]) -> Int[torch.Tensor, " row"]:
    """Sample one token per row from softmax(`scores`); `keys` holds one `noise_key` per row."""
    chosen = []
    for begin in range(0, len(scores), _ROWS):
        part, part_keys = scores[begin : begin + _ROWS], keys[begin : begin + _ROWS]
        chosen.append((gumbel_noise(part_keys, part.shape[1], part.device) + doubled(part)).argmax(-1))
    return torch.cat(chosen).to(scores.device)
