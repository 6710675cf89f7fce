"""Checks of combinations of a sweep's options; checks of single options are in their declarations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lensprune.ablation.choices import parts_over
from lensprune.ablation.kinds import ablation_kind, ablation_kinds
from lensprune.ablation.positions import ALL
from lensprune.errors import UserError
from lensprune.registry import in_words
from lensprune.sweeps.options.ablated import check_ranked, kinds_of
from lensprune.sweeps.options.stopping import ANY, LEVEL
from lensprune.sweeps.selection import VariantSelection
from lensprune.tasks.item_choice import DRAWN, ItemChoice

if TYPE_CHECKING:
    from lensprune.sweeps.options.sweep import SweepOptions


def check_stopping(options: SweepOptions) -> None:
    """Raise `UserError` unless the options determine at which numbers of items a variant may stop."""
    if options.lost_more_than is None:
        if options.looks is not None:
            raise UserError(
                f"looks {options.looks} are given without a loss to test for: add lost_more_than, like 0.05"
            )
        if options.q != LEVEL:
            raise UserError(f"q {options.q:g} is given without a loss to test for: add lost_more_than, like 0.05")
    if options.lost_more_than is None and options.until_width is None:
        return
    if options.lost_more_than is not None and options.until_width is not None:
        raise UserError("lost_more_than and until_width are two ways to stop: choose one")
    if options.samples is not None and options.samples > 1:
        raise UserError(
            f"a sweep that stops early counts items as right or wrong, but {options.samples} samples of an item can "
            "disagree: leave samples out"
        )
    if ItemChoice.parse(options.items).order != DRAWN:
        raise UserError(
            f"items {options.items} are given, but a sweep that stops early takes items in the order of a draw: leave "
            "items out, or choose drawn, which may have an offset"
        )
    if options.limit is None and options.looks in (None, ANY):
        raise UserError("a sweep that stops early needs a cap: add limit, the most items per variant")
    stopping = options.stopping
    assert stopping is not None
    if options.limit is not None and options.limit != stopping.items[-1]:
        raise UserError(
            f"limit {options.limit} is not the last of the looks {options.looks}: leave the limit out, or make it "
            f"{stopping.items[-1]}"
        )


def check_wording(options: SweepOptions) -> None:
    """Raise `UserError` for an option of the chat format or of thinking that would have no effect."""
    requested = {
        f"template date {options.template_date}": options.template_date is not None,
        "a template argument": bool(options.template_args),
        f"thinking {options.thinking}": options.thinking != "auto",
        "fewshot_as_multiturn": options.fewshot_as_multiturn,
    }
    for what, given in requested.items():
        if given and not options.chat_template:
            raise UserError(
                f"{what} is given, but no prompt is in the chat format: choose the chat template too, or leave it out"
            )
    if options.thinking_budget is not None and options.thinking == "off":
        raise UserError("a thinking budget is given, but thinking is off: leave one of them out")
    if options.thinking_prefix is None:
        return
    if options.thinking_budget is None:
        raise UserError("a thinking prefix needs a thinking budget: add one, in tokens")
    if options.backend is not None:
        raise UserError("a thinking prefix is generated in one process: leave executor ray out, or the prefix")
    samples = 0 if options.samples in (None, 1) else options.samples
    sampled = {"temperature": options.temperature or 0, "samples": samples}
    for what, value in sampled.items():
        if value:
            raise UserError(
                f"{what} {value:g} is given with a thinking prefix, which is one greedy text per item: leave "
                "one of them out"
            )


def check_screening(options: SweepOptions) -> None:
    """Raise `UserError` unless estimates can rank the swept parts."""
    if options.backend is not None:
        raise UserError("a screened sweep runs in one process: leave executor ray out, or screen")
    chosen = options.variants
    if isinstance(chosen, VariantSelection):
        for part in parts_over(chosen.over):
            check_ranked(part)
    kinds = kinds_of(chosen)
    others = [n for n, kind in ablation_kinds().items() if kind.can_be_estimated and not kind.branches_only]
    cutting = next((kind for kind in kinds if ablation_kind(kind).cuts_edges), None)
    if cutting is not None:
        raise UserError(
            f"screen estimates the removal of whole parts, not of attention edges as {cutting} does: leave screen out, "
            f"or use {in_words(others)}"
        )
    at = (chosen.at,) if isinstance(chosen, VariantSelection) else tuple(a for variant in chosen for a in variant.at)
    if set(at) - {ALL}:
        raise UserError(
            f"screen estimates the removal of whole parts, not at {next(a for a in at if a != ALL)!r}: leave screen out"
        )
    searched = next((kind for kind in kinds if not ablation_kind(kind).can_be_estimated), None)
    if searched is not None:
        raise UserError(
            f"screen saves nothing with ablation {searched}, whose constants are searched for head by head: use "
            f"{in_words(others)}"
        )
