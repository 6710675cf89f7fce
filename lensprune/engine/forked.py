"""The fast executor: shared prefixes once, and each variant resumed from the clean model at its first changed layer.

The distinct tokens of a chunk of requests form a prefix tree that runs as one flat row. The clean model goes through it
layer by layer; at layer l every variant whose first change is there forks off from the residual before l, reusing layer
l's attention result, and runs to the end. Only scored positions are unembedded. Generation goes on from the keys and
values of that pass, many variants and requests in one step (see `decode`). The order of additions differs from the
hooked executor's, so numbers agree to rounding, not bit for bit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float

from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import CLEAN, Variant
from lensprune.engine.base import ProgressCallback, VariantResponses
from lensprune.engine.decode import GroupDecoder
from lensprune.engine.fork import fork_variants
from lensprune.engine.groups import DecodeLimits, group_variants, request_chunks
from lensprune.engine.hooked import HookedExecutor
from lensprune.engine.layers import LayerStack, UnsupportedByFastPath
from lensprune.engine.tree import PrefixTree, Tokens, build_tree, chunk_sequences
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import (
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    LoglikelihoodResponse,
    Request,
    Response,
)

__all__ = ["ForkedExecutor"]

UNEMBED_ROWS = 512
"""Positions unembedded at once; bounds the logits held to so many rows of the vocabulary."""


class ForkedExecutor:
    """All requests by forking from the clean model; variants with the user's own hooks through `HookedExecutor`.

    Args:
        model: must be able to run layer by layer; see `LayerStack`.
        max_tokens: distinct tokens in one flat row.
        max_rows: rows (variant × request) in one decode step.
        max_kv_bytes: keys and values held while decoding; a single row may need more.

    Raises:
        UnsupportedByFastPath: the model cannot, or its numbers differ from the hooked executor's on a probe.
    """

    name = "forked"
    PROBE_TOLERANCE = 1e-2

    def __init__(
        self, model: HookedModel, max_tokens: int = 8192, max_rows: int = 384, max_kv_bytes: int = 2**30
    ) -> None:
        for what, value in (("tokens", max_tokens), ("rows", max_rows), ("bytes", max_kv_bytes)):
            if value <= 0:
                raise UserError(f"the batch budget must be a positive number of {what}, not {value}")
        self.model = model
        self.max_tokens = max_tokens
        self.limits = DecodeLimits(max_rows, max_kv_bytes, max_tokens)
        self._hooked = HookedExecutor(model, min(max_tokens, 2048))
        self._stack = LayerStack(model)
        self._probe()

    def run(
        self,
        requests: Sequence[Request],
        variants: Sequence[Variant],
        *,
        reference: ReferenceActivations | None = None,
        progress: ProgressCallback | None = None,
    ) -> Iterator[VariantResponses]:
        """Yield the responses of each variant, in the order given. See `Executor`."""
        for variant in variants:
            variant.check(self.model.facts)
            if variant.needs_reference and reference is None:
                raise UserError(f"{variant.name} needs reference activations: give a reference set of prompts")
        fast = [v for v in variants if not v.hooks]
        scored = {i: r for i, r in enumerate(requests) if isinstance(r, LoglikelihoodRequest)}
        generated = {i: r for i, r in enumerate(requests) if isinstance(r, GenerateRequest)}
        with torch.inference_mode():
            scores = self._score(scored, fast, reference, progress)
        texts = self._generate(generated, fast, reference, progress)
        for variant in variants:
            if variant.hooks:
                yield from self._hooked.run(requests, [variant], reference=reference, progress=progress)
                continue
            responses: dict[int, Response] = {**scores[variant.name], **next(texts)}
            yield VariantResponses(variant, tuple(responses[i] for i in range(len(requests))))

    def _generate(
        self,
        requests: dict[int, GenerateRequest],
        variants: Sequence[Variant],
        reference: ReferenceActivations | None,
        progress: ProgressCallback | None,
    ) -> Iterator[dict[int, GenerateResponse]]:
        """Each variant's responses, in the order given, as soon as its group is done."""
        facts = self.model.facts
        chunks = request_chunks(requests, variants, facts, self.limits)
        for group in group_variants(variants, facts, chunks, self.limits):
            answered: list[dict[int, GenerateResponse]] = [{} for _ in group]
            for chunk in chunks:
                indices = list(chunk)
                with torch.inference_mode():
                    decoder = GroupDecoder(self.model, self._stack, group, list(chunk.values()), reference)
                    for variant, request, response in decoder.run():
                        answered[variant][indices[request]] = response
                        if progress is not None:
                            progress(1)
            yield from answered

    def _score(
        self,
        requests: dict[int, LoglikelihoodRequest],
        variants: Sequence[Variant],
        reference: ReferenceActivations | None,
        progress: ProgressCallback | None,
    ) -> dict[str, dict[int, LoglikelihoodResponse]]:
        by_input: dict[Tokens, list[int]] = defaultdict(list)
        for index, request in requests.items():
            by_input[(request.context_ids + request.continuation_ids)[:-1]].append(index)
        answered: dict[str, dict[int, LoglikelihoodResponse]] = {v.name: {} for v in variants}
        if not variants:
            return answered
        for chunk in chunk_sequences(list(by_input), self.max_tokens):
            tree = build_tree(chunk)
            asked = {i: requests[i] for sequence in chunk for i in by_input[sequence]}
            scorer = _Scorer(tree, asked)
            facts = self.model.facts
            wanted = scorer.positions.to(facts.device)
            for variant, hidden in fork_variants(self._stack, facts, tree, wanted, variants, reference):
                answered[variant.name].update(scorer.score(self._stack, hidden))
                if progress is not None:
                    progress(len(asked))
        return answered

    def _probe(self) -> None:
        # Families differ in what their attention modules pass on; a wrong number must never pass for a fast one.
        size = self.model.facts.d_vocab
        prefix = tuple((7 * i + 3) % size for i in range(12))
        requests = [LoglikelihoodRequest((*prefix, i % size), ((5 * i) % size, 1)) for i in (2, 3)]
        with torch.inference_mode():
            scored = self._score(dict(enumerate(requests)), [CLEAN], None, None)
        fast = [response.logprob for response in scored[CLEAN.name].values()]
        [slow] = self._hooked.run(requests, [CLEAN])
        for a, b in zip(fast, slow.responses, strict=True):
            expected = b.logprob if isinstance(b, LoglikelihoodResponse) else math.nan
            if math.isfinite(expected) and not abs(a - expected) <= self.PROBE_TOLERANCE * max(1.0, abs(expected)):
                raise UnsupportedByFastPath(
                    f"{self.model.facts.architecture}: layer by layer gives log-probability {a:.4f}, "
                    f"the hooked executor {expected:.4f}"
                )


class _Scorer:
    """Scored positions of one tree, and the requests that they answer."""

    def __init__(self, tree: PrefixTree, requests: dict[int, LoglikelihoodRequest]) -> None:
        self._requests = requests
        flat: list[int] = []
        self._spans: dict[int, slice] = {}
        for index, request in requests.items():
            tokens = (request.context_ids + request.continuation_ids)[:-1]
            begin = len(flat)
            flat.extend(tree.flat_positions(tokens, len(request.continuation_ids)))
            self._spans[index] = slice(begin, len(flat))
        unique = sorted(set(flat))
        place = {position: i for i, position in enumerate(unique)}
        self.positions = torch.tensor(unique)
        """Flat indices, ascending, whose residuals `score` takes."""
        self._rows = torch.tensor([place[position] for position in flat])
        self._targets = torch.tensor([t for r in requests.values() for t in r.continuation_ids])

    def score(
        self, stack: LayerStack, scored: Float[torch.Tensor, "wanted d_model"]
    ) -> dict[int, LoglikelihoodResponse]:
        device = scored.device
        rows, targets = self._rows.to(device), self._targets.to(device)
        logprob = torch.empty(len(rows), device=device)
        greedy = torch.empty(len(rows), dtype=torch.bool, device=device)
        for begin in range(0, len(scored), UNEMBED_ROWS):
            logits = stack.logits(scored[begin : begin + UNEMBED_ROWS])
            mine = (rows >= begin) & (rows < begin + UNEMBED_ROWS)
            local = rows[mine] - begin
            finite = torch.isfinite(logits).all(-1)
            best = logits.argmax(-1)
            # Not logsumexp, which rounds otherwise (7e-6 nats a token over 49,152 tokens on a CPU): the hooked executor
            # and lm-eval take log_softmax.
            value = logits.float().log_softmax(-1)[local, targets[mine]]
            logprob[mine] = torch.where(finite[local], value, torch.nan)
            greedy[mine] = (best[local] == targets[mine]) & finite[local]
        logprob, greedy = logprob.cpu(), greedy.cpu()
        return {
            index: LoglikelihoodResponse(float(logprob[span].sum()), bool(greedy[span].all()), span.stop - span.start)
            for index, span in self._spans.items()
        }
