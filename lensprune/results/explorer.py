"""What a page's explorer holds besides records: maps of effects, and attention patterns of the heads needed most."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lensprune.ablation.components import Head
from lensprune.ablation.variants import CLEAN
from lensprune.analysis.critical import critical
from lensprune.analysis.stopping import level_of
from lensprune.analysis.summary import summarise
from lensprune.errors import UserError
from lensprune.output.html import json_block, write_page
from lensprune.output.plain_text import visible
from lensprune.results.browser_rows import TEXT_LIMIT, BrowserRows
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.questions import Question
from lensprune.runs.records import CellKey

if TYPE_CHECKING:
    import torch

    from lensprune.models.base import HookedModel, ModelOrName

__all__ = [
    "Page",
    "Patterns",
    "attention_patterns",
    "check_patterns",
    "effects_map",
    "explorer",
    "model_of_run",
    "shown_patterns",
]

MAX_TOKENS = 160
"""Of a prompt whose pattern is kept, from its end; what goes to earlier ones is summed."""
_HEAD = "head"


def effects_map(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Per (task, protocol) with changes of single parts: its map of effects as plain JSON.

    ``parts`` has for each change: layer, column of the map, variant, Δμ, q of a loss, and whether it is critical.
    """
    summary = summarise(outcomes)
    changed = summary[(summary["variant"] != CLEAN.name) & summary["layer"].notna() & summary["delta"].notna()]
    needed = set(critical(changed, level_of(outcomes.spec)).index)
    several = changed["ablation"].nunique() > 1
    maps = []
    for (task, protocol), group in changed.groupby(["task", "protocol"], sort=False):
        parts = []
        for index, row in zip(group.index, group.to_dict("records"), strict=True):
            column = str(row["component"]) if pd.isna(row["head"]) else f"{row['component']} {int(row['head'])}"
            column = "whole layer" if column == "layer" else column
            column += f", {row['ablation']}" if several else ""
            q = None if pd.isna(row["q_loss"]) else round(float(row["q_loss"]), 4)
            numbers = [round(float(row["delta"]), 4), q, int(index in needed)]
            parts.append([int(row["layer"]), column, visible(str(row["variant"])), *numbers])
        maps.append({"task": visible(str(task)), "protocol": str(protocol), "parts": parts})
    return maps


@dataclass(frozen=True)
class Patterns:
    """Attention patterns as plain JSON, and a sentence that says whose they are, or why there are none.

    Each of `items` has its task, protocol and id, `tokens`, and per head the rows of the pattern below the diagonal one
    after the other, each weight as a byte: 255 is all of the attention.
    """

    note: str
    items: tuple[dict[str, Any], ...] = ()


def model_of_run(outcomes: Outcomes, model: ModelOrName | None = None) -> HookedModel:
    """The model that a run measured: the one given, by name or loaded, else the one that the run names.

    Raises:
        UserError: the run's model was given as an object or can't be loaded, or `model` has different weights.
    """
    from lensprune.models.load import open_model

    spec = outcomes.spec
    if model is None:
        if spec.execution.model is None:
            raise UserError("the run's model was given as an object: give it again, model=...")
        model = spec.execution.model
    options = {"dtype": spec.dtype, "bos": spec.bos} if isinstance(model, (str, Path)) else {}
    hooked = open_model(model, **options)  # type: ignore[arg-type]
    if hooked.facts.weights_hash != spec.weights_hash:
        raise UserError(f"the run measured {spec.model}, and {hooked.facts.name} has different weights")
    return hooked


def attention_patterns(outcomes: Outcomes, most: int, model: ModelOrName | None = None) -> Patterns:
    """The clean model's patterns of the `most` heads whose removal costs most, on one item of each task and protocol.

    The item is the first that the removal loses, else the first item. Where the model can't be loaded, the
    note says why.

    Args:
        model: the run's model, by name or loaded; ``None``: loaded by the name that the run has.
    """
    places = list(_heads_of_items(outcomes, most))
    if not places:
        return Patterns("No attention patterns: this run removes no single head.")
    try:
        hooked = model_of_run(outcomes, model)
        items = tuple(_item(hooked, *place) for place in places)
    except UserError as error:
        return Patterns(f"No attention patterns: the run's model can't be loaded ({visible(str(error))}).")
    heads = len({name for item in items for name in item["heads"]})
    return Patterns(
        f"Attention patterns of the clean model are stored for the {heads} heads with the largest losses, on one item "
        "per task and protocol.",
        items,
    )


def check_patterns(most: int, model: ModelOrName | None) -> None:
    """Raise `UserError` for a model for no head, or fewer heads than none."""
    if most < 0 or (most == 0 and model is not None):
        raise UserError(f"patterns {most} keeps no attention pattern: expected 1 or more heads")


def shown_patterns(outcomes: Outcomes, most: int, model: ModelOrName | None = None) -> Patterns:
    """`attention_patterns`, or for no head a note on how to store them.

    Raises:
        UserError: as `check_patterns`.
    """
    check_patterns(most, model)
    if most or not (summarise(outcomes)["component"] == _HEAD).any():
        return attention_patterns(outcomes, most, model)
    return Patterns("Attention patterns are stored with lensprune report --patterns N, for N heads.")


def explorer(rows: BrowserRows, runs: Sequence[tuple[str, Outcomes]], patterns: Patterns) -> dict[str, Any]:
    """What the template ``explorer.html`` shows: `rows`, the maps of one or two named runs, and `patterns`."""
    maps = [{"name": visible(name), "conditions": effects_map(outcomes)} for name, outcomes in runs]
    return {
        "browser_note": _browser_note(rows),
        "patterns_note": patterns.note,
        "two_runs": len(runs) > 1,
        "has_map": any(one["conditions"] for one in maps),
        "records_json": json_block({**rows.payload, "maps": maps, "patterns": vars(patterns)}),
    }


@dataclass(frozen=True)
class Page:
    """A page to look at: a notebook shows it, `save` writes it into a file."""

    html: str

    def save(self, path: str | Path) -> Path:
        """Write the page.

        Raises:
            UserError: the place can't be written to.
        """
        return write_page(self.html, Path(path))

    def __repr__(self) -> str:
        return f"Page({len(self.html.encode()) / 1e6:.1f} MB of HTML: .save(FILE) writes it)"

    def _repr_html_(self) -> str:
        # The frame has no rights but to run the page's script: it reaches neither the notebook nor the network.
        style = "width: 100%; height: 85vh; min-height: 30rem; border: 1px solid #8886"
        frame = 'title="lensprune" sandbox="allow-scripts allow-downloads"'
        return f'<iframe {frame} style="{style}" srcdoc="{escape(self.html)}"></iframe>'


def _browser_note(rows: BrowserRows) -> str:
    texts = (
        f"Texts are cut at {TEXT_LIMIT} characters, and prompts to their last {rows.prompt_limit}; Run.item and "
        "Run.records(prompts=True) return them whole."
    )
    if rows.shown == rows.total:
        return f"The table holds all {rows.total} records of changed models. {texts}"
    return (
        f"The table holds {rows.shown} of {rows.total} records, an equal share per cell, changed outcomes first; "
        f"records.csv has all of them. {texts}"
    )


Place = tuple[str, str, Question, list[tuple[str, Head]]]


def _heads_of_items(outcomes: Outcomes, most: int) -> Iterator[Place]:
    """Task, protocol, question and heads (with their variants) whose patterns are kept on it."""
    summary = summarise(outcomes)
    heads = summary[(summary["component"] == _HEAD) & summary["delta"].notna()].sort_values("delta", kind="stable")
    names = list(dict.fromkeys(heads["variant"]))[:most]
    kept = heads[heads["variant"].isin(names)]
    for task, protocol in kept[["task", "protocol"]].drop_duplicates().itertuples(index=False, name=None):
        group = kept[(kept["task"] == task) & (kept["protocol"] == protocol)]
        clean = outcomes.cell(CellKey(CLEAN.name, task, protocol), ["correct"], whole=True)["correct"].to_pylist()
        of_place: dict[int, list[tuple[str, Head]]] = {}
        for row in group.to_dict("records"):
            key = CellKey(row["variant"], task, protocol)
            right = outcomes.cell(key, ["correct"], whole=True)["correct"].to_pylist()
            lost = (i for i, (before, after) in enumerate(zip(clean, right, strict=False)) if before and not after)
            place = next(lost, 0) // outcomes.samples(task, protocol)
            of_place.setdefault(place, []).append((str(row["variant"]), Head(int(row["layer"]), int(row["head"]))))
        questions = outcomes.questions(task, protocol)
        for place, removed in of_place.items():
            yield task, protocol, Question.from_row(questions.slice(place, 1).to_pylist()[0]), removed


def _item(
    model: HookedModel, task: str, protocol: str, question: Question, heads: Sequence[tuple[str, Head]]
) -> dict[str, Any]:
    from lensprune.engine.patterns import read_patterns
    from lensprune.models.spans import encode_with_spans

    # Blanks at the end of a prompt belong to the option that is scored.
    text = question.prompt.rstrip() if question.options else question.prompt
    encoded = encode_with_spans(model, text)
    ids = list(encoded.ids)[-model.facts.n_ctx :]
    words = [
        text[a:b] or str(model.tokenizer.decode([token]))
        for token, (a, b) in zip(encoded.ids, encoded.spans, strict=True)
    ]
    cut = max(0, len(ids) - MAX_TOKENS)
    tokens = [visible(word) for word in words[-len(ids) :][cut:]]
    kept: dict[int, torch.Tensor] = {}
    wanted = {head.layer for _, head in heads}

    def read(layer: int, pattern: torch.Tensor) -> None:
        if layer in wanted:
            kept[layer] = pattern[0].float().cpu()

    if ids:
        read_patterns(model, [ids], read)
    return {
        "task": visible(task),
        "protocol": protocol,
        "item": visible(question.item_id),
        "tokens": [f"… {cut} earlier tokens", *tokens] if cut else tokens,
        "heads": {visible(name): _packed(kept[head.layer][head.head], cut) for name, head in heads if kept},
    }


def _packed(pattern: torch.Tensor, cut: int) -> str:
    """Weights [query, key] from the last queries' rows, below the diagonal, as bytes in base64; those of the first
    `cut` keys are summed."""
    import torch

    if cut:
        last = torch.cat([pattern[cut:, :cut].sum(1, keepdim=True), pattern[cut:, cut:]], 1)
        pattern = torch.cat([torch.zeros(1, last.shape[1]).index_fill(1, torch.tensor([0]), 1.0), last])
    rows = [pattern[query, : query + 1] for query in range(len(pattern))]
    weights = (torch.cat(rows).clamp(0, 1) * 255).round().to(torch.uint8)
    return base64.b64encode(bytes(weights.tolist())).decode("ascii")
