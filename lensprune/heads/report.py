"""The work of ``lensprune heads``: measure head functions, write them, and list the top heads."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lensprune.ablation.components import Head
from lensprune.heads.figures.kinds import unit_scores
from lensprune.heads.scores import SCORES, head_scores
from lensprune.heads.table import check_same_model, effects_of_heads, scores_with_effects, top_heads
from lensprune.models.base import ModelOrName
from lensprune.models.load import open_model
from lensprune.output.drawing.heatmap import head_heatmaps
from lensprune.output.plain_text import for_terminal
from lensprune.output.results_folder import write_results
from lensprune.output.tables import aligned, frame_json, of_how_many
from lensprune.paths import read_texts
from lensprune.results.concentration import file_part, head_tables
from lensprune.results.run import Run
from lensprune.runs.chance import beats_chance
from lensprune.terminal import stage

__all__ = ["heads_report"]

SCORES_FILE = "heads.csv"
EFFECTS_FILE = "heads_and_effects.csv"


def heads_report(
    model: ModelOrName,
    out: str | Path | None = None,
    *,
    scores: Sequence[str] | None = None,
    run: str | Path | Run | None = None,
    text_file: str | Path | None = None,
    limit: int = 20,
    shots: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    device: str | None = None,
    bos: str | None = None,
    most: int = 5,
    progress: bool = True,
    as_json: bool = False,
) -> str:
    """Measure head functions, write tables and heatmaps to `out`, and return the lines to print.

    Args:
        model: a name or path for `load_model`, or a loaded model.
        out: folder for ``heads.csv``, ``figures/heads.png`` and, with `run`, ``heads_and_effects.csv``,
            ``concentration.csv``, ``figures/lorenz.png`` and, where it has several tasks or protocols, ``overlap.csv``.
        scores, limit, shots, seed: as in `head_scores`.
        run: a sweep over heads (or its folder) whose effects are shown next to the scores.
        text_file: texts, separated by blank lines, for attention sink, entropy and distance.
        dtype, device, bos: for `load_model`, when `model` is a name.
        most: heads listed for each score.
        progress: show what is measured.
        as_json: return heads.csv as JSON; with `run`, heads_and_effects.csv.

    Raises:
        UserError: as `head_scores` and `scores_with_effects`, or a file that cannot be read or written.
    """
    effects_of = run if isinstance(run, Run) or run is None else Run.load(run)
    if effects_of is not None:
        # Before the scores, which take minutes.
        effects_of_heads(effects_of)
    texts = None if text_file is None else read_texts(Path(text_file))
    with stage("loading the model", shown=progress):
        hooked = open_model(model, dtype=dtype, device=device, bos=bos)
    if effects_of is not None:
        check_same_model(effects_of, hooked.facts)
    measured = head_scores(hooked, scores, texts=texts, limit=limit, shots=shots, seed=seed, progress=progress)
    lines = [
        f"{hooked.facts.name}: {hooked.facts.n_layers} layers × {hooked.facts.n_heads} heads",
        _top(measured, most),
    ]
    shown, tables = measured, {SCORES_FILE: measured}
    draw: dict[str, Callable[[], Axes | list[Axes]]] = {
        "heads": partial(head_heatmaps, measured, title=hooked.facts.name, unit_range=unit_scores())
    }
    if effects_of is not None:
        shown = tables[EFFECTS_FILE] = joined = scores_with_effects(measured, effects_of)
        lines.append(_strongest(joined, most, kept=out is not None))
        ways = list(dict.fromkeys(joined["ablation"]))
        for ablation in ways:
            analysed = head_tables(effects_of, ablation)
            name = f"_{file_part(ablation, ways)}" if len(ways) > 1 else ""
            tables[f"concentration{name}.csv"] = analysed.concentration
            lines.append(_concentration(analysed.concentration, ablation))
            if any(of_condition.effects.any() for of_condition in analysed.effects):
                draw[f"lorenz{name}"] = partial(effects_of.plot, "lorenz", component="head", ablation=ablation)
            if analysed.overlap is not None:
                tables[f"overlap{name}.csv"] = analysed.overlap
                lines.append(_overlap(analysed.overlap, ablation))
    if out is not None:
        lines.append("\n".join(str(path) for path in write_results(Path(out), tables, draw)))
    return frame_json(shown) if as_json else "\n\n".join(lines)


def _top(scores: pd.DataFrame, most: int) -> str:
    rows = [["score", "top heads"]]
    best = top_heads(scores, most)
    for name in dict.fromkeys(scores["score"]):
        strongest = best[best["score"] == name]
        named = "  ".join(f"{Head(r.layer, r.head).label} {r.value:.2f}" for r in strongest.itertuples())
        rows.append([str(name), named or "not measured"])
    return aligned(rows)


_NOTHING = "removing single heads changes no answer"


def _concentration(frame: pd.DataFrame, ablation: str) -> str:
    rows = [[f"effects of heads ({ablation})", "statistic", "value", "95% interval", "noise alone", "p"]]
    known = frame[frame["total_effect"] > 0]
    for row in known.to_dict("records"):
        interval, null = (f"[{row[f'{kind}_low']:.2f}, {row[f'{kind}_high']:.2f}]" for kind in ("ci", "null"))
        numbers = [f"{row['value']:.2f}", interval, null, f"{row['p_value']:.2g}"]
        rows.append([_place(row), str(row["statistic"]), *numbers])
    without = frame[frame["total_effect"] == 0].drop_duplicates(["task", "protocol"]).to_dict("records")
    lines = [f"{for_terminal(_place(row))}: {_NOTHING} ({ablation}), so nothing is concentrated" for row in without]
    return "\n".join([*([aligned(rows)] if len(known) else []), *lines])


def _place(row: dict[Hashable, Any]) -> str:
    return f"{row['task']}, {row['protocol']}" + (" (at chance)" if row["at_chance"] else "")


def _overlap(frame: pd.DataFrame, ablation: str) -> str:
    k = int(frame["k"].iloc[0])
    rows = [[f"shared heads ({ablation})", "Spearman", "p", f"shared of the top {k}", "Jaccard", "by chance", "p"]]
    for row in frame.to_dict("records"):
        pair = f"{row['task_a']}, {row['protocol_a']} – {row['task_b']}, {row['protocol_b']}"
        shared = f"{row['shared']} of {row['top_a']} and {row['top_b']}"
        numbers = [_known(row[name], ".2g") for name in ("jaccard", "jaccard_expected", "jaccard_p")]
        rows.append([pair, _known(row["spearman"], "+.2f"), _known(row["spearman_p"], ".2g"), shared, *numbers])
    return aligned(rows)


def _known(value: float, form: str) -> str:
    return "-" if np.isnan(value) else format(value, form)


def _strongest(joined: pd.DataFrame, most: int, *, kept: bool) -> str:
    parts = []
    scores = [name for name in joined.columns if name in SCORES]
    for (task, protocol, ablation), group in joined.groupby(["task", "protocol", "ablation"], sort=False):
        title = f"{task}, {protocol}: heads whose removal ({ablation}) costs most"
        if not beats_chance(group).iloc[0]:
            parts.append(f"{title}\n  at chance: not ranked")
            continue
        if not group["delta"].any():
            parts.append(f"{title}\n  {_NOTHING}")
            continue
        rows = [["head", "Δμ", *scores]]
        for row in group.sort_values("delta", kind="stable").head(most).to_dict("records"):
            values = [f"{row[name]:.2f}" for name in scores]
            rows.append([Head(row["layer"], row["head"]).label, f"{row['delta']:+.3f}", *values])
        left = of_how_many(len(rows) - 1, len(group), "heads, largest losses first", EFFECTS_FILE, kept=kept)
        parts.append("\n".join([title, *("  " + line for line in [*aligned(rows).splitlines(), left] if line)]))
    return "\n\n".join(parts)
