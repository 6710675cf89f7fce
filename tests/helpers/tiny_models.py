"""Tiny models, written and loaded once per process, and requests to score with them."""

from __future__ import annotations

import atexit
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import torch

from lensprune.models import as_hooked_model, load_model
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest, Request
from tests.helpers.families import save_folder

__all__ = ["TEXTS", "double", "folder", "generation_requests", "likelihood_requests", "logits_of", "scratch", "tiny"]

TEXTS = (
    "The cat sat on the mat.",
    "Two and three make five, so",
    "The cat sat on the roof of the old house near the river",
    "A",
)


@cache
def _root() -> Path:
    root = Path(mkdtemp(prefix="lensprune-tests-"))
    atexit.register(rmtree, root, ignore_errors=True)
    return root


def scratch(name: str) -> Path:
    """A new folder that ends in `name`; it is removed when the process ends."""
    return Path(mkdtemp(dir=_root())) / name


@cache
def folder(family: str, seed: int = 0) -> Path:
    """Folder of the family's model and tokenizer. Tests read it and don't write to it."""
    return save_folder(family, scratch(family), seed)


@cache
def tiny(family: str, dtype: str = "float32", *, hooked_transformer: bool = False) -> HookedModel:
    """The family's model, shared by all tests of a process: what a test changes in it, it puts back."""
    return as_hooked_model(load_model(folder(family), dtype=dtype, hooked_transformer=hooked_transformer))


def double(family: str) -> HookedModel:
    """`tiny` in double precision. Hugging Face's norms and softmaxes compute in float32 whatever the model's type."""
    return tiny(family, "float64")


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


def logits_of(*modules: torch.nn.Module) -> list[torch.Tensor]:
    """Each module's logits of the same few tokens."""
    ids = torch.arange(3, 40, device=next(modules[0].parameters()).device)[None]
    with torch.inference_mode():
        return [module(input_ids=ids, use_cache=False).logits for module in modules]
