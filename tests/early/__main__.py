"""Measure the sweeps and write the tables: ``python -m tests.early --write docs/explanation/stopping-early.md``.

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

import numpy as np

import lensprune as lp
from lensprune.analysis.multiplicity import benjamini_hochberg
from tests.early.tables import apart, tables
from tests.helpers.markdown import write_between

MODEL, MARGIN = "smollm2-135m", 0.05
LOOKS = 5
"""Equally spaced. Fixed before any of these sweeps was run."""
EVERY, STRONGEST = 10, 24
"""Of a sweep of all items over heads, which would take long: heads that are measured (`some_heads`)."""
OTHERS = 100
"""Items beside those of the sweep that are asked of variants on which two sweeps disagree."""
RESULTS = Path(__file__).parent / "results.json"
_KV = "kv_retrieval[pairs=4,ending=reopened,answer=text]"
FEWER = {(_KV, "continuation", "layers"): 120, (_KV, "continuation", "heads"): 120, (_KV, "generate", "heads"): 120}
"""Items of sweeps that would take longer than 25 minutes on 200."""


@dataclass(frozen=True)
class Work:
    """One sweep: its task and protocol, what is removed, and whether it is also screened."""

    task: str
    protocol: str
    over: str
    items: int = 200

    @property
    def looks(self) -> str:
        return ",".join(str(self.items * look // LOOKS) for look in range(1, LOOKS + 1))

    @property
    def name(self) -> str:
        return f"{self.task.partition('[')[0]} {self.protocol} {self.over}"

    @property
    def modes(self) -> dict[str, dict[str, Any]]:
        """Options by the name of the way to measure."""
        whole, early = {"looks": str(self.items)}, {"looks": self.looks}
        if self.over == "heads":
            return {"looks": early, "all": whole, "screen": {**early, "screen": 0.1}}
        return {"all": whole, "looks": early}


WORKS = tuple(
    Work(task, protocol, over, FEWER.get((task, protocol, over), 200))
    for over in ("layers", "heads")
    for protocol in ("continuation", "generate")
    for task in ("facts", _KV)
)


def measured(model: Any, work: Work, options: Mapping[str, Any], variants: list[str] | None = None) -> dict[str, Any]:
    """Processor time of one sweep, cells, and what it names."""
    before = time.process_time()
    run = lp.sweep(
        model,
        work.task,
        work.protocol,
        variants or lp.VariantSelection(work.over, "skip" if work.over == "layers" else "zero"),
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
        "p": dict(zip(changed["variant"], changed["p_value"].tolist(), strict=True)),
        "delta": dict(zip(changed["variant"], changed["delta"].round(4), strict=True)),
        "n": dict(zip(changed["variant"], changed["n"].tolist(), strict=True)),
    }


def some_heads(model: Any, work: Work, early: Mapping[str, Any]) -> dict[str, Any]:
    """As `measured` of all items and all heads, from some: every `EVERY`-th head tells the time, and they and the heads
    that lose most in the sweep that stops early (`early`) what is named; all others count with p 1."""
    heads = list(early["delta"])
    sample = heads[::EVERY]
    strongest = [name for name in sorted(heads, key=early["delta"].__getitem__) if name not in sample][:STRONGEST]
    timed, others = (measured(model, work, {"looks": str(work.items)}, names) for names in (sample, strongest))
    p = {**timed["p"], **others["p"]}
    q = benjamini_hochberg(np.array([p.get(name, 1.0) for name in heads]))
    return {
        **timed,
        "seconds": round(timed["seconds"] * len(heads) / len(sample), 1),
        "cells": work.items * len(heads),
        "variants": len(heads),
        "measured": len(p),
        "named": [name for name, own in zip(heads, q, strict=True) if own <= 0.05],
        "p": p,
        "delta": {**timed["delta"], **others["delta"]},
        "n": dict.fromkeys(p, work.items),
    }


def on_others(model: Any, work: Work, names: list[str]) -> dict[str, float]:
    """Δμ of these variants on items that no sweep of `work` asked."""
    options = {"items": f"drawn+{work.items}", "limit": OTHERS, "progress": False}
    summary = lp.sweep(model, work.task, work.protocol, names, **options).summary().set_index("variant")
    return {name: round(float(summary.loc[name, "delta"]), 4) for name in names}


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
                some = mode == "all" and work.over == "heads"
                found[mode] = some_heads(model, work, found["looks"]) if some else measured(model, work, options)
                print(work.name, mode, {k: found[mode][k] for k in ("seconds", "cells", "named")}, flush=True)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        names = sorted({name for mode in work.modes for name in apart(found["all"], found[mode])})
        if "others" not in found:
            found["others"] = on_others(model, work, names) if names else {}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if arguments.write is not None:
        write_between(arguments.write, "early", tables(results))


if __name__ == "__main__":
    main()
