"""The fast executor: shared prefixes once, and each variant resumed from the clean model at its first changed layer.

The distinct tokens of a chunk of requests form a prefix tree that runs as one flat row. The clean model goes through it
layer by layer; at layer l every variant whose first change is there forks off from the residual before l, reusing layer
l's attention result, and runs to the end. Only scored positions are unembedded. Generation goes on from the keys and
values of that pass, many variants and requests in one step (see `decoding`). The order of additions differs from the
hooked executor's, so numbers agree to rounding, not bit for bit.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from lensprune.ablation.reference import ReferenceActivations, check_names, check_variants
from lensprune.ablation.variants import Variant
from lensprune.engine.base import (
    AnswerCallback,
    KnownAnswers,
    ProgressCallback,
    VariantResponses,
    WorkCallback,
    lacking,
)
from lensprune.engine.decoding import Checkpoint, GroupDecoder, request_chunks
from lensprune.engine.fork import fork_variants
from lensprune.engine.hooked import HookedExecutor
from lensprune.engine.layer_graphs import LayerGraphs, check_graphs
from lensprune.engine.limits import DecodeLimits
from lensprune.engine.marks import Marks, marked
from lensprune.engine.memory import UNEMBED_ROWS
from lensprune.engine.out_of_memory import out_of_memory, release_cached
from lensprune.engine.probe import checked_stack
from lensprune.engine.rope import LongRopeBuckets
from lensprune.engine.tree import Tokens, build_tree, chunk_sequences
from lensprune.engine.tree_scoring import TreeScorer
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import (
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    Request,
    Response,
)

__all__ = ["UNEMBED_ROWS", "ForkedExecutor"]

logger = logging.getLogger(__name__)

BLOCK_VARIANTS = 64
"""Variants per block. A block's answers are held until all its variants are done; each block reruns the clean model."""


class ForkedExecutor:
    """Answers requests by forking variants from the clean model. Variants with custom hooks or cut attention edges, and
    texts long enough for LongRoPE to switch to its long angles, go through `HookedExecutor`.

    Args:
        model: must be able to run layer by layer; see `LayerStack`.
        max_tokens: distinct tokens in one flat row.
        max_rows: rows (variant × request) in one decode step; a variant's rows begin together.
        max_kv_bytes: keys and values held while decoding; a single row may need more.
        graphs: whether decode steps replay CUDA graphs; the executor then is called ``forked-graphs``.

    If memory runs out, the budgets (`limits`) are halved, with a warning in the log, and the work continues.

    Raises:
        UnsupportedByFastPath: the model cannot, or its numbers differ from the hooked executor's on a probe.
        UserError: `graphs` on a device without them, or on several.
    """

    name = "forked"

    def __init__(
        self,
        model: HookedModel,
        max_tokens: int = 8192,
        max_rows: int = 384,
        max_kv_bytes: int = 15 * 2**26,
        *,
        graphs: bool = False,
    ) -> None:
        for what, value in (("tokens", max_tokens), ("rows", max_rows), ("bytes", max_kv_bytes)):
            if value <= 0:
                raise UserError(f"the batch budget must be a positive number of {what}, not {value}")
        if graphs:
            check_graphs(model)
            self.name = "forked-graphs"
        self.model = model
        self.limits = DecodeLimits(max_rows, max_kv_bytes, max_tokens)
        self._hooked = HookedExecutor(model, min(max_tokens, 2048))
        self._rope_buckets = LongRopeBuckets(model)
        self._stack = checked_stack(model)
        self._graphs = LayerGraphs(self._stack, torch.device(model.facts.device)) if graphs else None

    def run(
        self,
        requests: Sequence[Request],
        variants: Sequence[Variant],
        *,
        reference: ReferenceActivations | None = None,
        progress: ProgressCallback | None = None,
        on_answers: AnswerCallback | None = None,
        on_work: WorkCallback | None = None,
        known: KnownAnswers | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Iterator[VariantResponses]:
        """Yield the responses of each variant, in the order given. See `Executor`."""
        known = {} if known is None else known
        incomplete = lacking(len(requests), variants, known)
        check_names(variants)
        check_variants([v for v in variants if v.name in incomplete], self.model.facts, reference)
        near = {i: request for i, request in enumerate(requests) if self._rope_buckets.of(request) == 0}
        far = [i for i in range(len(requests)) if i not in near]
        if far:
            logger.info(
                "%d of %d requests are longer than the %d tokens that LongRoPE's short angles cover: the hooked "
                "executor runs these",
                len(far),
                len(requests),
                self._rope_buckets.longest,
            )
        plain = [v for v in variants if not v.needs_hooks]
        marks = Marks(self.model, plain)
        near = {i: marked(request, marks.of(request)) for i, request in near.items()}
        if checkpoint is not None and not checkpoint.variants <= {v.name for v in plain}:
            checkpoint.drop()
        blocks = _blocks(plain, incomplete, frozenset() if checkpoint is None else checkpoint.variants)

        def begin(variant: Variant) -> _Answers:
            on_known = None if checkpoint is None else checkpoint.on_known
            return _Answers(variant.name, near, known.get(variant.name, {}), progress, on_answers, on_work, on_known)

        # One variant for each selector.
        beside = list({at: v.name for v in reversed(plain) for at in v.selectors}.values())
        by_forking = self._answers(near, blocks, marks, reference, begin, checkpoint, beside)
        by_hooks = partial(
            self._hooked.run, reference=reference, progress=progress, on_answers=on_answers, on_work=on_work
        )
        for variant in variants:
            if variant.needs_hooks:
                yield from by_hooks(requests, [variant], known=known)
                continue
            responses = next(by_forking)
            if far:
                placed = None if on_answers is None else partial(_placed, far, on_answers)
                before = known.get(variant.name, {})
                far_known = {variant.name: {place: before[i] for place, i in enumerate(far) if i in before}}
                [rest] = by_hooks([requests[i] for i in far], [variant], on_answers=placed, known=far_known)
                responses.update(zip(far, rest.responses, strict=True))
            yield VariantResponses(variant, tuple(responses[i] for i in range(len(requests))))

    def _answers(
        self,
        requests: Mapping[int, Request],
        blocks: Iterable[Sequence[Variant]],
        marks: Marks,
        reference: ReferenceActivations | None,
        begin: Callable[[Variant], _Answers],
        checkpoint: Checkpoint | None,
        beside: Sequence[str],
    ) -> Iterator[dict[int, Response]]:
        """Yield each variant's answers, which `begin` has begun, in the order given, block by block."""
        scored = {i: r for i, r in requests.items() if isinstance(r, LoglikelihoodRequest)}
        generated = {i: r for i, r in requests.items() if isinstance(r, GenerateRequest)}
        for block in blocks:
            waiting = [(variant, begin(variant)) for variant in block]
            self._score(scored, waiting, marks, reference)
            try:
                for of_variant in self._generate(generated, waiting, marks, reference, checkpoint, beside):
                    of_variant.worked(len(requests))
                    yield of_variant.responses
            finally:
                if self._graphs is not None:
                    self._graphs.release()

    def _generate(
        self,
        requests: dict[int, GenerateRequest],
        waiting: list[tuple[Variant, _Answers]],
        marks: Marks,
        reference: ReferenceActivations | None,
        checkpoint: Checkpoint | None,
        beside: Sequence[str],
    ) -> Iterator[_Answers]:
        """Decode chunk by chunk; yields each variant's answers when it and those before it have all."""
        of_name = {pair[0].name: pair for pair in waiting}
        saved = None if checkpoint is None else checkpoint.take(requests, of_name, self.limits)
        while True:
            if saved is not None:
                # Some of these may be complete.
                indices, decoded = saved.about["requests"], [of_name[name] for name in saved.about["variants"]]
            else:
                yield from _complete(waiting, requests)
                if not waiting:
                    return
                missing = {i: r for i, r in requests.items() if any(done.lacks([i]) for _, done in waiting)}
                chunks = request_chunks(missing, [v for v, _ in waiting], self.model.facts, self.limits)
                indices = list(chunks[0])
                decoded = [(v, done) for v, done in waiting if done.lacks(indices)]
            answered = {
                (v, r) for v, (_, done) in enumerate(decoded) for r, i in enumerate(indices) if i in done.responses
            }
            start = partial(
                GroupDecoder,
                self.model,
                self._stack if self._graphs is None else self._graphs,
                [variant for variant, _ in decoded],
                [requests[i] for i in indices],
                reference,
                marks,
                self.limits,
                answered,
            )
            facts = {"requests": indices, "beside": beside}
            given = {"checkpoint": checkpoint, "saved": saved, "about": facts}
            decoding = _Decoding(start, given, [done for _, done in decoded], indices, requests.keys())
            saved = None
            # No more rows than the limits allow run at once.
            n_rows = min(len(indices) * len(decoded), self.limits.rows)
            while not decoding.ended and self._fits(decoding.go_on, n_rows):
                yield from _complete(waiting, requests)

    def _score(
        self,
        requests: dict[int, LoglikelihoodRequest],
        variants: Sequence[tuple[Variant, _Answers]],
        marks: Marks,
        reference: ReferenceActivations | None,
    ) -> None:
        by_input: dict[Tokens, list[int]] = defaultdict(list)
        for index, request in requests.items():
            by_input[request.input_ids].append(index)
        waiting = list(by_input)
        while waiting:
            chunk = next(chunk_sequences(waiting, self.limits.tokens))
            chunk_requests = {i: requests[i] for sequence in chunk for i in by_input[sequence]}
            # Chunks are those of an undisturbed run, whatever is known, so that numbers are too.
            scored = [(v, done) for v, done in variants if done.lacks(chunk_requests)]
            score = partial(self._score_chunk, chunk, chunk_requests, scored, marks, reference)
            if not scored or self._fits(score, len(chunk)):
                finished = set(chunk)
                waiting = [sequence for sequence in waiting if sequence not in finished]

    def _score_chunk(
        self,
        chunk: Sequence[Tokens],
        requests: dict[int, LoglikelihoodRequest],
        variants: Sequence[tuple[Variant, _Answers]],
        marks: Marks,
        reference: ReferenceActivations | None,
    ) -> None:
        facts = self.model.facts
        tree = build_tree(chunk)
        scorer = TreeScorer(tree, requests)
        wanted = scorer.positions.to(facts.device)
        answers = {variant.name: done for variant, done in variants}
        forked = fork_variants(
            self._stack, facts, tree, wanted, [variant for variant, _ in variants], reference, marks=marks
        )
        for variant, hidden in forked:
            of_variant, scores = answers[variant.name], scorer.score(self._stack, hidden)
            of_variant.worked(len(scores.keys() - of_variant.responses.keys()))
            of_variant.add(scores)

    def _fits(self, work: Callable[[], None], size: int) -> bool:
        """Do `work` on `size` rows; if memory runs out, halve the budgets and return ``False``."""
        try:
            with torch.inference_mode():
                work()
            return True
        except Exception as error:
            if size == 1 or not out_of_memory(error):
                raise
        # Outside the handler, where the failed call's tensors are still alive.
        self.limits = self.limits.halved()
        if self._graphs is not None:
            self._graphs.release()
        release_cached()
        tokens, rows, size_kv = self.limits.tokens, self.limits.rows, self.limits.kv_bytes
        logger.warning(
            "out of memory with %d rows: continuing with %d tokens, %d rows and %d bytes of keys and values at a time",
            size,
            tokens,
            rows,
            size_kv,
        )
        return False


class _Answers:
    """One variant's responses to `requests` so far, the `known` ones included.

    Neither these nor work done again after an error are reported.
    """

    def __init__(
        self,
        variant: str,
        requests: Collection[int],
        known: Mapping[int, Response],
        progress: ProgressCallback | None,
        on_answers: AnswerCallback | None,
        on_work: WorkCallback | None,
        on_known: WorkCallback | None = None,
    ) -> None:
        self.responses = {index: known[index] for index in requests if index in known}
        self._left = float(len(requests) - len(self.responses))
        self._variant, self._progress, self._on_answers = variant, progress, on_answers
        self._on_work, self._on_known = on_work, on_known

    def lacks(self, indices: Iterable[int]) -> bool:
        """Whether one of these requests has no response yet."""
        return any(index not in self.responses for index in indices)

    def worked(self, rows: float, known: bool = False) -> None:
        """Report rows, or fractions of rows, as processed; `known`: before this run."""
        rows, report = min(rows, self._left), self._on_known if known else self._on_work
        self._left -= rows
        if rows > 0 and report is not None:
            report(self._variant, rows)

    def add(self, responses: Mapping[int, Response]) -> None:
        new = {index: response for index, response in responses.items() if index not in self.responses}
        self.responses.update(new)
        if new and self._progress is not None:
            self._progress(len(new))
        if new and self._on_answers is not None:
            self._on_answers(self._variant, new)


class _Decoding:
    """Takes the answers of a decoder, whose `run` is `given` some arguments; `indices` are those of its requests, and a
    variant is complete with all `wanted`."""

    def __init__(
        self,
        start: Callable[[], GroupDecoder],
        given: Mapping[str, Any],
        answers: Sequence[_Answers],
        indices: Sequence[int],
        wanted: Collection[int],
    ) -> None:
        self.ended = False
        """Whether all rows have ended."""
        self._start, self._given = start, given
        self._answers, self._indices, self._wanted = answers, indices, wanted
        self._rows: Iterator[tuple[int, int, GenerateResponse]] | None = None

    def go_on(self) -> None:
        """Decode until a variant is complete, or all rows have ended."""
        if self._rows is None:
            self._rows = self._start().run(partial(_worked, self._answers), **self._given)
        for variant, request, response in self._rows:
            done = self._answers[variant]
            done.add({self._indices[request]: response})
            if not done.lacks(self._wanted):
                return
        self.ended = True


def _complete(waiting: list[tuple[Variant, _Answers]], requests: Collection[int]) -> Iterator[_Answers]:
    """Take away the first of the waiting variants while they lack nothing, and yield their answers."""
    while waiting and not waiting[0][1].lacks(requests):
        yield waiting.pop(0)[1]


def _blocks(
    variants: Iterable[Variant], incomplete: Container[str], of_state: Collection[str]
) -> Iterator[list[Variant]]:
    """Split variants, in their order, into blocks of which at most `BLOCK_VARIANTS` are `incomplete`; more only
    where that keeps those `of_state` together.

    A block ends with the last `of_state`: texts of a further variant would be written apart from theirs.
    """
    block: list[Variant] = []
    n_lacking, left = 0, set(of_state)
    for variant in variants:
        begun = len(left) < len(of_state)
        if variant.name in incomplete and (not left if begun else n_lacking == BLOCK_VARIANTS):
            yield block
            block, n_lacking = [], 0
            if begun:
                of_state = ()
        block.append(variant)
        left.discard(variant.name)
        n_lacking += variant.name in incomplete
    if block:
        yield block


def _worked(answers: Sequence[_Answers], variant: int, rows: float, known: bool) -> None:
    answers[variant].worked(rows, known)


def _placed(places: Sequence[int], on_answers: AnswerCallback, variant: str, answers: Mapping[int, Response]) -> None:
    """Forward answers to a subset of the requests, renumbered by their indices among all requests."""
    on_answers(variant, {places[index]: response for index, response in answers.items()})
