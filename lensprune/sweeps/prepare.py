"""Check and build everything that a sweep needs before the first forward pass."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lensprune.ablation.choices import reference_kinds
from lensprune.ablation.edges import check_pattern
from lensprune.ablation.hooks import with_hook_names
from lensprune.ablation.kinds import ablation_kind
from lensprune.ablation.variants import Variant
from lensprune.analysis.sequential import Looks
from lensprune.analysis.stopping import AnyLook, Stopping, stopping_of
from lensprune.engine.registry import BACKENDS, executor_names
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import HookedModel, ModelFacts, ModelOrName
from lensprune.models.load import open_model
from lensprune.runs.folder import check_out_folder
from lensprune.runs.spec import SweepSpec, TaskSpec
from lensprune.runs.variant_json import variant_to_json
from lensprune.sweeps.conditions import Condition, conditions_of
from lensprune.sweeps.job_spec import sweep_spec, task_spec
from lensprune.sweeps.options import FEWSHOT, Loading, Splitting, SweepOptions, kinds_of, option_values
from lensprune.sweeps.reached import check_positions
from lensprune.sweeps.references import read_reference_text
from lensprune.sweeps.selection import VariantSelection, with_clean
from lensprune.sweeps.task_loading import load_tasks
from lensprune.tasks.base import LoadedTask

__all__ = ["SweepJob", "check_before_loading", "decoding_of", "prepare", "resolved_variants"]

logger = logging.getLogger("lensprune")


@dataclass(frozen=True)
class SweepJob:
    """A sweep that only needs to be run."""

    model: HookedModel
    variants: tuple[Variant, ...]
    conditions: tuple[Condition, ...]
    spec: SweepSpec
    options: SweepOptions = field(repr=False)


def _check_against(
    existing: SweepSpec | None, out: Path | None, tasks: Sequence[TaskSpec], options: SweepOptions
) -> None:
    """Refuse a folder that contains another run, as far as is known before loading the weights."""
    if existing is None:
        return
    _check_same_stopping(existing, out, options.stopping)
    for label, there, here in (
        ("protocols", list(existing.protocols), list(options.protocols)),
        ("seed", existing.seed, options.seed),
        ("tasks", [t.name for t in existing.tasks], [t.name for t in tasks]),
        ("shots", [t.shots for t in existing.tasks], [t.shots for t in tasks]),
        ("numbers of items", [t.n_items for t in existing.tasks], [t.n_items for t in tasks]),
        ("items", [t.items_hash[:12] for t in existing.tasks], [t.items_hash[:12] for t in tasks]),
    ):
        if there != here:
            raise UserError(
                f"{out} contains another run ({label}: {there} there, {here} here): choose another out folder"
            )


def _check_same_stopping(existing: SweepSpec, out: Path | None, stopping: Stopping | None) -> None:
    """Refuse looks that differ from those of a stored run, with the reason."""
    there = stopping_of(existing.stopping)
    if there is None or stopping is None or there == stopping:
        return
    if isinstance(there, Looks) and isinstance(stopping, Looks) and there.items != stopping.items:
        looks = [",".join(map(str, looks_of.items)) for looks_of in (there, stopping)]
        raise UserError(
            f"{out} contains another run (looks {looks[0]} there, {looks[1]} here): adding or moving looks once there "
            "are results invalidates the error rates; choose another out folder, or start with looks any, which "
            "is valid whenever you stop"
        )
    if isinstance(there, AnyLook) and isinstance(stopping, AnyLook) and there.items != stopping.items:
        raise UserError(
            f"{out} contains another run (limit {there.items[-1]} there, {stopping.items[-1]} here): a run's limit "
            "is fixed; choose another out folder and a limit that is large enough, and stop and resume as you like"
        )


def resolved_variants(facts: ModelFacts, options: SweepOptions) -> tuple[Variant, ...]:
    """The requested variants in a model of this shape, clean first.

    Raises:
        UserError: a part that the model lacks, a name used twice, or no variant at all.
    """
    selected = options.variants.resolve(facts) if isinstance(options.variants, VariantSelection) else options.variants
    return with_clean(selected, facts)


def prepare(model: ModelOrName, options: SweepOptions, out: Path | None = None) -> SweepJob:
    """Check all options, load tasks and model, and build all requests. Writes nothing.

    Everything that can be checked without the weights is checked before they are loaded.

    Raises:
        UserError: invalid input.
    """
    tasks, text = check_before_loading(options, out)
    hooked = open_model(model, **option_values(options, Loading, Splitting))
    variants = tuple(with_hook_names(hooked, variant) for variant in resolved_variants(hooked.facts, options))
    if any(ablation.definition.cuts_edges for variant in variants for ablation in variant.ablations):
        check_pattern(hooked)
    conditions = conditions_of(hooked, tasks, options, text, with_reference=any(v.needs_reference for v in variants))
    if options.thinking_prefix is None:
        check_positions(hooked, conditions, variants)
    spec = sweep_spec(
        model,
        hooked.facts,
        conditions,
        options,
        [variant_to_json(v) for v in variants],
        with_reference=any(v.needs_reference for v in variants),
        decoding=decoding_of(hooked, conditions, options.generation_config),
    )
    return SweepJob(hooked, variants, conditions, spec, options)


def check_before_loading(options: SweepOptions, out: Path | None = None) -> tuple[list[LoadedTask], str | None]:
    """Check everything that can be checked without the model.

    Returns:
        The tasks, and the contents of the reference file (``None`` for few-shot examples).

    Raises:
        UserError: invalid input.
    """
    if options.executor not in executor_names():
        raise unknown_name("executor", options.executor, (*executor_names(), *BACKENDS))
    existing = None if out is None else check_out_folder(out)
    text = None if str(options.reference) == FEWSHOT else read_reference_text(options.reference)
    _check_reference_options(options)
    tasks = load_tasks(options)
    _check_against(existing, out, [task_spec(task) for task in tasks], options)
    return tasks, text


def _check_reference_options(options: SweepOptions) -> None:
    """Refuse options of reference activations that no variant uses."""
    references = {ablation_kind(kind).reference for kind in kinds_of(options.variants)}
    if str(options.reference) != FEWSHOT and not references - {None}:
        raise UserError(
            f"reference {options.reference} is given, but nothing is replaced by reference activations: choose the "
            f"ablation {' or '.join(sorted(reference_kinds()))}, or leave the reference out"
        )
    if options.mean_mode != "pooled" and "mean" not in references:
        raise UserError(
            f"mean mode {options.mean_mode} is given, but nothing is replaced by a mean: choose the ablation mean, or "
            "leave the mode out"
        )


def decoding_of(model: HookedModel, conditions: Sequence[Condition], use: str) -> dict[str, Any]:
    """What the model's generation config determines about generated texts, if there are any; `use`: as in
    `GreedyRules`.

    Raises:
        UserError: it selects another decoding algorithm.
    """
    from lensprune.engine.greedy import GreedyRules

    if not any(condition.generates for condition in conditions):
        return {}
    rules = GreedyRules(model, use)
    if rules.max_new_tokens is not None:
        logger.warning(
            f"the generation config of {model.facts.name} sets max_new_tokens to {rules.max_new_tokens}, which lm-eval "
            "obeys: here the task's number applies, or --max-new-tokens"
        )
    return rules.recorded
