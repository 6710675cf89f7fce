"""The work of ``lensprune primitives``: the roles of parts in worked solutions, as tables, heatmaps and text."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from lensprune.ablation.components import Head
from lensprune.ablation.enumeration import parse_indices
from lensprune.ablation.positions import ALL
from lensprune.analysis.multiplicity import LEVEL
from lensprune.errors import UserError
from lensprune.models.base import ModelOrName
from lensprune.models.load import open_model
from lensprune.output.plain_text import for_terminal
from lensprune.output.results_folder import write_results
from lensprune.output.tables import aligned, frame_json
from lensprune.paths import read_texts
from lensprune.primitives import (
    CLASSES,
    Primitives,
    primitives,
    selectivity,
    task_texts,
    where_effects,
)
from lensprune.primitives.chains import Wording
from lensprune.primitives.figures import primitives_heatmaps, where_heatmaps
from lensprune.primitives.verdicts import NOTHING, Thresholds
from lensprune.terminal import stage

__all__ = ["primitives_report"]

_MAX_ROWS = 20
"""Rows of the printed map."""


def primitives_report(
    model: ModelOrName,
    out: str | Path | None = None,
    *,
    layers: str | None = None,
    text_file: str | Path | None = None,
    text_task: str | None = None,
    least_effect: float = 0.1,
    least_share: float = 0.1,
    draws: int = 20,
    selectivity_ablation: Any = None,
    where: bool = False,
    operands: int = 3,
    largest: int = 9,
    subtract: bool = True,
    limit: int = 24,
    shots: int = 4,
    ablation: str = "zero",
    wording: Wording | None = None,
    seed: int = 0,
    dtype: str | None = None,
    device: str | None = None,
    bos: str | None = None,
    progress: bool = True,
    as_json: bool = False,
) -> str:
    """Run the battery, write tables and heatmaps to `out`, and return the lines to print.

    Args:
        model: a name or path for `load_model`, or a loaded model.
        out: folder for ``effects.csv``, ``causal.csv``, ``evidence.csv``, ``verdicts.csv``, ``controls.csv``,
            ``survival.csv``, ``selectivity.csv`` and ``figures/primitives.png``, with `where` also ``where.csv`` and
            ``figures/where.png``. What was measured is kept in ``stages``: a stopped call continues when it is
            repeated.
        layers: like ``0-3,7``.
        text_file, text_task: general text from a file (separated by blank lines), or another task's right answers.
        least_effect, least_share: thresholds.
        draws: number of random sets of heads to compare with each role's heads; 0 skips `selectivity`.
        selectivity_ablation: ablation for `selectivity`; ``None``: that of `primitives`.
        where: also remove the heads whose removal costs `least_effect` on some class at the tokens of one class at a
            time (`where_effects`).
        operands, largest, subtract, limit, shots, ablation, wording, seed: options of `primitives`.
        dtype, device, bos: for `load_model`, when `model` is a name.
        progress: name the stage that runs.
        as_json: return verdicts.csv as JSON.

    Raises:
        UserError: as `primitives`, or a file that cannot be read or written.
    """
    if text_file is not None and text_task is not None:
        raise UserError("--text and --text-task both define the general text: give only one of them")
    thresholds = Thresholds(effect=least_effect, share=least_share)
    texts: Any = None
    if text_file is not None:
        texts = read_texts(Path(text_file))
    elif text_task is not None:
        texts = task_texts(text_task, limit=limit, seed=seed)
    with stage("loading the model", shown=progress):
        hooked = open_model(model, dtype=dtype, device=device, bos=bos)
    chosen = None if layers is None else parse_indices(layers, hooked.facts.n_layers, "layer")
    result = primitives(
        hooked,
        operands=operands,
        largest=largest,
        subtract=subtract,
        limit=limit,
        shots=shots,
        layers=chosen,
        ablation=ablation,
        texts=texts,
        wording=wording,
        thresholds=thresholds,
        seed=seed,
        keep=None if out is None else Path(out) / "stages",
        progress=progress,
    )
    tables = {
        f"{name}.csv": getattr(result, name)
        for name in ("effects", "causal", "evidence", "verdicts", "controls", "survival")
    }
    lines = [for_terminal(_title(result)), _known(result), _verdicts(result), _controls(result.controls)]
    if len(result.survival):
        lines.append(_survival(result.survival))
    if draws:
        with stage(f"each role's heads and {draws} random sets removed", shown=progress):
            selective = selectivity(hooked, result, draws=draws, ablation=selectivity_ablation)
        tables["selectivity.csv"] = selective
        if len(selective):
            lines.append(_selectivity(selective))
    draw: dict[str, Any] = {"primitives": partial(primitives_heatmaps, result)}
    if where:
        heads = _strong_heads(result)
        if heads:
            with stage(f"{len(heads)} heads removed at tokens of one class at a time", shown=progress):
                mapped = where_effects(hooked, result.chain_options, heads, ablation=result.ablation, seed=seed)
            tables["where.csv"] = mapped
            draw["where"] = partial(
                where_heatmaps, mapped, f"{result.model}: nats lost without a head, by where it is removed"
            )
            lines.append(_where(mapped))
        else:
            lines.append(f"where heads act: no head's removal costs {least_effect:g} nats on any class")
    if result.notes:
        lines.append("\n".join(for_terminal(note) for note in result.notes))
    if out is not None:
        written = write_results(Path(out), tables, draw)
        lines.append("\n".join(str(path) for path in written))
    return frame_json(result.verdicts) if as_json else "\n\n".join(lines)


def _title(result: Primitives) -> str:
    chains = result.chain_options
    signs = "additions and subtractions" if chains.subtract else "additions"
    return (
        f"{result.model}: {chains.limit} chains of {chains.operands} numbers ({signs}, results up to {chains.largest}, "
        f"{chains.shots} shots), parts removed by {result.ablation}"
    )


def _known(result: Primitives) -> str:
    first = result.effects.drop_duplicates("class").set_index("class")["predicted"]
    shown = [f"{kind} {first[kind]:.0%}" for kind in (*CLASSES, "text") if pd.notna(first[kind])]
    return "tokens that the model predicts: " + ", ".join(shown)


def _verdicts(result: Primitives) -> str:
    named = result.verdicts[result.verdicts["verdict"] != NOTHING]
    rows = [["part", "what it does", "because", "its patch also moves"]]
    for row in named.to_dict("records"):
        rows.append([_part(row), str(row["verdict"]), str(row["because"]), str(row["also"])])
    rest = len(result.verdicts) - len(named)
    return f"{aligned(rows)}\n{rest} of {len(result.verdicts)} heads and MLPs: {NOTHING}"


def _part(row: dict[Any, Any]) -> str:
    return f"L{row['layer']}.{'mlp' if pd.isna(row['head']) else 'H' + str(row['head'])}"


def _controls(controls: pd.DataFrame) -> str:
    rows = [["role", "named", "with shuffled classes", "by placebo"]]
    return aligned(rows + [[str(cell) for cell in row] for row in controls.itertuples(index=False)])


def _survival(table: pd.DataFrame) -> str:
    rows = [["role", "part", "test", "same answer", "bootstraps: chains", "pairs", "falls to", "not testable"]]
    for row in table.to_dict("records"):
        numbers = [
            "" if pd.isna(row[name]) else f"{row[name]:{form}}"
            for name, form in (("same_answer", "+.2f"), ("stable_chains", ".0%"), ("stable_pairs", ".0%"))
        ]
        rows.append([str(row["role"]), _part(row), str(row["test"]), *numbers, str(row["fell"]), str(row["untested"])])
    held = int((table["fell"] == "").sum())
    return f"{aligned(rows)}\n{held} of {len(table)} roles by test survive every control that is testable"


def _strong_heads(result: Primitives) -> list[tuple[int, int]]:
    """Heads whose removal costs the threshold on some class."""
    rows = result.effects[(result.effects["component"] == "head") & (result.effects["class"] != "text")]
    strong = rows[rows["effect"] >= result.thresholds.effect]
    return sorted({(int(row["layer"]), int(row["head"])) for row in strong.to_dict("records")})


def _where(table: pd.DataFrame) -> str:
    """The strongest effects of a head's removal at the tokens of one class."""
    overall = table[table["class"] == ALL]
    whole = overall[overall["at"] == ALL].set_index(["layer", "head"])["effect"]
    losing = overall[(overall["at"] != ALL) & (overall["effect"] > 0) & (overall["q_value"] <= LEVEL)]
    rows = [["head", "removed at", "nats per token", "95%", "q", "removed everywhere"]]
    for row in losing.sort_values("effect", ascending=False).head(_MAX_ROWS).to_dict("records"):
        interval = f"[{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
        cells = [Head(int(row["layer"]), int(row["head"])).label, str(row["at"]), f"{row['effect']:+.2f}", interval]
        rows.append([*cells, f"{row['q_value']:.2g}", f"{whole[row['layer'], row['head']]:+.2f}"])
    places = f"{len(overall[overall['at'] != ALL])} heads × places"
    if len(rows) == 1:
        return f"where heads act: nothing resolvable among {places}"
    more = f"; the strongest {_MAX_ROWS} are shown" if len(losing) > _MAX_ROWS else ""
    return f"{aligned(rows)}\n{len(losing)} of {places} lose tokens{more}"


def _selectivity(table: pd.DataFrame) -> str:
    rows = [["all heads of a role removed", "class", "nats lost", "random heads", "p", "sparing coherence", "p"]]
    for row in table.to_dict("records"):
        mark = " (own)" if row["own"] else ""
        cells = [f"{row['role']}: {row['heads']}", f"{row['class']}{mark}", f"{row['effect']:+.2f}"]
        for null, p in (("random", "p_value"), ("spared", "spared_p")):
            cells.append(f"{row[f'{null}_mean']:.2f} [{row[f'{null}_low']:.2f}, {row[f'{null}_high']:.2f}]")
            cells.append(f"{row[p]:.2g}")
        rows.append(cells)
    return aligned(rows)
