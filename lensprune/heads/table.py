"""Head functions joined with the loss from removing each head."""

from __future__ import annotations

import pandas as pd

from lensprune.errors import UserError, unknown_name
from lensprune.models.base import ModelFacts
from lensprune.results.run import Run

__all__ = ["check_same_model", "effects_of_heads", "scores_with_effects", "top_heads"]

_EFFECTS = [
    "task", "protocol", "ablation", "n", "accuracy_clean", "delta", "ci_low", "ci_high", "q_loss", "q_gain",
    "at_chance",
]  # fmt: skip


def check_same_model(run: Run, facts: ModelFacts) -> None:
    """Raise unless a sweep's model is the one whose heads are scored.

    A sweep in a different dtype has different hashes; then only the models' names can be compared.

    Raises:
        UserError: the weights differ, or, in a different dtype, the names.
    """
    spec = run.spec
    if spec.weights_hash == facts.weights_hash or (spec.dtype != facts.dtype and spec.model == facts.name):
        return
    raise UserError(
        f"the run measured {spec.model} ({spec.dtype}, weights {spec.weights_hash[:12]}), but the scores are of "
        f"{facts.name} ({facts.dtype}, weights {facts.weights_hash[:12]}): give a run of the same model"
    )


def effects_of_heads(run: Run) -> pd.DataFrame:
    """The rows of the run's summary that remove a single head.

    Raises:
        UserError: there is none.
    """
    summary = run.summary()
    effects = summary[summary["component"] == "head"]
    if effects.empty:
        raise UserError("the run removes no single head: sweep over heads first")
    return effects


def scores_with_effects(scores: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Join head functions with a sweep over heads.

    Args:
        scores: from `head_scores`: layer, head, score, value.
        run: a sweep whose variants remove single heads.

    Returns:
        One row per (head, task, protocol, ablation): layer, head, one column per score, then the columns of the run's
        summary. Heads that the run did not remove are left out.

    Raises:
        UserError: the run removed no single head, or belongs to a model of another shape.
    """
    effects = effects_of_heads(run)
    wide = scores.pivot(index=["layer", "head"], columns="score", values="value")
    wide = wide[list(dict.fromkeys(scores["score"]))]
    places = set(zip(effects["layer"].astype(int), effects["head"].astype(int), strict=True))
    strangers = sorted(places - set(wide.index))
    if strangers:
        raise UserError(f"the run removed head {strangers[0]}, which the scored model lacks: the models differ")
    joined = effects[["layer", "head", *_EFFECTS]].astype({"layer": int, "head": int})
    table = wide.reset_index().merge(joined, on=["layer", "head"], how="inner", validate="one_to_many")
    table.columns.name = None
    return table.sort_values(["task", "protocol", "ablation", "layer", "head"], kind="stable").reset_index(drop=True)


def top_heads(scores: pd.DataFrame, most: int = 5) -> pd.DataFrame:
    """The heads with the highest values of each score, best first: score, layer, head, value.

    Raises:
        UserError: `most` is not positive, or a column is missing.
    """
    if most < 1:
        raise UserError(f"{most} is not a number of heads: expected 1 or more")
    for column in ("layer", "head", "score", "value"):
        if column not in scores:
            raise unknown_name("column of head scores", column, scores.columns)
    ranked = scores.dropna(subset=["value"]).sort_values("value", ascending=False, kind="stable")
    order = list(dict.fromkeys(scores["score"]))
    best = ranked.groupby("score", sort=False).head(most)
    best = best.assign(order=best["score"].map(order.index)).sort_values("order", kind="stable")
    return best[["score", "layer", "head", "value"]].reset_index(drop=True)
