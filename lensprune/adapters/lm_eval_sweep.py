"""A sweep over tasks of lm-eval's own registry; lm-eval makes prompts, aggregates and writes its own files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lensprune.ablation.collect import collect_reference
from lensprune.ablation.kinds import ablation_kind
from lensprune.ablation.variants import CLEAN
from lensprune.engine import executor_info, make_executor
from lensprune.errors import UserError
from lensprune.models.base import ModelOrName
from lensprune.models.load import open_model
from lensprune.sweeps.options import FEWSHOT
from lensprune.sweeps.references import read_reference_text, text_prompts
from lensprune.sweeps.selection import VariantSelection, with_clean
from lensprune.terminal import progress_bar

__all__ = ["metric_table", "sweep_lm_eval"]

_COLUMNS = ["variant", "task", "metric", "value", "value_clean", "delta"]


def sweep_lm_eval(
    model: ModelOrName,
    names: Sequence[str],
    variants: VariantSelection,
    *,
    limit: int | None = None,
    shots: int | None = None,
    reference: str | Path = FEWSHOT,
    mean_mode: str = "pooled",
    seed: int = 0,
    dtype: str | None = None,
    device: str | None = None,
    n_devices: int | None = None,
    bos: str | None = None,
    executor: str = "forked",
    batch_tokens: int | None = None,
    memory: str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Evaluate lm-eval's tasks under the clean model and every variant.

    Args:
        names: names that lm-eval knows, or paths of YAML files.
        out: folder for lm-eval's result and sample files, one folder per variant.
        reference: `mean`, `resample` and `optimal` need a text file here, because few-shot pools stay inside lm-eval.

    The other arguments are those of `lensprune.sweep`.

    Returns:
        One row per (variant, task, metric): `value`, the clean model's `value_clean`, and `delta` between them.

    Raises:
        UserError: lm-eval is not installed, an unknown task, or other invalid input.
    """
    from lensprune.adapters.lm_eval import LmEvalOptions, run_lm_eval_tasks

    executor_info(executor)
    wants_reference = ablation_kind(variants.kind).reference is not None
    if wants_reference and str(reference) == FEWSHOT:
        raise UserError(f"{variants.ablation} over lm-eval's tasks needs a text file as reference")
    text = read_reference_text(reference) if str(reference) != FEWSHOT else None
    hooked = open_model(model, dtype=dtype, device=device, n_devices=n_devices, bos=bos)
    chosen = with_clean(variants.resolve(hooked.facts), hooked.facts)
    collected = None
    if wants_reference and text is not None:
        prompts = text_prompts(hooked, text, str(reference))
        collected = collect_reference(hooked, prompts, chosen, mode=mean_mode, donor_seed=seed)  # type: ignore[arg-type]
    bar: Any
    with progress_bar(shown=progress, unit="request", description="lm-eval builds its requests") as bar:

        def announce(total: int) -> None:
            bar.reset(total)
            bar.set_description(f"{len(chosen) - 1} variants and the clean model")

        results = run_lm_eval_tasks(
            hooked,
            names,
            chosen,
            make_executor(executor, hooked, batch_tokens, memory),
            LmEvalOptions(limit, shots, out=out),
            reference=collected,
            progress=bar.update,
            announce=announce,
        )
    return metric_table(results)


def metric_table(results: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """The metrics in lm-eval's results, without standard errors, next to the clean model's."""
    clean = results[CLEAN.name]["results"]
    rows = []
    for variant, of_variant in results.items():
        for task, metrics in of_variant["results"].items():
            for metric, value in metrics.items():
                if isinstance(value, (int, float)) and "stderr" not in metric and "," in metric:
                    before = float(clean[task][metric])
                    rows.append([variant, task, metric, float(value), before, float(value) - before])
    return pd.DataFrame(rows, columns=_COLUMNS)
