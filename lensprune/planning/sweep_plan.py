"""`plan`: a sweep's cells, tokens, FLOPs, memory and time, from the model's configuration alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lensprune.ablation.variants import VariantsLike
from lensprune.analysis.multiplicity import LEVEL
from lensprune.costs.history import Correction
from lensprune.costs.speed import Speed, measure_speed
from lensprune.errors import UserError
from lensprune.planning.counted import CountedSweep
from lensprune.planning.result import Plan
from lensprune.planning.text import plan_report
from lensprune.sweeps.options import FEWSHOT, SweepOptions, option_values
from lensprune.sweeps.selection import VariantSelection
from lensprune.tasks.item_choice import DRAWN

__all__ = ["plan"]


def plan(
    model: str | Path,
    tasks: Sequence[str] | str,
    protocols: Sequence[str] | str = ("default",),
    variants: VariantsLike | VariantSelection = "layers",
    *,
    limit: int | None = None,
    items: str = DRAWN,
    shots: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    reference: str | Path = FEWSHOT,
    mean_mode: str = "pooled",
    leave_out_repeated: bool = False,
    primary_metric: str | None = None,
    chat_template: bool = False,
    template_date: str | None = None,
    template_args: Mapping[str, Any] | None = None,
    fewshot_as_multiturn: bool = False,
    system: str | None = None,
    keep_eos: bool = False,
    thinking: str = "auto",
    think_tokens: tuple[str, str] | None = None,
    thinking_budget: int | None = None,
    thinking_prefix: str | None = None,
    max_new_tokens: int | None = None,
    until: Sequence[str] = (),
    until_only: bool = False,
    generation_config: str = "model",
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    samples: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    n_devices: int | None = None,
    bos: str | None = None,
    executor: str = "forked",
    workers: int | None = None,
    ray_address: str | None = None,
    batch_tokens: int | None = None,
    memory: str | None = None,
    screen: float | None = None,
    screen_rule: str | None = None,
    lost_more_than: float | None = None,
    looks: str | None = None,
    q: float = LEVEL,
    until_width: float | None = None,
    out: str | Path | None = None,
    flops: float | None = None,
    bandwidth: float | None = None,
) -> Plan:
    """Count what `lensprune.sweep` with the same arguments would run. No weights are read or allocated.

    Args:
        model: a name or path for `load_model`; its configuration and tokenizer are read.
        screen: counted as if one set of heads were chosen for all tasks, spread evenly over depth.
        lost_more_than, looks, q, until_width: the figures are those of a sweep in which no variant stops early, next
            to those of a simulation with assumed losses (`lensprune.planning.stopping`).
        flops: matrix-product FLOP/s; ``None`` measures this machine for a second.
        bandwidth: memory bandwidth for reading weights, bytes/s, which bounds decoding; only with `flops`. Without it,
            only the FLOPs of decoding count, which underestimates its time.

    The other arguments are those of `lensprune.sweep`.

    Returns:
        Tokens, FLOPs, peak memory (bytes) and time, also as text. The time is that of the matrix products, corrected by
        how much longer sweeps took on this machine before (`lensprune.costs.history`), unless `flops` is given.

    Raises:
        UserError: invalid input, as in a sweep; no tokenizer; a speed that can't be measured.

    Examples:
        >>> plan = lp.plan("toy-distilled", "facts", ["continuation", "generate"], limit=2, flops=1e12, bandwidth=1e11)
        >>> print(plan)
        toy-distilled: 4 layers, ...
    """
    options = SweepOptions.given(**option_values(locals(), SweepOptions))
    if not isinstance(model, (str, Path)):
        raise UserError("a plan needs a model's name or path, not a loaded model: it reads no weights")
    given_speed = _given_speed(flops, bandwidth)
    counted = CountedSweep.of(model, options, None if out is None else Path(out))
    shape, facts, number = counted.shape, counted.model_config.facts, counted.number
    conditions, references = counted.planned(), counted.references()
    speed = given_speed or measure_speed(shape, number, facts.device)
    # A speed that is given is another machine's.
    correction = Correction() if given_speed else counted.correction(speed, conditions)
    planned = Plan(
        model=facts.name,
        shape=shape,
        dtype=facts.dtype,
        device=facts.device,
        executor=options.executor,
        n_variants=len(counted.variants),
        conditions=conditions,
        reference=references,
        memory=counted.memory(),
        speed=speed,
        seconds=correction.factor * counted.seconds(speed),
        workers=options.workers,
        lengths=tuple(replace(one, seconds=correction.factor * one.seconds) for one in counted.lengths(speed)),
        correction=correction,
        stops=counted.stops(),
    )
    if planned.stops:
        expected = counted.seconds_of((s.cost for s in planned.stops), speed)
        planned = replace(planned, expected_seconds=correction.factor * expected)
    return replace(planned, text=plan_report(planned))


def _given_speed(flops: float | None, bandwidth: float | None) -> Speed | None:
    for what, value in (("flops", flops), ("bandwidth", bandwidth)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{what} {value} is not a rate: expected a number above 0, such as 400e12")
    if flops is None and bandwidth is not None:
        raise UserError("bandwidth is given without flops: give both, or neither to have them measured")
    return None if flops is None else Speed(flops, bandwidth, False)
