"""Everything a sweep can check and build before the first forward pass: tasks, prompts, variants, spec."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from lensprune.ablation.choices import head_words, reference_kinds
from lensprune.ablation.kinds import ablation_kind, ablation_kinds
from lensprune.ablation.reference import MeanMode
from lensprune.ablation.variants import Variant
from lensprune.engine.registry import SPREADS, executor_names
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import BosPolicy, HookedModel, ModelFacts
from lensprune.models.load import open_model
from lensprune.paths import usable_path
from lensprune.protocols.base import ItemRequests
from lensprune.protocols.registry import protocol_named
from lensprune.protocols.requests import GenerateRequest, Request
from lensprune.registry import in_words
from lensprune.runs.spec import CellSpec, HowItRan, SweepSpec, TaskSpec, canonical_json
from lensprune.runs.store import check_out_folder
from lensprune.runs.variant_json import variant_to_json
from lensprune.sweeps.references import FEWSHOT, fewshot_prompts, prompts_hash, read_reference_text, text_prompts
from lensprune.sweeps.selection import VariantSelection, with_clean
from lensprune.tasks.base import LoadedTask, ProtocolName

__all__ = [
    "Asked",
    "Prepared",
    "SweepOptions",
    "ask",
    "check_before_loading",
    "executor_options",
    "load_tasks",
    "prepare",
    "resolved_variants",
    "sweep_spec",
]

MOST_ITEMS = 1_000_000
MOST_SHOTS = 1000
MOST_WORKERS = 10_000


@dataclass(frozen=True)
class SweepOptions:
    """What a sweep was asked to do, apart from the model; see `lensprune.sweep` for the meaning of each."""

    tasks: tuple[str, ...]
    protocols: tuple[str, ...]
    variants: VariantSelection | tuple[Variant, ...]
    limit: int | None = None
    shots: int | None = None
    seed: int = 0
    data_dir: str | Path | None = None
    reference: str | Path = FEWSHOT
    mean_mode: str = "pooled"
    chat_template: bool = False
    dtype: str | None = None
    device: str | None = None
    n_devices: int | None = None
    bos: str | None = None
    executor: str = "forked"
    spread: str | None = None
    workers: int | None = None
    ray_address: str | None = None
    batch_tokens: int | None = None
    memory: str | None = None
    screen: float | None = None
    command: str = ""

    def __post_init__(self) -> None:
        for what, given in (("task", self.tasks), ("protocol", self.protocols)):
            if not given:
                raise UserError(f"no {what} is given: name at least one")
            twice = next((name for name in given if given.count(name) > 1), None)
            if twice is not None:
                raise UserError(f"{what} {twice!r} is given twice")
        for protocol in self.protocols:
            protocol_named(protocol)
        if self.mean_mode not in get_args(MeanMode):
            raise unknown_name("mean mode", self.mean_mode, get_args(MeanMode))
        if self.bos is not None and self.bos not in get_args(BosPolicy):
            raise unknown_name("BOS policy", self.bos, get_args(BosPolicy))
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit {self.limit} is not a number of items: expected 1 or more")
        # Tasks that generate their rows make as many as they are asked for, so absurd numbers end here.
        if self.limit is not None and self.limit > MOST_ITEMS:
            raise UserError(f"limit {self.limit} is more than any task has: expected 1 to {MOST_ITEMS}")
        if self.shots is not None and not 0 <= self.shots <= MOST_SHOTS:
            raise UserError(f"shots {self.shots} is not a usable number of examples: expected 0 to {MOST_SHOTS}")
        if self.spread is not None and self.spread not in SPREADS:
            raise unknown_name("way of spreading cells", self.spread, SPREADS)
        if self.spread is None and (self.workers is not None or self.ray_address is not None):
            what = "a Ray address" if self.workers is None else "a number of workers"
            raise UserError(f"{what} is given but the sweep is not spread: choose executor ray")
        if self.workers is not None and not 1 <= self.workers <= MOST_WORKERS:
            raise UserError(f"workers {self.workers} is not a usable number of workers: expected 1 to {MOST_WORKERS}")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise UserError(f"batch tokens {self.batch_tokens} can't hold a token: expected 1 or more")
        if self.memory is not None:
            from lensprune.engine.memory import parse_memory

            parse_memory(self.memory)
        if self.screen is not None:
            self._check_screen(self.screen)
        if self.data_dir is not None and not usable_path(self.data_dir, "data folder").is_dir():
            raise UserError(f"data folder {self.data_dir} does not exist")

    def _check_screen(self, fraction: float) -> None:
        if not 0 < fraction < 1:
            raise UserError(
                f"screen {fraction:g} is not a share of the heads: expected a number between 0 and 1, like 0.1"
            )
        if self.spread is not None:
            raise UserError("a screened sweep runs in one process: leave executor ray out, or screen")
        chosen = self.variants
        if isinstance(chosen, VariantSelection) and chosen.over not in head_words():
            raise UserError(
                f"screen ranks heads, and the sweep is over {chosen.over}: use over {in_words(head_words())}"
            )
        searched = next((kind for kind in _kinds_of(chosen) if not ablation_kind(kind).can_be_estimated), None)
        if searched is not None:
            others = [n for n, kind in ablation_kinds().items() if kind.can_be_estimated and not kind.branches_only]
            raise UserError(
                f"screen saves nothing with ablation {searched}, whose constants are searched for head by head: use "
                f"{in_words(others)}"
            )


@dataclass(frozen=True)
class Asked:
    """One (task, protocol): its items' requests, their chance levels, and its reference prompts."""

    task: LoadedTask
    protocol: ProtocolName
    items: tuple[ItemRequests, ...]
    chances: tuple[float, ...]
    reference_prompts: tuple[tuple[int, ...], ...] = ()

    @property
    def requests(self) -> list[Request]:
        """Requests of all items, concatenated."""
        return [request for item in self.items for request in item.requests]


@dataclass(frozen=True)
class Prepared:
    """A sweep that only needs to be run."""

    model: HookedModel
    variants: tuple[Variant, ...]
    asked: tuple[Asked, ...]
    spec: SweepSpec
    options: SweepOptions = field(repr=False)


def _hash(value: object) -> str:
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def _plain(doc: Any) -> dict[str, str]:
    return {str(key): repr(value) for key, value in doc.items()}


def _task_spec(task: LoadedTask) -> TaskSpec:
    items = [[item.id, item.cluster, _plain(item.doc), [_plain(shot) for shot in item.fewshot]] for item in task.items]
    return TaskSpec(task.task.name, task.shots, task.seed, len(items), _hash(items))


def _request_json(request: Request) -> list[object]:
    if isinstance(request, GenerateRequest):
        return [request.context_ids, request.until, request.max_new_tokens]
    return [request.context_ids, request.continuation_ids]


def _prompts_hash(items: Sequence[ItemRequests]) -> str:
    return _hash(
        [
            [i.item.id, [[p.context, p.continuation] for p in i.prompts], [_request_json(r) for r in i.requests]]
            for i in items
        ]
    )


def load_tasks(options: SweepOptions) -> list[LoadedTask]:
    """The items of every task that was asked for.

    Raises:
        UserError: a task that is unknown, lacks a protocol, is given twice, or has no rows.
    """
    from lensprune.tasks import get_task, load_task

    for name in options.tasks:
        task = get_task(name)
        for protocol in options.protocols:
            protocol_named(protocol).format_of(task)
    data_dir = None if options.data_dir is None else Path(options.data_dir)
    loaded = [
        load_task(name, data_dir=data_dir, limit=options.limit, shots=options.shots, seed=options.seed)
        for name in options.tasks
    ]
    names = [task.task.name for task in loaded]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"task {twice!r} is given twice")
    return loaded


def _check_against(
    existing: SweepSpec | None, out: Path | None, tasks: Sequence[TaskSpec], options: SweepOptions
) -> None:
    """Refuse another run's folder by what is known before the weights are loaded."""
    if existing is None:
        return
    for label, there, here in (
        ("protocols", list(existing.protocols), list(options.protocols)),
        ("seed", existing.seed, options.seed),
        ("tasks", [t.name for t in existing.tasks], [t.name for t in tasks]),
        ("shots", [t.shots for t in existing.tasks], [t.shots for t in tasks]),
        ("numbers of items", [t.n_items for t in existing.tasks], [t.n_items for t in tasks]),
        ("items", [t.items_hash[:12] for t in existing.tasks], [t.items_hash[:12] for t in tasks]),
    ):
        if there != here:
            raise UserError(f"{out} holds another run ({label}: {there} there, {here} here): choose another out folder")


def _reference_prompts(
    model: HookedModel, task: LoadedTask, protocol: ProtocolName, options: SweepOptions, text: str | None
) -> tuple[tuple[int, ...], ...]:
    if text is not None:
        return tuple(text_prompts(model, text, str(options.reference)))
    data_dir = None if options.data_dir is None else Path(options.data_dir)
    return tuple(fewshot_prompts(model, task, protocol, data_dir=data_dir, chat_template=options.chat_template))


def resolved_variants(facts: ModelFacts, options: SweepOptions) -> tuple[Variant, ...]:
    """The variants that were asked for in a model of this shape, clean first.

    Raises:
        UserError: a part that the model lacks, a name used twice, or no variant at all.
    """
    selected = options.variants.resolve(facts) if isinstance(options.variants, VariantSelection) else options.variants
    return with_clean(selected, facts)


def ask(
    model: HookedModel,
    tasks: Sequence[LoadedTask],
    options: SweepOptions,
    text: str | None = None,
    *,
    with_reference: bool = False,
) -> tuple[Asked, ...]:
    """What each (task, protocol) asks of a model; only the model's facts and tokenizer are used.

    Args:
        text: contents of the reference file; ``None`` for few-shot examples.
        with_reference: collect reference prompts too.

    Raises:
        UserError: whatever the user can mend.
    """
    from lensprune.protocols import build_requests

    asked = []
    for task in tasks:
        for protocol in options.protocols:
            form = protocol_named(protocol).form
            prompts = _reference_prompts(model, task, protocol, options, text) if with_reference else ()
            items = tuple(build_requests(model, task, protocol, chat_template=options.chat_template))
            chances = tuple(float(task.task.chance(item.item.doc, form)) for item in items)
            asked.append(Asked(task, protocol, items, chances, prompts))
    return tuple(asked)


def prepare(model: Any, options: SweepOptions, out: Path | None = None) -> Prepared:
    """Check everything that was asked for, load tasks and model, and build all requests. Writes nothing.

    What can be refused without the weights is refused before they are loaded.

    Raises:
        UserError: whatever the user can mend.
    """
    tasks, text = check_before_loading(options, out)
    hooked = open_model(model, dtype=options.dtype, device=options.device, n_devices=options.n_devices, bos=options.bos)
    variants = resolved_variants(hooked.facts, options)
    asked = ask(hooked, tasks, options, text, with_reference=any(v.needs_reference for v in variants))
    spec = sweep_spec(
        model,
        hooked.facts,
        asked,
        options,
        [variant_to_json(v) for v in variants],
        with_reference=any(v.needs_reference for v in variants),
    )
    return Prepared(hooked, variants, asked, spec, options)


def check_before_loading(options: SweepOptions, out: Path | None = None) -> tuple[list[LoadedTask], str | None]:
    """Refuse what can be refused without the model.

    Returns:
        The tasks, and the contents of the reference file (``None`` for few-shot examples).

    Raises:
        UserError: whatever the user can mend.
    """
    if options.executor not in executor_names():
        raise unknown_name("executor", options.executor, (*executor_names(), *SPREADS))
    existing = None if out is None else check_out_folder(out)
    text = None if str(options.reference) == FEWSHOT else read_reference_text(options.reference)
    _check_reference_options(options)
    tasks = load_tasks(options)
    _check_against(existing, out, [_task_spec(task) for task in tasks], options)
    return tasks, text


def _kinds_of(chosen: VariantSelection | Sequence[Variant]) -> list[str]:
    if isinstance(chosen, VariantSelection):
        return [chosen.kind]
    return sorted({ablation.kind for variant in chosen for ablation in variant.ablations})


def _check_reference_options(options: SweepOptions) -> None:
    """Refuse options of reference activations that no variant takes."""
    references = {ablation_kind(kind).reference for kind in _kinds_of(options.variants)}
    if str(options.reference) != FEWSHOT and not references - {None}:
        raise UserError(
            f"reference {options.reference} is given, and nothing is replaced by reference activations: choose the "
            f"ablation {' or '.join(sorted(reference_kinds()))}, or leave the reference out"
        )
    if options.mean_mode != "pooled" and "mean" not in references:
        raise UserError(
            f"mean mode {options.mean_mode} is given, and nothing is replaced by a mean: choose the ablation mean, or "
            "leave the mode out"
        )


def executor_options(executor: str, workers: int | None = None, ray_address: str | None = None) -> dict[str, Any]:
    """Fields of `SweepOptions` for an executor as it is asked for: ``forked``, ``hooked``, ``ray`` or ``ray:hooked``.

    ``ray`` says how cells are spread, and what is behind the colon which executor each worker runs, because only that
    belongs to the numbers.
    """
    spread, _, own = executor.partition(":")
    if spread in SPREADS:
        return {"executor": own or "forked", "spread": spread, "workers": workers, "ray_address": ray_address}
    return {"executor": executor, "spread": None, "workers": workers, "ray_address": ray_address}


def sweep_spec(
    model: Any,
    facts: ModelFacts,
    asked: Sequence[Asked],
    options: SweepOptions,
    variants: Sequence[Mapping[str, Any]],
    *,
    with_reference: bool = False,
) -> SweepSpec:
    """The spec of a run.

    Args:
        model: as the user gave it.
        variants: descriptions with a ``name``, clean first.
        with_reference: whether any variant takes activations from reference prompts.
    """
    tasks = list({id(a.task): a.task for a in asked}.values())
    from_file = str(options.reference) != FEWSHOT
    return SweepSpec(
        model=facts.name,
        architecture=facts.architecture,
        n_layers=facts.n_layers,
        n_heads=facts.n_heads,
        n_key_value_heads=facts.n_key_value_heads,
        weights_hash=facts.weights_hash,
        config_hash=facts.config_hash,
        tokenizer_hash=facts.tokenizer_hash,
        dtype=facts.dtype,
        device=facts.device.partition(":")[0],
        bos=facts.bos_policy,
        chat_template=options.chat_template,
        tasks=tuple(_task_spec(task) for task in tasks),
        protocols=options.protocols,
        cells=tuple(
            CellSpec(
                a.task.task.name,
                a.protocol,
                _prompts_hash(a.items),
                prompts_hash(a.reference_prompts) if a.reference_prompts else "",
            )
            for a in asked
        ),
        variants=tuple(variants),
        shots=options.shots,
        seed=options.seed,
        limit=options.limit,
        reference=None if not with_reference else "file" if from_file else FEWSHOT,
        mean_mode=options.mean_mode if with_reference else None,
        how=HowItRan(
            model=_where(model),
            executor=options.executor,
            batch_tokens=options.batch_tokens,
            memory=options.memory,
            n_devices=options.n_devices,
            data_dir=None if options.data_dir is None else str(Path(options.data_dir).resolve()),
            reference_file=str(Path(options.reference).resolve()) if from_file else None,
            data_sources={task.task.name: task.data_source for task in tasks},
            command=options.command,
        ),
    )


def _where(model: Any) -> str | None:
    """How to load the model again: its name, or the full path of what is on this disk."""
    if not isinstance(model, (str, Path)):
        return None
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else str(model)
