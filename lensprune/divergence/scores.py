"""One importance score for all protocols: how closely a variant follows the clean model's right answers.

The clean model answers every item greedily. Of each answer that is right, each variant reads the tokens that make it
right (`lensprune.protocols.answer_span`) in one parallel pass. With the regret of token t (log-probability of the
variant's most likely token minus that of the clean model's token, in nats, 0 where the two agree), the fidelity of an
item is

    F = exp(−Σ_t regret_t)

and that of a variant the mean over these items. F is 1 for the clean model; where the variant's greedy decoding
reproduces the answer F is 1 too, and a near miss costs less than a clear one. Nothing is fitted. Answers that are
wrong anyway, and text after the answer (its full stop, the line's end), can change without a loss of accuracy
and don't count; hence gains are invisible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from jaxtyping import Float

from lensprune.analysis.intervals import mean_intervals
from lensprune.analysis.rank_correlation import kendall_rows, spearman_rows
from lensprune.engine.traces import TokenTrace
from lensprune.errors import UserError
from lensprune.runs.chance import beats_chance

__all__ = ["AGREEMENT_COLUMNS", "FIDELITY_COLUMNS", "agreement_with_loss", "fidelity_items", "fidelity_row"]

_ITEM_COLUMNS = ("fidelity", "follow", "path_share", "kl", "loss_change")
FIDELITY_COLUMNS = ("fidelity", "ci_low", "ci_high", *_ITEM_COLUMNS[1:], "n", "n_tokens")
AGREEMENT_COLUMNS = (
    "task", "protocol", "measure", "n_variants", "spearman", "spearman_low", "spearman_high", "kendall", "kendall_low",
    "kendall_high", "shuffled_high", "p_value",
)  # fmt: skip
_SHUFFLES = 2000


def fidelity_items(traces: Sequence[TokenTrace], clean: Sequence[TokenTrace]) -> dict[str, Float[np.ndarray, " item"]]:
    """Score each answer under a variant.

    * ``fidelity``: exp(−Σ regret); an answer with a logit that is not finite has fidelity 0.
    * ``follow``: 1 where greedy decoding follows the clean answer to its end (the product of agreements), else 0.
    * ``path_share``: tokens before the first divergence over the answer's tokens.
    * ``kl``: mean over tokens of KL(clean ‖ variant), nats.
    * ``loss_change``: mean over tokens of the answer's negative log-probability, minus the clean model's, nats.

    Args:
        clean: the clean model's traces of the same answers.
    """
    columns: dict[str, list[float]] = {name: [] for name in _ITEM_COLUMNS}
    for trace, clean_trace in zip(traces, clean, strict=True):
        broken = np.isnan(trace.regret)
        agrees = trace.agrees
        first = int(np.argmin(agrees)) if not agrees.all() else len(agrees)
        columns["fidelity"].append(0.0 if broken.any() else float(np.exp(-trace.regret.sum())))
        columns["follow"].append(float(agrees.all()))
        columns["path_share"].append(first / len(agrees))
        columns["kl"].append(float(trace.kl.mean()))
        columns["loss_change"].append(float(clean_trace.logprob.mean() - trace.logprob.mean()))
    return {name: np.array(values) for name, values in columns.items()}


def fidelity_row(items: Mapping[str, Float[np.ndarray, " item"]], n_tokens: int) -> dict[str, float]:
    """The means over items, and a 95% interval of ``fidelity`` over items; keys are `FIDELITY_COLUMNS`."""
    interval = mean_intervals(items["fidelity"][:, None], bounds=(0, 1))
    return {
        "fidelity": float(items["fidelity"].mean()),
        "ci_low": float(interval.low[0]),
        "ci_high": float(interval.high[0]),
        **{name: float(items[name].mean()) for name in _ITEM_COLUMNS[1:]},
        "n": len(items["fidelity"]),
        "n_tokens": n_tokens,
    }


def agreement_with_loss(
    scores: pd.DataFrame,
    summary: pd.DataFrame,
    measures: Mapping[str, int],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Rank correlation of importance scores with measured Δμ, over the variants that both tables have.

    Args:
        scores: one row per (variant, task) or per variant, with a column for each of `measures`.
        summary: a run's summary.
        measures: column → +1 where a higher value means a smaller loss (fidelity), −1 where it means a larger one (KL).

    Returns:
        One row per (task, protocol, measure), with `AGREEMENT_COLUMNS`: Spearman's ρ and Kendall's τ_b between the
        score, signed so that agreement is positive, and Δμ, each with a bootstrap 95% interval over variants, and the
        number of variants; and a negative control, ``shuffled_high`` and ``p_value``: the 95% point of ρ when Δμ is
        dealt out to the variants at random, and the share of such deals with a ρ as high, one-sided (Phipson & Smyth
        2010). A
        (task, protocol) at which the clean model is at chance is left out. A measure that is NaN for every variant has
        no row.

    Raises:
        UserError: a measure is not a column of `scores`, or fewer than three variants are shared.
    """
    for measure in measures:
        if measure not in scores.columns:
            raise UserError(f"measure {measure!r} is not a column of the scores: they have {', '.join(scores.columns)}")
    known = summary[(summary["variant"] != "clean") & beats_chance(summary)]
    generator = np.random.default_rng(seed)
    rows = []
    for (task, protocol), measured in known.groupby(["task", "protocol"], sort=False):
        of_task = scores[scores["task"] == task] if "task" in scores.columns else scores
        joined = measured[["variant", "delta"]].merge(of_task, on="variant")
        if len(joined) < 3:
            raise UserError(f"{task} under {protocol}: {len(joined)} variants have both a score and a Δμ, 3 are needed")
        draws = generator.integers(0, len(joined), size=(resamples, len(joined)))
        shuffles = generator.permuted(np.tile(np.arange(len(joined)), (_SHUFFLES, 1)), axis=1)
        for measure, direction in measures.items():
            score, delta = direction * joined[measure].to_numpy(float), joined["delta"].to_numpy(float)
            if np.isnan(score).all():
                continue
            row: dict[str, object] = {"task": task, "protocol": protocol, "measure": measure, "n_variants": len(joined)}
            for name, correlate in (("spearman", spearman_rows), ("kendall", kendall_rows)):
                drawn = correlate(score[draws], delta[draws])
                low, high = np.nanquantile(drawn, [0.025, 0.975]) if not np.isnan(drawn).all() else (np.nan, np.nan)
                row[name] = float(correlate(score[None], delta[None])[0])
                row[f"{name}_low"], row[f"{name}_high"] = float(low), float(high)
            dealt = spearman_rows(np.broadcast_to(score, shuffles.shape), delta[shuffles])
            row["shuffled_high"] = float(np.quantile(dealt, 0.95))
            beyond = int((dealt >= float(cast(Any, row["spearman"])) - 1e-9).sum())
            row["p_value"] = (1 + beyond) / (1 + len(dealt)) if not np.isnan(dealt).any() else np.nan
            rows.append(row)
    return pd.DataFrame(rows, columns=list(AGREEMENT_COLUMNS))
