"""All options of a sweep: the groups together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lensprune.ablation.choices import over_words
from lensprune.ablation.variants import Variant, VariantsLike, as_variants
from lensprune.engine.registry import BACKENDS
from lensprune.errors import UserError, unknown_name
from lensprune.protocols.registry import protocol_named
from lensprune.registry import names_given
from lensprune.sweeps.options.ablated import Reference, Screening
from lensprune.sweeps.options.checks import check_screening, check_stopping, check_wording
from lensprune.sweeps.options.execution import Execution, Loading, Splitting, Workers, executor_options
from lensprune.sweeps.options.generation import Generation, TokenSampling
from lensprune.sweeps.options.items import Items, ItemSampling, Rows
from lensprune.sweeps.options.prompts import Prefix, Prompts
from lensprune.sweeps.options.stopping import ANY, StopEarly, items_at_looks
from lensprune.sweeps.selection import VariantSelection

if TYPE_CHECKING:
    from lensprune.analysis.stopping import Stopping

N_LOOKS = 4


@dataclass(frozen=True, kw_only=True)
class SweepOptions(
    Items,
    ItemSampling,
    Rows,
    Prompts,
    Prefix,
    Generation,
    TokenSampling,
    Reference,
    Loading,
    Splitting,
    Execution,
    Screening,
    StopEarly,
    Workers,
):
    """All options of a sweep except the model; see `lensprune.sweep` for the meaning of each."""

    tasks: tuple[str, ...]
    protocols: tuple[str, ...]
    variants: VariantSelection | tuple[Variant, ...]
    backend: str | None = None
    command: str = ""

    @classmethod
    def given(
        cls,
        tasks: Sequence[str] | str,
        protocols: Sequence[str] | str,
        variants: VariantsLike | VariantSelection,
        **values: Any,
    ) -> SweepOptions:
        """Build from the arguments of a public function: a single name is a list of one, a word says what to sweep
        over, and variants are anything that `as_variants` accepts."""
        executor, workers, address = (values.pop(name, None) for name in ("executor", "workers", "ray_address"))
        if isinstance(variants, str) and (variants in over_words() or "." not in variants):
            variants = VariantSelection(over=variants)
        until = values.pop("until", None)
        return cls(
            until=() if until is None else (until,) if isinstance(until, str) else tuple(until),
            tasks=names_given("task", tasks),
            protocols=names_given("protocol", protocols),
            variants=variants if isinstance(variants, VariantSelection) else as_variants(variants),
            **values,
            **executor_options(executor or "forked", workers, address),
        )

    def __post_init__(self) -> None:
        for what, given in (("task", self.tasks), ("protocol", self.protocols)):
            if not given:
                raise UserError(f"no {what} given: name at least one")
            twice = next((name for name in given if given.count(name) > 1), None)
            if twice is not None:
                raise UserError(f"{what} {twice!r} is given twice")
        for protocol in self.protocols:
            protocol_named(protocol)
        super().__post_init__()
        if self.backend is not None and self.backend not in BACKENDS:
            raise unknown_name("backend", self.backend, BACKENDS)
        if self.backend is None and (self.workers is not None or self.ray_address is not None):
            what = "a Ray address" if self.workers is None else "a number of workers"
            raise UserError(f"{what} is given, but the sweep runs in one process: choose executor ray")
        check_wording(self)
        if self.screen is not None:
            check_screening(self)
        elif self.screen_rule is not None:
            raise UserError(
                f"screen rule {self.screen_rule} is given, but nothing is screened: add screen, or leave the rule out"
            )
        check_stopping(self)

    @property
    def stopping(self) -> Stopping | None:
        """The stopping rule; ``None``: all variants use all items."""
        if self.lost_more_than is None and self.until_width is None:
            return None
        from lensprune.analysis.sequential import Looks
        from lensprune.analysis.stopping import AnyLook, UntilWidth

        if self.lost_more_than is not None and self.looks == ANY:
            return AnyLook.up_to(self.limit or 0, self.lost_more_than, self.q)
        if self.lost_more_than is not None:
            limit = self.limit or 0
            even = tuple(sorted({-(-limit * part // N_LOOKS) for part in range(1, N_LOOKS + 1)}))
            return Looks(even if self.looks is None else items_at_looks(self.looks), self.lost_more_than, self.q)
        assert self.until_width is not None
        return UntilWidth.up_to(self.limit or 0, self.until_width)
