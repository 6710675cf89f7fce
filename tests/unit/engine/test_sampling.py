"""Sampling by Gumbel-max: the generator's known numbers, the right probabilities, transformers' filters."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import scipy
import torch
import transformers

from lensprune.engine.sampling import draw, gumbel_noise, noise_key, warped
from lensprune.protocols.requests import Sampling
from tests.helpers.tiny_models import tiny

PLAIN = Sampling(1.0)
SPLIT_MIX = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC)
"""The first numbers of SplitMix64 from the state 0, as its authors publish them."""


def test_noise_is_made_of_the_published_numbers() -> None:
    expected = [-math.log(-math.log(((x >> 12) + 0.5) / 2**52)) for x in SPLIT_MIX]
    assert gumbel_noise([0], 4, "cpu")[0].tolist() == pytest.approx(expected, rel=1e-14)


def test_a_token_s_noise_depends_on_its_row_s_key_alone() -> None:
    keys = [noise_key(PLAIN, str(i), 0) for i in range(40)]
    together = gumbel_noise(keys, 1000, "cpu")
    assert torch.equal(together[7:8], gumbel_noise(keys[7:8], 1000, "cpu"))
    assert torch.equal(together[:, :13], gumbel_noise(keys, 13, "cpu"))
    assert together.isfinite().all()
    scores = torch.randn(40, 1000, generator=torch.Generator().manual_seed(0))
    alone = [int(draw(scores[i : i + 1], [key])) for i, key in enumerate(keys)]
    assert draw(scores, keys).tolist() == alone
    assert len(set(alone)) > 20


def test_every_part_of_the_key_counts() -> None:
    asked = product((0, 1), (None, "None", "a", "a\ud800"), (0, 1, 11), (0, 1, 11))
    keys = [noise_key(Sampling(1.0, seed=seed, sample=s), item, position) for seed, item, s, position in asked]
    assert len(set(keys)) == 2 * 4 * 3 * 3
    # What says how tokens are filtered is no part of it, so that settings are coupled too.
    assert noise_key(Sampling(0.3, 0.5, 7), "a", 2) == noise_key(PLAIN, "a", 2)


@pytest.mark.parametrize("sampling", [PLAIN, Sampling(0.5), Sampling(2.0, top_k=4), Sampling(1.0, top_p=0.7)])
def test_tokens_are_drawn_with_softmax_s_probabilities(sampling: Sampling) -> None:
    scores = torch.tensor([[0.0, 1.0, -1.0, 2.0, 0.5, -0.3]])
    n = 20_000
    tried = warped(scores, sampling).expand(n, -1)
    drawn = draw(tried, [noise_key(replace(sampling, sample=i % 7), f"item {i // 70}", i % 70) for i in range(n)])
    counts = torch.bincount(drawn, minlength=6).double().numpy()
    expected = n * tried[0].double().softmax(-1).numpy()
    kept = expected > 0
    assert counts[~kept].sum() == 0
    assert (~kept).any() == (sampling.top_k > 0 or sampling.top_p < 1)
    assert scipy.stats.chisquare(counts[kept], expected[kept]).pvalue > 0.01
    skewed = expected[kept] * (1 + 0.1 * (expected[kept] == expected.max()))
    assert scipy.stats.chisquare(counts[kept], skewed * n / skewed.sum()).pvalue < 1e-3


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.6, 0.95, 20), (1.7, 0.3, 0), (0.8, 1.0, 3), (0.2, 0.99, 259)]
)
def test_filters_are_those_of_transformers_in_its_order(temperature: float, top_p: float, top_k: int) -> None:
    hf: Any = tiny("llama").module.original_model  # type: ignore[union-attr]
    config = transformers.GenerationConfig(do_sample=True, temperature=temperature, top_p=top_p, top_k=top_k)
    scores = torch.randn(5, 260, generator=torch.Generator().manual_seed(1)) * 3
    processors = hf._get_logits_processor(config, input_ids_seq_length=3)
    assert len(processors) == (temperature != 1) + (top_p < 1) + (top_k > 0)
    ids = torch.zeros(5, 3, dtype=torch.long)
    expected = processors(ids, scores.clone())
    assert torch.equal(warped(scores, Sampling(temperature, top_p, top_k)), expected)
    assert expected.isfinite().sum() < scores.numel() or (top_p == 1 and not top_k)


def test_what_two_distributions_share_they_draw_together() -> None:
    """Common random numbers: two laws with total variation d draw apart about as seldom as is possible (d to 2d)."""
    first = torch.tensor([[0.5, 0.3, 0.2]])
    second = torch.tensor([[0.4, 0.4, 0.2]])
    n = 5000
    keys = [noise_key(PLAIN, None, i) for i in range(n)]
    pairs = [draw(law.log().expand(n, -1), keys) for law in (first, second)]
    apart = float((pairs[0] != pairs[1]).double().mean())
    assert 0.09 < apart < 0.2
    others = draw(second.log().expand(n, -1), [noise_key(replace(PLAIN, seed=1), None, i) for i in range(n)])
    assert float((pairs[0] != others).double().mean()) > 0.5
