"""Check and build everything that a sweep needs before the first forward pass: tasks, prompts, variants, spec."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from lensprune.ablation.choices import reference_kinds
from lensprune.ablation.hooks import with_hook_names
from lensprune.ablation.kinds import ablation_kind
from lensprune.ablation.variants import Variant
from lensprune.analysis.sequential import Looks
from lensprune.analysis.stopping import AnyLook, Stopping, stopping_json, stopping_of
from lensprune.engine.registry import BACKENDS, executor_names
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import HookedModel, ModelFacts, ModelOrName
from lensprune.models.load import open_model
from lensprune.models.tokenizers import appended_ids
from lensprune.paths import usable_path
from lensprune.protocols.base import ItemRequests
from lensprune.protocols.registry import protocol_named
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest, Request
from lensprune.protocols.thinking import ThinkingMarkers
from lensprune.runs.questions import question_table, questions_hash
from lensprune.runs.spec import CellSpec, ExecutionSpec, SweepSpec, TaskSpec, canonical_json
from lensprune.runs.store import check_out_folder
from lensprune.runs.variant_json import variant_to_json
from lensprune.sweeps.generation import with_samples, with_settings
from lensprune.sweeps.options import (
    FEWSHOT,
    Execution,
    Generation,
    Loading,
    Splitting,
    SweepOptions,
    Wording,
    kinds_of,
    option_values,
)
from lensprune.sweeps.references import fewshot_prompts, prompts_hash, read_reference_text, text_prompts
from lensprune.sweeps.selection import VariantSelection, with_clean
from lensprune.tasks.base import GenerationFormat, LoadedTask, MultipleChoiceFormat, PromptFormat, ProtocolName

__all__ = [
    "Condition",
    "SweepJob",
    "cell_specs",
    "check_before_loading",
    "conditions_of",
    "decoding_of",
    "load_tasks",
    "prepare",
    "questions_of",
    "resolved_variants",
    "sweep_spec",
]


logger = logging.getLogger("lensprune")


@dataclass(frozen=True)
class Condition:
    """One (task, protocol): its items' requests, their chance levels, and its reference prompts."""

    task: LoadedTask
    protocol: ProtocolName
    items: tuple[ItemRequests, ...]
    chances: tuple[float, ...]
    reference_prompts: tuple[tuple[int, ...], ...] = ()
    template_date: str | None = None
    """The date that the chat template writes; ``None`` without a template, or for one without a clock."""
    think_tokens: tuple[str, str] | None = None
    """Start and end markers of thinking; ``None``: thinking is not separated from answers."""
    appended: str = ""
    """What the tokenizer appends to a prompt."""

    @property
    def requests(self) -> list[Request]:
        """Requests of all items, concatenated."""
        return [request for item in self.items for request in item.requests]

    @property
    def samples(self) -> int:
        """Number of samples per item."""
        return 1 + max((item.sample for item in self.items), default=0)

    @cached_property
    def questions(self) -> pa.Table:
        """The questions to store; see `lensprune.runs.questions`."""
        return question_table(self.task, self.protocol, self.items[:: self.samples])

    @property
    def generation(self) -> dict[str, Any]:
        """The generation settings for the spec (`CellSpec.generation`)."""
        request = next((request for request in self.requests if isinstance(request, GenerateRequest)), None)
        if request is None:
            return {}
        settings = {
            "max_new_tokens": request.max_new_tokens,
            "until": list(request.until),
            "generation_config": request.generation_config,
        }
        drawn = request.sampling
        if drawn is None:
            return {**settings, "temperature": 0.0, "samples": 1}
        sampled = {"temperature": drawn.temperature, "top_p": drawn.top_p, "top_k": drawn.top_k}
        return {**settings, **sampled, "samples": self.samples}

    @property
    def generates(self) -> bool:
        """Whether texts are generated, whatever the protocol's name."""
        return any(isinstance(request, GenerateRequest) for request in self.requests)


@dataclass(frozen=True)
class SweepJob:
    """A sweep that only needs to be run."""

    model: HookedModel
    variants: tuple[Variant, ...]
    conditions: tuple[Condition, ...]
    spec: SweepSpec
    options: SweepOptions = field(repr=False)


def questions_of(asked: Sequence[Condition]) -> dict[tuple[str, str], pa.Table]:
    """The questions of every (task, protocol), for `lensprune.runs.store.open_store`."""
    return {(a.task.task.name, a.protocol): a.questions for a in asked}


def _hash(value: object) -> str:
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def _plain(doc: Any) -> dict[str, str]:
    return {str(key): repr(value) for key, value in doc.items()}


def _task_spec(task: LoadedTask) -> TaskSpec:
    items = [[item.id, item.cluster, _plain(item.doc), [_plain(shot) for shot in item.fewshot]] for item in task.items]
    kind, closed_book = task.task.kind, task.task.closed_book
    return TaskSpec(task.task.name, task.shots, task.seed, len(items), _hash(items), kind, closed_book)


_ASKED = ("sampling", "forced_end", "thinking")
"""What else a generation may be asked."""


def _request_json(request: Request) -> list[object]:
    if isinstance(request, GenerateRequest):
        asked = [request.context_ids, request.until, request.max_new_tokens, request.generation_config]
        more = {name: asdict(value) for name in _ASKED if (value := getattr(request, name)) is not None}
        return [*asked, more]
    return [request.context_ids, request.continuation_ids]


def _prompts_hash(items: Sequence[ItemRequests]) -> str:
    return _hash(
        [
            [i.item.id, [[p.context, p.continuation] for p in i.prompts], [_request_json(r) for r in i.requests]]
            for i in items
        ]
    )


def load_tasks(options: SweepOptions) -> list[LoadedTask]:
    """The items of every requested task.

    Raises:
        UserError: a task that is unknown, lacks a protocol, is given twice, or has no rows.
    """
    from lensprune.tasks import find_task, load_task
    from lensprune.tasks.primary import with_primary_metric

    tasks = [find_task(name) for name in options.tasks]
    if options.primary_metric is not None:
        tasks = [with_primary_metric(task, options.primary_metric) for task in tasks]
    formats: list[PromptFormat] = []
    for task in tasks:
        for protocol in options.protocols:
            fmt = protocol_named(protocol).format_of(task)
            formats.append(fmt)
            if options.thinking == "on" and options.thinking_prefix is None and isinstance(fmt, MultipleChoiceFormat):
                raise UserError(
                    f"thinking on is asked, and protocol {protocol} of task {task.name!r} scores options, which leaves "
                    "no room for thinking: use protocol generate, thinking off, or thinking_prefix clean"
                )
    if options.thinking_prefix is not None and not any(isinstance(fmt, MultipleChoiceFormat) for fmt in formats):
        raise UserError("a thinking prefix is given, and no options are scored: add protocol default or continuation")
    if options.primary_metric is not None and not any(isinstance(fmt, GenerationFormat) for fmt in formats):
        raise UserError(
            f"primary metric {options.primary_metric} is given, and no answer is generated: add protocol generate, or "
            "leave it out"
        )
    data_dir = None if options.data_dir is None else Path(options.data_dir)
    cap = options.limit if options.stopping is None else options.stopping.items[-1]
    loaded = [
        load_task(
            task,
            data_dir=data_dir,
            limit=cap,
            items=options.items,
            in_file_order=options.stopping is None,
            shots=options.shots,
            seed=options.seed,
            leave_out_repeated=options.leave_out_repeated,
        )
        for task in tasks
    ]
    names = [task.task.name for task in loaded]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"task {twice!r} is given twice")
    if options.stopping is not None:
        for own in loaded:
            _check_cap(own, options.stopping)
    loaded = with_settings(loaded, options)
    if options.stopping is not None:
        for own in loaded:
            _check_single(own, options.protocols)
    return loaded


def _check_single(task: LoadedTask, protocols: Sequence[str]) -> None:
    """Refuse a task that by default samples several texts per item."""
    for name in protocols:
        fmt = protocol_named(name).format_of(task.task)
        if isinstance(fmt, GenerationFormat) and fmt.samples > 1:
            raise UserError(
                f"task {task.task.name!r} takes {fmt.samples} samples of an item, and a sweep that stops early counts "
                "items as right or wrong: give samples 1"
            )


def _check_cap(task: LoadedTask, stopping: Stopping) -> None:
    """Refuse items that are not in a single random order, or are fewer than the last look."""
    name, n, cap = task.task.name, len(task.items), stopping.items[-1]
    if isinstance(stopping, AnyLook) and task.items and task.items[0].cluster is not None:
        raise UserError(
            f"task {name!r} has items in clusters ({task.items[0].cluster!r} and others), and looks any counts items "
            "as independent: plan the looks, like 100,200,400"
        )
    if task.task.by_cluster and len({item.cluster for item in task.items}) > 1:
        raise UserError(
            f"task {name!r} counts items by {task.items[0].cluster!r} and others: a sweep that stops early takes one "
            "of them"
        )
    if n < cap:
        raise UserError(f"task {name!r} has {n} items, fewer than the last look at {cap}: choose {n} or fewer")


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
        looks = [",".join(map(str, own.items)) for own in (there, stopping)]
        raise UserError(
            f"{out} contains another run (looks {looks[0]} there, {looks[1]} here): looks that are added or moved once "
            "there are results make its error rates wrong; choose another out folder, or from the start looks any, "
            "which hold whenever you stop"
        )
    if isinstance(there, AnyLook) and isinstance(stopping, AnyLook) and there.items != stopping.items:
        raise UserError(
            f"{out} contains another run (limit {there.items[-1]} there, {stopping.items[-1]} here): a run's limit "
            "is fixed; choose another out folder and a limit that is large enough, and stop and resume as you like"
        )


def _reference_prompts(
    model: HookedModel, task: LoadedTask, protocol: ProtocolName, options: SweepOptions, text: str | None
) -> tuple[tuple[int, ...], ...]:
    if text is not None:
        return tuple(text_prompts(model, text, str(options.reference)))
    data_dir = None if options.data_dir is None else Path(options.data_dir)
    return tuple(
        fewshot_prompts(
            model,
            task,
            protocol,
            data_dir=data_dir,
            **option_values(options, Wording),
        )
    )


def resolved_variants(facts: ModelFacts, options: SweepOptions) -> tuple[Variant, ...]:
    """The requested variants in a model of this shape, clean first.

    Raises:
        UserError: a part that the model lacks, a name used twice, or no variant at all.
    """
    selected = options.variants.resolve(facts) if isinstance(options.variants, VariantSelection) else options.variants
    return with_clean(selected, facts)


def conditions_of(
    model: HookedModel,
    tasks: Sequence[LoadedTask],
    options: SweepOptions,
    text: str | None = None,
    *,
    with_reference: bool = False,
) -> tuple[Condition, ...]:
    """The requests of each (task, protocol); only the model's facts and tokenizer are used.

    Args:
        text: contents of the reference file; ``None`` for few-shot examples.
        with_reference: collect reference prompts too.

    Raises:
        UserError: invalid input.
    """
    from lensprune.protocols import build_requests
    from lensprune.protocols.chat import template_date_of
    from lensprune.protocols.prompting import PromptOptions, prompting_of

    wording = option_values(options, Wording)
    markers = prompting_of(model, PromptOptions(**wording)).markers
    written: dict[str, Any] = {
        "template_date": template_date_of(model.tokenizer, options.template_date) if options.chat_template else None,
        "think_tokens": None if markers is None else (markers.start, markers.end),
        "appended": str(model.tokenizer.decode(list(appended_ids(model)))),
    }
    conditions = []
    for task in tasks:
        for protocol in options.protocols:
            form = protocol_named(protocol).form
            prompts = _reference_prompts(model, task, protocol, options, text) if with_reference else ()
            built = build_requests(model, task, protocol, **wording)
            items = with_samples(model, task, protocol, built, options)
            if markers is not None and options.thinking_prefix is None:
                _warn_of_open_thinking(task, protocol, items, markers)
            chances = tuple(float(task.task.chance(item.item.doc, form)) for item in items)
            conditions.append(Condition(task, protocol, items, chances, prompts, **written))
    return tuple(conditions)


def _warn_of_open_thinking(
    task: LoadedTask, protocol: ProtocolName, items: Sequence[ItemRequests], markers: ThinkingMarkers
) -> None:
    scored = [p for item in items for p, r in zip(item.prompts, item.requests, strict=True) if _is_scored(r)]
    if any(markers.opened_by(prompt.context) for prompt in scored):
        logger.warning(
            f"task {task.task.name!r}, {protocol}: the chat template opens the thinking ({markers.start}), so the "
            "options are read inside it, as in lm-eval; thinking_prefix clean puts them behind it"
        )


def _is_scored(request: Request) -> bool:
    return isinstance(request, LoglikelihoodRequest)


def prepare(model: ModelOrName, options: SweepOptions, out: Path | None = None) -> SweepJob:
    """Check all options, load tasks and model, and build all requests. Writes nothing.

    Everything that can be checked without the weights is checked before they are loaded.

    Raises:
        UserError: invalid input.
    """
    tasks, text = check_before_loading(options, out)
    hooked = open_model(model, **option_values(options, Loading, Splitting))
    variants = tuple(with_hook_names(hooked, variant) for variant in resolved_variants(hooked.facts, options))
    conditions = conditions_of(hooked, tasks, options, text, with_reference=any(v.needs_reference for v in variants))
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
    _check_against(existing, out, [_task_spec(task) for task in tasks], options)
    return tasks, text


def _check_reference_options(options: SweepOptions) -> None:
    """Refuse options of reference activations that no variant uses."""
    references = {ablation_kind(kind).reference for kind in kinds_of(options.variants)}
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


def decoding_of(model: HookedModel, asked: Sequence[Condition], use: str) -> dict[str, Any]:
    """What the model's generation config determines about generated texts, if there are any; `use`: as in
    `GreedyRules`.

    Raises:
        UserError: it selects another decoding algorithm.
    """
    from lensprune.engine.greedy import GreedyRules

    if not any(own.generates for own in asked):
        return {}
    rules = GreedyRules(model, use)
    if rules.max_new_tokens is not None:
        logger.warning(
            f"the generation config of {model.facts.name} sets max_new_tokens to {rules.max_new_tokens}, which lm-eval "
            "obeys: here the task's number counts, or --max-new-tokens"
        )
    return rules.recorded


def sweep_spec(
    model: ModelOrName,
    facts: ModelFacts,
    conditions: Sequence[Condition],
    options: SweepOptions,
    variants: Sequence[Mapping[str, Any]],
    *,
    with_reference: bool = False,
    decoding: Mapping[str, Any] | None = None,
) -> SweepSpec:
    """The spec of a run.

    Args:
        model: as given by the user.
        variants: descriptions with a ``name``, clean first.
        with_reference: whether any variant needs activations on reference prompts.
        decoding: from `decoding_of`.
    """
    tasks = list({id(condition.task): condition.task for condition in conditions}.values())
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
        cells=cell_specs(conditions),
        variants=tuple(variants),
        shots=options.shots,
        seed=options.seed,
        limit=options.limit,
        items=_full_items(options.items),
        stopping=None if options.stopping is None else stopping_json(options.stopping),
        reference=None if not with_reference else "file" if from_file else FEWSHOT,
        mean_mode=options.mean_mode if with_reference else None,
        leave_out_repeated=options.leave_out_repeated,
        primary_metric=options.primary_metric,
        fewshot_as_multiturn=options.fewshot_as_multiturn,
        system=options.system,
        template_args=options.template_args,
        thinking=options.thinking,
        thinking_budget=options.thinking_budget,
        keep_eos=options.keep_eos,
        thinking_prefix=options.thinking_prefix,
        **_written(conditions, options),
        decoding=decoding or {},
        **option_values(options, Generation),
        temperature=None if options.temperature is None else float(options.temperature),
        top_p=None if options.top_p is None else float(options.top_p),
        top_k=options.top_k,
        samples=options.samples,
        kept_hooks=facts.kept_hooks,
        execution=ExecutionSpec(
            model=_where(model),
            **option_values(options, Splitting, Execution),
            data_dir=None if options.data_dir is None else str(Path(options.data_dir).resolve()),
            reference_file=str(Path(options.reference).resolve()) if from_file else None,
            data_sources={task.task.name: task.data_source for task in tasks},
            task_files=_task_files(options.tasks),
            command=options.command,
        ),
    )


def _full_items(items: str) -> str:
    """The choice of items, with the full path of a file that names them."""
    return f"@{usable_path(items[1:], 'file of items').resolve()}" if items.startswith("@") else items


def cell_specs(conditions: Sequence[Condition]) -> tuple[CellSpec, ...]:
    """The spec's entry for each (task, protocol)."""
    return tuple(
        CellSpec(
            condition.task.task.name,
            condition.protocol,
            _prompts_hash(condition.items),
            questions_hash(condition.questions),
            prompts_hash(condition.reference_prompts) if condition.reference_prompts else "",
            condition.generation,
        )
        for condition in conditions
    )


def _written(conditions: Sequence[Condition], options: SweepOptions) -> dict[str, Any]:
    """The options as resolved by the model's tokenizer and chat template, the same in all conditions."""
    names = ("template_date", "think_tokens", "appended")
    return {name: getattr(conditions[0], name) for name in names} if conditions else {}


def _task_files(tasks: Sequence[str]) -> dict[str, str]:
    """The file of each task that was given as a path."""
    from lensprune.tasks import find_task, is_task_file

    return {find_task(path).name: str(usable_path(path, "task file").resolve()) for path in tasks if is_task_file(path)}


def _where(model: ModelOrName) -> str | None:
    """How to load the model again: its name, or the full path of a local file or folder."""
    if not isinstance(model, (str, Path)):
        return None
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else str(model)
