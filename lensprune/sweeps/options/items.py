"""Which items are used, and where their rows come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lensprune.errors import UserError
from lensprune.paths import usable_path
from lensprune.sweeps.options.declare import Group, between, option, whole_number
from lensprune.tasks.item_choice import DRAWN, ItemChoice

MAX_ITEMS = 1_000_000


MAX_SHOTS = 1000


def _check_choice(text: str) -> None:
    ItemChoice.parse(text)


def _check_data_dir(folder: str | Path) -> None:
    if not usable_path(folder, "data folder").is_dir():
        raise UserError(f"data folder {folder} does not exist")


@dataclass(frozen=True, kw_only=True)
class Seed(Group):
    """The seed for everything random."""

    seed: int = option(
        0, "seed for few-shot examples and everything else drawn or generated", metavar="N", parse=whole_number
    )


@dataclass(frozen=True, kw_only=True)
class Items(Seed):
    """Which items are used, with which few-shot examples."""

    limit: int | None = option(
        None,
        "number of items per task (default: all)",
        metavar="N",
        parse=whole_number,
        check=between(1, MAX_ITEMS, "limit", "items"),
    )
    shots: int | None = option(
        None,
        "number of few-shot examples (default: the task's number)",
        metavar="N",
        parse=whole_number,
        check=between(0, MAX_SHOTS, "shots", "examples"),
    )


@dataclass(frozen=True, kw_only=True)
class ItemSampling(Group):
    """Which items a limit takes from rows in a file."""

    items: str = option(
        DRAWN,
        "which items: drawn (--limit takes a sample by --seed) or first (in the order of the file, as lm-eval), either "
        "with an offset, like drawn+40; 17,40-60 (these rows, from 0) or @FILE (these ids, one per line)",
        metavar="WHICH",
        check=_check_choice,
    )


@dataclass(frozen=True, kw_only=True)
class Rows(Group):
    """Where rows come from."""

    data_dir: str | Path | None = option(
        None,
        "folder with TASK/SPLIT.jsonl (default: the hub, for tasks that are not bundled)",
        metavar="FOLDER",
        check=_check_data_dir,
    )
