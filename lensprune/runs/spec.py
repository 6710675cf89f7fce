"""The spec of a sweep: everything that determines its numbers, and how it was executed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import UnionType
from typing import Any, get_origin, get_type_hints

from lensprune.errors import UserError
from lensprune.version import __version__

__all__ = ["FORMAT", "ConditionSpec", "ExecutionSpec", "SweepSpec", "TaskSpec", "canonical_json", "library_versions"]

FORMAT = 7
"""Version of the run folder's layout."""

_LIBRARIES = ("torch", "transformers", "tokenizers", "transformer-lens")


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces, the same text for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=True)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that affect results; `python` without its patch level."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    versions["lensprune"] = __version__
    versions["python"] = ".".join(platform.python_version_tuple()[:2])
    return versions


@dataclass(frozen=True)
class TaskSpec:
    """One task as loaded: `name` is the task with its parameters, as requested."""

    name: str
    shots: int
    seed: int
    n_items: int
    items_hash: str
    """sha256 over the scored items: ids, rows and few-shot examples."""
    kind: str | None = None
    closed_book: str | None = None
    """Along with `kind`, as declared by the task (`lensprune.tasks.base.Task`); results don't depend on them."""


@dataclass(frozen=True)
class ConditionSpec:
    """The requests of one (task, protocol)."""

    task: str
    protocol: str
    prompts_hash: str
    """sha256 over every prompt string, its token ids and its stop conditions."""
    questions_hash: str
    """`lensprune.runs.questions.questions_hash`: prompts, options and right answers as they are stored."""
    reference_hash: str = ""
    """sha256 over the token ids of the reference prompts, for mean and resample."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """How texts are generated: ``max_new_tokens``, ``until``, ``generation_config``, ``temperature``, ``samples``, and
    if they are sampled ``top_p`` and ``top_k``."""

    @property
    def samples(self) -> int:
        """Records of each item."""
        return int(self.generation.get("samples", 1))


@dataclass(frozen=True)
class ExecutionSpec:
    """What does not affect results: speed, paths and how the run was started."""

    model: str | None = None
    """Name or path to load the model from; ``None`` when it was given as an object."""
    executor: str = "forked"
    """The executor at each worker; `backend` is how cells are distributed to workers."""
    backend: str | None = None
    workers: int | None = None
    ray_address: str | None = None
    batch_tokens: int | None = None
    memory: str | None = None
    n_devices: int | None = None
    data_dir: str | None = None
    reference_file: str | None = None
    data_sources: Mapping[str, str] = field(default_factory=dict)
    task_files: Mapping[str, str] = field(default_factory=dict)
    """The YAML file of each task that was given by its path."""
    command: str = ""
    noise: Mapping[str, Any] = field(default_factory=dict)
    """By task, protocol and way of running: items that the clean model loses and wins (`lensprune.runs.noise`)."""
    spent: Mapping[str, Any] = field(default_factory=dict)
    """``processes``: for each process that measured cells to the end, planned and measured time (s) and peak memory
    (bytes), and its threads."""

    def and_spent(self, process: Mapping[str, Any]) -> ExecutionSpec:
        """The same, with one more process."""
        return replace(self, spent={"processes": [*self.spent.get("processes", []), dict(process)]})


@dataclass(frozen=True)
class SweepSpec:
    """Everything that determines a sweep's numbers, and how it was run.

    `model` is the requested name of the model; `weights_hash`, `config_hash`, `tokenizer_hash` and the shape say which
    model it is, so a moved folder is still the same model. `variants` is the resolved list, clean first.
    `limit`, `items` and `shots` are as requested (``None``: all items; each task's number of shots).
    """

    model: str
    architecture: str
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    weights_hash: str
    config_hash: str
    tokenizer_hash: str
    dtype: str
    device: str
    bos: str
    chat_template: bool
    tasks: tuple[TaskSpec, ...]
    protocols: tuple[str, ...]
    conditions: tuple[ConditionSpec, ...]
    variants: tuple[Mapping[str, Any], ...]
    shots: int | None = None
    seed: int = 0
    limit: int | None = None
    items: str = "first"
    """As requested; a spec without it dates from when a limit took the first items."""
    reference: str | None = None
    """``None`` (no variant needs one), ``fewshot`` or ``file``."""
    mean_mode: str | None = None
    leave_out_repeated: bool = False
    """Whether items among their own few-shot examples are left out; `tasks` has those that are used."""
    template_date: str | None = None
    """YYYY-MM-DD, as the chat template writes it; ``None`` without one, or one without a clock."""
    primary_metric: str | None = None
    """The metric that decides whether a generated answer is right; ``None``: each task's own."""
    fewshot_as_multiturn: bool = False
    """Whether few-shot examples are separate turns in the chat format."""
    system: str | None = None
    template_args: Mapping[str, Any] | None = None
    """Variables passed to the chat template, except those of `thinking`."""
    thinking: str = "auto"
    """``on``, ``off`` or ``auto``, as requested."""
    think_tokens: tuple[str, str] | None = None
    """Start and end markers of thinking; ``None``: thinking is not separated from the answer."""
    thinking_budget: int | None = None
    """Tokens after which the end of thinking is forced."""
    thinking_prefix: str | None = None
    """``clean``: options are scored after the clean model's thinking, which is stored with the questions."""
    keep_eos: bool = False
    appended: str = ""
    """What the tokenizer by itself appends to a prompt, such as EOS: kept with `keep_eos`, otherwise left out."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """Under ``generate``: what the model's generation config decides about a text (`GreedyRules.recorded`)."""
    max_new_tokens: int | None = None
    """This and the next seven are as requested; `cells` have the resolved values."""
    until: tuple[str, ...] = ()
    until_only: bool = False
    generation_config: str = "model"
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    samples: int | None = None
    screen: Mapping[str, Any] | None = None
    """How `variants` were chosen among more heads: ``fraction``, the gradient's ``rule`` and ``component``, the number
    of heads sought in each task and protocol (``top``) and of those measured for their estimates (``reach``),
    ``estimates`` of all heads, and what is ``measured`` and why."""
    stopping: Mapping[str, Any] | None = None
    """When a variant stops (`lensprune.analysis.stopping`): the numbers of ``items`` at its looks, the last being the
    cap, and ``margin`` and ``q`` (with ``look``, ``any``, of e-values), or ``width``; ``None``: all
    variants are measured on all items."""
    settings_of: str | None = None
    """In a weight replacement: whose chat template and `decoding` both models use, ``base`` or ``distilled``."""
    kept_hooks: tuple[str, ...] = ()
    """Hook points with custom hooks that are part of the model, with ``keep_hooks``."""
    versions: Mapping[str, str] = field(default_factory=library_versions)
    execution: ExecutionSpec = field(default_factory=ExecutionSpec)

    def numbers(self) -> dict[str, Any]:
        """The part that determines the numbers, as plain JSON values."""
        data = json.loads(canonical_json(asdict(self)))
        data.pop("execution")
        for name in ("stopping", "settings_of"):
            if data[name] is None:
                data.pop(name)
        # Requested values are resolved per task in `tasks`: requesting all 50 of 50 items is the same sweep.
        for owner, kind in ((data, SweepSpec), *((task, TaskSpec) for task in data["tasks"])):
            for name in _UNCOVERED[kind]:
                owner.pop(name)
        return data

    @property
    def digest(self) -> str:
        """sha256 of `numbers`: equal digests mean the same sweep."""
        return hashlib.sha256(canonical_json(self.numbers()).encode()).hexdigest()

    @property
    def n_blocks(self) -> int:
        """Number of blocks of items that a cell may have."""
        return 1 if self.stopping is None else len(self.stopping["items"])

    @property
    def replaces_weights(self) -> bool:
        """Whether the variants are two models and exchanges between them, as `measure_replacement` makes them."""
        return any("replacement" in variant for variant in self.variants)

    @property
    def variant_names(self) -> tuple[str, ...]:
        return tuple(str(v["name"]) for v in self.variants)

    @property
    def has_hooks(self) -> bool:
        """Whether some variants have Python hooks, which a file can't store."""
        return any(v.get("hooks") for v in self.variants)

    def to_json(self) -> str:
        """The text of spec.json."""
        return (
            json.dumps({"format": FORMAT, "digest": self.digest, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"
        )

    @classmethod
    def from_json(cls, text: str, where: str = "spec.json") -> SweepSpec:
        """Read what `to_json` wrote.

        Raises:
            UserError: not JSON, another format, a missing or unknown field, or a digest that does not match.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not valid JSON: {error}") from None
        if not isinstance(data, dict):
            raise UserError(f"{where} does not contain a sweep: expected an object")
        version, digest = data.pop("format", None), data.pop("digest", None)
        if version != FORMAT:
            raise UserError(f"{where} has format {version!r}: this version of lensprune reads format {FORMAT}")
        try:
            spec = cls(
                **{
                    **data,
                    "tasks": tuple(TaskSpec(**t) for t in data["tasks"]),
                    "conditions": tuple(ConditionSpec(**c) for c in data["conditions"]),
                    "protocols": tuple(data["protocols"]),
                    "variants": tuple(data["variants"]),
                    "kept_hooks": tuple(data.get("kept_hooks", ())),
                    "until": tuple(data.get("until", ())),
                    "think_tokens": _pair(data.get("think_tokens")),
                    "execution": ExecutionSpec(**data["execution"]),
                }
            )
            fits = spec.digest == digest and all(isinstance(name, str) for name in spec.variant_names)
            # Fields that the digest does not cover are checked by type.
            owners: tuple[SweepSpec | ExecutionSpec | TaskSpec, ...] = (spec, spec.execution, *spec.tasks)
            for owner in owners:
                hints = get_type_hints(type(owner))
                for name in _UNCOVERED[type(owner)]:
                    _check_type(owner, name, hints[name])
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise UserError(f"{where} does not contain a sweep: {type(error).__name__} {error}") from None
        if not fits:
            raise UserError(f"{where} was changed after the run began: its digest does not fit its contents")
        return spec


_UNCOVERED: dict[type, tuple[str, ...]] = {
    SweepSpec: (
        "model", "shots", "limit", "items", "leave_out_repeated",
        "max_new_tokens", "until", "until_only", "generation_config", "temperature", "top_p", "top_k", "samples",
    ),
    ExecutionSpec: tuple(field.name for field in fields(ExecutionSpec)),
    TaskSpec: ("kind", "closed_book"),
}  # fmt: skip
"""Fields that the digest doesn't cover."""


def _check_type(owner: SweepSpec | ExecutionSpec | TaskSpec, name: str, hint: Any) -> None:
    """Raise TypeError if a field does not match its annotation; values of mappings are not checked."""
    kind = hint if isinstance(hint, (type, UnionType)) else get_origin(hint)
    value = getattr(owner, name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name} is {type(value).__name__}")


def _pair(value: Any) -> tuple[str, str] | None:
    """Two texts, which JSON stores as a list."""
    if value is None:
        return None
    first, second = value
    return first, second
