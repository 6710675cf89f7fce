"""Rebuild the model inside a bridge that the user booted, without hook points and on the same tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers import PreTrainedModel

from lensprune.errors import LensPruneError, first_line

__all__ = ["NoTwin", "twin_of"]

_LIBRARIES = ("transformer_lens", "transformers", "torch")
_HELD = ("_parameters", "_buffers", "__dict__")
"""Where a module keeps tensors; the last, those that are plain attributes (rotary angles, in some families)."""


class NoTwin(LensPruneError):
    """A bridge's model can't be rebuilt without hook points; the message says why."""


def twin_of(bridge: Any) -> PreTrainedModel:
    """The Hugging Face model in `bridge`, rebuilt from its configuration on the same tensors.

    Booting changes a model in place: `load_model` makes this copy beforehand, and here it is rebuilt afterwards. The
    fast path's probe checks that its numbers are the bridge's.

    Raises:
        NoTwin: the class can't be built from the configuration, its tensors are not those of the model (quantised,
            adapters added, layers replaced), or a forward method of the model was replaced.
    """
    wrapped = bridge.original_model
    try:
        with torch.device("meta"):
            twin: PreTrainedModel = type(wrapped)(copy.deepcopy(wrapped.config))
    except Exception as error:
        raise NoTwin(f"{type(wrapped).__name__} can't be built from its configuration ({first_line(error)})") from error
    originals = dict(_unwrapped(wrapped))
    modules = dict(twin.named_modules(remove_duplicate=False))
    for name, module in originals.items():
        _check(name, module, modules.get(name))
    for name, module in modules.items():
        _share(name, module, originals.get(name))
    return twin.eval()


def _unwrapped(module: torch.nn.Module, name: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules of Hugging Face's tree by name, unwrapped from TransformerLens's components."""
    while isinstance(module, GeneralizedComponent) and module.original_component is not None:
        module = module.original_component
    yield name, module
    for child_name, child in module.named_children():
        yield from _unwrapped(child, f"{name}.{child_name}" if name else child_name)


def _check(name: str, module: torch.nn.Module, expected: torch.nn.Module | None) -> None:
    """Refuse a module of the model for which the twin has no equivalent."""
    replaced = vars(module).get("forward")
    if replaced is not None and str(getattr(replaced, "__module__", "")).partition(".")[0] not in _LIBRARIES:
        raise NoTwin(f"the forward method of {name or 'the model'} was replaced by {_named(replaced)}")
    if expected is None:
        if any(True for _ in module.parameters()):
            raise NoTwin(f"{name} was added to {type(module).__name__}")
    elif type(module) is not type(expected):
        raise NoTwin(f"{name} is a {type(module).__name__}, and its configuration says {type(expected).__name__}")


def _named(function: Any) -> str:
    return str(getattr(function, "__qualname__", function))


def _share(name: str, module: torch.nn.Module, original: torch.nn.Module | None) -> None:
    """Share the model's tensors with a module of the twin."""
    for kind in _HELD:
        held: dict[str, Any] = getattr(module, kind)
        theirs: dict[str, Any] = {} if original is None else getattr(original, kind)
        known = {key for key, value in theirs.items() if isinstance(value, torch.Tensor)}
        for key in [key for key, value in held.items() if isinstance(value, torch.Tensor)]:
            if key not in known or theirs[key].shape != held[key].shape:
                raise NoTwin(f"{name}.{key} of the configuration is not in the model, or of another shape")
            held[key] = theirs[key]
            known.remove(key)
        if known and kind == "_parameters":
            raise NoTwin(f"{name}.{min(known)} of the model is not in its configuration")
