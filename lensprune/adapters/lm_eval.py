"""Run any lm-eval task under any variants: lm-eval makes prompts and aggregates, lensprune's executor answers.

The requests are collected once, answered for all variants in one run of the executor, and replayed to lm-eval, which
computes its metrics and writes its result and sample files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import Variant, VariantsLike, as_variants
from lensprune.engine.base import Executor, ProgressCallback
from lensprune.errors import LensPruneError, UserError, first_line, unknown_name
from lensprune.models.adapt import current_model
from lensprune.models.base import AnyModel
from lensprune.offline import is_offline
from lensprune.sweeps.reached import check_reached

__all__ = ["LmEvalOptions", "run_lm_eval_tasks"]


@dataclass(frozen=True)
class LmEvalOptions:
    """Options for lm-eval.

    `limit`: documents per task; ``None`` takes all. `num_fewshot`: as lm-eval's ``--num_fewshot``. `include_path`:
    folder of custom YAML tasks. `out`: folder for ``<variant>/<model>/results_<date>.json`` and
    ``samples_<task>_<date>.jsonl``, in lm-eval's layout; it must be empty. `task_manager`: an
    ``lm_eval.tasks.TaskManager`` to reuse (a new one reads every task's name, which takes seconds); it replaces
    `include_path`.
    """

    limit: int | None = None
    num_fewshot: int | None = None
    include_path: str | Path | None = None
    out: str | Path | None = None
    task_manager: Any | None = None


def run_lm_eval_tasks(
    model: AnyModel,
    task_names: Sequence[str],
    variants: VariantsLike,
    executor: Executor,
    options: LmEvalOptions | None = None,
    *,
    reference: ReferenceActivations | None = None,
    progress: ProgressCallback | None = None,
    announce: Callable[[int], object] | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluate lm-eval's tasks, groups or tags, or custom YAML tasks, under every variant.

    Args:
        model: anything that `as_hooked_model` accepts.
        task_names: names that lm-eval knows, or paths of YAML files.
        reference: activations for variants that need them.
        progress, announce: called with requests answered, and before that once with how many there are.

    Returns:
        variant name → what ``lm_eval.simple_evaluate`` returns, samples included.

    Raises:
        UserError: lm-eval is not installed; unknown task; two variants of one name; `out` holds files; a task samples
            at random, searches with beams, or reads images or audio.
        LensPruneError: lm-eval sent a request under a variant that it had not sent before, or did not
            write its files.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        from lensprune.adapters.lm_eval_replay import RecordingLM, ReplayingLM
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise UserError("lm-eval is not installed: pip install 'lensprune[lm-eval]'") from error

    hooked, variants = current_model(model), as_variants(variants)
    options = options or LmEvalOptions()
    folders = _output_folders(options.out, variants)
    if options.limit is not None and options.limit <= 0:
        raise UserError(f"limit must be a positive number of documents, not {options.limit}")
    path = options.include_path
    manager = options.task_manager or TaskManager(include_path=None if path is None else str(path))
    tasks = _load(manager, task_names)

    def evaluate(lm: Any, bootstrap_iters: int) -> dict[str, Any]:
        results: dict[str, Any] = simple_evaluate(
            model=lm,
            tasks=tasks,
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            task_manager=manager,
            bootstrap_iters=bootstrap_iters,
        )
        return results

    recorder = RecordingLM(hooked)
    evaluate(recorder, bootstrap_iters=0)
    results_of: dict[str, dict[str, Any]] = {}
    requests = recorder.requests
    check_reached(hooked, [[request] for request in requests], variants, f"lm-eval's {', '.join(task_names)}")
    if announce is not None:
        announce(len(requests) * len(variants))
    for answered in executor.run(requests, variants, reference=reference, progress=progress):
        name = answered.variant.name
        lm = ReplayingLM(hooked, recorder.answers(answered.responses), name)
        results = evaluate(lm, bootstrap_iters=100_000)
        results["config"].update(model="lensprune", model_args={"pretrained": hooked.facts.name, "variant": name})
        if folders:
            _write(folders[name], hooked.facts.name, results)
        results_of[name] = results
    return {variant.name: results_of[variant.name] for variant in variants}


def _load(manager: Any, names: Sequence[str]) -> list[Any]:
    """Load tasks and groups once, so that data sets are read once for all variants."""
    if not names:
        raise UserError("no lm-eval task given: name at least one")
    for name in names:
        if name not in manager.all_tasks and not (name.endswith((".yaml", ".yml")) and Path(name).is_file()):
            raise unknown_name("lm-eval task", name, manager.all_tasks)
    import datasets

    offline = is_offline()
    try:
        with hub_closed() if offline else nullcontext():
            loaded = manager.load(list(names))
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        advice = (
            "LENSPRUNE_OFFLINE or HF_HUB_OFFLINE is set, so their data must be in the cache of datasets"
            if offline
            else "check the network, or that their data is in the cache of datasets"
        )
        raise UserError(f"lm-eval cannot load {', '.join(names)} ({first_line(error)}): {advice}") from error
    inner = {child for children in loaded["group_map"].values() for child in children}
    in_groups = {task.task_name for group in loaded["groups"].values() for task in group.get_all_tasks()}
    roots = [group for name, group in loaded["groups"].items() if name not in inner]
    return roots + [task for name, task in loaded["tasks"].items() if name not in in_groups]


@contextmanager
def hub_closed() -> Iterator[None]:
    """Make datasets and the hub's client use only their caches, whenever they were imported."""
    import datasets.config
    import huggingface_hub.constants

    places: list[Any] = [datasets.config, huggingface_hub.constants]
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _output_folders(out: str | Path | None, variants: Iterable[Variant]) -> Mapping[str, Path]:
    names = [variant.name for variant in variants]
    if len(set(names)) != len(names):
        raise UserError(f"two variants share a name: {', '.join(sorted(n for n in set(names) if names.count(n) > 1))}")
    if out is None:
        return {}
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output folder {str(out)!r} is not empty: choose a new one")
    for name in names:
        if Path(name).name != name:
            raise UserError(f"variant name {name!r} cannot be a folder's name: leave out / and .")
    return {name: folder / name for name in names}


def _write(folder: Path, model_name: str, results: dict[str, Any]) -> None:
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.log_experiment_args(
        model_source="lensprune",
        model_args={"pretrained": model_name},
        system_instruction=None,
        chat_template=None,
        fewshot_as_multiturn=False,
    )
    samples = results["samples"]
    tracker.save_results_aggregated({key: value for key, value in results.items() if key != "samples"}, samples)
    for task, rows in samples.items():
        # The tracker modifies its rows in place.
        tracker.save_results_samples(task, [dict(row) for row in rows])
    # lm-eval logs a failure to write and continues, which would lose results silently.
    written = [path.name for path in folder.rglob("*.json*") if path.stat().st_size]
    expected = ["results", *(f"samples_{task}" for task in samples)]
    missing = [stem for stem in expected if not any(name.startswith(f"{stem}_") for name in written)]
    if missing:
        raise LensPruneError(f"lm-eval could not write {', '.join(missing)} below {folder}")
