"""Keyword arguments of functions that hand them on to a sweep of a loaded model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

__all__ = ["JobArguments", "SweepArguments"]


class JobArguments(TypedDict, total=False):
    """What is asked and how it is run, apart from the seed; see `lensprune.sweep` for the meaning of each."""

    limit: int | None
    items: str
    shots: int | None
    data_dir: str | Path | None
    reference: str | Path
    mean_mode: str
    leave_out_repeated: bool
    primary_metric: str | None
    chat_template: bool
    template_date: str | None
    template_args: Mapping[str, Any] | None
    fewshot_as_multiturn: bool
    system: str | None
    keep_eos: bool
    thinking: str
    think_tokens: tuple[str, str] | None
    thinking_budget: int | None
    max_new_tokens: int | None
    until: Sequence[str]
    until_only: bool
    generation_config: str
    temperature: float | None
    top_p: float | None
    top_k: int | None
    samples: int | None
    executor: str
    batch_tokens: int | None
    memory: str | None


class SweepArguments(JobArguments, total=False):
    """`JobArguments`, and where the run is kept and shown."""

    keep_hooks: bool
    out: str | Path | None
    progress: bool
    command: str
