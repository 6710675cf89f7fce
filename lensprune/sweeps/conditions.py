"""The requests of each (task, protocol) of a sweep, with chance levels and reference prompts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from lensprune.models.base import HookedModel
from lensprune.models.tokenizers import appended_ids
from lensprune.protocols.base import ItemRequests
from lensprune.protocols.registry import protocol_named
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest, Request
from lensprune.protocols.thinking import ThinkingMarkers
from lensprune.runs.questions import question_table
from lensprune.sweeps.generation import with_samples
from lensprune.sweeps.options import SweepOptions, Wording, option_values
from lensprune.sweeps.references import fewshot_prompts, text_prompts
from lensprune.tasks.base import LoadedTask, ProtocolName

__all__ = ["Condition", "conditions_of", "questions_of"]

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
    def key(self) -> tuple[str, str]:
        """(task, protocol)."""
        return self.task.task.name, str(self.protocol)

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
        """The generation settings for the spec (`ConditionSpec.generation`)."""
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


def questions_of(conditions: Sequence[Condition]) -> dict[tuple[str, str], pa.Table]:
    """The questions of every (task, protocol), for `lensprune.runs.store.open_store`."""
    return {condition.key: condition.questions for condition in conditions}


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
    scored = [
        p
        for item in items
        for p, r in zip(item.prompts, item.requests, strict=True)
        if isinstance(r, LoglikelihoodRequest)
    ]
    if any(markers.opened_by(prompt.context) for prompt in scored):
        logger.warning(
            f"task {task.task.name!r}, {protocol}: the chat template opens the thinking ({markers.start}), so the "
            "options are read inside it, as in lm-eval; thinking_prefix clean puts them after it"
        )
