"""A sweep that is counted, not run: its requests, costs, memory and time, from the model's configuration alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, starmap
from pathlib import Path
from typing import Any, cast

import torch

from lensprune.ablation.reference import OPTIMAL_PROMPTS
from lensprune.ablation.variants import CLEAN, Variant
from lensprune.analysis.stopping import Stopping
from lensprune.costs.cost import Cost, blocks_cost, unembedding_cost
from lensprune.costs.history import Correction, SpeedHistory, SpeedKey
from lensprune.costs.memory import Memory, peak_memory
from lensprune.costs.shape import ModelShape, model_shape
from lensprune.costs.shared import decode_chunks, forked_limits, shared_cost
from lensprune.costs.speed import Speed, estimated_seconds
from lensprune.costs.unshared import batch_budget, hooked_batches, unshared_cost
from lensprune.engine.hooked import HookedExecutor
from lensprune.engine.limits import DecodeLimits
from lensprune.engine.memory import budgets, gpu_limits
from lensprune.engine.registry import executor_info
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.models.load import parse_dtype
from lensprune.models.loading_memory import loading_bytes
from lensprune.models.model_config import ModelConfig, load_model_config
from lensprune.planning.result import PlannedCondition, PlannedLength, PlannedStop
from lensprune.planning.stopping import measured_at_looks, profile_of
from lensprune.protocols.base import ItemRequests
from lensprune.protocols.requests import GenerateRequest, Request
from lensprune.runs.folder import check_out_folder
from lensprune.sweeps.conditions import Condition, conditions_of
from lensprune.sweeps.options import FEWSHOT, SweepOptions
from lensprune.sweeps.prepare import resolved_variants
from lensprune.sweeps.reached import check_positions
from lensprune.sweeps.references import read_reference_text
from lensprune.sweeps.screening import rules_of, screened_controls, screened_count
from lensprune.sweeps.task_loading import load_tasks
from lensprune.sweeps.thinking_prefix import thinking_requests, with_longest_thinking

__all__ = ["CountedSweep"]

_LONG = 512
"""From this many new tokens on, shorter texts are planned too."""


@dataclass(frozen=True)
class CountedSweep:
    """A sweep that is counted: its model by the configuration alone, its requests, and the executor's budget."""

    model_config: ModelConfig
    shape: ModelShape
    conditions: tuple[Condition, ...]
    variants: tuple[Variant, ...]
    executor: str
    shares_work: bool
    budget: int | DecodeLimits | None
    number: torch.dtype
    screening: int
    """Number of passes that estimate the heads: 0 measures all of them, and there is one for each gradient rule."""
    loading: int
    thoughts: tuple[Sequence[GenerateRequest], ...]
    """By condition, what the clean model generates beforehand for a thinking prefix."""
    stopping: Stopping | None
    hypotheses: int
    """Number of variants in question; screening chooses `variants` among them, with `controls` drawn at random."""
    controls: int = 0

    @classmethod
    def of(cls, model: str | Path, options: SweepOptions, out: Path | None) -> CountedSweep:
        """Refuse what a sweep refuses, and build its requests."""
        shares_work = executor_info(options.executor).shares_work
        if out is not None:
            check_out_folder(out)
        text = None if str(options.reference) == FEWSHOT else read_reference_text(options.reference)
        tasks = load_tasks(options)
        number = parse_dtype(options.dtype or "float32")
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        _check_device(device)
        config = load_model_config(model, dtype=number, device=device, bos=cast(Any, options.bos or "tokenizer"))
        shape = model_shape(config)
        variants = resolved_variants(config.facts, options)
        # Requests are built from the facts and the tokenizer alone, which a `ModelConfig` has like any loaded model.
        conditions = conditions_of(
            cast(HookedModel, config), tasks, options, text, with_reference=any(v.needs_reference for v in variants)
        )
        thoughts: tuple[Sequence[GenerateRequest], ...] = ((),) * len(conditions)
        if options.thinking_prefix is not None:
            thoughts = tuple(
                () if condition.generates else thinking_requests(cast(HookedModel, config), condition, options)
                for condition in conditions
            )
            conditions = with_longest_thinking(cast(HookedModel, config), conditions, options)
        check_positions(cast(HookedModel, config), conditions, variants)
        hypotheses, controls, screening = len(variants) - 1, 0, 0
        if options.screen is not None:
            rule = options.screen_rule or "plain"
            variants = _evenly_over_depth(variants, screened_count(hypotheses, options.screen, rule))
            controls, screening = screened_controls(hypotheses, options.screen, rule), len(rules_of(rule))
        weight_bytes = shape.parameters * number.itemsize
        budget = budgets(config.facts, options.batch_tokens, options.memory)
        free = gpu_limits(config.facts, weight_bytes) if shares_work and options.memory is None else None
        if free is not None:
            budget = free if options.batch_tokens is None else replace(free, tokens=options.batch_tokens)
        return cls(
            config, shape, conditions, variants, options.executor, shares_work, budget, number, screening,
            loading_bytes(model, number), thoughts, options.stopping, hypotheses, controls,
        )  # fmt: skip

    @property
    def weight_bytes(self) -> int:
        return self.shape.parameters * self.number.itemsize

    def planned(self) -> tuple[PlannedCondition, ...]:
        """One for each (task, protocol)."""
        return tuple(starmap(self._planned, zip(self.conditions, self.thoughts, strict=True)))

    def _planned(self, condition: Condition, thoughts: Sequence[GenerateRequest]) -> PlannedCondition:
        requests, facts, estimates = condition.requests, self.model_config.facts, self._estimates(condition)
        unshared = unshared_cost(self.shape, thoughts, 1, self.budget) + estimates
        shared = shared_cost(self.shape, facts, thoughts, [CLEAN], self.budget) + estimates
        return PlannedCondition(
            task=condition.task.task.name,
            protocol=condition.protocol,
            items=len(condition.items) // condition.samples,
            requests=len(requests),
            unshared=unshared_cost(self.shape, requests, len(self.variants), self.budget) + unshared,
            shared=shared_cost(self.shape, facts, requests, self.variants, self.budget) + shared,
        )

    def _estimates(self, condition: Condition) -> Cost:
        """Cost of screening's estimates: by each rule a forward pass, and a backward pass to the activations with as
        many products. Both share tokens as the clean model's pass does."""
        if not self.screening:
            return Cost()
        passes = 2 * self.screening
        return shared_cost(self.shape, self.model_config.facts, condition.requests, [CLEAN], self.budget) * passes

    def stops(self) -> tuple[PlannedStop, ...]:
        """What a sweep that stops early is expected to cost on each (task, protocol); none for any other."""
        if self.stopping is None:
            return ()
        return tuple(self._stop(*pair, self.stopping) for pair in zip(self.conditions, self.thoughts, strict=True))

    def _stop(self, condition: Condition, thoughts: Sequence[GenerateRequest], stopping: Stopping) -> PlannedStop:
        profile, measured = profile_of(self.variants, condition.protocol), len(self.variants) - 1
        controls = min(measured, self.controls)
        measured_at = measured_at_looks(profile, stopping, self.hypotheses, measured, controls)
        cost = self._estimates(condition) + self._cost(thoughts, [CLEAN])
        for (start, end), n in zip(pairwise((0, *stopping.items)), measured_at, strict=True):
            requests = [request for item in condition.items[start:end] for request in item.requests]
            cost += self._cost(requests, _evenly_over_depth(self.variants, round(n)))
        return PlannedStop(
            condition.task.task.name,
            condition.protocol,
            stopping.items,
            tuple(measured_at.tolist()),
            cost,
            str(profile),
        )

    def _cost(self, requests: Sequence[Request], variants: Sequence[Variant]) -> Cost:
        if self.shares_work:
            return shared_cost(self.shape, self.model_config.facts, requests, variants, self.budget)
        return unshared_cost(self.shape, requests, len(variants), self.budget)

    def seconds(self, speed: Speed) -> float:
        """Seconds of the whole sweep."""
        return self.seconds_of((one.shared if self.shares_work else one.unshared for one in self.planned()), speed)

    def seconds_of(self, costs: Iterable[Cost], speed: Speed) -> float:
        """Seconds of work of these costs, and of the reference prompts."""
        return estimated_seconds(sum(costs, self.references()), speed, self.weight_bytes, self.number.itemsize)

    def correction(self, speed: Speed, planned_conditions: Sequence[PlannedCondition]) -> Correction:
        """Measured over planned time of earlier work of these kinds on this machine, weighted by planned time."""
        history, facts, executor = SpeedHistory.of_machine(), self.model_config.facts, self.executor
        planned = taken = 0.0
        sweeps = 0
        for condition, counted in zip(self.conditions, planned_conditions, strict=True):
            key = SpeedKey.of(
                self.shape, device=facts.device, dtype=facts.dtype, executor=executor, generates=condition.generates
            )
            cost = counted.shared if self.shares_work else counted.unshared
            seconds = estimated_seconds(cost, speed, self.weight_bytes, self.number.itemsize)
            known = history.correction(key)
            planned, taken, sweeps = planned + seconds, taken + known.factor * seconds, max(sweeps, known.sweeps)
        return Correction(taken / planned if planned else 1.0, sweeps)

    def lengths(self, speed: Speed) -> tuple[PlannedLength, ...]:
        """The same sweep with an eighth, a quarter, half and all of the new tokens; empty if texts are short."""
        most = max((r.max_new_tokens for r in self._generated()), default=0)
        if most < _LONG:
            return ()
        return tuple(self._shortened(most // part)._length(most // part, speed) for part in (8, 4, 2, 1))

    def _generated(self) -> list[GenerateRequest]:
        return [r for condition in self.conditions for r in condition.requests if isinstance(r, GenerateRequest)]

    def _shortened(self, most: int) -> CountedSweep:
        """This sweep with at most `most` new tokens per text."""
        conditions = tuple(
            replace(condition, items=tuple(_shorter(item, most) for item in condition.items))
            for condition in self.conditions
        )
        return replace(self, conditions=conditions)

    def _length(self, new_tokens: int, speed: Speed) -> PlannedLength:
        longest = max(len(r.context_ids) + r.max_new_tokens for r in self._generated())
        costs = (one.shared if self.shares_work else one.unshared for one in self.planned())
        return PlannedLength(
            new_tokens=new_tokens,
            tokens=sum(costs, self.references()).tokens,
            row_bytes=longest * self.shape.n_layers * self.shape.cached_per_token * self.number.itemsize,
            rows=self._rows_at_once(),
            memory=self.memory().total,
            seconds=self.seconds(speed),
        )

    def _rows_at_once(self) -> int:
        requests = [condition.requests for condition in self.conditions]
        if not self.shares_work:
            size = batch_budget(HookedExecutor, self.budget)
            return max(batch.rows for each in requests for batch in hooked_batches(each, size) if batch.steps)
        facts, limits = self.model_config.facts, forked_limits(self.budget)
        chunks = (chunk for each in requests for chunk in decode_chunks(each, self.variants, facts, limits))
        return max(chunk.rows_at_once for chunk in chunks)

    def references(self) -> Cost:
        """The clean model's passes over reference prompts."""
        return _reference_cost(self.shape, self.conditions, self.variants)

    def memory(self) -> Memory:
        """Peak memory."""
        work = [([condition.requests for condition in self.conditions], self.variants), (self.thoughts, (CLEAN,))]
        needs = [
            peak_memory(
                self.shape,
                self.model_config.facts,
                requests,
                variants,
                shares_work=self.shares_work,
                bytes_a_number=self.number.itemsize,
                budget=self.budget,
                loading=self.loading,
            )
            for requests, variants in work
        ]
        return max(needs, key=lambda memory: memory.total)


def _shorter(item: ItemRequests, most: int) -> ItemRequests:
    requests = tuple(
        replace(r, max_new_tokens=min(r.max_new_tokens, most), forced_end=None) if isinstance(r, GenerateRequest) else r
        for r in item.requests
    )
    return replace(item, requests=requests)


def _check_device(name: str) -> None:
    """Check the device's name; the device itself need not be present."""
    try:
        torch.device(name)
    except RuntimeError as error:
        raise UserError(f"{name!r} is not a device: expected cpu, cuda, cuda:1, ...") from error


def _evenly_over_depth(variants: Sequence[Variant], n: int) -> tuple[Variant, ...]:
    """The clean model, and `n` of the variants, spread evenly over depth.

    Which heads screening would choose is not known without weights, and several tasks may choose different ones.
    """
    heads = [variant for variant in variants if not variant.is_clean]
    return (CLEAN, *(heads[(2 * i + 1) * len(heads) // (2 * n)] for i in range(n)))


def _reference_cost(shape: ModelShape, conditions: Sequence[Condition], variants: Sequence[Variant]) -> Cost:
    """The clean model on the prompts from which mean and resample take their activations, one at a time.

    Values that are searched for count with the passes of their kind, from the component's layer on.
    """
    total = Cost()
    searched = {a for variant in variants for a in variant.ablations if a.definition.search_passes}
    for condition in conditions:
        for prompt in condition.reference_prompts[:OPTIMAL_PROMPTS] if searched else ():
            n = len(prompt)
            total += blocks_cost(shape, n, n**2) + unembedding_cost(shape, n)
            for ablation in searched:
                once = blocks_cost(shape, n, n**2, ablation.component.layer) + unembedding_cost(shape, n)
                total += once * ablation.definition.search_passes
    for prompt in (prompt for condition in conditions for prompt in condition.reference_prompts):
        total += blocks_cost(shape, len(prompt), len(prompt) ** 2) + unembedding_cost(shape, 1)
    return total
