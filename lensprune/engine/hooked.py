"""The reference executor: TransformerLens hooks, one variant at a time, one whole forward pass per batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from lensprune.ablation.hooks import BatchState, VariantHooks, with_hook_names
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
from lensprune.engine.batching import batches_by_length, pad_left
from lensprune.engine.generating import Generator, RowWork
from lensprune.engine.hook_probe import rows_are_independent
from lensprune.engine.marks import Marks, prompt_positions
from lensprune.engine.rope import LongRopeBuckets
from lensprune.engine.scoring import pad_token_id, score_continuation
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import (
    GenerateRequest,
    LoglikelihoodRequest,
    Request,
    Response,
)

__all__ = ["HookedExecutor"]


class HookedExecutor:
    """Runs every variant from scratch through the model's hook points.

    Rows are left-padded, with attention mask and position ids. `max_tokens` bounds rows × length of a batch; decoding
    keeps the rows of its prompt batch. Requests that need the same forward pass (the letters of one question) share it.
    Only rows that may share a call (see `LongRopeBuckets`) are batched, so no answer depends on the others. Under
    custom hooks, the rows of a batch have equal length and no padding, so that ``activation[:, 0]`` is each row's first
    token, and each row belongs to one item; hooks that mix the rows of a batch get one row at a time
    (`rows_are_independent`).
    """

    name = "hooked"

    def __init__(self, model: HookedModel, max_tokens: int = 2048) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self._rope_buckets = LongRopeBuckets(model)

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
    ) -> Iterator[VariantResponses]:
        """Yield the responses of each variant, in the order given. See `Executor`."""
        known = {} if known is None else known
        incomplete = lacking(len(requests), variants, known)
        check_names(variants)
        check_variants([v for v in variants if v.name in incomplete], self.model.facts, reference)
        in_prompt = prompt_positions(self.model)
        for variant in (with_hook_names(self.model, variant) for variant in variants):
            before = known.get(variant.name, {})
            responses: dict[int, Response] = {i: before[i] for i in range(len(requests)) if i in before}
            if requests and variant.name not in incomplete:
                yield VariantResponses(variant, tuple(responses[i] for i in range(len(requests))))
                continue
            state, marks = BatchState(), Marks(self.model, [variant], in_prompt)
            hooks = VariantHooks(self.model, variant, state, reference)
            missing = {i: request for i, request in enumerate(requests) if i not in responses}
            likelihood = {i: r for i, r in missing.items() if isinstance(r, LoglikelihoodRequest)}
            generation = {i: r for i, r in missing.items() if isinstance(r, GenerateRequest)}
            # Of all requests, so that the answer is that of an undisturbed run.
            alike = self._alike(variant, requests, reference)
            scored = self._score(likelihood, state, marks, alike, by_item=bool(variant.hooks))
            with torch.inference_mode(), self.model.hooks(hooks.named):
                worked = partial(_nothing if on_work is None else on_work, variant.name)
                for answered in (scored, self._generate(generation, state, marks, alike, worked)):
                    for index, response in answered:
                        if index in likelihood:
                            worked(1.0)
                        responses[index] = response
                        if progress is not None:
                            progress(1)
                        if on_answers is not None:
                            on_answers(variant.name, {index: response})
            if requests:
                hooks.check_fired()
            yield VariantResponses(variant, tuple(responses[i] for i in range(len(requests))))

    def _alike(
        self, variant: Variant, requests: Sequence[Request], reference: ReferenceActivations | None
    ) -> Callable[[tuple[int, ...]], Hashable]:
        """A key that rows of one batch must have in common, besides `LongRopeBuckets`."""
        if not variant.hooks or not requests:
            return lambda row: None
        if rows_are_independent(self.model, variant, requests, reference):
            return len
        # Not even equal prompts share a batch: a hook may tell their items apart.
        return lambda row: object()

    def _score(
        self,
        requests: dict[int, LoglikelihoodRequest],
        state: BatchState,
        marks: Marks,
        alike: Callable[[tuple[int, ...]], Hashable],
        *,
        by_item: bool,
    ) -> Iterator[tuple[int, Response]]:
        """Score log-likelihood requests. With `by_item`, equal inputs of different items get separate rows."""
        by_input: dict[tuple[tuple[int, ...], tuple[int, ...], str | None], list[int]] = defaultdict(list)
        for index, request in requests.items():
            by_input[request.input_ids, marks.of(request), request.item if by_item else None].append(index)
        inputs = list(by_input)
        lengths = [len(row) for row, _, _ in inputs]
        labels = [(self._rope_buckets.of_length(len(row)), alike(row)) for row, _, _ in inputs]
        for batch in batches_by_length(lengths, self.max_tokens, labels):
            rows = [inputs[i] for i in batch]
            padded = pad_left([row for row, _, _ in rows], pad_token_id(self.model), self.model.facts.device)
            state.position_ids, state.tokens = padded.position_ids, padded.input_ids
            state.items = tuple(item for _, _, item in rows)
            state.masks = marks.masks([row_marks for _, row_marks, _ in rows], padded.input_ids)
            kept = max(len(requests[i].continuation_ids) for row in rows for i in by_input[row])
            logits = self.model.forward(
                padded.input_ids, padded.attention_mask, padded.position_ids, logits_to_keep=kept
            )
            for row, row_logits in zip(rows, logits, strict=True):
                for index in by_input[row]:
                    continuation = requests[index].continuation_ids
                    yield index, score_continuation(row_logits[-len(continuation) :], continuation)

    def _generate(
        self,
        requests: dict[int, GenerateRequest],
        state: BatchState,
        marks: Marks,
        alike: Callable[[tuple[int, ...]], Hashable],
        worked: Callable[[float], object],
    ) -> Iterator[tuple[int, Response]]:
        indices, to_generate = list(requests), list(requests.values())
        contexts = [len(r.context_ids) for r in to_generate]
        lengths = [size + r.max_new_tokens for size, r in zip(contexts, to_generate, strict=True)]
        # A finished row keeps running while others of its batch generate. It must pass neither the context's end nor a
        # length at which rotary angles change; batching rows with equal token budgets ensures that.
        apart = (
            max(contexts, default=0) + max((r.max_new_tokens for r in to_generate), default=0)
            > self._rope_buckets.longest
        )
        labels = [
            (self._rope_buckets.of(r), r.max_new_tokens if apart else 0, alike(r.context_ids)) for r in to_generate
        ]
        for batch in batches_by_length(lengths, self.max_tokens, labels):
            yield from self._generate_batch({indices[i]: requests[indices[i]] for i in batch}, state, marks, worked)

    def _generate_batch(
        self,
        requests: dict[int, GenerateRequest],
        state: BatchState,
        marks: Marks,
        worked: Callable[[float], object],
    ) -> Iterator[tuple[int, Response]]:
        device, generator = self.model.facts.device, Generator(self.model)
        generations = {i: generator.start(request) for i, request in requests.items()}
        padded = pad_left([r.context_ids for r in requests.values()], pad_token_id(self.model), device)
        input_ids, mask, positions = padded.input_ids, padded.attention_mask, padded.position_ids
        cache = self.model.new_cache()
        state.items = tuple(r.item for r in requests.values())
        open_rows, step = dict(enumerate(requests)), 0
        state.masks = marks.masks([marks.of(r) for r in requests.values()], input_ids)
        work = RowWork([len(r.context_ids) for r in requests.values()], [r.max_new_tokens for r in requests.values()])
        done = float(work.prompts.sum())
        while open_rows:
            rows, ended_at = np.array(list(open_rows)), np.zeros(len(requests))
            state.position_ids, state.tokens = positions, input_ids
            logits = self.model.forward(input_ids, mask, positions, cache=cache, logits_to_keep=1)[:, -1]
            finite = torch.isfinite(logits).all(-1).tolist()
            # Finished rows keep running, with any token.
            tokens = generator.choose(logits, list(generations.values())).tolist()
            for row, index in list(open_rows.items()):
                response = generations[index].add(tokens[row], finite=finite[row])
                if response is None:
                    tokens[row] = generations[index].last
                else:
                    del open_rows[row]
                    ended_at[row] = len(generations[index])
                    yield index, response
            worked(done + float(work.step(rows, ended_at[rows]).sum()))
            done = 0.0
            input_ids = torch.tensor(tokens, device=device)[:, None]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            positions = positions[:, -1:] + 1
            newest = marks.masks([[marks.of_generated(step)]] * len(requests), input_ids)
            state.masks = {at: torch.cat([mask, newest[at]], dim=1) for at, mask in state.masks.items()}
            step += 1


def _nothing(variant: str, rows: float) -> None:
    """For callers that don't ask for progress."""
