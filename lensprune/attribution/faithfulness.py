"""Faithfulness of circuits against their size, with the areas of the MIB benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from lensprune.attribution.circuits import Circuit, circuit_metrics, greedy_circuit, top_circuit
from lensprune.attribution.eap import EdgeScores
from lensprune.attribution.pairs import PromptPair
from lensprune.engine.base import ProgressCallback
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import AnyModel

__all__ = ["MIB_FRACTIONS", "FaithfulnessCurve", "areas", "faithfulness_curve"]

MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of edges at which MIB evaluates circuits."""


@dataclass(frozen=True)
class FaithfulnessCurve:
    """`table`: fraction, n_edges (requested), n_kept (after pruning), metric, faithfulness. `cpr`: area under the curve
    (higher is better); `cmd`: area between the curve and 1 (lower is better, 0 at best)."""

    table: pd.DataFrame
    clean: float
    corrupt: float
    cpr: float
    cmd: float


def areas(fractions: Sequence[float], faithfulness: Sequence[float]) -> tuple[float, float]:
    """CPR and CMD (Mueller et al. 2025, arXiv 2504.13151): trapezoids of f and of |1 − f| over the fraction of
    edges, on a linear axis."""
    x, f = np.asarray(fractions, dtype=float), np.asarray(faithfulness, dtype=float)
    return float(np.trapezoid(f, x)), float(np.trapezoid(np.abs(1 - f), x))


def faithfulness_curve(
    model: AnyModel,
    pairs: Sequence[PromptPair],
    scores: EdgeScores,
    fractions: Sequence[float] = MIB_FRACTIONS,
    *,
    method: Literal["greedy", "top"] = "greedy",
    absolute: bool = True,
    progress: ProgressCallback | None = None,
) -> FaithfulnessCurve:
    """Faithfulness of a method's circuits at several shares of all edges (rounded down, as in MIB).

    Score and evaluate on different pairs; otherwise the curve is optimistic.

    Args:
        method: `greedy_circuit` or `top_circuit`.
        absolute: rank edges by |effect|, which suits CMD; ``False`` ranks by how much the edge helps, for CPR.
        progress: called with the number of finished (circuit, pair) passes.

    Raises:
        UserError: an unknown method, or fractions that are not increasing within 0 to 1.
    """
    if method not in ("greedy", "top"):
        raise unknown_name("method", str(method), ["greedy", "top"])
    steps = list(fractions)
    if len(steps) < 2 or steps != sorted(set(steps)) or min(steps) < 0 or max(steps) > 1:
        raise UserError(f"fractions {steps} of edges: expected two or more increasing numbers between 0 and 1")
    build = greedy_circuit if method == "greedy" else top_circuit
    circuits: list[Circuit] = [
        build(scores, int(fraction * scores.graph.n_edges), absolute=absolute) for fraction in steps
    ]
    measured = circuit_metrics(model, pairs, circuits, progress=progress)
    cpr, cmd = areas(steps, measured.faithfulness)
    table = pd.DataFrame(
        {
            "fraction": steps,
            "n_edges": [circuit.requested for circuit in circuits],
            "n_kept": [int(circuit.kept.sum()) for circuit in circuits],
            "metric": measured.circuits,
            "faithfulness": measured.faithfulness,
        }
    )
    return FaithfulnessCurve(table, measured.clean, measured.corrupt, cpr, cmd)
