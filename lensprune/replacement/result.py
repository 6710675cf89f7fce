"""A finished delta: its run, and what each part carries."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.overlap import spearman
from lensprune.analysis.rank_correlation import spearman_rows
from lensprune.errors import UserError
from lensprune.output.files import write_atomically, write_error
from lensprune.replacement.pair import WeightChange
from lensprune.replacement.shares import DISTILLED, gain_shares
from lensprune.replacement.swaps import Swap
from lensprune.results.run import Run
from lensprune.runs.store import CellStore, RunStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DeltaRun"]

PAIR_FILE = "pair.json"
"""The names of the two models, notes on them, and how much each part's weights changed."""

_FEWEST_FOR_RANKS = 4
_EQUAL = 1e-9
_MOST_FOR_ALL_ORDERS = 8


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Spearman's ρ and its two-sided p-value over all orders of `y`, or over random ones where there are many.

    Student's t, which is 0 at ρ = ±1 for any number of values, claims more than the orders can give.
    """
    if len(x) > _MOST_FOR_ALL_ORDERS:
        return spearman(x, y)
    orders = np.array(list(permutations(stats.rankdata(y))))
    found = spearman_rows(np.broadcast_to(x, orders.shape), orders)
    # The first order is that of `y`.
    return float(found[0]), float(np.mean(np.abs(found) >= abs(found[0]) - _EQUAL))


class DeltaRun:
    """What `measure_delta` gives back: the run (variants `clean` = base, `distilled` and the swaps), and the shares."""

    def __init__(
        self,
        run: Run,
        store: CellStore,
        swaps: Sequence[Swap],
        changes: Mapping[str, WeightChange],
        names: tuple[str, str],
        notes: Sequence[str],
    ) -> None:
        self.run = run
        self.base, self.distilled = names
        self.notes = tuple(notes)
        self._store = store
        self._swaps = tuple(swaps)
        self._changes = dict(changes)

    @classmethod
    def load(cls, folder: str | Path) -> DeltaRun:
        """The finished exchange in `folder`.

        Raises:
            UserError: no exchange there, one that is not finished, or a damaged file.
        """
        path = Path(folder)
        store = RunStore.open(path)
        variants = store.spec.variants
        if not store.spec.exchanges_weights:
            raise UserError(f"{path} holds a sweep, not an exchange of weights: read it with Run.load")
        if store.finished() != set(store.expected()):
            raise UserError(
                f"the exchange in {path} is not finished: continue by calling lensprune delta again with the same "
                "arguments and the same out folder"
            )
        try:
            pair = json.loads((path / PAIR_FILE).read_text(encoding="utf-8"))
            changes = {label: WeightChange(*norms) for label, norms in pair["changes"].items()}
            swaps = [Swap.from_json(v) for v in variants if v["name"] not in (CLEAN.name, DISTILLED)]
            names = (str(pair["base"]), str(pair["distilled"]))
            notes = [str(note) for note in pair["notes"]]
            missing = {swap.label for swap in swaps} - changes.keys()
        except FileNotFoundError:
            raise UserError(f"{path} has no {PAIR_FILE}: call lensprune delta again, which writes it") from None
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise UserError(f"{path / PAIR_FILE} is damaged: call lensprune delta again ({error})") from None
        if missing:
            raise UserError(f"{path / PAIR_FILE} is damaged: it lacks {min(missing)}; call lensprune delta again")
        return cls(Run(store.spec, store, path), store, swaps, changes, names, notes)

    @property
    def folder(self) -> Path | None:
        return self.run.folder

    def summary(self) -> pd.DataFrame:
        """The run's summary, every variant against the base model."""
        return self.run.summary()

    def records(self, variant: str | None = None) -> pd.DataFrame:
        """One row an item; see `Run.records`."""
        return self.run.records(variant)

    @cached_property
    def _shares(self) -> pd.DataFrame:
        return gain_shares(self._store, self.run.cells, self._swaps, self._changes)

    def shares(self) -> pd.DataFrame:
        """What each part carries of the gain; see `lensprune.replacement.shares.gain_shares`."""
        return self._shares.copy()

    def weights_against_effect(self) -> pd.DataFrame:
        """Spearman's ρ between a part's weight change and its effect, for each (task, protocol, direction).

        ρ is empty for fewer than four parts, or where either side is constant. `p_value` is two-sided, over all orders
        up to eight parts (so at best 0.08 for four parts), and over 10,000 random ones for more (Phipson & Smyth 2010).
        """
        rows = []
        for (task, protocol, direction), own in self.shares().groupby(["task", "protocol", "direction"], sort=False):
            rho = p = float("nan")
            enough = len(own) >= _FEWEST_FOR_RANKS
            if enough and own["weight_change"].nunique() > 1 and own["effect"].nunique() > 1:
                rho, p = _rank_correlation(own["weight_change"].to_numpy(), own["effect"].to_numpy())
            rows.append([task, protocol, direction, len(own), float(rho), float(p)])
        return pd.DataFrame(rows, columns=["task", "protocol", "direction", "n_parts", "spearman", "p_value"])

    def plot(self, kind: str = "depth", task: str | None = None, protocol: str | None = None) -> Axes | list[Axes]:
        """Draw the exchange; one Axes, or a list where there are several panels.

        ===========  ==================================================================================
        ``depth``    what each part brings to accuracy against its layer, a line a direction
        ``weights``  the same against ‖ΔW‖, how much the part's weights changed
        ===========  ==================================================================================

        Raises:
            UserError: an unknown kind, a name that is not part of this run, or nothing to draw.
        """
        from lensprune.replacement.figure_kinds import delta_figure_of

        axes = delta_figure_of(self, kind, task, protocol).draw()
        return axes[0] if isinstance(axes, list) and len(axes) == 1 else axes

    def plot_data(self, kind: str = "depth", task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
        """The tidy table that `plot` draws.

        Raises:
            UserError: as `plot`.
        """
        from lensprune.replacement.figure_kinds import delta_figure_of

        return delta_figure_of(self, kind, task, protocol).data()

    def report(self, path: str | Path | None = None) -> Path:
        """Write the exchange as one self-contained HTML page; see `lensprune.replacement.page`.

        Args:
            path: the file; ``None`` takes ``report.html`` in the run's folder.

        Raises:
            UserError: a run in memory without `path`, or a place that can't be written to.
        """
        from lensprune.replacement.page import write_delta_report

        return write_delta_report(self, path)

    def save(self) -> Path:
        """Write summary.csv, delta.csv, figures and what `load` needs into the run's folder.

        Raises:
            UserError: the run is in memory, or the disk can't be written to.
        """
        from lensprune.replacement.outputs import write_delta_outputs

        if self.folder is None:
            raise UserError("this run is in memory: give measure_delta an out folder")
        changes = {label: [change.absolute, change.relative] for label, change in self._changes.items()}
        pair = {"base": self.base, "distilled": self.distilled, "notes": self.notes, "changes": changes}
        text = json.dumps(pair, indent=1, ensure_ascii=False)
        try:
            write_atomically(self.folder / PAIR_FILE, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise write_error(error, self.folder) from None
        write_delta_outputs(self.folder, self)
        return self.folder

    @property
    def title(self) -> str:
        """The two models."""
        return f"{self.base} → {self.distilled}"

    def __repr__(self) -> str:
        return f"DeltaRun({self.title}: {len(self._swaps)} swaps, {len(self.run.cells)} cells each)"

    def _repr_html_(self) -> str:
        shares = self.shares()
        columns = ["task", "protocol", "direction", "part", "n", "gain", "effect", "ci_low", "ci_high", "share"]
        known: Any = shares[~shares["at_chance"].fillna(True).astype(bool)]
        shown = known.sort_values("effect", key=abs, ascending=False, kind="stable").head(10)[columns]
        rows = shown.to_html(index=False, float_format=lambda x: f"{x:.3f}", escape=True, border=0, na_rep="")
        return f"<p><b>{html.escape(repr(self))}</b></p><p>Largest effects</p>{rows}"
