"""Activations of one forward pass, kept inside the graph that leads from them to the logits."""

from __future__ import annotations

from typing import Any

import torch

from lensprune.models.base import HookFunction

__all__ = ["START", "KeptActivations"]

START = "blocks.0.hook_resid_pre"
"""Hook point at which the graph starts (with frozen weights there would be none). It must be among the hooks."""


class KeptActivations:
    """Hooks that keep the activations that pass, for `torch.autograd.grad`."""

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}

    def keep(self, name: str) -> HookFunction:
        """The hook for one hook point."""

        def look(activation: torch.Tensor, hook: Any) -> torch.Tensor:
            if name == START:
                activation = activation.detach().requires_grad_()
            self.kept[name] = activation
            # Some hook points show a reshaped view; returning it puts the view itself into the graph.
            return activation

        return look
