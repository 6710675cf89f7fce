"""Train a model on texts: on their answers, or towards a teacher's distributions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lensprune.toys.muon import Muon
from lensprune.toys.texts import Text, TextSource, text_of

__all__ = ["Batch", "answers_right", "batches", "encode_text", "train"]

_TEXTS_SORTED = 256
"""Texts drawn at a time and sorted by length, so that batches have little padding."""
_BIN = 64
_ADAM_RATE = 0.2
_DECAY = 0.4


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right; `learnt` marks the tokens that are targets."""

    ids: Int[torch.Tensor, "row pos"]
    learnt: Bool[torch.Tensor, "row pos"]


def encode_text(tokenizer: PreTrainedTokenizerFast, text: Text, most: int) -> tuple[list[int], list[bool]]:
    """Token ids of a text as a whole, and which of them belong to learnt pieces; cut after `most` tokens.

    A token that spans two pieces belongs to the piece of its last character.
    """
    ends, learnt = [], []
    end = 0
    for piece in text:
        end += len(piece.text)
        ends.append(end)
        learnt.append(piece.learnt)
    encoded = tokenizer(text_of(text), return_offsets_mapping=True, add_special_tokens=False)
    marks, place = [], 0
    for _, stop in encoded["offset_mapping"]:
        while stop > ends[place]:
            place += 1
        marks.append(learnt[place])
    return list(encoded["input_ids"])[:most], marks[:most]


def batches(
    tokenizer: PreTrainedTokenizerFast,
    draw: Callable[[], Text],
    *,
    steps: int,
    batch_tokens: int,
    most: int,
    seed: int,
) -> Iterator[Batch]:
    """`steps` batches of about `batch_tokens` tokens. `draw` returns the next text."""
    generator = torch.Generator().manual_seed(seed)
    given = 0
    while True:
        rows = [encode_text(tokenizer, draw(), most) for _ in range(_TEXTS_SORTED)]
        # Only roughly sorted: otherwise a batch would contain a single kind of text.
        rows.sort(key=lambda row: len(row[0]) // _BIN)
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        width = 0
        for row in rows:
            width = max(width, len(row[0]))
            if groups[-1] and width * (len(groups[-1]) + 1) > batch_tokens:
                groups.append([])
                width = len(row[0])
            groups[-1].append(row)
        for index in torch.randperm(len(groups), generator=generator).tolist():
            yield _stack(groups[index], int(tokenizer.pad_token_id))
            given += 1
            if given == steps:
                return


def _stack(rows: list[tuple[list[int], list[bool]]], pad: int) -> Batch:
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in rows])
    return Batch(ids, torch.tensor([marks + [False] * (width - len(marks)) for _, marks in rows]))


def target_logits(model: PreTrainedModel, batch: Batch) -> Float[torch.Tensor, "target d_vocab"]:
    """Logits that predict each learnt token. Padding is on the right, where causal attention does not see it."""
    hidden = model.get_decoder()(input_ids=batch.ids, use_cache=False).last_hidden_state
    return model.get_output_embeddings()(hidden[:, :-1][batch.learnt[:, 1:]])


def train(
    model: PreTrainedModel,
    stream: Iterator[Batch],
    *,
    steps: int,
    learning_rate: float,
    teacher: PreTrainedModel | None = None,
    log: Callable[[str], None] = print,
    name: str = "",
    check: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Train in place for `steps` batches of `stream`, with Muon and AdamW, a short warm-up and a linear decay.

    The loss is the mean over learnt tokens of the cross-entropy against the text, or, with a `teacher`, of
    KL(teacher ‖ model) over the whole vocabulary at temperature 1 (Hinton et al. 2015, arXiv:1503.02531). `check` is
    logged every 250 steps.
    """
    model.train()
    optimisers = _optimisers(model, learning_rate)
    warmup = max(1, min(50, steps // 10))
    start = time.monotonic()
    for step, batch in enumerate(stream):
        rate = min(1.0, (step + 1) / warmup, (steps - step) / (_DECAY * steps))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["full_lr"] * rate
        logits = target_logits(model, batch)
        if teacher is None:
            loss = torch.nn.functional.cross_entropy(logits, batch.ids[:, 1:][batch.learnt[:, 1:]])
        else:
            with torch.no_grad():
                soft = target_logits(teacher, batch).log_softmax(-1)
            loss = torch.nn.functional.kl_div(logits.log_softmax(-1), soft, log_target=True, reduction="batchmean")
        model.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        if step % 50 == 49 or step == steps - 1:
            log(f"{name} step {step + 1}/{steps}  loss {loss.item():.4f}  {time.monotonic() - start:.0f} s")
        if check is not None and (step % 250 == 249 or step == steps - 1):
            model.eval()
            log(f"{name} step {step + 1}/{steps}  answers right: " + _shares(check()))
            model.train()
    model.eval()


def _optimisers(model: PreTrainedModel, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW at `_ADAM_RATE` times the learning rate for embeddings and norms."""
    named = list(model.named_parameters())
    inside = [p for name, p in named if p.ndim == 2 and ".layers." in name]
    outside = [p for name, p in named if not (p.ndim == 2 and ".layers." in name)]
    adam = torch.optim.AdamW(outside, lr=learning_rate * _ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    optimisers: list[torch.optim.Optimizer] = [Muon(inside, learning_rate), adam]
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["full_lr"] = group["lr"]
    return optimisers


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{kind} {share:.2f}" for kind, share in shares.items())


@torch.no_grad()
def answers_right(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, source: TextSource, *, texts: int = 100
) -> dict[str, float]:
    """Share of answers whose tokens are all the most likely ones after the true text so far, by kind of text."""
    rates = {}
    for kind, draw in source.kinds().items():
        right = total = 0
        for _ in range(texts):
            ids, marks = encode_text(tokenizer, draw(), 512)
            batch = Batch(torch.tensor([ids]), torch.tensor([marks]))
            hits = iter((target_logits(model, batch).argmax(-1) == batch.ids[0, 1:][batch.learnt[0, 1:]]).tolist())
            # Consecutive marked tokens are one answer.
            answer: list[bool] = []
            for mark in [*marks[1:], False]:
                if mark:
                    answer.append(next(hits))
                elif answer:
                    right, total, answer = right + all(answer), total + 1, []
        rates[kind] = right / total
    return rates
