"""The records that a report's item browser holds: a stated number of them, those that changed first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.summary import summarise
from lensprune.output.plain_text import visible
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.records import CellKey

__all__ = ["MAX_RECORDS", "TEXT_LIMIT", "BrowserRows", "browser_rows", "shares_of"]

MAX_RECORDS = 15_000
TEXT_LIMIT = 400
"""Characters of a text that are shown."""
Record = Mapping[str, Any]
_NO_RECORDS: Sequence[Record] = ()
_COLUMNS = ["item_id", "target", "prediction", "correct", "gold_logprob", "failure", "text"]


@dataclass(frozen=True)
class BrowserRows:
    """`payload` is plain JSON: names once, then rows of numbers and texts. `shown` of `total` records of changed models
    are in it."""

    payload: dict[str, Any]
    shown: int
    total: int


def shares_of(sizes: Mapping[CellKey, int], most: int) -> dict[CellKey, int]:
    """How many records of each cell to show, `most` in all: equal shares, and what small cells leave to the others.

    Cells that come first get one more where it does not come out even.
    """
    shares = dict.fromkeys(sizes, 0)
    left, open_cells = most, [key for key, size in sizes.items() if size > 0]
    while left and open_cells:
        each, more = divmod(left, len(open_cells))
        for i, key in enumerate(open_cells):
            given = min(sizes[key] - shares[key], each + (i < more))
            shares[key] += given
            left -= given
        open_cells = [key for key in open_cells if shares[key] < sizes[key]]
    return shares


def browser_rows(outcomes: Outcomes, most: int = MAX_RECORDS) -> BrowserRows:
    """Pick the records of changed models for the browser, each beside the clean model's answer to the same item.

    Up to `most` records, shared out evenly between cells (the largest losses first); within a cell the items whose
    outcome changed come first, then the others in their order. Reads one cell at a time.
    """
    summary = summarise(outcomes)
    changed = summary[summary["variant"] != CLEAN.name].sort_values("delta", kind="stable")
    places = zip(changed["variant"], changed["task"], changed["protocol"], changed["n"], strict=True)
    sizes = {CellKey(variant, task, protocol): int(n) for variant, task, protocol, n in places}
    names: dict[str, list[Any]] = {"variants": [], "cells": [], "failures": []}
    indices: dict[tuple[str, Any], int] = {}
    clean: dict[int, dict[str, list[Any]]] = {}
    clean_place, clean_records = ("", ""), _NO_RECORDS
    rows: list[list[Any]] = []
    finished = outcomes.finished()

    def index(kind: str, value: Any) -> int:
        if (kind, value) not in indices:
            indices[kind, value] = len(names[kind])
            names[kind].append(visible(value) if isinstance(value, str) else [visible(part) for part in value])
        return indices[kind, value]

    shares = shares_of(sizes, most)
    for key in (key for key in finished if shares.get(key)):
        place = (key.task, key.protocol)
        if place != clean_place:
            if CellKey(CLEAN.name, *place) not in finished:
                continue
            clean_place, clean_records = place, outcomes.cell(CellKey(CLEAN.name, *place), _COLUMNS).to_pylist()
        base, measured = clean_records, outcomes.cell(key, [*_COLUMNS, "layer"]).to_pylist()
        cell, variant = index("cells", place), index("variants", key.variant)
        for i in _chosen(measured, base, shares[key]):
            record, before = measured[i], base[i]
            item = visible(str(record["item_id"]))
            clean.setdefault(cell, {}).setdefault(item, [visible(record["target"]), *_answer(before, index)])
            rows.append([cell, item, variant, record["layer"], *_answer(record, index)])
    payload = {**names, "clean": {str(cell): measured for cell, measured in clean.items()}, "rows": rows}
    return BrowserRows(payload, len(rows), sum(sizes.values()))


def _chosen(measured: Sequence[Record], base: Sequence[Record], share: int) -> list[int]:
    differs = [a["correct"] != b["correct"] for a, b in zip(measured, base, strict=True)]
    return sorted(sorted(range(len(measured)), key=lambda i: not differs[i])[:share])


def _answer(record: Record, index: Callable[[str, Any], int]) -> list[Any]:
    """Prediction, text, right or wrong, failure and the right answer's log-probability, as JSON values."""
    logprob = record["gold_logprob"]
    return [
        visible(record["prediction"], TEXT_LIMIT),
        visible(record["text"], TEXT_LIMIT),
        int(bool(record["correct"])),
        index("failures", str(record["failure"])),
        round(float(logprob), 4) if logprob is not None and math.isfinite(logprob) else None,
    ]
