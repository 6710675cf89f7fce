"""How texts are generated: a task's settings with the sweep's changes, and repeated samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lensprune.engine.greedy import sampling_defaults
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.protocols.base import ItemRequests
from lensprune.protocols.registry import protocol_named
from lensprune.protocols.requests import GenerateRequest, Sampling
from lensprune.sweeps.options import Generation, SweepOptions, TokenSampling, given_options
from lensprune.tasks.base import GenerationFormat, LoadedTask, PromptFormat, ProtocolName

__all__ = ["with_samples", "with_settings"]


_OF_THINKING = ("thinking_budget", "think_tokens")
"""Options of prompts that affect only generated texts."""


def with_settings(tasks: Sequence[LoadedTask], options: SweepOptions) -> list[LoadedTask]:
    """`tasks` with the stop strings, lengths and sampling of `options` instead of their own.

    Raises:
        UserError: nothing is generated; or sampling settings are given for greedy decoding.
    """
    given = given_options(options, Generation, TokenSampling)
    thinks = {name: value for name in _OF_THINKING if (value := getattr(options, name)) is not None}
    formats = [protocol_named(name).format_of(task.task) for task in tasks for name in options.protocols]
    if options.thinking_prefix is not None:
        # The thinking is generated under it.
        given.pop("generation_config", None)
    else:
        given |= thinks
    if given and not any(isinstance(fmt, GenerationFormat) for fmt in formats):
        name = next(iter(given)).replace("_", "-")
        raise UserError(f"--{name} is given, but nothing is generated: choose the protocol generate, or leave it out")
    return [_with_settings(task, options) for task in tasks]


def _with_settings(task: LoadedTask, options: SweepOptions) -> LoadedTask:
    formats = {name: _changed(fmt, options, task.task.name) for name, fmt in task.task.formats.items()}
    return replace(task, task=replace(task.task, formats=formats))


def _changed(fmt: PromptFormat, options: SweepOptions, task: str) -> PromptFormat:
    if not isinstance(fmt, GenerationFormat):
        return fmt
    until = () if options.until_only else fmt.until
    numbers = {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k", "samples")}
    changed = replace(
        fmt,
        until=(*until, *(text for text in dict.fromkeys(options.until) if text not in until)),
        **{name: value for name, value in numbers.items() if value is not None},
    )
    if not changed.temperature:
        for name, what in (("top_p", "top-p"), ("top_k", "top-k")):
            if numbers[name] is not None:
                raise UserError(
                    f"{what} {numbers[name]:g} has no effect on greedy decoding of task {task!r}: give a temperature "
                    "above 0 too, or leave it out"
                )
        if changed.samples > 1:
            raise UserError(
                f"{changed.samples} samples of task {task!r} would be one text {changed.samples} times, since decoding "
                "is greedy: give a temperature above 0 too, or 1 sample"
            )
    return changed


def with_samples(
    model: HookedModel,
    task: LoadedTask,
    protocol: ProtocolName,
    items: Sequence[ItemRequests],
    options: SweepOptions,
) -> tuple[ItemRequests, ...]:
    """Repeat each of `items` as often as the task is sampled, with its repeats next to each other.

    If ``top_p`` or ``top_k`` is not given, it comes from the model's generation config, as in transformers, unless that
    is ignored.

    Raises:
        UserError: the generation config samples in an unsupported way; or the requested number of new tokens leaves too
            little room for some prompts.
    """
    fmt = protocol_named(protocol).format_of(task.task)
    if not isinstance(fmt, GenerationFormat):
        return tuple(items)
    cut = [item.truncated_tokens for item in items if item.truncated_tokens]
    if options.max_new_tokens is not None and cut:
        most = options.max_new_tokens - max(cut)
        hint = f"give at most {most}" if most > 0 else "the longest does not fit by itself"
        raise UserError(
            f"{len(cut)} of {len(items)} prompts of task {task.task.name!r} with {options.max_new_tokens} new tokens "
            f"exceed the context of {model.facts.n_ctx} tokens, by {max(cut)} at most: {hint}"
        )
    use = options.generation_config
    if not fmt.temperature:
        return tuple(_asked(item, 0, generation_config=use) for item in items)
    filters = {"top_p": 1.0, "top_k": 0}
    if use == "model":
        filters |= sampling_defaults(model)
    filters |= {name: value for name in filters if (value := getattr(fmt, name)) is not None}
    first = Sampling(
        float(fmt.temperature), top_p=float(filters["top_p"]), top_k=int(filters["top_k"]), seed=options.seed
    )
    return tuple(
        _asked(item, sample, generation_config=use, sampling=replace(first, sample=sample))
        for item in items
        for sample in range(fmt.samples)
    )


def _asked(item: ItemRequests, sample: int, **changes: object) -> ItemRequests:
    requests = tuple(
        replace(request, **changes) if isinstance(request, GenerateRequest) else request  # type: ignore[arg-type]
        for request in item.requests
    )
    return replace(item, requests=requests, sample=sample)
