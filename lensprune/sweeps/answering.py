"""Answers to requests, with progress while texts are written; what a stopped run stored is not asked for again."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import Variant
from lensprune.engine.base import Executor, VariantResponses, lacking
from lensprune.engine.decoding import Checkpoint
from lensprune.protocols.requests import GenerateRequest, Request, Response
from lensprune.runs.answers import AnswerLog
from lensprune.terminal import WorkBar

__all__ = ["AnswerProgress", "answers_of", "rows_done"]


class AnswerProgress(Protocol):
    """Called with a variant's name and how many of its requests were processed since the last call, counted as in
    `lensprune.engine.base.WorkCallback`, or the number answered by an executor that doesn't take ``on_work``.

    `known`: their answers were stored already, and nothing was run.
    """

    def __call__(self, variant: str, rows: float, *, known: bool = False) -> object: ...


def rows_done(bar: WorkBar) -> AnswerProgress:
    """The callback that advances a bar of requests × variants."""

    def advance(variant: str, rows: float, *, known: bool = False) -> None:
        (bar.spare if known else bar.done)(rows, "")

    return advance


def answers_of(
    requests: Sequence[Request],
    variants: Sequence[Variant],
    executor: Executor,
    progress: AnswerProgress,
    log: AnswerLog | None = None,
    *,
    every: Sequence[Variant] | None = None,
    reference: Callable[[Sequence[Variant]], ReferenceActivations | None] = lambda variants: None,
) -> Iterator[VariantResponses]:
    """Yield each variant's answers: in the order given, or by what they lack where the executor doesn't take ``known``.

    Args:
        log: answers in it are read, not requested again; new ones are added, and texts that are being written are kept
            beside it. ``None``: nothing is stored.
        every: all variants that were ever run with this log, in the same order; ``None``: `variants`. The state of
            running texts may need some of which no answer is missing.
        reference: returns the reference activations that the variants need.

    Raises:
        UserError: as the executor; or answers can't be stored.
    """
    known = {} if log is None else log.read()
    wanted = {variant.name for variant in variants}

    def report(name: str, rows: float, *, known: bool = False) -> None:
        if name in wanted:
            progress(name, rows, known=known)

    # A registered executor need not take these.
    takes = inspect.signature(executor.run).parameters
    given: dict[str, Any] = {"on_work": report, "known": known}
    given = {name: value for name, value in given.items() if name in takes}
    generates = any(isinstance(request, GenerateRequest) for request in requests)
    if log is not None and generates and {"known", "checkpoint"} <= takes.keys():
        checkpoint = Checkpoint(log.checkpoint_path, log.write, partial(report, known=True))
        given["checkpoint"] = checkpoint
        others = (checkpoint.variants | checkpoint.beside) - wanted
        with_others = [v for v in every or variants if v.name in wanted | others]
        if len(with_others) == len(wanted | others) and not others & lacking(len(requests), with_others, known):
            variants = with_others
        else:
            # Their cells were stored by workers, or are of another exchange: no answer is known.
            checkpoint.drop()
    incomplete = lacking(len(requests), variants, known)
    activations = reference([variant for variant in variants if variant.name in incomplete])
    # Variants with the same missing answers run together; all do if the executor knows what is missing.
    together: dict[tuple[int, ...], list[Variant]] = defaultdict(list)
    for variant in variants:
        kept = known.get(variant.name, {})
        if kept:
            report(variant.name, len(kept), known=True)
        if "known" in given:
            kept = {}
        together[tuple(i for i in range(len(requests)) if i not in kept)].append(variant)
    for missing, group in together.items():

        def keep(name: str, answers: Mapping[int, Response], places: tuple[int, ...] = missing) -> None:
            if log is not None:
                log.add(name, {places[index]: response for index, response in answers.items()})
            if "on_work" not in given:
                report(name, len(answers))

        missing_requests = [requests[i] for i in missing]
        if requests and not missing:
            for variant in group:
                yield VariantResponses(variant, tuple(known[variant.name][i] for i in range(len(requests))))
            continue
        for answered in executor.run(missing_requests, group, reference=activations, on_answers=keep, **given):
            if answered.variant.name not in wanted:
                continue
            if log is not None and generates:
                # Its cell is about to be stored, which the state of running texts may not know of.
                log.write()
            new = dict(zip(missing, answered.responses, strict=True))
            whole = known.get(answered.variant.name, {}) | new
            yield VariantResponses(answered.variant, tuple(whole[i] for i in range(len(requests))))
