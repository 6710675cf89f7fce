"""What each method finds of the compiled circuits, as a Markdown table: ``python -m tests.planted.compiled_table``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from lensprune.attribution import activation_patching, attribution_patching, edge_attribution, path_patching
from lensprune.attribution.graph import EdgeGraph
from tests.helpers.planted.compiled import PROGRAMS, compiled, program
from tests.helpers.planted.rasp_programs import counterfactuals

THRESHOLD = 0.01
PAIRS = 24
SOFT = 10.0


def parts(name: str, method: Callable[..., pd.DataFrame], softness: float) -> set[str]:
    model = compiled(name, softness)
    frame = method(model, counterfactuals(model, name, PAIRS), ["head", "mlp"])
    found = frame[frame["effect"].abs() > THRESHOLD]
    return {f"L{row.layer}.mlp" if pd.isna(row.head) else f"L{row.layer}.H{row.head}" for row in found.itertuples()}


def paths(name: str) -> set[tuple[str, str]]:
    model = compiled(name)
    pairs = counterfactuals(model, name, PAIRS)
    table = pd.concat([path_patching(model, pairs, reader) for reader in EdgeGraph.of(model.facts).readers])
    found = table[table["effect"].abs() > THRESHOLD]
    return set(zip(found["sender"], found["receiver"], strict=True))


def edges(name: str, softness: float, steps: int) -> set[tuple[str, str]]:
    model = compiled(name, softness)
    table = edge_attribution(model, counterfactuals(model, name, PAIRS), steps=steps, batch_size=PAIRS).table()
    found = table[table["effect"].abs() > THRESHOLD]
    return set(zip(found["source"], found["target"], strict=True))


def share(found: Iterable[Any], true: frozenset[Any]) -> str:
    """Found of the true, and how many others with them."""
    kept = set(found)
    wrong = len(kept - true)
    return f"{len(kept & true)} of {len(true)}" + (f", {wrong} wrong" if wrong else "")


def main() -> None:
    header = ["program", "activation patching", "attribution patching", "… softer", "path patching"]
    header += [f"{'EAP' if m == 1 else f'EAP-IG, m = {m}'}{s}" for m in (1, 5, 20) for s in ("", ", softer")]
    rows = [header, ["---"] * len(header)]
    for name in PROGRAMS:
        own = program(name)
        row = [f"`{name}`", share(parts(name, activation_patching, 1), own.nodes)]
        row += [share(parts(name, attribution_patching, softness), own.nodes) for softness in (1, SOFT)]
        row.append(share(paths(name), own.edges()))
        row += [share(edges(name, s, steps), own.edges()) for steps in (1, 5, 20) for s in (1, SOFT)]
        rows.append(row)
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


if __name__ == "__main__":
    main()
