"""Time lensprune's sweeps against lm-eval run once a variant: ``python -m tests.benchmarks --data-dir FOLDER``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.sides import started
from tests.benchmarks.stopwatch import Times
from tests.benchmarks.works import WORKS, Work

RESULTS = Path(__file__).parent / "results.json"
MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Result:
    """One work's median times; the peer's are for all variants, scaled from those timed.

    `ratio` is of wall times, `cpu_ratio` of processor times; `different` counts items with another metric among
    `compared` (variant, item) pairs; memory is in bytes.
    """

    work: str
    task: str
    protocol: str
    shots: int | None
    items: int
    variants: int
    peer: str
    peer_batch_size: int | None
    ours: Times
    theirs: Times
    ratio: float
    cpu_ratio: float
    our_runs: list[Times]
    peer_runs: dict[str, list[Times]]
    our_peak_rss: int
    peer_peak_rss: int
    compared: int
    different: int


def run_work(work: Work, data_dir: Path, threads: int, repeats: int) -> Result:
    """Time both sides in turns, ours on all variants and the peer on some of them."""
    with (
        started("ours", work, MODEL, data_dir, threads) as ours,
        started(work.peer, work, MODEL, data_dir, threads) as peer,
    ):
        batch_size = peer.call("choose_batch_size")
        # A first call is slower than the others: memory and threads are set up.
        ours.call("run", ["clean"])
        our_runs: list[Times] = []
        peer_runs: dict[str, list[Times]] = {name: [] for name in work.peer_variants}
        found: dict[str, list[dict[str, float]]] = {}
        expected: dict[str, list[dict[str, float]]] = {}
        for turn in range(repeats):
            times, found = ours.call("run")
            our_runs.append(times)
            for name in work.peer_variants[turn::repeats]:
                times, metrics = peer.call("run", [name])
                peer_runs[name].append(times)
                expected.update(metrics)
        rss = ours.call("peak_rss"), peer.call("peak_rss")
    mine = _median(our_runs)
    one = _median([times for runs in peer_runs.values() for times in runs])
    theirs = Times(one.wall * ours.facts["variants"], one.cpu * ours.facts["variants"])
    return Result(
        work=work.name,
        task=work.task,
        protocol=work.protocol,
        shots=work.shots,
        items=ours.facts["items"],
        variants=ours.facts["variants"],
        peer=work.peer,
        peer_batch_size=batch_size,
        ours=mine,
        theirs=theirs,
        ratio=theirs.wall / mine.wall,
        cpu_ratio=theirs.cpu / mine.cpu,
        our_runs=our_runs,
        peer_runs=peer_runs,
        our_peak_rss=rss[0],
        peer_peak_rss=rss[1],
        compared=sum(map(len, expected.values())),
        different=sum(a != b for name in expected for a, b in zip(found[name], expected[name], strict=True)),
    )


def _median(runs: list[Times]) -> Times:
    return Times(median(run.wall for run in runs), median(run.cpu for run in runs))


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, a line a work."""
    lines = [
        "| work | items × variants | ours | peer | its time | faster | CPU time | peak GiB, ours / its | different |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        peer = r["peer"] if r["peer_batch_size"] is None else f"{r['peer']}, batch {r['peer_batch_size']}"
        shots = "" if r["shots"] is None else f", {r['shots']}-shot"
        size = f"{r['items']} × {r['variants']}"
        times = f"{r['ours'][0]:.0f} s | {peer} | {r['theirs'][0]:.0f} s | {r['ratio']:.1f}× | {r['cpu_ratio']:.1f}×"
        memory = f"{r['our_peak_rss'] / 2**30:.1f} / {r['peer_peak_rss'] / 2**30:.1f}"
        different = f"{r['different']} of {r['compared']}"
        lines.append(f"| {r['task']} {r['protocol']}{shots} | {size} | {times} | {memory} | {different} |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--work", action="append", choices=sorted(WORKS), help="only this one; may be repeated")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("LENSPRUNE_DATA_DIR"), help="benchmark rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--repeats", type=int, default=2, help="our side's runs; the peer's variants are spread over them"
    )
    parser.add_argument("--limit", type=int, help="fewer items, for a trial")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    if arguments.data_dir is None or not arguments.data_dir.is_dir():
        print("give --data-dir or LENSPRUNE_DATA_DIR: a folder of <task>/<split>.jsonl", file=sys.stderr)
        return 2
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    results: dict[str, dict[str, Any]] = {}
    if arguments.work and arguments.out.exists() and arguments.limit is None:
        # Works that are not asked for keep their last times.
        results = {r["work"]: r for r in json.loads(arguments.out.read_text(encoding="utf-8"))["results"]}
    different = 0
    for name in arguments.work or list(WORKS):
        work = WORKS[name]
        if arguments.limit is not None:
            work = replace(work, limit=arguments.limit)
        result = run_work(work, arguments.data_dir.resolve(), arguments.threads, arguments.repeats)
        results[name] = asdict(result)
        different += result.different
        print(table([results[name]]), flush=True)
        document = {
            "model": MODEL,
            "dtype": "float32",
            "threads": arguments.threads,
            "cpu": platform.processor() or platform.machine(),
            "versions": {p: version(p) for p in ("lensprune", "torch", "transformers", "transformer-lens", "lm-eval")},
            "method": "peer: one evaluation a variant, the median of the timed ones times the number of variants",
            "results": [results[n] for n in WORKS if n in results],
        }
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table([results[n] for n in WORKS if n in results])}")
    if different:
        print(f"{different} items differ from the peer's", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
