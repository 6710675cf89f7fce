"""Measure the sweeps and write the tables: ``python -m tests.early --write docs/explanation/early.md``.

Each sweep takes minutes to an hour, so finished ones are kept in ``tests/early/results.json`` and not run again:
``--again`` measures everything anew, ``--work NAME`` only some.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lensprune as lp
from tests.helpers.markdown import write_between

MODEL, MARGIN, ITEMS = "smollm2-135m", 0.05, 200
LOOKS = "40,80,120,160,200"
"""Fixed before any of these sweeps was run."""
OTHERS = 100
"""Items beside the `ITEMS` that are asked of variants on which two sweeps disagree."""
RESULTS = Path(__file__).parent / "results.json"
_KV = "kv_retrieval[pairs=4,ending=reopened,answer=text]"


@dataclass(frozen=True)
class Work:
    """One sweep: its task and protocol, what is removed, and whether it is also screened."""

    task: str
    protocol: str
    over: str

    @property
    def name(self) -> str:
        return f"{self.task.partition('[')[0]} {self.protocol} {self.over}"

    @property
    def modes(self) -> dict[str, dict[str, Any]]:
        """Options by the name of the way to measure."""
        modes: dict[str, dict[str, Any]] = {"all": {"looks": str(ITEMS)}, "looks": {"looks": LOOKS}}
        return {**modes, "screen": {"looks": LOOKS, "screen": 0.1}} if self.over == "heads" else modes


WORKS = tuple(
    Work(task, protocol, over)
    for over in ("layers", "heads")
    for protocol in ("continuation", "generate")
    for task in ("facts", _KV)
)


def measured(model: Any, work: Work, options: Mapping[str, Any]) -> dict[str, Any]:
    """Processor time of one sweep, cells, and what it names."""
    before = time.process_time()
    run = lp.sweep(
        model,
        work.task,
        work.protocol,
        lp.VariantSelection(work.over, "skip" if work.over == "layers" else "zero"),
        lost_more_than=MARGIN,
        progress=False,
        **options,
    )
    seconds = time.process_time() - before
    summary = run.summary()
    changed = summary[summary["variant"] != "clean"]
    return {
        "seconds": round(seconds, 1),
        "cells": int(changed["n"].sum()),
        "variants": len(changed),
        "clean": float(summary.loc[summary["variant"] == "clean", "accuracy"].iloc[0]),
        "named": changed.loc[changed["q_loss"] <= 0.05, "variant"].tolist(),
        "delta": dict(zip(changed["variant"], changed["delta"].round(4), strict=True)),
        "n": dict(zip(changed["variant"], changed["n"].tolist(), strict=True)),
    }


def on_others(model: Any, work: Work, names: list[str]) -> dict[str, float]:
    """Δμ of these variants on items that no sweep of `work` asked."""
    options = {"items": f"drawn+{ITEMS}", "limit": OTHERS, "progress": False}
    summary = lp.sweep(model, work.task, work.protocol, names, **options).summary().set_index("variant")
    return {name: round(float(summary.loc[name, "delta"]), 4) for name in names}


def disagreements(found: Mapping[str, Any], mode: str) -> list[str]:
    """Variants that only one of the sweep of all items and that of `mode` names, among those that `mode` measured."""
    both = set(found["all"]["named"]) ^ set(found[mode]["named"])
    return [name for name in found["all"]["delta"] if name in both and name in found[mode]["delta"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", action="append", choices=[work.name for work in WORKS], help="repeat for several")
    parser.add_argument("--again", action="store_true", help="measure again what is kept")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between the page's marks")
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    model = lp.load_model(MODEL, device="cpu")
    for work in WORKS:
        if arguments.work is not None and work.name not in arguments.work:
            continue
        found = {} if arguments.again else results.get(work.name, {})
        results[work.name] = found
        for mode, options in work.modes.items():
            if mode not in found:
                found[mode] = measured(model, work, options)
                print(work.name, mode, {k: found[mode][k] for k in ("seconds", "cells", "named")}, flush=True)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        names = sorted({name for mode in work.modes for name in disagreements(found, mode)})
        if "others" not in found:
            found["others"] = on_others(model, work, names) if names else {}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if arguments.write is not None:
        from tests.early.tables import tables

        write_between(arguments.write, "early", tables(results))


if __name__ == "__main__":
    main()
