"""A plan as text for the terminal."""

from __future__ import annotations

from itertools import pairwise

from lensprune.costs.cost import Cost
from lensprune.output.plain_text import for_terminal
from lensprune.output.quantities import duration, quantity
from lensprune.output.tables import aligned
from lensprune.planning.makespan import makespan, planned_times
from lensprune.planning.result import Plan

__all__ = ["plan_report"]

_SHOWN_LOOKS = 8


def _saving(before: float, after: float) -> str:
    return f"{before / after:.1f}×" if after else "-"


def _cost_rows(plan: Plan) -> list[list[str]]:
    rows = [["", "hooked", "forked", "saving"]]
    before, after = plan.unshared, plan.shared

    def row(label: str, a: float, b: float, unit: str = "") -> None:
        rows.append([label, quantity(a, unit), quantity(b, unit), _saving(a, b)])

    row("tokens", before.tokens, after.tokens)
    row("positions unembedded", before.scored, after.scored)
    row("FLOPs", before.flops, after.flops)
    for part in ("attention", "scores", "mlp", "unembedding"):
        label = {"scores": "attention between tokens", "attention": "attention projections"}.get(part, part)
        row(f"of which {label}", getattr(before, part), getattr(after, part))
    return rows


def _length_rows(plan: Plan) -> list[list[str]]:
    rows = [["new tokens", "tokens", "keys and values of a text", "texts at once", "memory", "time"]]
    for one in plan.lengths:
        sizes = [quantity(one.row_bytes, "B"), str(one.rows), quantity(one.memory, "B")]
        rows.append([str(one.new_tokens), quantity(one.tokens), *sizes, duration(one.seconds)])
    return rows


def _cell_rows(plan: Plan) -> list[list[str]]:
    rows = [["task", "protocol", "items", "requests", "tokens hooked", "tokens forked", "FLOPs forked"]]
    for condition in plan.conditions:
        unshared, shared = condition.unshared, condition.shared
        numbers = [str(condition.items), str(condition.requests), quantity(unshared.tokens), quantity(shared.tokens)]
        rows.append([condition.task, condition.protocol, *numbers, quantity(shared.flops)])
    return rows


def plan_report(plan: Plan) -> str:
    """What `lensprune plan` prints."""
    memory, speed = plan.memory, plan.speed
    shape = plan.shape
    head = (
        f"{for_terminal(plan.model)}: {shape.n_layers} layers, {quantity(shape.parameters)} parameters, "
        f"{quantity(shape.flops_per_token)}FLOP per token; {plan.dtype} on {for_terminal(plan.device)}"
    )
    counts = f"{plan.n_variants} variants × {len(plan.conditions)} (task, protocol)"
    cells = f"{plan.n_cells} cells: {counts}; nothing has been run"
    if plan.reference != Cost():
        cells += f"; {quantity(plan.reference.tokens)} tokens are reference prompts"
    parts = [("weights", memory.weights), ("activations", memory.activations), ("logits", memory.logits)]
    parts += [("keys and values", memory.cache)] if memory.cache else []
    parts += [("libraries", memory.process)] if memory.process else []
    parts += [("files while loading, before anything runs", memory.loading)] if memory.loading else []
    detail = ", ".join(f"{label} {quantity(size, 'B')}" for label, size in parts)
    rate = f"{quantity(speed.flops, 'FLOP/s')} {'measured here' if speed.measured else 'as given'}"
    if speed.bandwidth is not None:
        rate += f", weights read at {quantity(speed.bandwidth, 'B/s')}"
    elif plan.cost.passes:
        rate += "; decoding is bound by reading weights and will take longer: give --bandwidth as well"
    return "\n\n".join(
        [
            f"{head}\n{cells}",
            aligned(_cell_rows(plan)),
            aligned(_cost_rows(plan)),
            *([aligned(_length_rows(plan))] if plan.lengths else []),
            *([_stops(plan)] if plan.stops else []),
            f"{'memory:':9}{quantity(memory.total, 'B')} at the peak with {plan.executor} ({detail})\n"
            f"{'time:':9}{_time(plan)} with {plan.executor} ({rate})"
            f"{_workers_line(plan)}",
        ]
    )


def _time(plan: Plan) -> str:
    """The time, with its correction by earlier sweeps on this machine."""
    known, most = plan.correction, duration(plan.seconds)
    said = most if plan.expected_seconds is None else f"about {duration(plan.expected_seconds)}, at most {most},"
    if not known.sweeps:
        return f"{said} of matrix products"
    sweeps = "sweep" if known.sweeps == 1 else "sweeps"
    return f"{said} of matrix products × {known.factor:.2f} (from {known.sweeps} earlier {sweeps} here)"


def _stops(plan: Plan) -> str:
    """How many variants a sweep that stops early is expected to measure on each block of items."""
    lines = []
    for one in plan.stops:
        whole = (plan.n_variants - 1) * one.items[-1]
        sizes = [b - a for a, b in pairwise((0, *one.items))]
        share = sum(n * size for n, size in zip(one.measured, sizes, strict=True)) / whole
        shown = list(zip(one.items, one.measured, strict=True))
        shown = shown if len(shown) <= _SHOWN_LOOKS else [*shown[: _SHOWN_LOOKS - 1], shown[-1]]
        rows = [["variants measured, up to item", *(str(n) for n, _ in shown)], ["", *(f"{n:.0f}" for _, n in shown)]]
        lines.append(
            f"{for_terminal(one.task)}, {one.protocol}: stopping early measures about {share:.0%} of the cells, if "
            f"{one.assumed}\n{aligned(rows)}"
        )
    return "\n\n".join(lines)


def _workers_line(plan: Plan) -> str:
    """The simulated time with `plan.workers`; nothing for a sweep in one process."""
    if plan.workers is None:
        return ""
    most = "at most " if plan.stops else ""
    spent = makespan(planned_times(plan), plan.workers)
    return (
        f"\n{'workers:':9}{most}{duration(spent.seconds)} with {plan.workers} workers, each at {spent.efficiency:.0%} "
        "of the rate of one alone, not counting the time to load the model"
    )
