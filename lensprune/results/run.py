"""A run: its records, its summary, and what they say."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from lensprune.analysis.concentration import TOP, concentration_of
from lensprune.analysis.depth import depth_bands
from lensprune.analysis.head_effects import ItemEffects, read_effects
from lensprune.analysis.head_groups import heads_beside_groups
from lensprune.analysis.overlap import overlap
from lensprune.analysis.protocol_gap import protocol_gap, task_gap
from lensprune.analysis.screening import screen_quality, screen_table
from lensprune.analysis.signatures import MARGIN, signatures
from lensprune.analysis.summary import Group, read_group, summarise
from lensprune.errors import UserError, unknown_name
from lensprune.runs.records import SCHEMA, CellKey
from lensprune.runs.spec import SweepSpec
from lensprune.runs.store import CellStore, RunStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Run"]

BRANCHES = ("layer", "attention", "mlp")


class Run:
    """What a sweep gives back, in memory or on disk."""

    def __init__(self, spec: SweepSpec, store: CellStore, folder: Path | None = None) -> None:
        self.spec = spec
        self.folder = folder
        self._store = store

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """The run in `folder`, finished or not.

        Raises:
            UserError: no run there, or a damaged record file.
        """
        store = RunStore.open(folder)
        return cls(store.spec, store, Path(folder))

    @property
    def cells(self) -> list[tuple[str, str]]:
        """(task, protocol) pairs."""
        return [(cell.task, cell.protocol) for cell in self.spec.cells]

    def finished(self) -> list[CellKey]:
        """Cells (variant, task, protocol) that are measured, by task and protocol and then in the spec's order."""
        order = {name: i for i, name in enumerate(self.spec.variant_names)}
        places = {pair: i for i, pair in enumerate(self.cells)}
        return sorted(self._store.finished(), key=lambda k: (places[k.task, k.protocol], order[k.variant]))

    def group(self, task: str, protocol: str) -> Group | None:
        """Outcomes of every finished cell of one (task, protocol), item by item; ``None`` when none is finished.

        Raises:
            UserError: a name that is not part of this run.
        """
        self._check(task, protocol)
        return read_group(self._store, task, protocol, self.spec.variant_names)

    def cell(self, key: CellKey, columns: Sequence[str] | None = None) -> pa.Table:
        """Records of one finished cell, in the order of its items, as they are stored; all columns or some."""
        return self._store.read(key, columns)

    @cached_property
    def _summary(self) -> pd.DataFrame:
        return summarise(self._store, self.cells, self.spec.variant_names)

    def summary(self) -> pd.DataFrame:
        """One row a (variant, task, protocol), clean first; the columns are those of `lensprune.analysis.summarise`."""
        return self._summary.copy()

    def records(self, variant: str | None = None, task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
        """One row an item, of all cells or of those that are named.

        Raises:
            UserError: a name that is not part of this run.
        """
        self._check(task, protocol)
        if variant is not None and variant not in self.spec.variant_names:
            raise unknown_name("variant", variant, self.spec.variant_names)
        keys = [
            key
            for key in self.finished()
            if variant in (None, key.variant) and task in (None, key.task) and protocol in (None, key.protocol)
        ]
        tables = [self._store.read(key) for key in keys]
        frame = pa.concat_tables(tables).to_pandas() if tables else SCHEMA.empty_table().to_pandas()
        frame["metrics"] = [dict(pairs) for pairs in frame["metrics"]]
        return frame.astype({"layer": "Int64", "head": "Int64"})

    def critical_layers(self, protocol: str | None = None, task: str | None = None, q: float = 0.05) -> pd.DataFrame:
        """Layers (or attention or MLP branches) whose removal lowers accuracy, the most needed first.

        Rows of the summary with ``delta < 0`` and ``q_value <= q``. Where the clean model is at chance nothing can be
        said, so these rows are left out.

        Raises:
            UserError: a name that is not part of this run, or `q` outside 0 to 1.
        """
        self._check(task, protocol)
        if not 0 < q <= 1:
            raise UserError(f"q {q} is not a false discovery rate: expected a number above 0, up to 1")
        frame = self._of(task, protocol)
        known = frame["at_chance"].eq(False).fillna(False).astype(bool)
        chosen = frame[known & frame["component"].isin(BRANCHES) & (frame["delta"] < 0) & (frame["q_value"] <= q)]
        columns = [
            "task", "protocol", "variant", "component", "layer", "ablation", "n", "accuracy_clean", "accuracy", "delta",
            "delta_relative", "ci_low", "ci_high", "p_value", "q_value",
        ]  # fmt: skip
        return chosen.sort_values("delta", kind="stable")[columns].reset_index(drop=True)

    def depth_bands(self, protocol: str | None = None, task: str | None = None) -> pd.DataFrame:
        """Mean Δμ over the first 30% of layers, the middle, and the last 30%; see `lensprune.analysis.depth_bands`."""
        self._check(task, protocol)
        cells = [(t, p) for t, p in self.cells if task in (None, t) and protocol in (None, p)]
        return depth_bands(self._store, cells, self.spec.variant_names, self.spec.n_layers)

    def protocol_gap(self, task: str | None = None) -> pd.DataFrame:
        """Where the answer depends on the protocol: Δμ under one minus Δμ under another, on the same items.

        One row a (task, two protocols, variant); see `lensprune.analysis.protocol_gap`; `overlap` has rank agreement.

        Raises:
            UserError: a name that is not part of this run, or a single protocol.
        """
        self._check(task, None)
        if len(self.spec.protocols) < 2:
            raise UserError(
                f"this run has one protocol, {self.spec.protocols[0]}: sweep with two or more to compare them"
            )
        cells = [(t, p) for t, p in self.cells if task in (None, t)]
        return protocol_gap(self._store, cells, self.spec.variant_names)

    def book_gap(self, closed: str, opened: str) -> pd.DataFrame:
        """What the supporting fact changes: Δμ of the open-book task minus Δμ of the closed-book one, item by item.

        Raises:
            UserError: a name that is not part of this run, or tasks with different items.
        """
        self._check(closed, None)
        self._check(opened, None)
        return task_gap(self._store, closed, opened, self.spec.protocols, self.spec.variant_names)

    def signatures(self, task: str | None = None, *, margin: float = MARGIN) -> pd.DataFrame:
        """The paper's failure signatures, each seen, not seen or not resolvable; see `lensprune.analysis.signatures`.

        Args:
            margin: accuracy below which a loss counts as none.

        Raises:
            UserError: a name that is not part of this run, or layers were not removed one by one over the whole depth.
        """
        self._check(task, None)
        cells = [(t, p) for t, p in self.cells if task in (None, t)]
        return signatures(self._store, cells, self.spec.variant_names, self.spec.n_layers, margin)

    def effects(
        self,
        task: str | None = None,
        protocol: str | None = None,
        *,
        component: str = "head",
        ablation: str | None = None,
        measure: str = "correct",
    ) -> list[ItemEffects]:
        """What each removed part changes on each item, one entry a (task, protocol); see `read_effects`.

        Raises:
            UserError: a name that is not part of this run, or nothing of that kind was removed.
        """
        self._check(task, protocol)
        if self.spec.screen is not None and component == self.spec.screen["component"]:
            raise UserError(
                "this run is screened: the heads that it measured were chosen for their effects, so they say "
                "nothing of all heads; see screen(), or sweep without screen"
            )
        names = self.spec.variant_names
        return [
            read_effects(self._store, t, p, names, component=component, ablation=ablation, measure=measure)
            for t, p in self.cells
            if task in (None, t) and protocol in (None, p)
        ]

    def concentration(
        self,
        task: str | None = None,
        protocol: str | None = None,
        *,
        component: str = "head",
        ablation: str | None = None,
        measure: str = "correct",
        top: Sequence[int] = TOP,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Whether few or many parts carry a task, against a null of noise; see `lensprune.analysis.concentration`.

        Args:
            component: ``head``, ``kv_group``, ``layer``, ``attention`` or ``mlp``.
            ablation: of a run that removes parts in several ways, the one to take.
            measure: ``correct``, ``gold_logprob`` or ``margin``.
            top: the k of the shares of the top k.
        """
        found = self.effects(task, protocol, component=component, ablation=ablation, measure=measure)
        return pd.concat([concentration_of(own, top=top, seed=seed) for own in found], ignore_index=True)

    def overlap(
        self, k: int = 10, *, component: str = "head", ablation: str | None = None, measure: str = "correct"
    ) -> pd.DataFrame:
        """How far tasks and protocols need the same parts; see `lensprune.analysis.overlap`."""
        return overlap(self.effects(component=component, ablation=ablation, measure=measure), k)

    def heads_and_groups(
        self,
        task: str | None = None,
        protocol: str | None = None,
        *,
        ablation: str | None = None,
        measure: str = "correct",
    ) -> list[pd.DataFrame]:
        """Query heads beside their key/value groups, a table for each (task, protocol); see `heads_beside_groups`.

        Raises:
            UserError: a name that is not part of this run, or it did not remove both (over ``heads-and-groups``).
        """
        of = {"task": task, "protocol": protocol, "ablation": ablation, "measure": measure}
        heads, groups = self.effects(component="head", **of), self.effects(component="kv_group", **of)  # type: ignore[arg-type]
        size = self.spec.n_heads // self.spec.n_key_value_heads
        return [heads_beside_groups(own, other, size) for own, other in zip(heads, groups, strict=True)]

    def screen(self) -> pd.DataFrame:
        """Every head of a screened sweep, measured or only estimated; see `lensprune.analysis.screening.screen_table`.

        Raises:
            UserError: the sweep measured all its heads.
        """
        if self.spec.screen is None:
            raise UserError("this run was not screened, all its heads are measured: see summary()")
        return screen_table(self.spec.screen, self._store)

    def screen_quality(self) -> pd.DataFrame:
        """What the random control set says of the estimates; see `lensprune.analysis.screening.screen_quality`.

        Raises:
            UserError: as `screen`.
        """
        table = self.screen()
        return screen_quality(table, int((self.spec.screen or {})["top"]))

    def plot_concentration(
        self, *, component: str = "head", ablation: str | None = None, measure: str = "correct"
    ) -> Axes:
        """Lorenz curves of every (task, protocol); see `lensprune.results.figures.concentration`."""
        from lensprune.results.figures.concentration import lorenz_curves

        found = self.effects(component=component, ablation=ablation, measure=measure)
        return lorenz_curves(found, title=self.spec.model)

    def plot(self, kind: str = "depth", task: str | None = None, protocol: str | None = None) -> Axes | list[Axes]:
        """Draw the run; one Axes, or a list where there are several panels.

        =================  ===================================================================================
        ``depth``          Δμ against depth, one line a protocol, with intervals and the line of chance
        ``heads``          Δμ of each head, layers × heads, significant ones marked
        ``protocols``      Δμ under one protocol against another, on the same items
        ``concentration``  Lorenz curves: how much of the total change the strongest parts hold
        ``failures``       kinds of failure stacked by removed layer
        ``open_closed``    Δμ with the book closed and open
        =================  ===================================================================================

        `plot_data` gives the table that a figure draws.

        Raises:
            UserError: an unknown kind, a name that is not part of this run, or nothing to draw.
        """
        from lensprune.results.figures.kinds import figure_of

        self._check(task, protocol)
        axes = figure_of(self, kind, task, protocol).draw()
        return axes[0] if isinstance(axes, list) and len(axes) == 1 else axes

    def plot_data(self, kind: str = "depth", task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
        """The tidy table that `plot` draws.

        Raises:
            UserError: as `plot`.
        """
        from lensprune.results.figures.kinds import figure_of

        self._check(task, protocol)
        return figure_of(self, kind, task, protocol).data()

    def report(self, path: str | Path | None = None) -> Path:
        """Write the run as one self-contained HTML page; see `lensprune.results.page.write_report`.

        Args:
            path: the file; ``None`` takes ``report.html`` in the run's folder.

        Raises:
            UserError: a run in memory without `path`, or a place that can't be written to.
        """
        from lensprune.results.page import write_report

        return write_report(self, path)

    def save(self, folder: str | Path | None = None) -> Path:
        """Write summary.csv and figures into the run's folder; a run in memory is first written to `folder`.

        A finished sweep over heads also gets concentration.csv and overlap.csv, see
        `lensprune.results.concentration`.

        Raises:
            UserError: no folder, a folder that holds another run, or a disk that can't be written to.
        """
        from lensprune.results.concentration import concentration_files
        from lensprune.results.outputs import write_outputs

        if folder is not None and (self.folder is None or Path(folder).resolve() != self.folder.resolve()):
            self._copy_to(Path(folder))
        elif self.folder is None:
            raise UserError("this run is in memory: name the folder to save it in")
        target = Path(folder) if self.folder is None or folder is not None else self.folder  # type: ignore[arg-type]
        screen = None if self.spec.screen is None else self.screen()
        write_outputs(
            target,
            self.summary(),
            n_layers=self.spec.n_layers,
            title=self.spec.model,
            screen=screen,
            others=concentration_files(self),
        )
        return target

    def _copy_to(self, folder: Path) -> None:
        with RunStore.writing(folder, self.spec) as store:
            for key in sorted(self._store.finished() - store.finished()):
                store.write(key, self._store.read(key))

    def _of(self, task: str | None, protocol: str | None) -> pd.DataFrame:
        frame = self.summary()
        if task is not None:
            frame = frame[frame["task"] == task]
        return frame if protocol is None else frame[frame["protocol"] == protocol]

    def _check(self, task: str | None, protocol: str | None) -> None:
        names = [t.name for t in self.spec.tasks]
        if task is not None and task not in names:
            raise unknown_name("task of this run", task, names)
        if protocol is not None and protocol not in self.spec.protocols:
            raise unknown_name("protocol of this run", protocol, self.spec.protocols)

    def _title(self) -> str:
        done, total = len(self._store.finished()), len(self.cells) * len(self.spec.variants)
        state = f"{total} cells" if done == total else f"{done} of {total} cells"
        names = [t.name for t in self.spec.tasks]
        changed = len(self.spec.variants) - 1
        what = f"{changed} variant{'' if changed == 1 else 's'}, {_names(names)}, {_names(self.spec.protocols)}"
        return f"{self.spec.model}: {what}; {state}" + (f" in {self.folder}" if self.folder else "")

    def __repr__(self) -> str:
        return f"Run({self._title()})"

    def _repr_html_(self) -> str:
        frame = self.summary()
        ranked = frame[frame["at_chance"].eq(False).fillna(False).astype(bool) & (frame["variant"] != "clean")]
        shown: Any = ranked.sort_values("delta", kind="stable").head(10)
        columns = [
            "variant",
            "task",
            "protocol",
            "n",
            "accuracy_clean",
            "accuracy",
            "delta",
            "ci_low",
            "ci_high",
            "q_value",
        ]
        unclear = frame[frame["at_chance"].eq(True).fillna(False).astype(bool)][["task", "protocol"]].drop_duplicates()
        note = "".join(
            f"<p>{html.escape(task)} under {html.escape(protocol)}: the clean model is at chance, not ranked.</p>"
            for task, protocol in unclear.itertuples(index=False)
        )
        table = shown[columns].to_html(index=False, float_format=lambda x: f"{x:.3f}", escape=True, border=0)
        return f"<p><b>{html.escape(self._title())}</b></p><p>Largest losses</p>{table}{note}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} ({names[0]}, ..., {names[-1]})"
