"""Loaded tiny models, one per family and session, and requests to score with them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from lensprune.models import as_hooked_model, load_model
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest, Request
from tests.families import save_folder

TEXTS = (
    "The cat sat on the mat.",
    "Two and three make five, so",
    "The cat sat on the roof of the old house near the river",
    "A",
)


@cache
def tiny(family: str) -> HookedModel:
    folder = save_folder(family, Path(mkdtemp()) / family)
    return as_hooked_model(load_model(folder))


def likelihood_requests(model: HookedModel) -> list[Request]:
    """Ragged contexts, short and long continuations, two requests that share a forward pass."""
    encode = model.tokenizer.encode
    requests: list[Request] = []
    for text in TEXTS:
        for continuation in (" B", " C", " and then some"):
            whole = tuple(encode(text + continuation))
            size = len(encode(text))
            requests.append(LoglikelihoodRequest(whole[:size], whole[size:]))
        requests.append(LoglikelihoodRequest(tuple(encode(text)), (7,)))
    return requests


def generation_requests(model: HookedModel, new_tokens: int = 6) -> list[Request]:
    return [GenerateRequest(tuple(model.tokenizer.encode(text)), ("\x00",), new_tokens) for text in TEXTS]
