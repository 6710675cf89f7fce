"""The main job: every variant on every task under every protocol, into a run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lensprune.ablation.reference import ReferenceActivations, collect_reference
from lensprune.ablation.variants import Variant
from lensprune.engine.base import Executor
from lensprune.errors import LensPruneError, UserError
from lensprune.sweep.prepare import Asked, Prepared, SweepOptions, prepare
from lensprune.sweep.records import CellKey, cell_table
from lensprune.sweep.references import FEWSHOT
from lensprune.sweep.result import Run
from lensprune.sweep.selection import VariantSelection
from lensprune.sweep.spec import SweepSpec
from lensprune.sweep.store import CellStore, MemoryStore, RunStore, read_spec
from lensprune.sweep.variant_json import variant_from_json

__all__ = ["chosen_variants", "resume", "run_sweep", "sweep"]

logger = logging.getLogger("lensprune")


def sweep(
    model: Any,
    tasks: Sequence[str] | str,
    protocols: Sequence[str] | str = ("default",),
    variants: Sequence[Variant] | VariantSelection | str = "layers",
    *,
    limit: int | None = None,
    shots: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    reference: str | Path = FEWSHOT,
    mean_mode: str = "pooled",
    chat_template: bool = False,
    dtype: str | None = None,
    device: str | None = None,
    n_devices: int | None = None,
    bos: str | None = None,
    executor: str = "forked",
    batch_tokens: int | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    command: str = "",
) -> Run:
    """Measure accuracy with parts of a model removed, and how it differs from the whole model's on the same items.

    The clean model is always measured first. Every finished cell (variant, task, protocol) is stored at once, so a
    sweep with an `out` folder that was stopped goes on where it was, when it is called again or with ``resume``.

    Args:
        model: a name or path for `load_model`, or a loaded model.
        tasks: task names, ``name`` or ``name[key=value,...]``.
        protocols: any of ``default``, ``continuation``, ``generate``.
        variants: variants such as ``each_layer(model, "skip")``, a `VariantSelection`, or what to sweep over:
            ``layers``, ``attention``, ``mlp``, ``heads``, ``kv-groups``.
        limit: the first so many items of each task; ``None`` takes all.
        shots: few-shot examples; ``None`` takes each task's own number.
        seed: of few-shot examples, generated tasks and the donor prompt.
        data_dir: folder with ``<task>/<split>.jsonl``.
        reference: where `mean` and `resample` take their activations from: ``fewshot`` (each task's own examples
            that are not scored, asked as the protocol asks) or a text file.
        mean_mode: ``pooled`` over positions or ``per_position``.
        chat_template: put prompts into the model's chat format.
        dtype, device, n_devices, bos: for `load_model`, when `model` is a name.
        executor: how rows are run; every executor gives the same numbers.
        batch_tokens: tokens in a batch; ``None`` takes the executor's default.
        out: run folder; ``None`` keeps the run in memory.
        progress: show a progress bar.
        command: the command line, kept in the spec.

    Raises:
        UserError: anything the user can mend; nothing is written then, apart from cells that were finished before
            a disk filled up.
        HookNeverFired: a hook of a variant did not run.
        KeyboardInterrupt: stopped by the user; the message says how to go on.
    """
    options = SweepOptions(
        tasks=(tasks,) if isinstance(tasks, str) else tuple(tasks),
        protocols=(protocols,) if isinstance(protocols, str) else tuple(protocols),
        variants=chosen_variants(variants),
        limit=limit,
        shots=shots,
        seed=seed,
        data_dir=data_dir,
        reference=reference,
        mean_mode=mean_mode,
        chat_template=chat_template,
        dtype=dtype,
        device=device,
        n_devices=n_devices,
        bos=bos,
        executor=executor,
        batch_tokens=batch_tokens,
        command=command,
    )
    return run_sweep(model, options, out=out, progress=progress)


def chosen_variants(variants: Sequence[Variant] | VariantSelection | str) -> VariantSelection | tuple[Variant, ...]:
    """Variants as `SweepOptions` takes them; a word is what to sweep over."""
    if isinstance(variants, str):
        return VariantSelection(over=variants)
    return variants if isinstance(variants, VariantSelection) else tuple(variants)


def run_sweep(model: Any, options: SweepOptions, *, out: str | Path | None = None, progress: bool = True) -> Run:
    """`sweep` with its arguments in one object."""
    folder = None if out is None else Path(out)
    from lensprune.engine import make_executor

    prepared = prepare(model, options, folder)
    executor = make_executor(options.executor, prepared.model, options.batch_tokens)
    # The executor that runs, which is not the one asked for where that can't run this model.
    how = replace(prepared.spec.how, executor=executor.name)
    prepared = replace(prepared, spec=replace(prepared.spec, how=how))
    store: CellStore
    with nullcontext(MemoryStore()) if folder is None else RunStore.writing(folder, prepared.spec) as store:
        if isinstance(store, RunStore):
            for name in store.set_aside:
                logger.warning("%s was damaged: it is set aside in %s and computed again", name, folder / "damaged")  # type: ignore[operator]
        try:
            _execute(prepared, executor, store, progress)
            run = Run(prepared.spec, store, folder)
            if folder is not None:
                run.save()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_stopped(prepared, store, folder)) from None
    return run


def _stopped(prepared: Prepared, store: CellStore, folder: Path | None) -> str:
    if folder is None:
        return "stopped; nothing is kept, because the run has no out folder"
    total = len(prepared.asked) * len(prepared.variants)
    done = f"stopped: {len(store.finished())} of {total} cells are stored"
    if any(variant.hooks for variant in prepared.variants):
        return f"{done}; go on by calling sweep again with the same arguments"
    return f"{done}; go on with: lensprune resume {folder}"


def _missing(asked: Asked, variants: Sequence[Variant], finished: set[CellKey]) -> list[Variant]:
    return [v for v in variants if CellKey(v.name, asked.task.task.name, asked.protocol) not in finished]


def _execute(prepared: Prepared, executor: Executor, store: CellStore, progress: bool) -> None:
    finished = store.finished()
    work = [(asked, _missing(asked, prepared.variants, finished)) for asked in prepared.asked]
    rows = sum(len(asked.requests) * len(variants) for asked, variants in work)
    with tqdm(total=rows, unit="row", disable=not progress, file=sys.stderr, dynamic_ncols=True, smoothing=0.1) as bar:
        for asked, variants in work:
            bar.set_description(f"{asked.task.task.name} {asked.protocol}")
            if variants:
                _run_group(prepared, asked, variants, executor, store, bar)


def _run_group(
    prepared: Prepared, asked: Asked, variants: Sequence[Variant], executor: Executor, store: CellStore, bar: Any
) -> None:
    from lensprune.protocols import score_items

    task = asked.task.task.name
    waiting = {variant.name for variant in variants}
    reference = _reference(prepared, asked, variants)
    for answered in executor.run(asked.requests, variants, reference=reference, progress=bar.update):
        outcomes = score_items(asked.task, asked.protocol, asked.items, answered.responses)
        key = CellKey(answered.variant.name, task, asked.protocol)
        store.write(key, cell_table(key, answered.variant, outcomes, asked.items, asked.chances))
        waiting.discard(answered.variant.name)
    if waiting:
        raise LensPruneError(f"executor {executor.name} gave no answer for {', '.join(sorted(waiting))} on {task}")


def _reference(prepared: Prepared, asked: Asked, variants: Sequence[Variant]) -> ReferenceActivations | None:
    wanting = [variant for variant in variants if variant.needs_reference]
    if not wanting:
        return None
    options = prepared.options
    where = f"{options.reference}: {len(asked.reference_prompts)} prompts"
    return collect_reference(
        prepared.model,
        asked.reference_prompts,
        wanting,
        mode=options.mean_mode,  # type: ignore[arg-type]
        donor_seed=options.seed,
        description=where,
    )


def resume(folder: str | Path, *, progress: bool = True, executor: str | None = None) -> Run:
    """Continue the run in `folder` where it stopped; a finished run is only summarised again.

    Args:
        executor: run the missing cells with another executor; the numbers are the same.

    Raises:
        UserError: no run there; its model, tasks or data have changed (the difference is named); its model or its
            hooks exist only in Python.
    """
    path = Path(folder)
    spec = read_spec(path)
    if RunStore.is_complete(path):
        run = Run.load(path)
        run.save()
        return run
    options = _options_of(spec)
    if spec.how.model is None:
        raise UserError(
            f"the model of {path} was given as an object: continue by calling lensprune.sweep again with the same "
            "arguments and the same out folder"
        )
    return run_sweep(
        spec.how.model,
        options if executor is None else replace(options, executor=executor),
        out=path,
        progress=progress,
    )


def _options_of(spec: SweepSpec) -> SweepOptions:
    how = spec.how
    return SweepOptions(
        tasks=tuple(task.name for task in spec.tasks),
        protocols=spec.protocols,
        variants=tuple(variant_from_json(variant) for variant in spec.variants),
        limit=spec.limit,
        shots=spec.shots,
        seed=spec.seed,
        data_dir=how.data_dir,
        reference=how.reference_file or FEWSHOT,
        mean_mode=spec.mean_mode or "pooled",
        chat_template=spec.chat_template,
        dtype=spec.dtype,
        device=None if how.n_devices else spec.device,
        n_devices=how.n_devices,
        bos=spec.bos,
        executor=how.executor,
        batch_tokens=how.batch_tokens,
        command=how.command,
    )
