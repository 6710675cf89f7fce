"""The outcomes of replaced weights, in memory or on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from lensprune.ablation.variants import CLEAN
from lensprune.errors import UserError
from lensprune.output.files import write_atomically, write_error
from lensprune.replacement.parts import WeightChange
from lensprune.replacement.variants import DISTILLED, Replacement
from lensprune.runs.cell_store import CellStore
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.spec import SweepSpec
from lensprune.runs.store import RunStore

__all__ = ["ReplacementOutcomes"]

PAIR_FILE = "pair.json"
"""The names of the two models, notes on them, and how much each part's weights changed."""


class ReplacementOutcomes(Outcomes):
    """Outcomes of the variants `clean` = base, `distilled` and the replacements, and how much each part's weights
    changed."""

    def __init__(
        self,
        spec: SweepSpec,
        store: CellStore,
        folder: Path | None,
        replacements: Sequence[Replacement],
        changes: Mapping[str, WeightChange],
        names: tuple[str, str],
        notes: Sequence[str],
    ) -> None:
        super().__init__(spec, store, folder)
        self.base, self.distilled = names
        self.notes = tuple(notes)
        self.replacements = tuple(replacements)
        self.changes = dict(changes)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The finished replacement in `folder`.

        Raises:
            UserError: no replacement there, one that is not finished, or a damaged file.
        """
        path = Path(folder)
        store = RunStore.open(path)
        variants = store.spec.variants
        if not store.spec.replaces_weights:
            raise UserError(f"{path} contains a sweep, not a weight replacement: read it with Run.load")
        if store.finished() != set(store.expected()):
            raise UserError(
                f"the replacement in {path} is not finished: continue by calling lensprune delta again with the same "
                "arguments and the same out folder"
            )
        try:
            pair = json.loads((path / PAIR_FILE).read_text(encoding="utf-8"))
            changes = {label: WeightChange(*norms) for label, norms in pair["changes"].items()}
            replacements = [Replacement.from_json(v) for v in variants if v["name"] not in (CLEAN.name, DISTILLED)]
            names = (str(pair["base"]), str(pair["distilled"]))
            notes = [str(note) for note in pair["notes"]]
            missing = {replacement.label for replacement in replacements} - changes.keys()
        except FileNotFoundError:
            raise UserError(f"{path} has no {PAIR_FILE}: call lensprune delta again, which writes it") from None
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise UserError(f"{path / PAIR_FILE} is damaged: call lensprune delta again ({error})") from None
        if missing:
            raise UserError(f"{path / PAIR_FILE} is damaged: it lacks {min(missing)}; call lensprune delta again")
        return cls(store.spec, store, path, replacements, changes, names, notes)

    @property
    def title(self) -> str:
        """The two models."""
        return f"{self.base} → {self.distilled}"

    def save_pair(self) -> Path:
        """Write what `load` needs in addition to the records, and return the folder.

        Raises:
            UserError: the run is in memory, or the disk can't be written to.
        """
        if self.folder is None:
            raise UserError("this run is in memory: give measure_replacement an out folder")
        changes = {label: [change.absolute, change.relative] for label, change in self.changes.items()}
        pair = {"base": self.base, "distilled": self.distilled, "notes": self.notes, "changes": changes}
        text = json.dumps(pair, indent=1, ensure_ascii=False)
        try:
            write_atomically(self.folder / PAIR_FILE, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise write_error(error, self.folder) from None
        return self.folder
