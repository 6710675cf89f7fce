"""Prompt pairs for the tiny models, and what attribution is compared with."""

from __future__ import annotations

import pandas as pd
import torch

from lensprune.attribution import EdgeGraph, PromptPair
from lensprune.attribution.runs import last_logits
from lensprune.attribution.writers import writes_of
from lensprune.models.base import HookedModel
from tests.helpers.tolerances import size_of

__all__ = ["PAIRS", "UNEVEN", "difference", "effect", "logit_size", "metric", "writes"]

PAIRS = [
    PromptPair((5, 9, 30, 41, 77, 12), (5, 9, 31, 41, 78, 12), 100, 101),
    PromptPair((8, 60, 61, 62, 63, 64), (8, 60, 61, 99, 63, 64), 40, 41),
]
UNEVEN = [*PAIRS, PromptPair((4, 5, 6), (4, 7, 6), 50, 51)]


def metric(model: HookedModel, pair: PromptPair, tokens: tuple[int, ...]) -> float:
    logits = last_logits(model, torch.tensor([tokens]))[0]
    return float(logits[pair.answer] - logits[pair.wrong])


def logit_size(model: HookedModel) -> float:
    """Largest logit after the prompts: effects are differences of logits, so that their rounding scales with it."""
    prompts = [tokens for pair in UNEVEN for tokens in (pair.clean, pair.corrupt)]
    return size_of(*(last_logits(model, torch.tensor([tokens])) for tokens in prompts))


def effect(frame: pd.DataFrame, site: str, layer: int, head: int | None = None, position: int = -1) -> float:
    here = frame["head"].isna() if head is None else frame["head"] == head
    chosen = frame[(frame["site"] == site) & (frame["layer"] == layer) & here & (frame["position"] == position)]
    assert len(chosen) == 1
    return float(chosen["effect"].iloc[0])


def writes(model: HookedModel, pair: int = 0) -> tuple[EdgeGraph, torch.Tensor, torch.Tensor, torch.Tensor]:
    graph = EdgeGraph.of(model.facts)
    tokens = torch.tensor([PAIRS[pair].clean])
    _, clean, _ = writes_of(model, graph, tokens)
    _, corrupt, _ = writes_of(model, graph, torch.tensor([PAIRS[pair].corrupt]))
    return graph, tokens, clean, corrupt


def difference(logits: torch.Tensor, pair: int = 0) -> float:
    return float(logits[0, PAIRS[pair].answer] - logits[0, PAIRS[pair].wrong])
