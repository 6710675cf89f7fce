"""Ablation kinds: one row per kind, from which executors, plan and command line derive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar, overload

from lensprune.ablation.components import Part
from lensprune.errors import LensPruneError
from lensprune.registry import Registry

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int

    from lensprune.ablation.components import Component
    from lensprune.ablation.reference import ReferenceActivations

__all__ = [
    "OPTIMAL_ITERATIONS",
    "AblatedSite",
    "AblationKind",
    "MeanMode",
    "ablation_kind",
    "ablation_kinds",
    "kinds_allowed",
    "register_ablation",
]

OPTIMAL_ITERATIONS = 12
"""L-BFGS iterations of the search for an optimal constant."""

MeanMode = Literal["pooled", "pooled_all", "per_position"]
"""``pooled``: over ordinary positions (see `lensprune.ablation.recorded.ordinary_positions`), with the first token's
own mean for the first token. ``pooled_all``: one mean over all positions. ``per_position``: position by position."""

Reference = Literal["mean", "donor", "optimal"]


@dataclass(frozen=True)
class AblatedSite:
    """Input of an ablation kind's function, for tokens at `position_ids` [*rows].

    `like` has the shape [*rows, …], dtype and device of the activation that is replaced; its values are arbitrary.

    Examples:
        >>> import torch
        >>> position_ids = torch.tensor([[0, 1]])
        >>> site = lp.AblatedSite(lp.MLP(0), position_ids, like=torch.empty(1, 2, 3))
        >>> site.full(0.5).shape
        torch.Size([1, 2, 3])
    """

    component: Component
    position_ids: Int[torch.Tensor, "*rows"]
    like: Float[torch.Tensor, "*rows ..."]
    given: ReferenceActivations | None = None
    computed: Float[torch.Tensor, "*rows ..."] | None = None

    @property
    def activation(self) -> Float[torch.Tensor, "*rows ..."]:
        """The activation that is replaced; only for kinds with `reads_activation`."""
        if self.computed is None:
            raise LensPruneError(
                f"{self.component.label}: its ablation reads the activation, but was registered as one that doesn't"
            )
        return self.computed

    @property
    def reference(self) -> ReferenceActivations:
        """The clean model's activations on reference prompts; only for kinds with `reference`."""
        if self.given is None:
            raise LensPruneError(
                f"{self.component.label}: its ablation reads reference activations, but was registered without any"
            )
        return self.given

    def full(self, number: float) -> Float[torch.Tensor, "*rows ..."]:
        """A tensor filled with `number`."""
        return self.like.new_full(self.like.shape, number)


Value = Callable[[AblatedSite], "torch.Tensor"]


@dataclass(frozen=True)
class AblationKind:
    """One kind of ablation.

    `value` returns the replacement for the activation, in the shape of `AblatedSite.like`; for a component that covers
    some heads or dimensions, only those are used. `None`: zero. `reads_activation`: the value depends on the activation
    that it replaces, so a whole block must run even if its contribution is replaced. `reference`: which
    `ReferenceActivations` the value uses; they are then collected on reference prompts. `branches_only`: only for
    components that are a whole block or branch. `can_be_estimated`: screening may rank components by attribution
    patching towards the value. `search_passes`: number of forward passes from the component's layer on that `plan`
    counts per reference prompt to find the value; a backward pass counts as one. `cuts_edges`: changes the attention
    pattern between chosen tokens (`lensprune.ablation.edges`) and replaces no activation.
    """

    name: str
    summary: str
    value: Value | None = None
    reads_activation: bool = False
    reference: Reference | None = None
    branches_only: bool = False
    can_be_estimated: bool = True
    search_passes: int = 0
    cuts_edges: bool = False

    def allows(self, part: Part) -> bool:
        """Whether components of this part allow this kind."""
        return part.has_pattern if self.cuts_edges else part.is_branch or not self.branches_only


_KINDS: Registry[AblationKind] = Registry("ablation")

V = TypeVar("V", bound=Value)


@overload
def register_ablation(value: V) -> V: ...
@overload
def register_ablation(
    *,
    name: str | None = None,
    reads_activation: bool = True,
    reference: Reference | None = None,
    branches_only: bool = False,
    can_be_estimated: bool = True,
    search_passes: int = 0,
) -> Callable[[V], V]: ...
def register_ablation(
    value: V | None = None,
    *,
    name: str | None = None,
    reads_activation: bool = True,
    reference: Reference | None = None,
    branches_only: bool = False,
    can_be_estimated: bool = True,
    search_passes: int = 0,
) -> V | Callable[[V], V]:
    """Register the decorated function of an `AblatedSite` as an ablation kind.

    The first line of its docstring is the kind's summary.

    Args:
        value: the function; returns the replacement in the shape of `AblatedSite.like`.
        name: name of the kind; ``None`` takes the function's name.
        reads_activation, reference, branches_only, can_be_estimated, search_passes: see `AblationKind`.

    Raises:
        UserError: the name is taken, or contains characters other than letters, digits, _ and -.

    Examples:
        >>> @lp.register_ablation
        ... def halve(site):
        ...     '''Half of the activation.'''
        ...     return site.activation / 2
        >>> lp.each_mlp(model, "halve", layers=[1])[0].name
        'L1.mlp.halve'
    """

    def register(function: V) -> V:
        kind = AblationKind(
            name=name or function.__name__,
            summary=(function.__doc__ or "").strip().partition("\n")[0],
            value=function,
            reads_activation=reads_activation,
            reference=reference,
            branches_only=branches_only,
            can_be_estimated=can_be_estimated,
            search_passes=search_passes,
        )
        _KINDS.add(kind.name, kind, function)
        return function

    return register if value is None else register(value)


def ablation_kinds() -> Mapping[str, AblationKind]:
    """All kinds by name, built-in ones first."""
    return {name: _KINDS.get(name) for name in _KINDS.names()}


def ablation_kind(name: str) -> AblationKind:
    """The kind called `name`.

    Raises:
        UserError: there is none.
    """
    return _KINDS.get(name)


def kinds_allowed(part: Part) -> list[str]:
    """Names of the kinds for components of this part."""
    return [kind.name for kind in _KINDS.rows() if kind.allows(part)]


def _mean(site: AblatedSite) -> torch.Tensor:
    return site.reference.mean(site.component.site, site.position_ids)


def _resample(site: AblatedSite) -> torch.Tensor:
    return site.reference.resample(site.component.site, site.position_ids)


def _optimal(site: AblatedSite) -> torch.Tensor:
    return site.reference.constant(site.component, site.position_ids)


def _cut(site: AblatedSite) -> torch.Tensor:
    raise LensPruneError(f"{site.component.label}: cut changes the attention pattern, and replaces no activation")


for _kind in (
    AblationKind("skip", "the branch adds nothing: resid_post = resid_pre", branches_only=True),
    AblationKind("zero", "the activation is 0; for a whole layer or branch, the same as skip"),
    AblationKind("mean", "its mean over reference prompts", _mean, reference="mean"),
    AblationKind("resample", "its value at the same position of a donor prompt", _resample, reference="donor"),
    AblationKind(
        "optimal",
        "the constant that least changes the predictions on reference prompts",
        _optimal,
        reference="optimal",
        can_be_estimated=False,
        # At least one forward and one backward pass per iteration; a line search may take more.
        search_passes=2 * OPTIMAL_ITERATIONS,
    ),
    AblationKind(
        "cut",
        "attention from some tokens to some others is removed; what is left of the weights is scaled to a sum of 1",
        _cut,
        reads_activation=True,
        can_be_estimated=False,
        cuts_edges=True,
    ),
):
    _KINDS.add(_kind.name, _kind, AblationKind)
