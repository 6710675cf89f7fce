"""Where activations are patched: the residual stream, branches, and heads, at every position or one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import pandas as pd

from lensprune.attribution.mean_se import MeanSE
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import ModelFacts

__all__ = ["Direction", "PatchTarget", "SiteName", "check_sites", "effects_table", "hook_of", "targets"]

SiteName = Literal["resid", "attention", "mlp", "head"]
"""``resid``: the residual stream before a layer; ``attention``, ``mlp``: what a branch adds; ``head``: a head's output
z."""

Direction = Literal["noise", "denoise"]
"""``noise``: the clean run with a corrupt activation; ``denoise``: the corrupt run with a clean activation."""

_HOOKS = {"resid": "hook_resid_pre", "attention": "hook_attn_out", "mlp": "hook_mlp_out", "head": "attn.hook_z"}


class PatchTarget(NamedTuple):
    """One patch. Without a head: the whole activation; position −1: every position."""

    site: SiteName
    layer: int
    head: int | None
    position: int


def hook_of(site: str, layer: int) -> str:
    """Name of the activation."""
    return f"blocks.{layer}.{_HOOKS[site]}"


def check_sites(sites: Sequence[str]) -> list[SiteName]:
    """Raise `UserError` for an unknown site, or none at all."""
    if not sites:
        raise UserError(f"no site given: choose one of {', '.join(get_args(SiteName))}")
    for site in sites:
        if site not in _HOOKS:
            raise unknown_name("site", str(site), _HOOKS)
    return list(sites)  # type: ignore[arg-type]


def targets(facts: ModelFacts, sites: Sequence[SiteName], positions: int | None) -> list[PatchTarget]:
    """Every patch of the sites; `positions`: length of the prompts, to patch each position separately."""
    places = [-1] if positions is None else list(range(positions))
    return [
        PatchTarget(site, layer, head, position)
        for site in sites
        for layer in range(facts.n_layers)
        for head in (range(facts.n_heads) if site == "head" else (None,))
        for position in places
    ]


def effects_table(targets: Sequence[PatchTarget], effects: MeanSE, base: float, source: float) -> pd.DataFrame:
    """site, layer, head (or NA), position, effect, standard_error, share: effect divided by the metric's change from
    base to source run (NaN if that is 0)."""
    frame = pd.DataFrame(targets, columns=["site", "layer", "head", "position"]).astype({"head": "Int64"})
    frame["effect"] = effects.mean
    frame["standard_error"] = effects.standard_error
    gap = source - base
    frame["share"] = frame["effect"] / gap if gap else float("nan")
    return frame
