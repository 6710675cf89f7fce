"""Reference activations for mean and resample ablation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

__all__ = ["MeanMode", "ReferenceActivations"]

MeanMode = Literal["pooled", "per_position"]


@dataclass(frozen=True)
class ReferenceActivations:
    """Activations of the clean model on reference prompts, one entry per hook point.

    `pooled[name]`: mean over all non-padding positions, shape of one position's activation. `per_position[name]`:
    [pos, …], mean over the prompts that reach the position. `donor[name]`: [pos, …], the donor prompt's activations.
    `description` and `digest` go into the run's spec.
    """

    mode: MeanMode = "pooled"
    pooled: Mapping[str, torch.Tensor] = field(default_factory=dict)
    per_position: Mapping[str, torch.Tensor] = field(default_factory=dict)
    donor: Mapping[str, torch.Tensor] = field(default_factory=dict)
    description: str = ""
    digest: str = ""
