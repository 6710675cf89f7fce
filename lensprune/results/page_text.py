"""The sentences of a run's page."""

from __future__ import annotations

import pandas as pd

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.sequential import Looks
from lensprune.analysis.stopping import AnyLook, UntilWidth, stopping_of
from lensprune.output.plain_text import visible
from lensprune.results.concentration import NOT_OF_ALL_HEADS
from lensprune.runs.chance import beats_chance, items_to_beat_chance
from lensprune.runs.noise import noise_lines
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.spec import SweepSpec

__all__ = ["counted", "facts", "lead", "none_critical", "notes", "prompts_in_words", "tests_in_words"]

_NAMED = 5
"""Variants that the page's facts name."""
_NOT_ABOVE = "on no task is the clean model known to beat chance"


def _too_few(changed: pd.DataFrame) -> str:
    """A sentence on the task whose clean accuracy the fewest more items would tell from chance; empty if none."""
    conditions = changed.drop_duplicates(["task", "protocol"])
    pairs = zip(conditions["accuracy_clean"], conditions["chance"], strict=True)
    conditions = conditions.assign(
        needed=pd.Series([items_to_beat_chance(*pair) for pair in pairs], conditions.index, dtype=float)
    )
    few = conditions[conditions["needed"] > conditions["n"]].sort_values("needed")
    if few.empty:
        return ""
    row = few.iloc[0]
    return (
        f" {visible(row['task'])} under {row['protocol']} has too few items: {row['n']} can't tell "
        f"{row['accuracy_clean']:.2f} from {row['chance']:.2f}, and {row['needed']:.0f} would in four of five runs."
    )


def none_critical(changed: pd.DataFrame) -> str:
    tested = int(beats_chance(changed).sum())
    if not tested:
        return f"None can be detected: {_NOT_ABOVE}.{_too_few(changed)}"
    most = changed.loc[beats_chance(changed), "n"].max()
    return (
        f"None among {counted(tested, 'change')} on tasks above chance, with up to {counted(int(most), 'item')} each."
    )


def counted(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def lead(changed: pd.DataFrame, needed: pd.DataFrame, level: float) -> str:
    ranked = changed[beats_chance(changed)]
    if ranked.empty:
        return f"No change is ranked: {_NOT_ABOVE}.{_too_few(changed)}"
    worst = ranked.iloc[0]
    named = counted(len(needed), "change") + f" of {len(ranked)}"
    said = (
        f"{named} on tasks above chance lower accuracy with q ≤ {level:g}. The largest loss: {worst['variant']} on "
        f"{visible(worst['task'])} under {worst['protocol']}, Δμ "
    )
    numbers = f"{worst['delta']:+.2f} (95% {worst['ci_low']:+.2f} to {worst['ci_high']:+.2f}, n {worst['n']})."
    return said + numbers.replace("-", "−")


def notes(outcomes: Outcomes, summary: pd.DataFrame) -> list[str]:
    clean = summary[(summary["variant"] == CLEAN.name) & (summary["truncated"].fillna(0) > 0)]
    cut = [
        f"{visible(str(r.task))}, {r.protocol}: {r.truncated} prompts are cut on the left." for r in clean.itertuples()
    ]
    small = [task for task in outcomes.spec.tasks if task.n_items < 50]
    if small:
        cut.append(
            f"With fewer than 50 items ({', '.join(f'{visible(t.name)}: {t.n_items}' for t in small)}) only large "
            "losses can be detected."
        )
    cut += [f"{visible(line)}." for line in noise_lines(outcomes.spec)]
    if outcomes.spec.screen is not None:
        cut.append(f"{NOT_OF_ALL_HEADS}.")
    return cut


def prompts_in_words(spec: SweepSpec) -> str:
    """How the prompts of a run are written."""
    parts = [f"BOS: {spec.bos}", f"chat template: {'yes' if spec.chat_template else 'no'}"]
    parts[-1] += f", dated {spec.template_date}" if spec.template_date else ""
    parts += [f"{name}={value}" for name, value in (spec.template_args or {}).items()]
    parts += ["examples are turns"] if spec.fewshot_as_multiturn else []
    parts += [f"system prompt: {spec.system!r}"] if spec.system else []
    if spec.appended:
        parts.append(f"{spec.appended} after each prompt: {'kept' if spec.keep_eos else 'left out'}")
    if spec.think_tokens is not None:
        parts.append(f"thinking: {spec.thinking}, {' … '.join(spec.think_tokens)}")
        parts[-1] += "" if spec.thinking_budget is None else f", ended after {spec.thinking_budget} tokens"
    return "; ".join(parts)


def _stopping_in_words(spec: SweepSpec) -> str:
    """When a sweep that stops early stops measuring a variant."""
    stopping = stopping_of(spec.stopping)
    assert stopping is not None
    if isinstance(stopping, UntilWidth):
        return (
            f"each variant is measured until its 95% interval is no wider than {stopping.width:g}, or "
            f"{stopping.items[-1]} items"
        )
    if isinstance(stopping, AnyLook):
        return (
            f"each variant is measured until it is detected as losing more than {stopping.margin:g}, with q ≤ "
            f"{stopping.level:g}, or shown to lose less, or {stopping.items[-1]} items; p, q and intervals come from "
            "e-values and hold whenever the sweep is stopped"
        )
    looks = ", ".join(map(str, stopping.items))
    return (
        f"each variant is measured until it is detected as losing more than {stopping.margin:g}, with q ≤ "
        f"{stopping.level:g}, or given up; looks at {looks} items; p and intervals are repeated ones, which hold over "
        "all looks"
    )


def tests_in_words(spec: SweepSpec) -> str:
    """What the intervals, p and q of the summary are."""
    stopping = stopping_of(spec.stopping)
    if isinstance(stopping, (Looks, AnyLook)):
        planned = isinstance(stopping, Looks)
        return (
            f"with a 95% interval that holds at {'all looks' if planned else 'any number of items'}; p is "
            f"{'the repeated p-value' if planned else '1 over the e-value'}, one-sided, of a loss larger than "
            f"{stopping.margin:g}; q is the false discovery rate of such losses among the variants of the same task "
            "and protocol, and that of gains is not known"
        )
    return (
        "with a paired 95% interval; p is McNemar's exact test, two-sided; the two q are false discovery rates of "
        "one-sided tests, of losses and of gains, among the variants of the same task and protocol"
    )


def facts(outcomes: Outcomes) -> list[tuple[str, str]]:
    spec = outcomes.spec
    shape = f"{spec.n_layers} layers, {spec.n_heads} heads, {spec.n_key_value_heads} key/value heads"
    variants = outcomes.spec.variant_names
    named = ", ".join(variants if len(variants) <= _NAMED else [*variants[: _NAMED - 1], "…", variants[-1]])
    pairs = [
        ("model", f"{spec.model} ({spec.architecture}; {shape})"),
        ("weights", f"sha256 {spec.weights_hash}"),
        ("precision", f"{spec.dtype} on {spec.device}"),
        ("prompts", prompts_in_words(spec)),
        ("variants", f"{len(variants)}: {named}"),
        ("reference", f"{spec.reference or 'none needed'}" + (f", {spec.mean_mode}" if spec.mean_mode else "")),
        *([("stopping", _stopping_in_words(spec))] if spec.stopping is not None else []),
        ("seed", str(spec.seed)),
        ("executor", spec.execution.executor),
        ("command", spec.execution.command or "called from Python"),
        ("versions", ", ".join(f"{name} {number}" for name, number in sorted(spec.versions.items()))),
        ("data", "; ".join(f"{task}: {path}" for task, path in spec.execution.data_sources.items()) or "not recorded"),
        ("digest", spec.digest),
    ]  # fmt: skip
    return [(name, visible(value)) for name, value in pairs]
