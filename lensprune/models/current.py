"""The current state of a loaded model: edited weights, a new dtype or device, leftover hooks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from lensprune.errors import UserError
from lensprune.models.facts import hash_weights

__all__ = ["check_no_hooks", "fingerprint", "remember_weights", "up_to_date", "user_hooks"]

_WEIGHTS_ATTRIBUTE = "_lensprune_weights"
_LIBRARIES = ("transformer_lens", "lensprune", "transformers", "accelerate", "torch")


def fingerprint(module: torch.nn.Module) -> str:
    """sha256 over every parameter and buffer that `module` computes with, including those that are in no file."""
    inner: Any = getattr(module, "original_model", module)
    # Angles that change with the length of a call are not part of the model.
    changing = tuple(
        f"{name}."
        for name, part in inner.named_modules()
        if any(kind in str(getattr(part, "rope_type", "")) for kind in ("dynamic", "longrope"))
    )
    buffers = inner.named_buffers(remove_duplicate=False)
    kept = {name: buffer for name, buffer in buffers if not name.startswith(changing)}
    return hash_weights({**dict(inner.named_parameters(remove_duplicate=False)), **kept})


def remember_weights(module: torch.nn.Module, weights_hash: str) -> None:
    """Record that `module` currently has the weights with this hash."""
    module.__dict__[_WEIGHTS_ATTRIBUTE] = fingerprint(module), weights_hash


def up_to_date(adapter: Any) -> Any:
    """Update an adapter's facts in place: weights, dtype and device.

    Edited weights get a new hash, the same for the same edit; undoing the edit restores the old hash.
    """
    module = adapter.module
    _follow_placement(adapter)
    known = module.__dict__.get(_WEIGHTS_ATTRIBUTE)
    if known is not None:
        now, (before, weights_hash) = fingerprint(module), known
        if now != before:
            weights_hash = hashlib.sha256(f"edited {now}".encode()).hexdigest()
        if weights_hash != adapter.facts.weights_hash:
            adapter.facts = replace(adapter.facts, weights_hash=weights_hash)
    return adapter


def _follow_placement(adapter: Any) -> None:
    parameter = next(adapter.module.parameters())
    dtype, device = str(parameter.dtype).removeprefix("torch."), str(parameter.device)
    if (dtype, device) == (adapter.facts.dtype, adapter.facts.device):
        return
    if adapter.raw_model is not None:
        # Parameters are shared and have moved; buffers were replaced on the model alone.
        adapter.raw_model.to(device=parameter.device, dtype=parameter.dtype)
    adapter.facts = replace(adapter.facts, dtype=dtype, device=device)


def user_hooks(module: torch.nn.Module) -> tuple[str, ...]:
    """Names of the places with custom hooks on `module`: TransformerLens's hook points, and torch's hooks."""
    return tuple(dict.fromkeys(_user_hooks(module)))


def _user_hooks(module: torch.nn.Module) -> Iterator[str]:
    for name, inner in module.named_modules():
        handles = [*getattr(inner, "fwd_hooks", ()), *getattr(inner, "bwd_hooks", ())]
        # A hook point wraps its functions, so torch's registry shows only TransformerLens's wrappers.
        functions = [getattr(handle, "user_hook", handle) for handle in handles] or [
            *inner._forward_pre_hooks.values(),
            *inner._forward_hooks.values(),
        ]
        for function in functions:
            owner = str(getattr(function, "__module__", None) or type(function).__module__)
            if owner.partition(".")[0] not in _LIBRARIES or function in handles:
                yield str(getattr(inner, "name", None) or name)


def check_no_hooks(module: torch.nn.Module, kept: tuple[str, ...]) -> None:
    """Raise `UserError` for a hook that the user left on `module` and that is not among `kept`."""
    strays = [name for name in user_hooks(module) if name not in kept]
    if strays:
        more = f" and {len(strays) - 1} more" if len(strays) > 1 else ""
        raise UserError(
            f"the model has a custom hook at {strays[0]}{more}, which would be part of its clean numbers: remove "
            "it (model.reset_hooks(including_permanent=True), or the handle's remove()), or pass keep_hooks=True to "
            "measure the model with it"
        )
