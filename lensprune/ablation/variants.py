"""Ablations and named sets of them, and what a user may write for one."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from lensprune.ablation.choices import check_allowed, check_source
from lensprune.ablation.components import (
    Component,
    ComponentAt,
    Layer,
    Part,
    Slot,
    check_component,
    part_of,
    parts,
)
from lensprune.ablation.kinds import AblationKind, ablation_kind, ablation_kinds
from lensprune.ablation.positions import ALL, EDGE, positions_named
from lensprune.errors import UserError
from lensprune.models.base import HookFunction, ModelFacts

__all__ = ["CLEAN", "Ablation", "HookName", "Variant", "VariantsLike", "as_variants", "check_names", "variant_named"]


_RANGE = re.compile(r"L(\d+)-(\d+)")

HookName: TypeAlias = str | Callable[[str], bool]
"""A hook point's name or, as in TransformerLens, a function that accepts or rejects names."""


@dataclass(frozen=True)
class Ablation:
    """One component, replaced by one kind of ablation, at all positions or some.

    `at`: the positions, as `lensprune.ablation.positions.positions_named` reads them; ``all`` by default.
    ``Ablation(component @ at, kind)`` is the same. `source`: for ``cut``, which needs it: the tokens that those at
    `at` no longer attend to, in the same form.

    Raises:
        UserError: an unknown kind, or one that the component doesn't allow; positions that can't be read; a source that
            is missing, or that the kind doesn't take.

    Examples:
        >>> lp.Ablation(lp.Head(2, 3), "zero").name
        'L2.H3.zero'
        >>> lp.Ablation(lp.Head(2, 3), "zero", at="-5:") == lp.Ablation(lp.Head(2, 3) @ "-5:", "zero")
        True
        >>> lp.Ablation(lp.Head(2, 3), "cut", at="last", source="regex:blue").name
        'L2.H3@last<-regex:blue.cut'
    """

    component: Component
    kind: str
    at: str = ALL
    source: str | None = None

    def __repr__(self) -> str:
        """With positions and source only where they are given."""
        given = {"at": self.at} if self.at != ALL else {}
        given |= {} if self.source is None else {"source": self.source}
        more = "".join(f", {name}={value!r}" for name, value in given.items())
        return f"Ablation(component={self.component!r}, kind={self.kind!r}{more})"

    def __post_init__(self) -> None:
        if isinstance(self.component, ComponentAt):
            if self.at not in (ALL, self.component.at):
                raise UserError(f"{self.component.label} has positions already: leave at={self.at!r} out")
            object.__setattr__(self, "at", self.component.at)
            object.__setattr__(self, "component", self.component.component)
        object.__setattr__(self, "at", positions_named(self.at).text)
        check_allowed(self.kind, part_of(self.component), f"{self.component.label} is")
        check_source(self.kind, self.at, self.source)
        if self.source is not None:
            object.__setattr__(self, "source", positions_named(self.source).text)

    @property
    def name(self) -> str:
        return f"{self.place}.{self.kind}"

    @property
    def where(self) -> str:
        """The positions as in names, empty for all: ``@last``, ``@last<-0``, ``<-0``."""
        at = "" if self.at == ALL else f"@{self.at}"
        return at if self.source is None else f"{at}{EDGE}{self.source}"

    @property
    def place(self) -> str:
        """The component's label, with the positions unless they are all."""
        return f"{self.component.label}{self.where}"

    @property
    def how(self) -> str:
        """The kind, with the positions unless they are all: what several components of one sweep have in common."""
        return f"{self.kind}{self.where}"

    @property
    def definition(self) -> AblationKind:
        """The ablation kind.

        Raises:
            UserError: it is not registered (any more).
        """
        return ablation_kind(self.kind)

    @property
    def adds_nothing(self) -> bool:
        """Whether the value is zero."""
        return self.definition.value is None

    @property
    def replaces_block(self) -> bool:
        """Whether a whole block's contribution is replaced by a value that does not depend on it, at all positions: it
        need not run."""
        part = self.component.part
        return (
            self.at == ALL
            and part.slot is Slot.CONTRIBUTION
            and part.is_branch
            and not self.definition.reads_activation
        )


@dataclass(frozen=True)
class Variant:
    """A named set of changes to the model; without changes it is the clean model, `CLEAN`.

    `hooks` are custom ``(hook_name, function)`` pairs; they run after the ablations at the same hook point. A function
    instead of the name stands for every hook point whose name it accepts and that the model runs.

    Raises:
        UserError: two ablations of the same component, or something other than ablations and hooks.

    Examples:
        >>> both = lp.Variant("no_copy", (lp.Ablation(lp.Head(0, 0), "zero"), lp.Ablation(lp.Head(1, 0), "zero")))
        >>> both.is_clean, lp.CLEAN.is_clean
        (False, True)
        >>> lp.Variant("half", hooks=(("blocks.1.hook_mlp_out", lambda activation, hook: activation / 2),)).component
        'hooks'
    """

    name: str
    ablations: tuple[Ablation, ...] = ()
    hooks: tuple[tuple[HookName, HookFunction], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.ablations, Ablation):
            object.__setattr__(self, "ablations", (self.ablations,))
        for what in ("ablations", "hooks"):
            if not isinstance(getattr(self, what), (list, tuple)):
                raise UserError(f"variant {self.name!r}: {what} is {getattr(self, what)!r}, expected a list")
            object.__setattr__(self, what, tuple(getattr(self, what)))
        for given in self.ablations:
            if not isinstance(given, Ablation):
                raise UserError(f"variant {self.name!r}: {_no_change(given)}")
        for hook in self.hooks:
            if not (isinstance(hook, tuple) and len(hook) == 2 and callable(hook[1])):
                raise UserError(f"variant {self.name!r}: {hook!r} is not a hook: expected (hook name, function)")
        components = [ablation.component for ablation in self.ablations]
        twice = next((component for component in components if components.count(component) > 1), None)
        if twice is not None:
            kinds = " and ".join(a.how for a in self.ablations if a.component == twice)
            raise UserError(f"variant {self.name!r} ablates {twice.label} by {kinds}: keep one of them")

    @property
    def is_clean(self) -> bool:
        return not self.ablations and not self.hooks

    def _repr_html_(self) -> str:
        rows: list[tuple[str, str]] = [(ablation.place, ablation.kind) for ablation in self.ablations]
        rows += [(_called(name), f"hook {_called(function)}") for name, function in self.hooks]
        lines = "".join(f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in rows)
        table = f"<table><tr><th>where</th><th>what happens</th></tr>{lines}</table>" if rows else "nothing is changed"
        return f"<p><b>{html.escape(self.name)}</b></p>{table}"

    @property
    def needs_reference(self) -> bool:
        """Whether any ablation needs reference prompts."""
        return any(a.definition.reference is not None for a in self.ablations)

    @property
    def component(self) -> str:
        """Label of what is changed, for tables: the single component's kind, ``range``, ``hooks`` or empty."""
        if not self.ablations:
            return "hooks" if self.hooks else ""
        return self.ablations[0].component.part.name if len(self.ablations) == 1 else "range"

    @property
    def layer(self) -> int | None:
        """The layer of a single-component variant, else ``None``."""
        return self.ablations[0].component.layer if len(self.ablations) == 1 else None

    @property
    def head(self) -> int | None:
        """The index within its layer of a single component that has one (a head, a group), else ``None``."""
        return self.ablations[0].component.index if len(self.ablations) == 1 else None

    @property
    def ablation(self) -> str:
        """The ablation kinds, with their positions (``zero@last``), joined by ``+``; empty for clean."""
        return "+".join(sorted({a.how for a in self.ablations}))

    @property
    def at(self) -> tuple[str, ...]:
        """The positions of the ablations that don't change all."""
        return tuple(dict.fromkeys(a.at for a in self.ablations if a.at != ALL))

    @property
    def selectors(self) -> tuple[str, ...]:
        """`at`, and the sources of cut edges, unless they are all tokens."""
        sources = [a.source for a in self.ablations if a.source is not None and a.source != ALL]
        return tuple(dict.fromkeys([*self.at, *sources]))

    @property
    def needs_hooks(self) -> bool:
        """Whether only the hooked executor runs it: it has custom hooks, or cuts attention edges."""
        return bool(self.hooks) or any(a.definition.cuts_edges for a in self.ablations)

    def check(self, facts: ModelFacts) -> None:
        """Raise `UserError` if a component does not exist in the model."""
        for ablation in self.ablations:
            check_component(ablation.component, facts)


def check_names(variants: Sequence[Variant]) -> None:
    """Raise `UserError` if two variants have the same name, since names identify results."""
    names = [variant.name for variant in variants]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"variant name {twice!r} is used twice: every variant needs a unique name")


CLEAN = Variant("clean")
"""The model without changes; every sweep includes it."""

VariantsLike: TypeAlias = Variant | Ablation | str | Sequence[Variant | Ablation | str | Sequence[Ablation]]
"""What `as_variants` accepts."""


def _called(given: HookName | HookFunction) -> str:
    return given if isinstance(given, str) else getattr(given, "__name__", repr(given))


def _no_change(given: Any) -> str:
    """The error message for something that is not a change of the model."""
    if isinstance(given, Component):
        return f"{given!r} says where but not how: use Ablation({given!r}, 'zero')"
    return f"{given!r} is not a change of the model: expected a Variant, an Ablation, or a name like L12.skip"


def variant_named(name: str) -> Variant:
    """The variant with this name, as given by `each_layer` and its siblings, `layer_range` or a set of components.

    A place and a kind of ablation, separated by a dot: ``L12.skip``, ``L12.mlp.zero``, ``L12.H3.mean``,
    ``L10-14.skip``, ``L1.H0+L2.H3.zero``; or ``clean``. A place may have positions: ``L12.H3@last.zero``, and those of
    cut edges have a source: ``L12.H3@last<-0.cut``. A number with leading zeros means the same place.

    Raises:
        UserError: another form, an unknown place or kind, or a kind that is not for this place.
    """
    if name == CLEAN.name:
        return CLEAN
    place, _, kind = name.rpartition(".")
    edges = kind in ablation_kinds() and ablation_kind(kind).cuts_edges
    ablations: list[Ablation] = []
    canonical: list[str] = []
    for label, where in _places(place, edges=edges):
        at, cut, source = where.partition(EDGE) if edges else (where, "", "")
        positions = at.removeprefix("@") if at else ALL, source if cut else None
        of_place = [Ablation(component, kind, *positions) for component in _components(label, name)]
        ablations += of_place
        canonical.append(f"{label}{of_place[0].where}")
    return Variant(f"{'+'.join(canonical)}.{kind}", tuple(ablations))


def _places(text: str, *, edges: bool) -> list[tuple[str, str]]:
    """Labels and positions (see `Ablation.where`) of places joined by ``+``, which a regular expression may contain
    too."""
    places: list[tuple[str, str]] = []
    for piece in text.split("+"):
        label = re.split(f"@|{EDGE}" if edges else "@", piece, maxsplit=1)[0]
        where = piece.removeprefix(label)
        label = re.sub(r"(?<=[A-Z-])0+(?=\d)", "", label)
        if places and places[-1][1] and not _is_place(label):
            places[-1] = places[-1][0], f"{places[-1][1]}+{piece}"
        else:
            places.append((label, where))
    return places


def _is_place(label: str) -> bool:
    return _RANGE.fullmatch(label) is not None or any(_labelled(part, label) is not None for part in parts())


def _components(label: str, name: str) -> list[Component]:
    """The component with that label, or the layers of a range.

    Raises:
        UserError: there is none; the message contains the variant's `name`.
    """
    between = _RANGE.fullmatch(label)
    if between is not None:
        first, last = int(between[1]), int(between[2])
        if first > last:
            raise UserError(f"layer range {first}-{last} is empty: the first layer must not exceed the last")
        return [Layer(layer) for layer in range(first, last + 1)]
    labelled = next((component for part in parts() if (component := _labelled(part, label)) is not None), None)
    if labelled is None:
        labels = ", ".join(part.label.format_map(_Digits()) for part in parts())
        raise UserError(f"unknown variant {name!r}: expected a place and an ablation, like {labels} and .zero")
    return [labelled]


class _Digits(dict[str, int]):
    """A number for every field of a label."""

    def __missing__(self, field: str) -> int:
        return 3


def _labelled(part: Part, label: str) -> Component | None:
    """The component of this part that has that label."""
    pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(part.label))
    match = re.fullmatch(pattern, label)
    if match is None:
        return None
    of_fields: Callable[..., Component] = part.component
    return of_fields(**{field: int(value) for field, value in match.groupdict().items()})


def as_variants(given: VariantsLike) -> tuple[Variant, ...]:
    """Convert a `Variant`, an `Ablation`, a name (`variant_named`), or a list of these to variants.

    A list of ablations within the list is one variant with all of them at once.

    Raises:
        UserError: anything else, or an invalid name.
    """
    if isinstance(given, (Variant, Ablation, str, Component)):
        return (_as_variant(given),)
    try:
        return tuple(_as_variant(one) for one in given)
    except TypeError:
        raise UserError(_no_change(given)) from None


def _as_variant(given: Any) -> Variant:
    if isinstance(given, Variant):
        return given
    if isinstance(given, Ablation):
        return Variant(given.name, (given,))
    if isinstance(given, str):
        return variant_named(given)
    if isinstance(given, (list, tuple)) and given and all(isinstance(one, (Ablation, str)) for one in given):
        given = [a for one in given for a in (variant_named(one).ablations if isinstance(one, str) else (one,))]
        kinds = {ablation.kind for ablation in given}
        if len(kinds) > 1:
            return Variant("+".join(ablation.name for ablation in given), tuple(given))
        labels = "+".join(ablation.place for ablation in given)
        return Variant(f"{labels}.{kinds.pop()}", tuple(given))
    raise UserError(_no_change(given))
