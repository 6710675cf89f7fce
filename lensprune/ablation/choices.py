"""Names of what a sweep can be over, and which ablation kinds each allows."""

from __future__ import annotations

from lensprune.ablation.components import HEADS_AND_GROUPS, Part, Slot, part_named, parts
from lensprune.ablation.kinds import ablation_kind, ablation_kinds, kinds_allowed
from lensprune.ablation.positions import EDGE, positions_named
from lensprune.errors import UserError, unknown_name
from lensprune.registry import in_words

__all__ = [
    "branch_names",
    "check_allowed",
    "check_source",
    "default_kind",
    "head_names",
    "head_words",
    "indexed_words",
    "over_words",
    "part_names",
    "parts_over",
    "reference_kinds",
]


def over_words() -> tuple[str, ...]:
    """What a sweep can be over: the command line's ``--over``."""
    return (*(part.over for part in parts()), HEADS_AND_GROUPS)


def parts_over(over: str) -> tuple[Part, ...]:
    """The parts that a sweep over `over` changes.

    Raises:
        UserError: no such word.
    """
    if over == HEADS_AND_GROUPS:
        return part_named("head"), part_named("kv_group")
    matching = tuple(part for part in parts() if part.over == over)
    if not matching:
        raise unknown_name("value for over", over, over_words())
    return matching


def indexed_words() -> tuple[str, ...]:
    """The words for parts with several components per layer, from which some can be chosen."""
    return tuple(word for word in over_words() if parts_over(word)[0].index is not None)


def head_words() -> tuple[str, ...]:
    """The words for heads, or groups of heads, that can be ranked together."""
    return tuple(part.over for part in parts() if part.slot is Slot.HEADS)


def part_names() -> tuple[str, ...]:
    """Names of all kinds of parts."""
    return tuple(part.name for part in parts())


def branch_names() -> tuple[str, ...]:
    """Names of the parts that are a whole block, or one of its branches."""
    return tuple(part.name for part in parts() if part.is_branch)


def head_names() -> tuple[str, ...]:
    """Names of the parts that are heads, or groups of them."""
    return tuple(part.name for part in parts() if part.slot is Slot.HEADS)


def default_kind(over: str) -> str:
    """The default ablation."""
    return parts_over(over)[0].default_ablation


def reference_kinds() -> list[str]:
    """Names of the kinds that need reference prompts."""
    return [name for name, kind in ablation_kinds().items() if kind.reference is not None]


def check_allowed(kind: str, part: Part, what: str) -> None:
    """Raise `UserError` if `kind` is unknown, or not for components of this part.

    Args:
        what: names the component and ends in "is" or "are", for the message.
    """
    if not ablation_kind(kind).allows(part):
        cuts = ablation_kind(kind).cuts_edges
        does = "removes attention edges" if cuts else "bypasses a residual branch"
        lacked = "neither heads nor attention" if cuts else "not one"
        raise UserError(f"{kind} {does}, but {what} {lacked}: use {in_words(kinds_allowed(part))}")


def check_source(kind: str, at: str, source: str | None) -> None:
    """Raise `UserError` unless source positions are given, and can be read, exactly if `kind` cuts attention edges."""
    if not ablation_kind(kind).cuts_edges:
        if source is not None:
            cutting = [name for name, row in ablation_kinds().items() if row.cuts_edges]
            raise UserError(
                f"source {source!r} is given, but {kind} cuts no attention edges: use {in_words(cutting)}, or leave "
                "source out"
            )
        return
    if source is None:
        raise UserError(f"{kind} needs source positions: add source, like 0, -5:-1, regex:PATTERN or all")
    positions_named(source)
    if EDGE in at:
        raise UserError(f"positions {at!r}: {EDGE} separates them from the source in names: write <[-] instead")
