"""Limits on what the forked executor holds at once while decoding."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DecodeLimits"]


@dataclass(frozen=True)
class DecodeLimits:
    """`rows`: variants × requests in a step; `kv_bytes`: keys and values held; `tokens`: distinct prompt tokens."""

    rows: int
    kv_bytes: int
    tokens: int

    def halved(self) -> DecodeLimits:
        """Half of everything, at least one row and one token."""
        return DecodeLimits(max(1, self.rows // 2), max(1, self.kv_bytes // 2), max(1, self.tokens // 2))
