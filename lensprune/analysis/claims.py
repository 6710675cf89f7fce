"""The claims of arXiv 2510.02091 about depth, each tested by the signatures of one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from lensprune.analysis.multiplicity import holm
from lensprune.analysis.room import ACCURACY_MARGIN
from lensprune.analysis.signatures import AT_CHANCE

__all__ = ["CLAIMS", "DISTILLATION", "Claim", "ClaimResult", "claim_results", "claim_verdict"]

_ALPHA = 0.025
"""If a 95% interval lies entirely below 0, the one-sided p is at most this."""
_LIKELIHOODS = ("default", "continuation")


@dataclass(frozen=True)
class Claim:
    """`text` is what the paper reports; `applies` selects the rows of `signatures` (signature, task_kind, protocol)
    that test it, and `needs` says what a run must contain to have any."""

    text: str
    needs: str
    applies: Callable[[str, str | None, str], bool]


DISTILLATION = Claim(
    "Distillation changes where reasoning is located.",
    "a base and a distilled model: use lensprune paper or lensprune delta",
    lambda signature, kind, protocol: False,
)
"""A run of one model can't test this claim; see `lensprune.studies.pair.moved`."""

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "Under likelihood protocols the first layers are the critical ones.",
        "single layers removed over the whole depth, under default or continuation",
        lambda signature, kind, protocol: signature == "early drop" and protocol in _LIKELIHOODS,
    ),
    Claim(
        "Generation also needs the middle and deep layers.",
        "single layers removed over the whole depth, under generate",
        lambda signature, kind, protocol: signature == "deep loss of generation",
    ),
    Claim(
        "When later layers are removed, likelihood scores stay flat while generation drops.",
        "generate and a likelihood protocol on the same items",
        lambda signature, kind, protocol: signature == "likelihood flat, generation drops",
    ),
    Claim(
        "Knowledge and retrieval are located in the shallow layers.",
        "a knowledge or retrieval task, and single layers removed over the whole depth",
        lambda signature, kind, protocol: signature == "early drop" and kind in ("knowledge", "retrieval"),
    ),
    Claim(
        "Reasoning relies on the deeper layers.",
        "a reasoning task under generate, and single layers removed over the whole depth",
        lambda signature, kind, protocol: signature == "deep loss of generation" and kind == "reasoning",
    ),
    DISTILLATION,
)


@dataclass(frozen=True)
class ClaimResult:
    """A claim, the verdict over its rows, and the rows (columns of `SIGNATURE_COLUMNS`, `verdict` corrected for their
    number, and ``p_holm``)."""

    claim: Claim
    verdict: str
    rows: pd.DataFrame


def claim_verdict(verdicts: pd.Series) -> str:
    """Combine several rows' verdicts: ``seen`` or ``not seen`` if all resolvable rows agree, ``mixed`` if they
    disagree, ``not resolvable`` if none can be resolved (too few items, or the clean model at chance), and ``not
    measured`` without rows."""
    if verdicts.empty:
        return "not measured"
    said = set(verdicts) - {AT_CHANCE, "not resolvable"}
    if not said:
        return "not resolvable"
    return said.pop() if len(said) == 1 else "mixed"


def _corrected(rows: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Correct verdicts for the number of rows: a row is ``seen`` only if its one-sided p, adjusted for the claim's
    resolvable rows (Holm 1979), is at most 0.025. A false claim is then seen in at most 2.5% of runs, however many rows
    it has."""
    adjusted = holm(rows["p_value"].where(rows["verdict"] != AT_CHANCE).to_numpy(float))
    lost = (rows["verdict"] == "seen") & ~(adjusted <= _ALPHA)
    instead = (rows["ci_low"] > -margin).map({True: "not seen", False: "not resolvable"})
    return rows.assign(verdict=rows["verdict"].where(~lost, instead), p_holm=adjusted)


def claim_results(signatures: pd.DataFrame, *, margin: float = ACCURACY_MARGIN) -> list[ClaimResult]:
    """The result of every claim in `CLAIMS`, with its rows of `lensprune.analysis.signatures`.

    Args:
        margin: the accuracy margin of the signatures.
    """
    results = []
    for claim in CLAIMS:
        keys = zip(*(signatures[name] for name in ("signature", "task_kind", "protocol")), strict=True)
        rows = signatures[[claim.applies(*key) for key in keys]] if len(signatures) else signatures
        rows = _corrected(rows.reset_index(drop=True), margin)
        results.append(ClaimResult(claim, claim_verdict(rows["verdict"]), rows))
    return results
