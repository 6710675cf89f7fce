"""Tables of `python -m tests.early`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["apart", "tables"]

_WAYS = {"looks": "looks", "screen": "looks and `--screen 0.1`"}
_WANTED = {("layers", "looks"): 0.5, ("heads", "looks"): 0.3, ("heads", "screen"): 0.1}


def tables(results: Mapping[str, Any]) -> str:
    """What each sweep took beside one of all items, and where their verdicts differ."""
    lines = [
        "| sweep | clean accuracy | all items: seconds, detected | method | seconds | share | target | cells "
        "| detected |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    differ = [
        "| sweep | variant | detected with | Δμ, all items | Δμ at the stop (n) | Δμ on 100 other items |",
        "|" + "---|" * 6,
    ]
    for name, found in results.items():
        whole = found.get("all")
        for way, words in _WAYS.items():
            early = found.get(way)
            if whole is None or early is None:
                continue
            share, cells = early["seconds"] / whole["seconds"], early["cells"] / whole["cells"]
            before = f"{whole['seconds']:.0f}{' (from a tenth)' if 'measured' in whole else ''}, {len(whole['named'])}"
            wanted = f"≤ {_WANTED[name.split()[-1], way]:g}"
            row = [name, f"{whole['clean']:.2f}", before, words, f"{early['seconds']:.0f}", f"{share:.2f}", wanted]
            lines.append(f"| {' | '.join([*row, f'{cells:.2f}', str(len(early['named']))])} |")
            for variant in apart(whole, early):
                by = f"all items, not {words}" if variant in whole["named"] else f"{words}, not all items"
                all_items = whole["delta"].get(variant)
                row = [name, variant, by, "–" if all_items is None else f"{all_items:+.3f}"]
                measured = variant in early["delta"]
                row += [
                    f"{early['delta'][variant]:+.3f} ({early['n'][variant]})" if measured else "not measured",
                    f"{found['others'][variant]:+.3f}" if variant in found.get("others", {}) else "–",
                ]
                differ.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, "", *(differ if len(differ) > 2 else ["The verdicts are the same everywhere."])])


def apart(whole: Mapping[str, Any], early: Mapping[str, Any]) -> list[str]:
    """Variants that only one of the two sweeps names, those left out by screening included."""
    return sorted(set(whole["named"]) ^ set(early["named"]))
