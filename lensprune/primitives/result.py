"""The result of `primitives`."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from lensprune.errors import unknown_name
from lensprune.primitives.chains import ChainOptions
from lensprune.primitives.verdicts import COHERENCE, NOTHING, ROLES, Thresholds

__all__ = ["Primitives"]


@dataclass(frozen=True)
class Primitives:
    """Tables of one model's battery.

    `effects`: one row per (head, MLP or layer; token class), see `class_effects`. `causal`: one row per (head or MLP,
    test), see `causal_tests`; parts whose removal costs less than the threshold everywhere are not tested.
    `evidence`: one row per (part, role, test). `verdicts`: one row per head or MLP. `controls`: one row per role, with
    the number of parts that have it, and the numbers with shuffled token classes and with each patch judged by its
    placebo. `survival`: one row per named (part, role, test), with the controls to which it falls, see
    `survival_table`.
    `thresholds`, `chain_options`, `ablation`: how it was measured. `notes`: what could not be measured.
    """

    model: str
    effects: pd.DataFrame
    causal: pd.DataFrame
    evidence: pd.DataFrame
    verdicts: pd.DataFrame
    controls: pd.DataFrame
    survival: pd.DataFrame
    thresholds: Thresholds
    chain_options: ChainOptions
    ablation: str
    notes: tuple[str, ...] = ()

    def heads(self, role: str) -> list[tuple[int, int]]:
        """(layer, head) of the heads with a role, strongest patch first.

        Raises:
            UserError: no such role.
        """
        if role not in (*ROLES, COHERENCE, NOTHING):
            raise unknown_name("role", role, [*ROLES, COHERENCE, NOTHING])
        if role in ROLES:
            rows = self.evidence[self.evidence["named"] & (self.evidence["role"] == role)]
            rows = rows[rows["component"] == "head"].sort_values("share", ascending=False)
        else:
            rows = self.verdicts[(self.verdicts["verdict"] == role) & (self.verdicts["component"] == "head")]
        places = zip(rows["layer"].astype(int), rows["head"].astype(int), strict=True)
        return list(dict.fromkeys(places))
