"""What drafted tokens would save while decoding, simulated on recorded answers, as a Markdown table:
``python -m tests.drafts_table --data-dir ROWS [--write docs/explanation/performance.md]``.

A draft is a guess at a row's next tokens. One step checks the whole draft, and what the model would have chosen itself
is kept, with one token more: the answers stay the same, and steps are saved where guesses are right.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from lensprune.ablation import CLEAN, each_head, each_layer
from lensprune.engine import ForkedExecutor
from lensprune.engine.decoding.decoder import GroupDecoder
from lensprune.models import as_hooked_model, load_model
from lensprune.protocols import build_requests
from lensprune.protocols.requests import GenerateRequest, GenerateResponse
from lensprune.tasks.loading import load_task
from tests.helpers.markdown import write_between

__all__ = ["Recorded", "guess", "seconds"]

Tokens = tuple[int, ...]
Price = Callable[[float], float]
"""Seconds of a decode step of so many tokens."""

ITEMS, NEW_TOKENS, LAYERS, HEADS = 8, 64, slice(4, None, 10), slice(5, None, 12)
PROMPT_END = 150
"""Tokens of a prompt in which a row looks for its newest ones: the question, and part of an example."""
LONGEST = (2, 4, 8)
"""Tokens per row and step, drafted ones included."""
SHORTEST_MATCH, LONGEST_MATCH = 3, 8
GPU_WORK = 0.020 / 500
"""Seconds that weights and products take per token on an H100 with 500 tokens per step and an 8 B model."""


@dataclass(frozen=True)
class Recorded:
    """One row of a sweep: its item, the end of its prompt, and all generated tokens."""

    item: int
    prompt: Tokens
    tokens: Tokens


def guess(row: Recorded, n_done: int, earlier: Sequence[Tokens], most: int) -> Tokens:
    """At most `most` tokens that may follow the first `n_done` of the row, or none.

    Tried in this order: how most of the `earlier` answers to the item go on that begin like this one; what follows
    the longest match of the newest tokens in any of them; and in the row's own text.
    """
    done = row.tokens[:n_done]
    alike = [answer[n_done:] for answer in earlier if answer[:n_done] == done]
    guessed: Tokens = ()
    while len(guessed) < most and (alike := [rest for rest in alike if len(rest) > len(guessed)]):
        nexts = [rest[len(guessed)] for rest in alike]
        guessed += (max(set(nexts), key=nexts.count),)
        alike = [rest for rest in alike if rest[len(guessed) - 1] == guessed[-1]]
    if guessed or most < 1:
        return guessed
    own = row.prompt + done
    return _after_match(done, earlier, most) or _after_match(own, [own], most)


def _after_match(newest: Tokens, texts: Sequence[Tokens], most: int) -> Tokens:
    for size in range(min(LONGEST_MATCH, len(newest)), SHORTEST_MATCH - 1, -1):
        for text in texts:
            for end in range(len(text) - 1, size - 1, -1):
                if text[end - size : end] == newest[len(newest) - size :]:
                    return text[end : end + most]
    return ()


def _accepted(guessed: Tokens, tokens: Tokens) -> int:
    """How many tokens the model confirms."""
    differs = [a != b for a, b in zip(guessed, tokens, strict=False)]
    return differs.index(True) if True in differs else len(differs)


def seconds(groups: Sequence[Sequence[Recorded]], clean: Mapping[int, Tokens], price: Price, most: int) -> float:
    """Of decoding group after group, up to `most` tokens per row and step; the clean model's answers are known."""
    earlier, total = {item: [tokens] for item, tokens in clean.items()}, 0.0
    for rows in groups:
        # The prompts' pass gives the first token.
        done = [1] * len(rows)
        while running := [i for i, row in enumerate(rows) if done[i] < len(row.tokens)]:
            sent = 0
            for i in running:
                row = rows[i]
                guessed = guess(row, done[i], earlier[row.item], most - 1)
                sent += 1 + len(guessed)
                done[i] += 1 + _accepted(guessed, row.tokens[done[i] :])
            total += price(sent / len(rows))
        for row in rows:
            earlier[row.item].append(row.tokens)
    return total


def record(data_dir: Path) -> tuple[dict[str, list[Recorded]], Price]:
    """Answers by variant, clean first, and the price of a step on this CPU: linear in its rows, in processor time."""
    model = as_hooked_model(load_model("smollm2-135m", self_check=False))
    task = load_task("gsm8k_cot", data_dir=data_dir, limit=ITEMS)
    built = [request for item in build_requests(model, task, "generate") for request in item.requests]
    requests = [replace(r, max_new_tokens=NEW_TOKENS) for r in built if isinstance(r, GenerateRequest)]
    variants = [CLEAN, *each_layer(model)[LAYERS], *each_head(model, "zero")[HEADS]]
    executor, answers = ForkedExecutor(model, max_rows=12 * ITEMS), {}
    with _timed_steps() as steps:
        for answered in executor.run(requests, variants):
            tokens = [r.token_ids for r in answered.responses if isinstance(r, GenerateResponse)]
            answers[answered.variant.name] = [
                Recorded(i, request.context_ids[-PROMPT_END:], own)
                for i, (request, own) in enumerate(zip(requests, tokens, strict=True))
            ]
    n_rows, taken = np.array(steps).T
    slope, intercept = np.polyfit(n_rows, taken, 1)
    print(f"A step of n rows: {1000 * intercept:.0f} ms + n × {1000 * slope:.1f} ms of processor time.")
    return answers, lambda tokens: float(intercept + slope * tokens)


@contextmanager
def _timed_steps() -> Iterator[list[tuple[int, float]]]:
    """Rows and processor seconds of each decode step meanwhile, the choice of its tokens included."""
    steps: list[tuple[int, float]] = []
    advance, choose = GroupDecoder._advance, GroupDecoder._choose

    def timed_advance(self: GroupDecoder, rows: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
        began = time.process_time()
        hidden = advance(self, rows, tokens)
        steps.append((len(rows), time.process_time() - began))
        return hidden

    def timed_choice(self: GroupDecoder, *args: Any) -> Any:
        began = time.process_time()
        chosen = choose(self, *args)
        if steps:
            steps[-1] = steps[-1][0], steps[-1][1] + time.process_time() - began
        return chosen

    with mock.patch.multiple(GroupDecoder, _advance=timed_advance, _choose=timed_choice):
        yield steps


def table(answers: Mapping[str, Sequence[Recorded]], cpu: Price) -> str:
    """How many times as fast decoding becomes."""
    clean = {row.item: row.tokens for row in answers["clean"]}
    heads = [row for name, rows in answers.items() if "H" in name for row in rows]
    layers = [rows for name, rows in answers.items() if name.endswith(".skip")]
    size = -(-len(heads) // 11)
    sweeps: list[tuple[str, int, list[list[list[Recorded]]]]] = [
        # As a sweep over 270 heads and 20 items has them.
        ("heads, 11 groups of 500 rows", 500, [[heads[i : i + size] for i in range(0, len(heads), size)]]),
        ("one layer, 20 items", 20, [[list(rows)] for rows in layers]),
    ]
    prices: list[Callable[[float], float]] = [
        cpu,
        lambda tokens: max(0.085, GPU_WORK * tokens),
        lambda tokens: max(0.020, GPU_WORK * tokens),
    ]
    header = ["rows", "equal to the clean answer", "tokens per row and step", "CPU", "GPU, 85 ms", "GPU, 20 ms"]
    lines = [header, ["---"] * len(header)]
    for name, n_rows, kinds in sweeps:
        rows = [row for groups in kinds for group in groups for row in group]
        equal = sum(row.tokens == clean[row.item] for row in rows) / len(rows)
        for most in LONGEST:
            cells = []
            for price in prices:

                def of_share(share: float, price: Price = price, n_rows: int = n_rows) -> float:
                    return price(n_rows * share)

                plain = sum(seconds(groups, clean, of_share, 1) for groups in kinds)
                cells.append(f"{plain / sum(seconds(groups, clean, of_share, most) for groups in kinds):.2f}×")
            lines.append([name, f"{equal:.0%}", str(most), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of benchmark rows")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put it between the page's marks")
    arguments = parser.parse_args()
    made = table(*record(arguments.data_dir))
    print(made)
    if arguments.write is not None:
        write_between(arguments.write, "drafts", made)


if __name__ == "__main__":
    main()
