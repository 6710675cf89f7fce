"""Rankings of heads from files: effects of a sweep over heads, head scores, or any table of heads and values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from lensprune.errors import UserError, first_line, unknown_name
from lensprune.heads.report import SCORES_FILE
from lensprune.paths import nearest_path, usable_path
from lensprune.registry import in_words
from lensprune.results.run import Run
from lensprune.runs.folder import SPEC_FILE

__all__ = ["Rankings", "importance_of", "read_rankings", "shared_items"]

_COLUMNS = ("layer", "head", "value")
_SHOWN_COLUMNS = 5


@dataclass(frozen=True)
class Rankings:
    """Rankings by name, with columns layer, head and value (larger: more important), and the sweeps among their
    sources by the same names."""

    frames: Mapping[str, pd.DataFrame]
    runs: Mapping[str, Run] = field(default_factory=dict)


def importance_of(
    run: Run, task: str | None = None, protocol: str | None = None, measure: str = "correct"
) -> pd.DataFrame:
    """Return each head's importance in a run: layer, head, value = −(mean change of `measure`).

    Several (task, protocol) pairs are averaged. Curves on the items by which the heads were ranked are optimistic, so
    rank on different items (another seed, or items beyond the limit).

    Raises:
        UserError: a name that is not part of the run, or the run removed no heads.
    """
    effects = run.effects(task, protocol, measure=measure)
    frames = [
        pd.DataFrame({"layer": of_condition.layers, "head": of_condition.heads, "value": -of_condition.effects})
        for of_condition in effects
    ]
    return pd.concat(frames).groupby(["layer", "head"])[["value"]].mean().reset_index()


def read_rankings(sources: Sequence[str]) -> Rankings:
    """Read rankings, each from ``PATH`` or ``NAME=PATH``.

    Args:
        sources: a path is the folder of a sweep over heads (`importance_of`), a folder with ``heads.csv``, as
            ``lensprune heads`` writes it, or a CSV file with columns layer, head and value. A column ``score`` holds
            several rankings by name, of which NAME chooses one; otherwise NAME is the ranking's, by default that of the
            folder or file.

    Raises:
        UserError: a path that does not exist or can't be read, a table without these columns, a score that it lacks,
            or two rankings of one name.
    """
    frames: dict[str, pd.DataFrame] = {}
    runs: dict[str, Run] = {}
    for source in sources:
        named, separator, given = source.partition("=")
        # A path may contain "=" itself.
        name, path = (named, given) if separator and re.fullmatch(r"\w+", named) else (None, source)
        place = usable_path(path, "ranking")
        if (place / SPEC_FILE).exists():
            run = Run.load(place)
            read = {name or place.name: importance_of(run)}
            runs |= dict.fromkeys(read, run)
        else:
            read = _tables(place / SCORES_FILE if place.is_dir() else place, name)
        for key, frame in read.items():
            if key in frames:
                raise UserError(f"ranking {key!r} is given twice: name one of them, like other={path}")
            frames[key] = frame
    return Rankings(frames, runs)


def _tables(file: Path, name: str | None) -> dict[str, pd.DataFrame]:
    try:
        table = pd.read_csv(file)
    except FileNotFoundError:
        raise UserError(
            f"there is no ranking at {file}: expected the folder of a sweep over heads or of lensprune heads --out, or "
            f"a CSV file with columns layer, head and value{nearest_path(file)}"
        ) from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"cannot read the ranking {file}: {first_line(error)}") from None
    for column in _COLUMNS:
        if column not in table:
            found = ", ".join(map(str, table.columns[:_SHOWN_COLUMNS]))
            raise UserError(
                f"the ranking {file} has no column {column!r}: expected {in_words(_COLUMNS, 'and')}, found {found}"
            )
        if not pd.api.types.is_numeric_dtype(table[column]):
            raise UserError(f"the ranking {file} has a {column} that is not a number")
    if "score" not in table:
        return {name or file.stem: table}
    scores = {str(score): group.reset_index(drop=True) for score, group in table.groupby("score", sort=False)}
    if name is None:
        return scores
    if name not in scores:
        raise unknown_name(f"score in {file.name}", name, scores)
    return {name: scores[name]}


def shared_items(measured: Run, rankings: Rankings) -> dict[str, tuple[int, int]]:
    """For each ranking that comes from a sweep, how many of the measured prompts that sweep used too, of how many;
    rankings that share none are left out. Only equal tasks and protocols can be compared."""
    shared = {}
    for name, run in rankings.runs.items():
        prompts = [
            (measured.questions(*condition)["prompt"].to_pylist(), set(run.questions(*condition)["prompt"].to_pylist()))
            for condition in measured.conditions
            if condition in run.conditions
        ]
        seen = sum(prompt in theirs for mine, theirs in prompts for prompt in mine)
        if seen:
            shared[name] = seen, sum(len(mine) for mine, _ in prompts)
    return shared
