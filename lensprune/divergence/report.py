"""The work of ``lensprune fidelity``: fidelity of each part, or its validation, as tables and text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import pandas as pd

from lensprune.ablation.enumeration import each_head, each_layer, parse_indices
from lensprune.divergence.failure_breakdown import FAILURES
from lensprune.divergence.measure import fidelity
from lensprune.divergence.study import ALL_PROTOCOLS, FidelityStudy, validate_fidelity
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import ModelOrName
from lensprune.models.load import open_model
from lensprune.output.plain_text import for_terminal
from lensprune.output.results_folder import write_results
from lensprune.output.tables import aligned, frame_json, of_how_many
from lensprune.runs.chance import known_at_chance
from lensprune.sweeps.options import AnswerArguments

__all__ = ["fidelity_report"]

_WEAKEST = 8
_SAMPLE_EFFICIENCY_SHOWN = ("fidelity", "Δμ itself", "fidelity, shuffled")


def fidelity_report(
    model: ModelOrName,
    tasks: Sequence[str],
    out: str | Path | None = None,
    *,
    over: str = "layers",
    layers: str | None = None,
    validate: bool = False,
    protocols: Sequence[str] | None = None,
    dtype: str | None = None,
    device: str | None = None,
    n_devices: int | None = None,
    bos: str | None = None,
    limit: int = 24,
    seed: int = 0,
    progress: bool = True,
    as_json: bool = False,
    **options: Unpack[AnswerArguments],
) -> str:
    """Measure fidelity, write tables to `out`, and return the lines to print.

    Args:
        model: a name or path for `load_model`, or a loaded model.
        tasks: each must support ``generate``.
        out: folder for ``fidelity.csv``; with `validate` also ``agreement.csv``, ``summary.csv``, ``gap.csv``,
            ``sample_efficiency.csv``, ``seconds.csv``.
        over: ``layers`` or ``heads``.
        layers: like ``0-3,7``; ``None``: all.
        validate: `validate_fidelity` instead of `fidelity` alone.
        protocols: of `validate_fidelity`; ``None``: all.
        dtype, device, n_devices, bos: for `load_model`, when `model` is a name.
        limit: number of items per task.
        seed: of items and examples.
        progress: show a progress bar.
        as_json: return fidelity.csv as JSON; with `validate`, agreement.csv.
        options: of either; see `lensprune.sweep`.

    Raises:
        UserError: as these raise it, or a file that cannot be written.
    """
    if over not in ("layers", "heads"):
        raise unknown_name("kind of part", over, ("layers", "heads"))
    if protocols is not None and not validate:
        raise UserError("protocols are used only to validate: add --validate, or leave --protocol out")
    hooked = open_model(model, dtype=dtype, device=device, n_devices=n_devices, bos=bos)
    chosen = None if layers is None else parse_indices(layers, hooked.facts.n_layers, "layer")
    if validate:
        study = validate_fidelity(
            hooked.module,
            tasks,
            ALL_PROTOCOLS if protocols is None else protocols,
            over=over,
            layers=chosen,
            limit=limit,
            seed=seed,
            progress=progress,
            **options,
        )
        tables = {"fidelity.csv": study.scores, "agreement.csv": study.agreement, "summary.csv": study.summary}
        tables |= {"gap.csv": study.gap, "seconds.csv": study.seconds, "sample_efficiency.csv": study.sample_efficiency}
        shown, lines = study.agreement, [for_terminal(study.model), *_validation(study)]
    else:
        facts = hooked.facts
        variants = each_layer(facts, "skip", chosen) if over == "layers" else each_head(facts, "zero", chosen)
        shown = fidelity(hooked.module, tasks, variants, limit=limit, seed=seed, progress=progress, **options)
        tables, lines = {"fidelity.csv": shown}, _weakest(shown, kept=out is not None)
    if out is not None:
        lines.append("\n".join(str(path) for path in write_results(Path(out), tables, {})))
    return frame_json(shown) if as_json else "\n\n".join(lines)


def _weakest(scores: pd.DataFrame, *, kept: bool) -> list[str]:
    parts = []
    for task, of_task in scores.groupby("task", sort=False):
        rows = [["part", "fidelity", "95% interval", "follows to the end", "KL"]]
        for row in of_task.sort_values("fidelity", kind="stable").head(_WEAKEST).to_dict("records"):
            interval = f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
            rows.append(
                [row["variant"], f"{row['fidelity']:.3f}", interval, f"{row['follow']:.2f}", f"{row['kl']:.3f}"]
            )
        parts.append(f"{for_terminal(str(task))}: parts without which the model's own answers are followed least\n")
        left = of_how_many(len(rows) - 1, len(of_task), "parts, least followed first", "fidelity.csv", kept=kept)
        parts[-1] += "\n".join(filter(None, [aligned(rows), left]))
    return parts


def _sample_efficiency(table: pd.DataFrame) -> list[str]:
    parts = []
    for task, of_task in table.groupby("task", sort=False):
        rows = [["scored on", *(cell for name in _SAMPLE_EFFICIENCY_SHOWN for cell in (name, "95%"))]]
        for _, at in of_task.groupby("share", sort=False):
            cells = [f"{at['n_few'].iloc[0]} against the other {at['n_rest'].iloc[0]}"]
            for row in at.to_dict("records"):
                cells += [f"{row['spearman']:+.2f}", f"[{row['spearman_low']:+.2f}, {row['spearman_high']:+.2f}]"]
            rows.append(cells)
        title = f"{for_terminal(str(task))}: rank correlation of a few items' scores with Δμ (generate) on the others"
        parts.append(f"{title}\n{aligned(rows)}")
    return parts


def _guessed(summary: pd.DataFrame) -> pd.DataFrame:
    """The clean rows of tasks and protocols at chance."""
    return summary[summary["variant"].eq("clean") & known_at_chance(summary)]


def _validation(study: FidelityStudy) -> list[str]:
    parts = []
    for (task, protocol), group in study.agreement.groupby(["task", "protocol"], sort=False):
        first = group.iloc[0]
        title = (
            f"{for_terminal(str(task))}, {protocol}: rank correlation with Δμ over {first['n_variants']} parts "
            f"(clean accuracy {first['accuracy_clean']:.2f}, n {first['n']}, ceiling {first['ceiling']:.2f})"
        )
        rows = [["measure", "Spearman", "95% interval", "Kendall", "95% interval", "95% of shuffles below", "p"]]
        for row in group.to_dict("records"):
            cells = [str(row["measure"])]
            for name in ("spearman", "kendall"):
                cells += [f"{row[name]:+.2f}", f"[{row[f'{name}_low']:+.2f}, {row[f'{name}_high']:+.2f}]"]
            rows.append([*cells, f"{row['shuffled_high']:+.2f}", f"{row['p_value']:.2g}"])
        parts.append(f"{title}\n{aligned(rows)}")
    guessed = _guessed(study.summary)
    parts += [
        f"{for_terminal(str(row['task']))}, {row['protocol']}: at chance (clean accuracy {row['accuracy']:.2f}, "
        f"n {row['n']}), so Δμ means nothing"
        for row in guessed.to_dict("records")
    ]
    nothing_lost = guessed.loc[guessed["protocol"] == "generate", "task"]
    parts += _sample_efficiency(study.sample_efficiency[~study.sample_efficiency["task"].isin(nothing_lost)])
    rows = [["seconds", "sweep under generate", "fidelity", "ratio", "on a fifth of the items", "ratio"]]
    for row in study.seconds.to_dict("records"):
        numbers = (row[name] for name in ("generate", "fidelity", "ratio", "few", "few_ratio"))
        rows.append(
            [for_terminal(str(row["task"])), *(f"{number:.1f}" if pd.notna(number) else "-" for number in numbers)]
        )
    parts.append(aligned(rows))
    if len(study.gap):
        rows = [
            ["mean over parts", "Δμ generate", "Δμ continuation", "gap", *(name.replace("_", " ") for name in FAILURES)]
        ]
        for task, group in study.gap.groupby("task", sort=False):
            mean = group[["delta", "delta_other", "gap", *FAILURES]].mean()
            rows.append([str(task), *(f"{value:+.3f}" for value in mean)])
        parts.append(aligned(rows))
    return parts
