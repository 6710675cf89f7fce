"""What a sweep that stops early would cost: its looks are simulated under assumed losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lensprune.ablation.components import Slot
from lensprune.ablation.variants import Variant
from lensprune.analysis.stopping import Stopping, further
from lensprune.protocols.registry import protocol_named

__all__ = ["Profile", "measured_at_looks", "profile_of"]

_SIMULATED = 10
"""Number of simulated sweeps."""


@dataclass(frozen=True)
class Profile:
    """Assumed losses: a `share` of the parts loses from `least` to `most` of the items, evenly spread, the others none;
    a further share `flips` of the items changes, half lost and half won."""

    share: float
    least: float
    most: float
    flips: float

    def __str__(self) -> str:
        return (
            f"{self.share:.0%} of the parts lose {self.least:g} to {self.most:g}, and {self.flips:.0%} of the items "
            "change either way"
        )

    def losses(self, parts: int) -> Float[np.ndarray, " part"]:
        """Losses of `parts` parts, largest first."""
        losing = round(self.share * parts)
        return np.append(np.linspace(self.most, self.least, losing), np.zeros(parts - losing))


_HEADS = Profile(1 / 27, 0.15, 0.3, 0.01)
_LIKELIHOOD = Profile(1 / 3, 0.2, 0.5, 0.04)
_GENERATE = Profile(1.0, 0.0, 0.3, 0.2)


def profile_of(variants: Sequence[Variant], protocol: str) -> Profile:
    """The profile assumed for these variants: few single heads matter; a third of the layers do, or most of them where
    texts are generated, with many answers that change either way."""
    parts = [ablation.component.part for variant in variants for ablation in variant.ablations]
    if parts and all(part.slot is Slot.HEADS for part in parts) and all(len(v.ablations) < 2 for v in variants):
        return _HEADS
    return _LIKELIHOOD if protocol_named(protocol).measure == "logprob_margin" else _GENERATE


def measured_at_looks(
    profile: Profile, stopping: Stopping, parts: int, measured: int, controls: int = 0
) -> Float[np.ndarray, " block"]:
    """How many parts are measured on each block of items, as the mean over simulated sweeps.

    Args:
        parts: number of parts in question.
        measured: how many of them are measured; if fewer than `parts`, the `controls`, which lose nothing, and those
            that lose most, as screening would choose them.
    """
    losses = profile.losses(parts)
    losses = np.append(losses[: measured - controls], np.zeros(controls)) if measured < parts else losses
    lost, won = losses + profile.flips / 2, profile.flips / 2
    measured_at = np.zeros(len(stopping.items))
    for seed in range(_SIMULATED):
        drawn = np.random.default_rng(seed).random((stopping.items[-1], measured))
        changes = np.where(drawn < lost, -1.0, np.where(drawn < lost + won, 1.0, 0.0))
        known, going = [np.empty(0)] * measured, np.ones(measured, bool)
        for block, n in enumerate(stopping.items):
            measured_at[block] += going.sum()
            known = [changes[:n, part] if going[part] else known[part] for part in range(measured)]
            going = going & further(known, None, stopping, block + 1, parts)
            if not going.any():
                break
    return measured_at / _SIMULATED
