"""A large sweep of random responses through store, summary and tables: ``python -m tests.benchmarks.load``.

The model answers nothing: an executor of this module makes up a response for every request, so that what is measured is
everything else. Every stage states its time, and the run its peak memory and its files.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import Variant
from lensprune.engine.base import AnswerCallback, ProgressCallback, VariantResponses
from lensprune.protocols.requests import GenerateRequest, GenerateResponse, LoglikelihoodResponse, Request, Response
from lensprune.results.run import Run
from lensprune.results.text import run_report
from lensprune.runs.store import open_store
from lensprune.sweeps.cells import measure_cells
from lensprune.sweeps.conditions import questions_of
from lensprune.sweeps.options import SweepOptions
from lensprune.sweeps.prepare import prepare
from lensprune.sweeps.selection import VariantSelection
from tests.helpers.families import save_folder

PROTOCOLS = ("default", "continuation", "generate")
TASK = "kv_retrieval[pairs=2]"
HEADS = 4
WORDS = ("river", "stone", "The answer is lamp.", "", "lamp lamp lamp lamp lamp lamp lamp lamp")


@dataclass
class Load:
    """What a sweep of so many cells took; `memory` in bytes, `base_memory` before the first cell."""

    variants: int
    items: int
    protocols: int
    records: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    base_memory: int = 0
    memory: int = 0
    files: int = 0
    disk: int = 0


class RandomExecutor:
    """Random responses, the same for the same seed and variant."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def run(
        self,
        requests: Sequence[Request],
        variants: Sequence[Variant],
        *,
        reference: ReferenceActivations | None = None,
        progress: ProgressCallback | None = None,
        on_answers: AnswerCallback | None = None,
    ) -> Iterator[VariantResponses]:
        for i, variant in enumerate(variants):
            choose = np.random.default_rng((self.seed, i))
            numbers = choose.normal(-4, 2, len(requests))
            yield VariantResponses(variant, tuple(map(_response, requests, numbers)))


def _response(request: Request, number: float) -> Response:
    if isinstance(request, GenerateRequest):
        text = WORDS[int(abs(number) * 100) % len(WORDS)]
        return GenerateResponse(text, (5,) * (len(text.split()) + 1), "eos")
    return LoglikelihoodResponse(float(number), False, len(request.continuation_ids))


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(model: Path, out: Path, variants: int, items: int) -> Load:
    """Run the sweep in `out`.

    Args:
        model: a tiny model with at least `variants` heads.
    """
    load = Load(variants, items, len(PROTOCOLS))

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        load.seconds[name] = round(time.perf_counter() - began, 2)

    with stage("requests"):
        layers = f"0-{variants // HEADS - 1}"
        options = SweepOptions(
            tasks=(TASK,),
            protocols=PROTOCOLS,
            variants=VariantSelection("heads", "zero", layers),
            limit=items,
            device="cpu",
        )
        job = prepare(str(model), options)
    load.base_memory = peak_memory()
    with open_store(out, job.spec, questions_of(job.conditions)) as store, stage("score and store"):
        for condition in job.conditions:
            cells = measure_cells(job, condition, job.variants, RandomExecutor(), lambda *done, **known: None)
            for key, table in cells:
                store.write(key, table)
                load.records += table.num_rows
    with stage("open and check"):
        run = Run.load(out)
    with stage("summary"):
        summary = run.summary()
    with stage("files"):
        run.save()
    with stage("report tables"):
        text = run_report(run)
    with stage("gap and overlap"):
        gap = run.protocol_gap()
        overlap: pd.DataFrame = run.overlap()
    with stage("resume"):
        Run.load(out)
    if len(summary) != (variants + 1) * len(PROTOCOLS) or not text or gap.empty or overlap.empty:
        raise RuntimeError(f"a summary of {len(summary)} rows is not that of {variants} variants")
    load.memory = peak_memory()
    paths = [path for path in out.rglob("*") if path.is_file()]
    load.files, load.disk = len(paths), sum(path.stat().st_size for path in paths)
    return load


def model_with_heads(folder: Path, heads: int) -> Path:
    """A tiny model with so many heads, `HEADS` a layer."""
    return save_folder("llama", folder, num_hidden_layers=heads // HEADS, layer_types=None)


def lines(load: Load) -> str:
    cells = (load.variants + 1) * load.protocols
    stages = ", ".join(f"{name} {seconds:g} s" for name, seconds in load.seconds.items())
    return (
        f"{load.variants} variants × {load.items} items × {load.protocols} protocols: "
        f"{load.records} records in {cells} cells\n"
        f"time: {sum(load.seconds.values()):.0f} s ({stages})\n"
        f"memory: {load.memory / 1e9:.2f} GB at the peak, {load.base_memory / 1e9:.2f} GB before the first cell\n"
        f"disk: {load.files} files, {load.disk / 1e6:.0f} MB"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", type=int, default=300)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as place:
        model = model_with_heads(Path(place) / "model", options.variants)
        load = measure(model, Path(place) / "run", options.variants, options.items)
    shown: Any = json.dumps(asdict(load)) if options.json else lines(load)
    print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
