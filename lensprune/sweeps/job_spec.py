"""The spec of a run, from what is measured and how."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lensprune.analysis.stopping import stopping_json
from lensprune.models.base import ModelFacts, ModelOrName
from lensprune.paths import usable_path
from lensprune.protocols.base import ItemRequests
from lensprune.protocols.requests import GenerateRequest, Request
from lensprune.runs.questions import questions_hash
from lensprune.runs.spec import ConditionSpec, ExecutionSpec, SweepSpec, TaskSpec, canonical_json
from lensprune.sweeps.conditions import Condition
from lensprune.sweeps.options import FEWSHOT, Execution, Generation, Splitting, SweepOptions, option_values
from lensprune.sweeps.references import prompts_hash
from lensprune.tasks.base import LoadedTask

__all__ = ["condition_specs", "sweep_spec", "task_spec"]


def _hash(value: object) -> str:
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def _plain(doc: Any) -> dict[str, str]:
    return {str(key): repr(value) for key, value in doc.items()}


def task_spec(task: LoadedTask) -> TaskSpec:
    """The spec's entry for a task."""
    items = [[item.id, item.cluster, _plain(item.doc), [_plain(shot) for shot in item.fewshot]] for item in task.items]
    kind, closed_book = task.task.kind, task.task.closed_book
    return TaskSpec(task.task.name, task.shots, task.seed, len(items), _hash(items), kind, closed_book)


_ASKED = ("sampling", "forced_end", "thinking")
"""What else a generation request may contain."""


def _request_json(request: Request) -> list[object]:
    if isinstance(request, GenerateRequest):
        settings = [request.context_ids, request.until, request.max_new_tokens, request.generation_config]
        more = {name: asdict(value) for name in _ASKED if (value := getattr(request, name)) is not None}
        return [*settings, more]
    return [request.context_ids, request.continuation_ids]


def _prompts_hash(items: Sequence[ItemRequests]) -> str:
    return _hash(
        [
            [i.item.id, [[p.context, p.continuation] for p in i.prompts], [_request_json(r) for r in i.requests]]
            for i in items
        ]
    )


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
        tasks=tuple(task_spec(task) for task in tasks),
        protocols=options.protocols,
        conditions=condition_specs(conditions),
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


def condition_specs(conditions: Sequence[Condition]) -> tuple[ConditionSpec, ...]:
    """The spec's entry for each (task, protocol)."""
    return tuple(
        ConditionSpec(
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
