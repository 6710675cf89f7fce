"""Tasks: items, few-shot examples, and one prompt format per protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from lensprune.errors import unknown_name

__all__ = [
    "TASK_KINDS",
    "Doc",
    "FewshotSampler",
    "Filter",
    "GenerationFormat",
    "Item",
    "LoadedTask",
    "MultipleChoiceFormat",
    "PromptFormat",
    "ProtocolName",
    "RowRequest",
    "Rows",
    "Task",
]

Doc = Mapping[str, Any]
ProtocolName = str
"""A key of `Task.formats`: ``default``, ``continuation``, ``generate``, or the form of a registered protocol."""
FewshotSampler = Literal["random", "first_n"]
TASK_KINDS = ("knowledge", "retrieval", "reasoning")
"""What a task tests; claims about a kind of task count these tasks."""


@dataclass(frozen=True)
class Item:
    """One question. `cluster` groups items that are not independent (MMLU's subject); `fewshot` holds the
    examples drawn for this item, in prompt order."""

    id: str
    doc: Doc
    cluster: str | None = None
    fewshot: tuple[Doc, ...] = ()


class Filter(Protocol):
    """Extracts the answer from a generated text; ``None`` when there is none (lm-eval's ``[invalid]``)."""

    @property
    def name(self) -> str: ...

    def __call__(self, text: str) -> str | None: ...


@dataclass(frozen=True)
class MultipleChoiceFormat:
    """A prompt whose options are scored by log-likelihood, in lm-eval's terms.

    `context` is ``doc_to_text``, `choices` ``doc_to_choice``, `gold` the index of the right choice. With
    `per_choice_context` (winogrande) `choices` gives one context per option and `continuation` the shared text.
    `primary_metric` decides `correct`: ``acc`` (argmax of summed log-probabilities, ties to the lowest index),
    ``acc_norm`` (divided by the choice's length in characters) or ``acc_bytes`` (in bytes). `example`, if given, is
    the format of the few-shot examples.
    """

    context: Callable[[Doc], str]
    choices: Callable[[Doc], Sequence[str]]
    gold: Callable[[Doc], int]
    description: Callable[[Doc], str] = lambda doc: ""
    continuation: Callable[[Doc], str] | None = None
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    metrics: tuple[str, ...] = ("acc", "acc_norm")
    primary_metric: Literal["acc", "acc_norm", "acc_bytes"] = "acc"
    example: PromptFormat | None = None

    @property
    def per_choice_context(self) -> bool:
        return self.continuation is not None


@dataclass(frozen=True)
class GenerationFormat:
    """A prompt that is answered by generation: greedy, unless `temperature` is above 0.

    `target` is the few-shot answer text (``doc_to_target``) and the reference that `matches` compares with; several
    right answers are an `AnyOf`. `example`, if given, is the format of the few-shot examples. `measures` are further
    metrics by name, functions of the whole text and the row; they never decide `correct`.
    `filters` are applied separately, each giving one metric ``exact_match,<filter name>``; the first one whose name is
    `primary_filter` decides `correct`. `own_filters` are further filters that lm-eval's task lacks. With
    `equals(prediction, doc)`, which compares values instead of spellings, each filter also gives
    ``equal,<filter name>``; `primary_match` says which of the two decides. `matches(prediction, target)` is lm-eval's
    exact_match with the task's normalisation. `display_gold(doc)` is the answer shown in records (e.g. ``"18"``).
    `is_answer(prediction)` distinguishes an answer, right or wrong, from a text without one (a letter task's
    "I think"); it decides the failure's name and never changes a metric. `samples` texts are sampled per item; ``None``
    for `top_p` and `top_k` leaves them to the model's generation config.
    """

    context: Callable[[Doc], str]
    target: Callable[[Doc], str]
    filters: tuple[Filter, ...]
    matches: Callable[[str, str], bool]
    primary_filter: str
    until: tuple[str, ...]
    max_new_tokens: int
    display_gold: Callable[[Doc], str]
    description: Callable[[Doc], str] = lambda doc: ""
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    is_answer: Callable[[str], bool] = bool
    example: PromptFormat | None = None
    measures: Mapping[str, Callable[[str, Doc], bool]] = field(default_factory=dict)
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    samples: int = 1
    own_filters: tuple[Filter, ...] = ()
    equals: Callable[[str, Doc], bool] | None = None
    primary_match: Literal["exact_match", "equal"] = "exact_match"

    @property
    def extracted_metrics(self) -> list[str]:
        """Names of the metrics that compare a filter's result; any of them can decide `correct`."""
        matches = ("exact_match",) if self.equals is None else ("exact_match", "equal")
        return [f"{match},{one.name}" for match in matches for one in (*self.filters, *self.own_filters)]


PromptFormat = MultipleChoiceFormat | GenerationFormat


@dataclass(frozen=True)
class RowRequest:
    """What a task should load. `shots` is 0 if no few-shot pool is needed; `limit` is a hint for tasks that generate
    their rows (the loader cuts the list anyway)."""

    data_dir: Path | None = None
    split: str | None = None
    limit: int | None = None
    shots: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Rows:
    """Rows of a task, in order, and where they came from.

    `fewshot_is_evaluated` marks a few-shot pool that is the evaluated split itself, so that an item never sees
    its own answer. `parameters` are those that only the rows determine (they are added to the task's).
    `random_order` means that the rows already come in random order, as generated ones do, so that a limit takes the
    first ones instead of drawing. `twins`, if given, has one label per row: rows with the same label are near copies
    (they share a passage, or differ in a word). Twins are drawn together; if the task has no clusters, twins are its
    clusters.
    """

    docs: Sequence[Doc]
    fewshot: Sequence[Doc]
    source: str
    fewshot_is_evaluated: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    random_order: bool = False
    twins: Sequence[str] | None = None


@dataclass(frozen=True)
class Task:
    """A benchmark: where its rows come from, how each protocol prompts them, and its chance level.

    `chance(doc, form)` is the expected accuracy of an uninformed guess on one item in the form `formats[form]` (0 for
    an open answer).
    `load` turns a request into rows. `fixed_fewshot`, if given, is the few-shot pool for any rows.

    `exclude_self`: draw one example more than requested and drop the item itself, even though the pool is another
    split. lm-eval does so for tasks without a test split, and it changes which examples are drawn.
    `by_cluster`: each cluster is a separate task in lm-eval (MMLU's subjects), so `limit`, the few-shot pool and the
    item's index apply within the cluster.
    `kind`: one of `TASK_KINDS`, or ``None``; claims about that kind count the task. `closed_book`: name of the task
    with the same items but without the supporting text; given without parameters, since both tasks have the same ones.
    `lm_eval`: for each protocol in which lm-eval has this task, its name there; prompts are equal byte for byte. MMLU's
    names contain ``{cluster}``.
    """

    name: str
    summary: str
    formats: Mapping[ProtocolName, PromptFormat]
    chance: Callable[[Doc, ProtocolName], float]
    load: Callable[[RowRequest], Rows]
    default_shots: int = 0
    fewshot_sampler: FewshotSampler = "random"
    fixed_fewshot: Sequence[Doc] | None = None
    exclude_self: bool = False
    by_cluster: bool = False
    item_id: Callable[[Doc, int], str] = lambda doc, index: str(index)
    cluster: Callable[[Doc], str | None] = lambda doc: None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    lm_eval: Mapping[ProtocolName, str] = field(default_factory=dict)
    kind: str | None = None
    closed_book: str | None = None
    licence: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if self.kind not in (None, *TASK_KINDS):
            raise unknown_name(f"kind of task {self.name!r}", str(self.kind), TASK_KINDS)


@dataclass(frozen=True)
class LoadedTask:
    """A task with its items, ready for a protocol."""

    task: Task
    items: tuple[Item, ...]
    fewshot_pool: tuple[Doc, ...]
    shots: int
    seed: int
    data_source: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
