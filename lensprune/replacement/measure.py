"""Exchange parts between a base and a distilled model, and measure both as a sweep measures ablations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from lensprune.ablation.enumeration import parse_indices
from lensprune.ablation.variants import CLEAN, Variant
from lensprune.engine import executor_info, make_executor
from lensprune.engine.base import Executor
from lensprune.errors import UserError, unknown_name
from lensprune.models.load import open_model
from lensprune.protocols import score_items
from lensprune.replacement.pair import ModelPair, model_pair, weight_change
from lensprune.replacement.parts import COMPONENTS, Host, WeightChange, enumerate_parts, whole_model
from lensprune.replacement.result import ReplacementRun
from lensprune.replacement.settings import decoded_alike, prompted
from lensprune.replacement.variants import DISTILLED, Replacement, enumerate_replacements
from lensprune.runs.cell_store import CellStore
from lensprune.runs.folder import check_out_folder
from lensprune.runs.records import CellKey, cell_table
from lensprune.runs.store import open_store, stopped_message
from lensprune.sweeps.answering import answers_of, rows_done
from lensprune.sweeps.cells import warn_of_cut_off
from lensprune.sweeps.conditions import Condition, conditions_of, questions_of
from lensprune.sweeps.job_spec import sweep_spec
from lensprune.sweeps.options import Loading, Splitting, SweepOptions, option_values
from lensprune.sweeps.prepare import decoding_of
from lensprune.sweeps.selection import VariantSelection
from lensprune.sweeps.task_loading import load_tasks
from lensprune.tasks.item_choice import DRAWN
from lensprune.terminal import WorkBar, work_bar

__all__ = ["measure_replacement"]


def measure_replacement(
    base: Any,
    distilled: Any,
    tasks: Sequence[str] | str,
    protocols: Sequence[str] | str = ("default",),
    *,
    component: str = "attention_output",
    mode: str = "single",
    direction: str = "both",
    start: str = "bottom",
    layers: str | None = None,
    heads: str | None = None,
    alpha: float = 1.0,
    renamed_tokens: bool = False,
    settings_of: str = "distilled",
    limit: int | None = None,
    items: str = DRAWN,
    shots: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    leave_out_repeated: bool = False,
    primary_metric: str | None = None,
    chat_template: bool = False,
    template_date: str | None = None,
    template_args: Mapping[str, Any] | None = None,
    fewshot_as_multiturn: bool = False,
    system: str | None = None,
    keep_eos: bool = False,
    thinking: str = "auto",
    think_tokens: tuple[str, str] | None = None,
    thinking_budget: int | None = None,
    max_new_tokens: int | None = None,
    until: Sequence[str] = (),
    until_only: bool = False,
    generation_config: str = "model",
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    samples: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    n_devices: int | None = None,
    bos: str | None = None,
    executor: str = "forked",
    batch_tokens: int | None = None,
    memory: str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    command: str = "",
) -> ReplacementRun:
    """Exchange parts of the weights between a base and a distilled model, and measure what each part carries.

    Each model is in memory once. A part is exchanged in place, both models are measured, and the exchange is
    undone exactly; no checkpoint is written. The records are those of a sweep: variant ``clean`` is the base,
    ``distilled`` the other model, ``base+PART`` the base with the distilled model's part, ``distilled-PART`` the
    reverse.

    Args:
        base, distilled: names or paths for `load_model`, or loaded models; of one shape, with one tokenizer.
        component: one of `COMPONENTS`.
        mode: ``single``, ``cumulative`` (from `start`: ``bottom`` or ``top``) or ``range`` (all chosen at once).
        direction: ``forward`` (into the base), ``backward`` (out of the distilled) or ``both``.
        layers, heads: text like ``0,10,20-29``; ``None`` takes all.
        alpha: interpolation factor: base + α · (distilled − base), and the mirror image for the distilled model.
        renamed_tokens: accept models whose special tokens have the same ids but different names.
        settings_of: whose chat template, think tokens, end tokens and generation config both models are measured with,
            ``base`` or ``distilled``. They are alike for all rows, so that weights alone differ.

    The other arguments are those of `lensprune.sweep`.

    Returns:
        The run; `ReplacementRun.shares` has one row per exchanged part and direction: effect on accuracy (positive
        if the part carries the gain) and share of the gain.

    Raises:
        UserError: a pair that can't exchange weights (the first difference is named), or other invalid input.
        KeyboardInterrupt: stopped by the user; both models are restored.

    Examples:
        >>> chains = "arithmetic[operands=3,largest=9,subtract=True]"
        >>> exchanged = lp.measure_replacement(
        ...     "toy-base", "toy-distilled", chains, "generate", component="mlp", layers="0", direction="forward",
        ...     limit=4, progress=False,
        ... )
        >>> exchanged.summary()["variant"].tolist()
        ['clean', 'distilled', 'base+L0.mlp']
    """
    options = SweepOptions.given(variants=VariantSelection(), **option_values(locals(), SweepOptions))
    executor_info(executor)
    if component not in COMPONENTS:
        raise unknown_name("component", component, COMPONENTS)
    if settings_of not in get_args(Host):
        raise unknown_name("model whose settings count", settings_of, get_args(Host))
    enumerate_replacements([], mode, direction, start, alpha)
    folder = None if out is None else Path(out)
    if folder is not None:
        check_out_folder(folder)
    loaded = load_tasks(options)
    models = [open_model(model, **option_values(options, Loading, Splitting)) for model in (base, distilled)]
    pair = model_pair(*models, renamed_tokens=renamed_tokens)
    replacements = _replacements(pair, component, mode, direction, start, layers, heads, alpha)
    whose = prompted(pair, cast(Host, settings_of))
    conditions = conditions_of(whose, loaded, options)
    decoding = decoding_of(whose, conditions, options.generation_config)
    spec = replace(
        sweep_spec(base, pair.base.facts, conditions, options, _descriptions(pair, replacements), decoding=decoding),
        settings_of=settings_of,
    )
    with (
        open_store(folder, spec, questions_of(conditions)) as store,
        decoded_alike(pair, cast(Host, settings_of)),
    ):
        try:
            _execute(pair, replacements, conditions, options, store, progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                stopped_message(store, len(conditions) * (2 + len(replacements)), "measure_replacement")
            ) from None
        changes = _changes(pair, replacements)
        names = (pair.base.facts.name, pair.distilled.facts.name)
        notes = (*pair.notes, f"chat format, end tokens and generation config of both: those of {whose.facts.name}")
        result = ReplacementRun(spec, store, folder, replacements, changes, names, notes)
        if folder is not None:
            result.save()
    return result


def _replacements(
    pair: ModelPair,
    component: str,
    mode: str,
    direction: str,
    start: str,
    layers: str | None,
    heads: str | None,
    alpha: float,
) -> list[Replacement]:
    facts = pair.base.facts
    if component == "unembed" and pair.tied:
        raise UserError("the unembedding is the embedding here (tied): use component embed, which exchanges both")
    parts = enumerate_parts(
        facts,
        component,
        None if layers is None else parse_indices(layers, facts.n_layers, "layer"),
        None if heads is None else parse_indices(heads, facts.n_heads, "head"),
    )
    return enumerate_replacements(parts, mode, direction, start, alpha)


def _descriptions(pair: ModelPair, replacements: Sequence[Replacement]) -> list[dict[str, Any]]:
    hashes = {"base": pair.distilled.facts.weights_hash, "distilled": pair.base.facts.weights_hash}
    whole = [part.label for part in whole_model(pair.base.facts)]
    other = {"host": "base", "parts": whole, "alpha": 1.0, "donor": hashes["base"]}
    known: list[dict[str, Any]] = [{"name": CLEAN.name, "ablations": []}, {"name": DISTILLED, "replacement": other}]
    return [*known, *(replacement.to_json(hashes[replacement.host]) for replacement in replacements)]


def _changes(pair: ModelPair, replacements: Sequence[Replacement]) -> dict[str, WeightChange]:
    parts = {replacement.label: replacement.parts for replacement in replacements}
    return {label: weight_change(pair, chosen) for label, chosen in parts.items()}


def _execute(
    pair: ModelPair,
    replacements: Sequence[Replacement],
    conditions: Sequence[Condition],
    options: SweepOptions,
    store: CellStore,
    progress: bool,
) -> None:
    hosts: tuple[Host, ...] = ("base", "distilled")
    executors = {h: make_executor(options.executor, pair.host(h), options.batch_tokens, options.memory) for h in hosts}
    plain = {"base": CLEAN, "distilled": Variant(DISTILLED)}
    rows = sum(len(part.requests) for part in conditions) * (2 + len(replacements))
    with work_bar({"": rows}, shown=progress) as bar:
        for host in hosts:
            bar.stage(plain[host].name)
            _measure(executors[host], plain[host], conditions, store, bar)
        for group in _by_parts(replacements):
            names = [replacement.name for replacement in group]
            bar.stage(group[0].label)
            if _missing(names, conditions, store):
                with pair.replaced(group[0].parts, group[0].alpha):
                    for replacement in group:
                        _measure(executors[replacement.host], replacement, conditions, store, bar)
    for condition in conditions:
        store.forget_answers(*condition.key)


def _by_parts(replacements: Sequence[Replacement]) -> list[list[Replacement]]:
    """Group the replacements of the same parts: one exchange in place makes both directions."""
    groups: dict[str, list[Replacement]] = {}
    for replacement in replacements:
        groups.setdefault(replacement.label, []).append(replacement)
    return list(groups.values())


def _missing(names: Sequence[str], conditions: Sequence[Condition], store: CellStore) -> bool:
    finished = store.finished()
    return any(
        CellKey(name, condition.task.task.name, condition.protocol) not in finished
        for name in names
        for condition in conditions
    )


def _measure(
    executor: Executor, variant: Variant | Replacement, conditions: Sequence[Condition], store: CellStore, bar: WorkBar
) -> None:
    """Run the model in its current state, and store its outcomes under the variant's name."""
    for condition in conditions:
        key = CellKey(variant.name, condition.task.task.name, condition.protocol)
        if key in store.finished():
            bar.spare(len(condition.requests), "")
            continue
        # One cell at a time: if an earlier one is missing again, what is kept of a later one is lost.
        with store.answer_log(key.task, key.protocol) as log:
            [answered] = answers_of(condition.requests, [Variant(variant.name)], executor, rows_done(bar), log)
            outcomes = score_items(condition.task, condition.protocol, condition.items, answered.responses)
            if isinstance(variant, Variant) and condition.generates:
                warn_of_cut_off(key.task, key.protocol, outcomes, condition.generation["max_new_tokens"])
            store.write(key, cell_table(key, variant, outcomes, condition.items, condition.chances))
