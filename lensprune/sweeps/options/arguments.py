"""Keyword arguments of functions that hand them on to a sweep of a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lensprune.protocols.arguments import PromptArguments

__all__ = ["AnswerArguments", "JobArguments", "StudyArguments", "SweepArguments"]


class AnswerArguments(PromptArguments, total=False):
    """What is measured, apart from the limit and the seed, and how answers are generated greedily; see
    `lensprune.sweep` for the meaning of each."""

    items: str
    shots: int | None
    data_dir: str | Path | None
    leave_out_repeated: bool
    primary_metric: str | None
    max_new_tokens: int | None
    until: Sequence[str]
    until_only: bool
    generation_config: str
    executor: str
    batch_tokens: int | None
    memory: str | None


class JobArguments(AnswerArguments, total=False):
    """What is measured and how it is run, apart from the seed."""

    limit: int | None
    reference: str | Path
    mean_mode: str
    temperature: float | None
    top_p: float | None
    top_k: int | None
    samples: int | None


class SweepArguments(JobArguments, total=False):
    """`JobArguments`, and where the run is kept and shown."""

    keep_hooks: bool
    out: str | Path | None
    progress: bool
    command: str


class StudyArguments(SweepArguments, total=False):
    """`SweepArguments`, the seed, and how the model is loaded."""

    seed: int
    dtype: str | None
    device: str | None
    bos: str | None
