"""What each rule finds of circuits whose parts are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from lensprune.attribution import PromptPair, activation_patching, attribution_patching, edge_attribution
from lensprune.engine.gradient_rules import GRADIENT_RULES
from lensprune.models.base import HookedModel
from tests.helpers.planted.circuits import model_of
from tests.helpers.planted.compiled import PROGRAMS, compiled, program
from tests.helpers.planted.rasp_programs import counterfactuals
from tests.planted.compiled_table import share
from tests.planted.test_attribution import PAIRS, circuit_edges

__all__ = ["circuit_rows"]

THRESHOLD = 0.01
"""Logits, where the right answer leads by 10."""
SOFTER = 10.0
HEADER = ["circuit", "patching", *GRADIENT_RULES, *(f"edges, {rule}" for rule in GRADIENT_RULES)]


def circuit_rows() -> Iterator[list[str]]:
    """A header, then one row a circuit: parts found, and edges found by one step of EAP, of those that are there."""
    yield HEADER
    for name in PAIRS:
        for kind in ("", "soft "):
            model = model_of(f"{kind}{name}", "llama")
            edges = frozenset(circuit_edges(name, "llama"))
            parts = frozenset(source for source, _ in edges) - {"embed"}
            yield _row(f"{kind}{name}, by hand", model, PAIRS[name](model), parts, edges)
    for name in PROGRAMS:
        for softness, kind in ((1.0, ""), (SOFTER, ", softer")):
            model, own = compiled(name, softness), program(name)
            pairs = counterfactuals(model, name, 24)
            yield _row(f"{name}, compiled{kind}", model, pairs, own.nodes, own.edges())


def _row(
    title: str,
    model: HookedModel,
    pairs: Sequence[PromptPair],
    parts: frozenset[str],
    edges: frozenset[tuple[str, str]],
) -> list[str]:
    exact = _parts(activation_patching(model, pairs, ["head", "mlp"]))
    row = [title, share(exact, parts)]
    for rule in GRADIENT_RULES:
        row.append(share(_parts(attribution_patching(model, pairs, ["head", "mlp"], rule=rule)), parts))
    for rule in GRADIENT_RULES:
        table = edge_attribution(model, pairs, steps=1, rule=rule, batch_size=len(pairs)).table()
        found = table[table["effect"].abs() > THRESHOLD]
        row.append(share(zip(found["source"], found["target"], strict=True), edges))
    return row


def _parts(frame: pd.DataFrame) -> set[str]:
    found = frame[frame["effect"].abs() > THRESHOLD]
    return {f"L{row.layer}.mlp" if pd.isna(row.head) else f"L{row.layer}.H{row.head}" for row in found.itertuples()}
