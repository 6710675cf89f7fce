"""Run a sweep: every variant on every task under every protocol."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lensprune.ablation.variants import Variant, VariantsLike
from lensprune.analysis.decisions import decided, next_block
from lensprune.analysis.multiplicity import LEVEL
from lensprune.analysis.power import power_line
from lensprune.costs.history import SpeedHistory
from lensprune.engine.base import Executor
from lensprune.errors import UserError
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import ModelOrName
from lensprune.results.run import Run
from lensprune.runs.answers import remove_answers
from lensprune.runs.cell_store import CellStore
from lensprune.runs.folder import check_out_folder, read_spec
from lensprune.runs.noise import noise_lines
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.records import CellKey
from lensprune.runs.spec import SweepSpec
from lensprune.runs.store import RunStore, open_store, stopped_message
from lensprune.runs.variant_json import variant_from_json
from lensprune.sweeps.answering import AnswerProgress
from lensprune.sweeps.blocks import block_requests, blocks_left, decided_so_far, measure_block
from lensprune.sweeps.cells import measure_cells
from lensprune.sweeps.conditions import Condition, questions_of
from lensprune.sweeps.forecast import Forecast, Spent, forecast, memory_used, planned_and_taken
from lensprune.sweeps.noise import with_noise
from lensprune.sweeps.options import FEWSHOT, SweepOptions, executor_options, option_values
from lensprune.sweeps.prepare import SweepJob, prepare
from lensprune.sweeps.screening import screened
from lensprune.sweeps.selection import VariantSelection
from lensprune.sweeps.thinking_prefix import with_clean_thinking
from lensprune.tasks.item_choice import DRAWN
from lensprune.terminal import WorkBar, stage, work_bar

__all__ = ["resume", "run_sweep", "sweep"]


def sweep(
    model: ModelOrName,
    tasks: Sequence[str] | str,
    protocols: Sequence[str] | str = ("default",),
    variants: VariantsLike | VariantSelection = "layers",
    *,
    limit: int | None = None,
    items: str = DRAWN,
    shots: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    reference: str | Path = FEWSHOT,
    mean_mode: str = "pooled",
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
    thinking_prefix: str | None = None,
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
    workers: int | None = None,
    ray_address: str | None = None,
    batch_tokens: int | None = None,
    memory: str | None = None,
    screen: float | None = None,
    screen_rule: str | None = None,
    lost_more_than: float | None = None,
    looks: str | None = None,
    q: float = LEVEL,
    until_width: float | None = None,
    keep_hooks: bool = False,
    out: str | Path | None = None,
    progress: bool = True,
    command: str = "",
) -> Run:
    """Measure accuracy with parts of a model removed, and its change from the clean model's on the same items.

    The clean model is always measured first. Every finished cell (variant, task, protocol) is stored immediately. To
    resume a stopped sweep with an `out` folder, repeat the call or use `resume`.

    Args:
        model: a name or path for `load_model`, or a loaded model.
        tasks: task names, ``name`` or ``name[key=value,...]``, or paths of tasks' YAML files.
        protocols: any of ``default``, ``continuation``, ``generate``.
        variants: variants such as ``each_layer(model, "skip")``, a `VariantSelection`, or what to sweep over:
            ``layers``, ``attention``, ``mlp``, ``heads``, ``kv-groups``, ``heads-and-groups``. A variant may also be
            given as an `Ablation`, a list of these, or its name, like ``L12.skip``.
        limit: number of items per task; ``None`` takes all.
        items: which ones a limit takes, as in `load_task`: ``drawn`` (a sample by `seed`) or ``first``.
        shots: number of few-shot examples; ``None`` takes each task's default.
        seed: seed of drawn items, few-shot examples, generated tasks and the donor prompt.
        data_dir: folder with ``<task>/<split>.jsonl``.
        reference: where `mean` and `resample` take their activations from: ``fewshot`` (each task's own examples
            that are not scored, in the protocol's format) or a text file.
        mean_mode: ``pooled`` (over ordinary positions; the first token has its own mean), ``pooled_all`` (one mean over
            all positions) or ``per_position``.
        leave_out_repeated: leave out items that are among their own few-shot examples because a row is in two splits;
            otherwise they are kept, as in lm-eval, with a warning.
        primary_metric: metric that decides whether a generated answer is right, like ``equal,boxed``; ``None`` takes
            the task's, which is lm-eval's.
        chat_template: put prompts into the model's chat format.
        template_date: date that a chat template with a clock writes, YYYY-MM-DD; ``None`` is 2024-07-26 on any day.
        template_args: further variables of the chat template, by name.
        fewshot_as_multiturn: in the chat format, make each few-shot example a separate turn instead of putting all into
            one message.
        system: system prompt, placed before the task's description.
        keep_eos: keep the EOS token that some tokenizers append to a prompt, as lm-eval does; otherwise it is left out,
            and the spec records it.
        thinking: ``on`` and ``off`` set the chat template's ``enable_thinking``; ``auto`` leaves the template's
            default. In the chat format, thinking is separated from the answer: see `lensprune.protocols.thinking`.
        think_tokens: markers of the start and end of thinking; ``None`` takes known ones of the tokenizer, such as
            ``<think>`` and ``</think>``, in the chat format, and none without it.
        thinking_budget: number of tokens after which the end of thinking is forced; ``None``: never.
        thinking_prefix: ``clean`` scores the options of the likelihood protocols after the clean model's thinking, up
            to the budget, under every variant.
        max_new_tokens: maximum number of new tokens per text, under ``generate``; ``None`` takes the task's number.
        until, until_only: stop strings, in addition to the task's or instead of them.
        generation_config: ``none`` ignores the model's generation config: penalties, suppressed tokens, end tokens.
        temperature: above 0, texts are sampled, with random numbers that depend only on (seed, item, sample,
            position), so variants are coupled to the clean model; ``None`` takes the task's, usually 0.
        top_p, top_k: which tokens are sampled from; ``None`` takes the task's or the generation config's.
        samples: texts per item; Δμ and its interval are then over items, whose outcome is the mean of their samples.
        dtype, device, n_devices, bos: for `load_model`, if `model` is a name.
        executor: ``forked`` or ``hooked``; all executors give the same numbers. ``ray`` distributes the cells to Ray
            workers that run ``forked``, ``ray:hooked`` to workers that run ``hooked``.
        workers: number of workers with ``ray``; ``None`` takes one per GPU, or one per CPU core without GPUs.
        ray_address: with ``ray``, a running cluster, ``ray://head:10001`` or ``auto``; ``None`` starts a local one.
        batch_tokens: tokens per batch; ``None`` takes the executor's default.
        memory: memory to use besides the model's weights, like ``4GB``, instead of the default budgets.
        screen: share of the parts to measure: those with the largest estimated loss (`lensprune.sweeps.screening`),
            plus a random control set. `Run.screen` has both.
        screen_rule: gradient rule of the estimates, ``plain`` (the default), ``relp`` or ``gim``, or ``any``, the best
            rank under these three (`lensprune.engine.gradient_rules`).
        lost_more_than: test which variants lose more accuracy than this. Each is measured on blocks of items until it
            is detected, at false discovery rate `q`, or given up (`lensprune.analysis.sequential`).
        looks: ends of these blocks, like ``"100,200,400"``; ``None``: four, up to `limit`; ``any``: e-values, whose
            verdicts hold whenever the sweep is stopped, for more items.
        q: false discovery rate of the detected variants.
        until_width: each variant is measured on blocks of items until its 95% interval is no wider than this.
        keep_hooks: treat hooks that you left on a loaded model as part of it; the spec names them. Otherwise they are
            refused.
        out: run folder; ``None`` keeps the run in memory.
        progress: show a progress bar.
        command: the command line, stored in the spec.

    Returns:
        The run; `Run.summary` has one row per cell, with Δμ = accuracy of the variant − accuracy of the clean model.

    Raises:
        UserError: invalid input (nothing is written), or a full disk (finished cells are kept).
        HookNeverFired: a hook of a variant did not run.
        KeyboardInterrupt: stopped by the user; the message says how to resume.

    Examples:
        >>> task = "kv_retrieval[pairs=4,ending=reopened,answer=text]"
        >>> removed = lp.sweep(model, task, "generate", lp.each_layer(model, layers=[1]), limit=4, progress=False)
        >>> removed.summary()[["variant", "accuracy", "delta"]].to_dict("records")
        [{'variant': 'clean', 'accuracy': 1.0, 'delta': 0.0}, {'variant': 'L1.skip', 'accuracy': 0.0, 'delta': -1.0}]
    """
    options = SweepOptions.given(**option_values(locals(), SweepOptions))
    if keep_hooks:
        if isinstance(model, (str, Path)):
            raise UserError(f"keep_hooks is given with the name {str(model)!r}: only a loaded model has hooks to keep")
        model = as_hooked_model(model, keep_hooks=True)
    return run_sweep(model, options, out=out, progress=progress)


def run_sweep(
    model: ModelOrName, options: SweepOptions, *, out: str | Path | None = None, progress: bool = True
) -> Run:
    """`sweep` with its arguments in one object."""
    folder = None if out is None else Path(out)
    if options.backend is not None:
        from lensprune.sweeps.distributed import run_on_ray

        return run_on_ray(model, options, out=folder, progress=progress)
    from lensprune.engine import make_executor

    with stage("loading the model and its prompts", shown=progress):
        job = prepare(model, options, folder)
    executor = make_executor(options.executor, job.model, options.batch_tokens, options.memory)
    # The actual executor, which differs from the requested one if that can't run this model.
    execution = replace(job.spec.execution, executor=executor.name)
    job = replace(job, spec=replace(job.spec, execution=execution))
    existing = None if folder is None else check_out_folder(folder)
    if options.thinking_prefix is not None:
        job = with_clean_thinking(job, executor, folder, progress)
    if options.screen is not None:
        job = screened(job, executor, existing, progress)
    job = with_noise(job, executor, model, existing, progress)
    with open_store(folder, job.spec, questions_of(job.conditions)) as store:
        if progress:
            for line in [*_power_lines(job), *noise_lines(job.spec)]:
                print(line, file=sys.stderr)
        try:
            spent = _execute(job, executor, store, progress)
            if spent is not None:
                execution = getattr(store, "spec", job.spec).execution.and_spent(spent.stored)
                store.keep_execution(execution)
                job = replace(job, spec=replace(job.spec, execution=execution))
                print(planned_and_taken(spent, at_most=options.stopping is not None), file=sys.stderr)
            run = Run(job.spec, store, folder)
            if folder is not None:
                with stage("tables and figures", shown=progress):
                    run.save()
        except KeyboardInterrupt:
            total = len(job.conditions) * len(job.variants) if job.options.stopping is None else None
            by_calling = "sweep" if job.spec.has_hooks else None
            raise KeyboardInterrupt(stopped_message(store, total, by_calling)) from None
    return run


def _power_lines(job: SweepJob) -> list[str]:
    """The smallest loss that the sweep can detect, once per number of items and clusters."""
    shapes = []
    for condition in job.conditions:
        clusters = {item.item.cluster for item in condition.items}
        shapes.append((len(condition.items) // condition.samples, None if None in clusters else len(clusters)))
    if job.options.stopping is not None:
        return []
    parts = len(job.variants) - 1
    lines = (power_line(n, parts, n_clusters) for n, n_clusters in dict.fromkeys(shapes)) if parts else ()
    # Clusters may not change the loss to two digits.
    return list(dict.fromkeys(lines))


def _missing(condition: Condition, variants: Sequence[Variant], finished: set[CellKey]) -> list[Variant]:
    return [v for v in variants if CellKey(v.name, condition.task.task.name, condition.protocol) not in finished]


def _execute(job: SweepJob, executor: Executor, store: CellStore, progress: bool) -> Spent | None:
    """Measure what is missing; return the time and memory taken, if `progress` is shown and anything was missing."""
    finished, stops = store.finished(), job.options.stopping is not None
    # In a sweep that stops early, any variant may lack a later block.
    work = [(c, job.variants if stops else _missing(c, job.variants, finished)) for c in job.conditions]
    history = SpeedHistory.of_machine()
    shown = progress and any(variants for _, variants in work)
    foreseen = forecast(job, executor, work, history) if shown else None
    began = time.perf_counter()
    with work_bar({} if foreseen is None else foreseen.kinds, shown=shown, planned=True) as bar:
        for condition, variants in work:
            started, before = time.perf_counter(), bar.finished
            if stops:
                _execute_blocks(job, executor, store, bar, condition, foreseen)
            elif variants:
                bar.stage(" ".join(condition.key))
                with store.answer_log(*condition.key) as log:
                    advance = _advance(bar, foreseen, condition.key)
                    for key, table in measure_cells(job, condition, variants, executor, advance, log):
                        store.write(key, table)
            store.forget_answers(*condition.key)
            if foreseen is not None:
                foreseen.remember(condition.key, bar.finished - before, time.perf_counter() - started, history)
        if stops:
            bar.set_left({})
        if foreseen is None or not bar.finished:
            return None
        seconds, used = time.perf_counter() - began, memory_used(job.model.facts.device)
    return Spent(foreseen.seconds, foreseen.memory, seconds, used, torch.get_num_threads())


def _advance(bar: WorkBar, foreseen: Forecast | None, condition: tuple[str, str]) -> AnswerProgress:
    """The callback that advances the bar by the answered requests of one (task, protocol)."""

    def advance(variant: str, rows: float, *, known: bool = False) -> None:
        if foreseen is not None:
            (bar.spare if known else bar.done)(foreseen.work(condition, variant, rows), foreseen.kind(condition))

    return advance


def _execute_blocks(
    job: SweepJob,
    executor: Executor,
    store: CellStore,
    bar: WorkBar,
    condition: Condition,
    foreseen: Forecast | None,
) -> None:
    """Measure one (task, protocol), block by block."""
    outcomes, stopping = Outcomes(job.spec, store), job.options.stopping
    requests = {c.key: block_requests(c, stopping) for c in job.conditions}
    advance = _advance(bar, foreseen, condition.key)
    while (block := next_block(outcomes, *condition.key)) is not None:
        bar.stage(f"{' '.join(condition.key)}, block {block.block + 1}, {decided_so_far(outcomes)}")
        if foreseen is not None:
            bar.set_left(blocks_left(outcomes, requests, foreseen.work, foreseen.kind))
        with store.answer_log(*condition.key, block.block) as log:
            for key, table in measure_block(job, condition, block.block, block.lack, executor, advance, log):
                store.write(key, table)


def resume(
    folder: str | Path,
    *,
    progress: bool = True,
    executor: str | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
) -> Run:
    """Resume the run in `folder`; for a finished run, only the summary is rewritten.

    Args:
        folder: run folder, the `out` of `sweep`.
        progress: show a progress bar.
        executor: run the missing cells with this executor, or distribute them as in `sweep`; results are the same.
        workers, ray_address: as for `sweep`; not needed with `executor` if the run already used Ray workers.

    Returns:
        The finished run.

    Raises:
        UserError: no run there; its model, tasks or data have changed (the difference is named); its model or its
            hooks exist only in Python.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = run.save(folder)
        ...     lp.resume(folder, progress=False).n_finished
        5
    """
    path = Path(folder)
    spec = read_spec(path)
    if spec.replaces_weights:
        raise UserError(
            f"{path} holds a weight replacement: read it with ReplacementRun.load, or, if it was stopped, call "
            "lensprune delta again with the same arguments and the same out folder"
        )
    if executor is None and spec.execution.backend is not None:
        executor = f"{spec.execution.backend}:{spec.execution.executor}"
        workers = spec.execution.workers if workers is None else workers
        ray_address = spec.execution.ray_address if ray_address is None else ray_address
    execution = executor_options(executor or spec.execution.executor, workers, ray_address)
    if RunStore.is_complete(path) or (spec.stopping is not None and decided(Run.load(path))):
        run = Run.load(path)
        run.save()
        remove_answers(path)
        return run
    options = replace(_options_of(spec), **execution)
    if spec.execution.model is None:
        raise UserError(
            f"the model of {path} was given as an object: continue by calling lensprune.sweep again with the same "
            "arguments and the same out folder"
        )
    return run_sweep(spec.execution.model, options, out=path, progress=progress)


def _options_of(spec: SweepSpec) -> SweepOptions:
    """The options of the run, read from the spec under their own names, except those that the spec resolved."""
    execution = spec.execution
    values = option_values({**vars(spec), **vars(execution)}, SweepOptions) | {
        "tasks": tuple(execution.task_files.get(task.name, task.name) for task in spec.tasks),
        "variants": tuple(variant_from_json(variant) for variant in spec.variants),
        "reference": execution.reference_file,
        "device": None if execution.n_devices else spec.device,
        "screen": None if spec.screen is None else float(spec.screen["fraction"]),
        "screen_rule": None if spec.screen is None else str(spec.screen["rule"]),
        **_stopping_options(spec),
    }
    return SweepOptions(**{name: value for name, value in values.items() if value is not None})


def _stopping_options(spec: SweepSpec) -> dict[str, Any]:
    stopping = spec.stopping
    if stopping is None:
        return {}
    if "width" in stopping:
        return {"until_width": stopping["width"]}
    looks = ",".join(map(str, stopping["items"]))
    return {"lost_more_than": stopping["margin"], "looks": looks, "q": stopping["q"]}
