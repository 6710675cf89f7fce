"""What kill -9 in the middle of long texts costs: ``python -m tests.benchmarks.killed``.

A model of a 0.5 B shape with random weights writes texts that end anywhere. The sweep runs once undisturbed, and then
again for each share of that time, after which it is killed and resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import lensprune as lp
from tests.helpers.families import save_folder
from tests.helpers.markdown import write_between

SHAPE = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "vocab_size": 49152,
}
LAYERS = (1, 5, 9, 13, 17, 21, 23)
ENDINGS = range(1000, 1737)
"""Tokens that end a text, so many that random ones are 67 tokens long on average."""


@dataclass(frozen=True)
class Killed:
    """One run that was killed `after` seconds, with so many texts stored, and `resumed` in so many seconds; `differing`
    records are not those of the undisturbed run."""

    after: float
    texts: int
    resumed: float
    differing: int


@dataclass(frozen=True)
class Result:
    """Seconds of the `undisturbed` run, of another `start` (its command again once it is complete), and the others."""

    texts: int
    undisturbed: float
    start: float
    killed: list[Killed]


def save_model(folder: Path) -> Path:
    """A model folder of the shape, with many tokens that end a text."""
    made = save_folder("llama", folder, **SHAPE)
    path = made / "generation_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**config, "eos_token_id": [2, *ENDINGS]}), encoding="utf-8")
    # Its pages would be written to disk while the sweep waits for its own.
    os.sync()
    return made


def measure(folder: Path, n_items: int, n_tokens: int, shares: Sequence[float]) -> Result:
    model = save_model(folder / "model")
    command = [sys.executable, "-m", "lensprune", "sweep", "--model", str(model), "--task", "arithmetic"]
    command += ["--protocol", "generate", "--shots", "0", "--limit", str(n_items), "--temperature", "1"]
    command += ["--until-only", "--until", "zzzz", "--max-new-tokens", str(n_tokens)]
    command += ["--layers", ",".join(map(str, LAYERS))]

    def seconds(out: Path, stop_after: float | None = None) -> float:
        """Of the command, which is killed after so many."""
        began = time.perf_counter()
        environment = {**os.environ, "LENSPRUNE_REMEMBER_SPEED": "0"}
        with subprocess.Popen(
            [*command, "--out", str(out)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as running:
            try:
                code = running.wait(stop_after)
            except subprocess.TimeoutExpired:
                running.kill()
                return time.perf_counter() - began
        if code or stop_after is not None:
            raise SystemExit(f"the sweep ended with {code} after {time.perf_counter() - began:.0f} s")
        return time.perf_counter() - began

    undisturbed = seconds(folder / "whole")
    start = seconds(folder / "whole")
    whole, killed = lp.Run.load(folder / "whole").records(), []
    for share in shares:
        out = folder / f"killed-{share}"
        after = seconds(out, share * undisturbed)
        texts = sum(bool(line) for path in (out / "answers").glob("*.jsonl") for line in path.read_text().splitlines())
        resumed = seconds(out)
        found = lp.Run.load(out).records()
        differing = int((found["text"] != whole["text"]).sum()) if len(found) == len(whole) else len(whole)
        killed.append(Killed(after, texts, resumed, differing))
    return Result(len(whole), undisturbed, start, killed)


def table(result: Result, n_tokens: int) -> str:
    """As Markdown."""
    lines = [
        "| killed after | texts stored | resumed in | more than undisturbed | of it, another start | work lost "
        "| other texts than undisturbed |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for killed in result.killed:
        more = killed.after + killed.resumed - result.undisturbed
        lost = (more - result.start) / (result.undisturbed - result.start)
        lines.append(
            f"| {killed.after:.0f} s | {killed.texts} of {result.texts} | {killed.resumed:.0f} s | {more:.0f} s "
            f"| {result.start:.0f} s | {lost:.0%} | {killed.differing} |"
        )
    return "\n".join(
        [*lines, "", f"{result.texts} texts of up to {n_tokens} tokens; undisturbed {result.undisturbed:.0f} s."]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.6, 0.9])
    parser.add_argument("--write", type=Path, help="Markdown file to write the table into")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as place:
        result = measure(Path(place), options.items, options.tokens, options.shares)
    text = table(result, options.tokens)
    print(text)
    if options.write is not None:
        write_between(options.write, "killed", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
