"""Time lensprune's sweeps against lm-eval run once per variant: ``python -m tests.benchmarks --data-dir FOLDER``."""

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

import torch

from tests.benchmarks.sides import Side, started
from tests.benchmarks.stopwatch import Times
from tests.benchmarks.works import WORKS, Setting, Work
from tests.helpers.markdown import write_between

RESULTS = Path(__file__).parent / "results.json"
MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Result:
    """One work's median times, for all variants and items; scaled where a side was timed on a sample (see `Work`).

    `ratio` is of wall times, `cpu_ratio` of processor times. `bound` is the FLOPs without sharing over those with all
    sharing that leaves the numbers as they are (of an unscreened sweep), `matmul_share` the FLOPs that ours needs over
    those of so much processor time (on a GPU: time) spent on matrix products alone. `different` counts items with
    another metric among `compared` (variant, item) pairs; memory is in bytes: resident, or on a GPU what its tensors
    took.
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
    our_peak_memory: int
    peer_peak_memory: int
    compared: int
    different: int
    work_done: dict[str, float]
    bound: float
    matmul_share: float
    found_of_top: float | None = None


def run_work(work: Work, setting: Setting, data_dir: Path, repeats: int) -> Result:
    """Time both sides in turns, ours on all variants and the peer on some of them."""
    with (
        started("ours", work, setting, data_dir) as ours,
        started(work.peer, work, setting, data_dir) as peer,
    ):
        batch_size = peer.call("choose_batch_size")
        # A first call is slower than the others: memory and threads are set up.
        ours.call("run", ["clean"])
        our_runs: list[Times] = []
        peer_runs: dict[str, list[Times]] = {name: [] for name in work.peer_variants}
        found: dict[str, list[dict[str, float]]] = {}
        expected: dict[str, list[dict[str, float]]] = {}
        for turn in range(repeats):
            times, metrics = _our_turn(ours, work)
            our_runs.append(times)
            found.update(metrics)
            for name in work.peer_variants[turn::repeats]:
                times, metrics = peer.call("run", [name])
                peer_runs[name].append(times)
                expected.update(metrics)
        memory = ours.call("peak_memory"), peer.call("peak_memory")
        recall = None if work.screen is None else ours.call("recall")
        # What the peer was timed on and the sample of ours left out, so that outcomes can be compared.
        if missing := [name for name in expected if name not in found]:
            found.update(ours.call("run", missing)[1])
        items = ours.facts["items"]
        done = ours.call("work_done")
    compared = [pair for name in expected for pair in _same_items(work, found[name], expected[name])]
    mine = _median(our_runs)
    one = _median([times for runs in peer_runs.values() for times in runs])
    scale = ours.facts["variants"] * items / len(next(iter(expected.values())))
    theirs = Times(one.wall * scale, one.cpu * scale)
    return Result(
        work=work.name,
        task=work.task,
        protocol=work.protocol,
        shots=work.shots,
        items=items,
        variants=ours.facts["variants"],
        peer=work.peer,
        peer_batch_size=batch_size,
        ours=mine,
        theirs=theirs,
        ratio=theirs.wall / mine.wall,
        cpu_ratio=theirs.cpu / mine.cpu,
        our_runs=our_runs,
        peer_runs=peer_runs,
        our_peak_memory=memory[0],
        peer_peak_memory=memory[1],
        work_done=done,
        bound=done["unshared_flops"] / done["shared_flops"],
        matmul_share=done["shared_flops"] / ((mine.wall if setting.on_gpu else mine.cpu) * done["matmul_flops"]),
        compared=len(compared),
        different=sum(differs(mine, theirs) for mine, theirs in compared),
        found_of_top=recall,
    )


def _our_turn(ours: Side, work: Work) -> tuple[Times, dict[str, list[dict[str, float]]]]:
    """Time of the whole sweep; from a sample of its components and the clean model's own time where there is one."""
    if work.our_step == 1:
        return ours.call("run")
    sample = ours.call("sample")
    clean, _ = ours.call("run", ["clean"])
    both, found = ours.call("run", ["clean", *sample])
    rest = (ours.facts["variants"] - 1) / len(sample)
    return Times(*(c + (b - c) * rest for c, b in zip(clean, both, strict=True))), found


def _same_items(work: Work, mine: list[Any], theirs: list[Any]) -> list[tuple[Any, Any]]:
    """Outcomes on the items that the peer was timed on: the first ones, of each subject."""
    subjects = max(1, len(work.subjects))
    size, own = len(theirs) // subjects, len(mine) // subjects
    kept = [outcome for i in range(subjects) for outcome in mine[i * own : i * own + size]]
    return list(zip(kept, theirs, strict=True))


def differs(mine: dict[str, float], theirs: dict[str, float]) -> bool:
    """Whether any of the peer's metrics of an item is another or missing; ours may have more."""
    return not theirs or any(mine.get(name) != value for name, value in theirs.items())


def _median(runs: list[Times]) -> Times:
    return Times(median(run.wall for run in runs), median(run.cpu for run in runs))


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, a line per work."""
    lines = [
        "| work | items × variants | ours | peer | its time | faster | CPU time | bound | matmul share "
        "| peak GB, ours / its | different | top heads found |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        peer = r["peer"] if r["peer_batch_size"] is None else f"{r['peer']}, batch {r['peer_batch_size']}"
        shots = "" if r["shots"] is None else f", {r['shots']}-shot"
        size = f"{r['items']} × {r['variants']}"
        times = f"{r['ours'][0]:.0f} s | {peer} | {r['theirs'][0]:.0f} s | {r['ratio']:.1f}× | {r['cpu_ratio']:.1f}×"
        bound = "| " if r["found_of_top"] is not None else f"{r['bound']:.1f}× | {r['matmul_share']:.0%}"
        memory = f"{r['our_peak_memory'] / 1e9:.1f} / {r['peer_peak_memory'] / 1e9:.1f}"
        different = f"{r['different']} of {r['compared']}"
        found = "" if r["found_of_top"] is None else f"{r['found_of_top']:.2f}"
        task = f"{r['task']} {r['protocol']}{shots}" + (", screened" if found else "")
        lines.append(f"| {task} | {size} | {times} | {bound} | {memory} | {different} | {found} |")
    return "\n".join(lines)


def _condensed(results: list[dict[str, Any]]) -> str:
    """The table of docs/explanation/performance.md."""
    lines = [
        "| sweep | items × variants | faster than lm-eval, wall time | processor time | sharing gives at most "
        "| of the matrix rate | peak memory | different outcomes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        if r["peer"] != "lm-eval":
            continue
        what = "heads" if "heads" in r["work"] else "layers"
        shots = "" if r["shots"] is None else f", {r['shots']}-shot"
        task = f"{what}: {r['task']} `{r['protocol']}`{shots}"
        bound = f"{r['bound']:.1f}× | {r['matmul_share']:.0%}"
        if r["found_of_top"] is not None:
            task += f", screened ({r['found_of_top']:.0%} of the strongest tenth found)"
            bound = "— | —"
        size = f"{r['items']} × {r['variants']}"
        different = f"{r['different']} of {r['compared']}"
        times = f"{r['ratio']:.1f}× | {r['cpu_ratio']:.1f}×"
        lines.append(f"| {task} | {size} | {times} | {bound} | {r['our_peak_memory'] / 1e9:.1f} GB | {different} |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--work", action="append", choices=sorted(WORKS), help="only this one; may be repeated")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("LENSPRUNE_DATA_DIR"), help="benchmark rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--model", default=MODEL, help="bundled alias, or a folder with config.json and tokenizer, for random weights"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument(
        "--repeats", type=int, default=3, help="our side's runs; the peer's variants are spread over them"
    )
    parser.add_argument("--limit", type=int, help="fewer items, for a trial")
    parser.add_argument("--write", type=Path, help="Markdown file to write the table of all results into")
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
    setting = Setting(arguments.model, arguments.device, arguments.dtype, arguments.threads)
    for name in arguments.work or list(WORKS):
        work = WORKS[name]
        if setting.on_gpu:
            # Fast enough to be timed whole.
            work = replace(work, our_step=1, peer_limit=None)
        if arguments.limit is not None:
            work = replace(work, limit=arguments.limit)
        result = run_work(work, setting, arguments.data_dir.resolve(), arguments.repeats)
        results[name] = asdict(result)
        different += result.different
        print(table([results[name]]), flush=True)
        document = {
            **asdict(setting),
            "cpu": platform.processor() or platform.machine(),
            "gpu": torch.cuda.get_device_name() if setting.on_gpu else None,
            "versions": {p: version(p) for p in ("lensprune", "torch", "transformers", "transformer-lens", "lm-eval")},
            "method": "interleaved; medians; times of samples scaled to all variants and items as `works.py` says",
            "results": [results[n] for n in WORKS if n in results],
        }
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table([results[n] for n in WORKS if n in results])}")
    if arguments.write is not None:
        write_between(arguments.write, "benchmarks", _condensed([results[n] for n in WORKS if n in results]))
    if different:
        print(f"{different} items differ from the peer's", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
