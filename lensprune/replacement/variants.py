"""Named sets of replaced parts: one part at a time, a range, or cumulatively from one end of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lensprune.errors import UserError, unknown_name
from lensprune.replacement.parts import Host, Part

__all__ = ["DIRECTIONS", "DISTILLED", "MODES", "Replacement", "enumerate_replacements"]

DISTILLED = "distilled"
"""Name of the variant that is the unchanged distilled model; the base is `CLEAN`."""

Mode = Literal["single", "cumulative", "range"]
"""``single``: each part by itself. ``cumulative``: 1, 2, … parts from one end. ``range``: all chosen parts at once."""
Direction = Literal["forward", "backward", "both"]
"""``forward``: the base model gets the distilled model's part. ``backward``: the distilled model gets the base's."""
Start = Literal["bottom", "top"]

MODES: tuple[str, ...] = get_args(Mode)
DIRECTIONS: tuple[str, ...] = get_args(Direction)
_STARTS: tuple[str, ...] = get_args(Start)


@dataclass(frozen=True)
class Replacement:
    """`host` with `parts` on the way (α) to the other model's weights.

    The names that records carry: ``base+L3.attention_output`` is the base with the distilled model's part,
    ``distilled-L3.attention_output`` the distilled with the base's; `ablation` is ``from_distilled`` or ``from_base``.
    """

    host: Host
    parts: tuple[Part, ...]
    alpha: float = 1.0

    @property
    def label(self) -> str:
        """What is replaced, without the direction."""
        first, last = self.parts[0].label, self.parts[-1].label
        text = first if len(self.parts) == 1 else f"{first}..{last}"
        return text if self.alpha == 1 else f"{text}@{self.alpha:g}"

    @property
    def name(self) -> str:
        return f"{self.host}{'+' if self.host == 'base' else '-'}{self.label}"

    @property
    def component(self) -> str:
        return self.parts[0].component if len(self.parts) == 1 else "range"

    @property
    def layer(self) -> int | None:
        return self.parts[0].layer if len(self.parts) == 1 else None

    @property
    def head(self) -> int | None:
        return self.parts[0].head if len(self.parts) == 1 else None

    @property
    def ablation(self) -> str:
        return "from_distilled" if self.host == "base" else "from_base"

    def to_json(self, donor_hash: str) -> dict[str, Any]:
        """Description for the spec; `donor_hash` is that of the weights that come in."""
        parts = [part.label for part in self.parts]
        return {
            "name": self.name,
            "replacement": {"host": self.host, "parts": parts, "alpha": self.alpha, "donor": donor_hash},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Replacement:
        """The replacement that a spec describes."""
        described = data["replacement"]
        return cls(described["host"], tuple(map(Part.parse, described["parts"])), float(described["alpha"]))


def enumerate_replacements(
    parts: Sequence[Part],
    mode: str = "single",
    direction: str = "both",
    start: str = "bottom",
    alpha: float = 1.0,
) -> list[Replacement]:
    """Replacements of `parts` (from bottom to top), forward and backward ones of the same parts side by side.

    Raises:
        UserError: an unknown name, or an α outside 0 to 1.
    """
    for kind, value, options in (
        ("mode", mode, MODES),
        ("direction", direction, DIRECTIONS),
        ("end of the model", start, _STARTS),
    ):
        if value not in options:
            raise unknown_name(kind, value, options)
    if start != "bottom" and mode != "cumulative":
        raise UserError(f"start {start} is given with mode {mode}: only cumulative starts at an end of the model")
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha {alpha} is not between the two models: expected 0 to 1")
    sets: list[tuple[Part, ...]]
    if mode == "single":
        sets = [(part,) for part in parts]
    elif mode == "range":
        sets = [tuple(parts)]
    else:
        sizes = range(1, len(parts) + 1)
        sets = [tuple(parts[:n]) if start == "bottom" else tuple(parts[-n:]) for n in sizes]
    hosts: list[Host] = ["base"] if direction == "forward" else ["distilled"] if direction == "backward" else []
    return [Replacement(host, chosen, alpha) for chosen in sets for host in hosts or ("base", "distilled")]
