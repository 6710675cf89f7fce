"""Assign roles to parts from effects and causal tests, by explicit thresholds, with the evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from lensprune.errors import UserError

__all__ = ["COHERENCE", "MIN_KNOWN", "NOTHING", "ROLES", "Thresholds", "role_evidence", "verdict_table"]

ROLES: dict[str, tuple[tuple[str, str], ...]] = {
    "carries operand": (("operand", "operand"),),
    "carries operator": (("operator", "operator"),),
    "routes position": (("position", "operand"),),
    "computes result": (("result", "result"), ("operation", "result")),
    "moves result": (("carried", "carried"), ("answer", "answer")),
    "formats answer": (("format", "conclusion"),),
}
"""Each role's pairs of (causal test, token class that must be affected); one pair suffices."""
MIN_KNOWN = 0.1
COHERENCE = "keeps coherence"
NOTHING = "nothing resolvable"
_PLACE = ["component", "layer", "head"]


@dataclass(frozen=True)
class Thresholds:
    """Requirements of a role.

    Removal: `effect` nats or more on the class, and q ≤ `q` for the effect, for its contrast with the solution's other
    tokens, and for its specificity against general text. Patching: a share of `share` or more, and q ≤ `q`.
    ``keeps coherence``: the same effect and q on general text, of which the model must predict at least a share
    `MIN_KNOWN` of the tokens, and no other role.
    """

    effect: float = 0.1
    share: float = 0.1
    q: float = 0.05

    def __post_init__(self) -> None:
        for name, most in (("effect", float("inf")), ("share", 1.0), ("q", 1.0)):
            value = getattr(self, name)
            if not 0 < value <= most:
                raise UserError(f"threshold {name} {value} is out of range: expected above 0, at most {most:g}")


def role_evidence(
    effects: pd.DataFrame, causal: pd.DataFrame, thresholds: Thresholds, *, placebo: bool = False
) -> pd.DataFrame:
    """One row per (head or MLP, role, test): the cost of its removal on the role's class, the effect of its patch,
    whether each passes (``removal``, ``patching``), and ``named``: whether both pass.

    Args:
        placebo: judge each patch's placebo instead, by its magnitude.
    """
    keys = [*_PLACE, "class"]
    wanted = effects[[*keys, "effect", "q_value", "contrast_q", "specificity", "specificity_q"]]
    share, q = ("placebo_share", "placebo_q") if placebo else ("share", "q_value")
    frames = []
    for role, pairs in ROLES.items():
        for test, kind in pairs:
            patched = causal[causal["test"] == test][
                [*_PLACE, "test", "share", "q_value", "placebo_share", "placebo_q"]
            ]
            patched = patched.rename(columns={"q_value": "share_q"}).assign(**{"class": kind, "role": role})
            removed = wanted[wanted["class"] == kind].rename(columns={"q_value": "effect_q"})
            frames.append(removed.merge(patched, on=keys, how="inner"))
    table = pd.concat(frames, ignore_index=True)
    table["removal"] = table["effect"] >= thresholds.effect
    for name in ("effect_q", "contrast_q", "specificity_q"):
        table["removal"] &= table[name] <= thresholds.q
    moved = table[share].abs() if placebo else table[share]
    table["patching"] = (moved >= thresholds.share) & (table["share_q" if not placebo else q] <= thresholds.q)
    table["named"] = table["removal"] & table["patching"]
    order = [*_PLACE, "role", "test", "class", "effect", "effect_q", "contrast_q", "specificity", "specificity_q"]
    order += ["share", "share_q", "placebo_share", "placebo_q", "removal", "patching", "named"]
    return table[order].sort_values([*_PLACE, "role"], kind="stable").reset_index(drop=True)


def verdict_table(effects: pd.DataFrame, evidence: pd.DataFrame, thresholds: Thresholds) -> pd.DataFrame:
    """One row per head or MLP: component, layer, head, ``verdict`` (its roles, largest share first; ``keeps
    coherence``; or ``nothing resolvable``), ``because``, its evidence, and ``also``: tests that its patch
    moves and whose class suffers without it, but for which it gets no role, since other tokens or general text suffer
    as much."""
    rows: list[dict[str, Any]] = []
    text = effects[(effects["class"] == "text") & effects["component"].isin(("head", "mlp"))]
    for part in text.to_dict("records"):
        same = evidence["component"].eq(part["component"]) & evidence["layer"].eq(part["layer"])
        same &= evidence["head"].isna() if pd.isna(part["head"]) else evidence["head"].eq(part["head"])
        named = evidence[same.fillna(False).astype(bool) & evidence["named"]].sort_values("share", ascending=False)
        coherent = part["effect"] >= thresholds.effect and part["q_value"] <= thresholds.q
        coherent = coherent and part["predicted"] >= MIN_KNOWN
        roles = list(dict.fromkeys(named["role"])) or [COHERENCE if coherent else NOTHING]
        because = [
            f"{row['test']} {row['share']:.0%} (q {row['share_q']:.2g}), {row['class']} {row['effect']:+.2f} nats "
            f"(q {row['effect_q']:.2g})"
            for row in named.to_dict("records")
        ]
        if roles == [COHERENCE]:
            because = [f"text {part['effect']:+.2f} nats (q {part['q_value']:.2g})"]
        tried = evidence[same.fillna(False).astype(bool) & evidence["patching"] & ~evidence["removal"]]
        broad = tried[(tried["effect"] >= thresholds.effect) & (tried["effect_q"] <= thresholds.q)]
        also = [f"{row['test']} {row['share']:.0%}" for row in broad.to_dict("records")]
        shown = {"verdict": "; ".join(roles), "because": "; ".join(because), "also": "; ".join(also)}
        rows.append({**{k: part[k] for k in _PLACE}, **shown})
    return pd.DataFrame(rows, columns=[*_PLACE, "verdict", "because", "also"]).astype(
        {"layer": "Int64", "head": "Int64"}
    )
