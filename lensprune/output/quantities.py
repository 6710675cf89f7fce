"""Numbers and times as a person reads them."""

from __future__ import annotations

__all__ = ["duration", "quantity"]

_PREFIXES = ("", "k", "M", "G", "T", "P", "E")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def quantity(value: float, unit: str = "") -> str:
    """Three significant digits and a decimal prefix: ``1.24 T``."""
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_PREFIXES[power]}{unit}".strip()


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever reads best."""
    for size, unit in ((_DAY, "days"), (_HOUR, "hours"), (_MINUTE, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"
