"""Sampling whose random numbers depend on what is asked, and on nothing that runs beside it.

By Gumbel-max the next token is the one with the largest score plus noise. The noise of a token is a pure function of
(seed, item, sample, position) and the token, so a variant that changes nothing draws the clean model's tokens, and two
variants differ only as far as their distributions do: common random numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lensprune.protocols.requests import Sampling

__all__ = ["draw", "gumbel_noise", "noise_key", "warped"]

_GOLDEN, _FIRST, _SECOND = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_BITS = 52
_ROWS = 16
"""Rows whose noise is made at once; bounds what is held beside the logits."""


def noise_key(sampling: Sampling, item: str | None, position: int) -> int:
    """64 bits (signed) for one token: `position` counts the tokens that the row has generated before."""
    what = repr((sampling.seed, item, sampling.sample, position)).encode()
    return int.from_bytes(hashlib.blake2b(what, digest_size=8).digest(), "little", signed=True)


def gumbel_noise(keys: Sequence[int], n: int, device: torch.device | str) -> Float[torch.Tensor, "row token"]:
    """Standard Gumbel noise of tokens 0 to `n` − 1, in double precision, a row for each key.

    SplitMix64 (Steele, Lea & Flood 2014) from the state `key`: its i-th number belongs to token i, whatever `n` is. It
    is made of whole numbers, so it is the same on every device; the logarithms may differ by rounding.
    """
    tokens = torch.arange(1, n + 1, device=device) * _GOLDEN
    bits = tokens[None] + torch.tensor(list(keys), device=device)[:, None]
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, None)):
        bits ^= _shifted(bits, shift)
        if factor is not None:
            bits *= factor
    # In the middle of 2^52 steps: neither 0 nor 1, and exact.
    uniform = (_shifted(bits, 64 - _BITS).double() + 0.5) * 2.0**-_BITS
    return uniform.log_().neg_().log_().neg_()


def _shifted(bits: Int[torch.Tensor, "row token"], by: int) -> Int[torch.Tensor, "row token"]:
    """Shifted right as unsigned numbers are."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def warped(scores: Float[torch.Tensor, "row token"], sampling: Sampling) -> Float[torch.Tensor, "row token"]:
    """`scores` over the temperature, and −∞ for what `top_k` and then `top_p` leave out, as transformers does it."""
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
    """One token of each row, with the probabilities softmax(`scores`); a key for each, from `noise_key`."""
    chosen = []
    for begin in range(0, len(scores), _ROWS):
        part, own = scores[begin : begin + _ROWS], keys[begin : begin + _ROWS]
        chosen.append((gumbel_noise(own, part.shape[1], part.device) + part).argmax(-1))
    return torch.cat(chosen)
