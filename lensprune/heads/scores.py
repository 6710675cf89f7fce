"""`head_scores`: every head function of a model in one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from lensprune.errors import LensPruneError, UserError, unknown_name
from lensprune.heads.arithmetic import ARITHMETIC
from lensprune.heads.copying import COPYING
from lensprune.heads.positional import ATTENTION_STATS, POSITIONAL
from lensprune.heads.registry import SCORES, Measured, ScoreOptions, add_head_scores
from lensprune.heads.retrieval import RETRIEVAL
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel
from lensprune.terminal import progress_bar

__all__ = ["SCORES", "head_scores", "score_names"]

add_head_scores(*POSITIONAL, *COPYING, *RETRIEVAL, *ATTENTION_STATS, *ARITHMETIC)


def score_names() -> list[str]:
    """Names of the head functions."""
    return list(SCORES)


def head_scores(
    model: AnyModel,
    scores: Sequence[str] | str | None = None,
    *,
    sequences: int = 8,
    length: int | None = None,
    texts: Sequence[str] | None = None,
    limit: int = 20,
    shots: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Measure what each attention head does.

    ============================  ============================================================================
    previous_token                attention to the previous token, on random tokens repeated once
    duplicate_token               attention from a repeated token to its first occurrence
    induction                     attention from a repeated token to the token after its first occurrence
    copying                       Σλ / Σ|λ| over the eigenvalues of the head's OV circuit (−1 to 1)
    retrieval                     share of an answer's tokens that the head copies from the context
    logit_contribution            its write towards an answer's tokens from their positions, minus from elsewhere
    attention_sink                attention to the first token
    attention_entropy             entropy of attention, nats
    attention_distance            mean distance to the attended tokens
    operand_attention             attention from the last token of a sum to its operands
    operator_attention            … to its operators
    result_attention              … to the results of the worked examples
    operand_at_operator           attention from an operator to the operand before it
    ============================  ============================================================================

    `SCORES` has the full definition and the source of each. Scores are between 0 and 1 unless stated otherwise.

    Args:
        model: a loaded model.
        scores: names; ``None`` measures all.
        sequences, length: rows of random tokens, and tokens in the repeated half.
        texts: texts for attention sink, entropy and distance instead of the random tokens.
        limit, shots: items of key-value retrieval and sums, and few-shot examples before each.
        seed: seed of random tokens and generated items.
        progress: show a bar that names the score being measured.

    Returns:
        One row per (layer, head, score), in this order: layer, head, score, value.

    Raises:
        UserError: an unknown score, or an option that the model cannot meet.
        LensPruneError: a registered head function returns a shape other than [layer, head].

    Examples:
        >>> scores = lp.head_scores(model, ["previous_token"], sequences=2)
        >>> strongest = scores.loc[scores["value"].idxmax()]
        >>> int(strongest["layer"]), int(strongest["head"])
        (0, 0)
    """
    hooked = as_hooked_model(model)
    names = list(SCORES) if scores is None else [scores] if isinstance(scores, str) else list(scores)
    if not names:
        raise UserError("no head score given: name at least one, or leave scores out for all")
    for name in names:
        if name not in SCORES:
            raise unknown_name("head score", name, SCORES)
    if limit < 1:
        raise UserError(f"limit {limit} is not a number of items: expected 1 or more")
    options = ScoreOptions(sequences=sequences, length=length, texts=texts, limit=limit, shots=shots, seed=seed)
    runs: dict[Any, Measured] = {}
    rows: list[tuple[int, int, str, float]] = []
    bar: Any
    with progress_bar(shown=progress, total=len(names), unit="score") as bar:
        for name in names:
            bar.set_description(f"heads: {name}")
            measure = SCORES[name].measure
            if measure not in runs:
                runs[measure] = measure(hooked, options)
            shape, expected = tuple(runs[measure][name].shape), (hooked.facts.n_layers, hooked.facts.n_heads)
            if shape != expected:
                raise LensPruneError(f"head score {name} has shape {list(shape)}: expected {list(expected)}")
            for layer, values in enumerate(runs[measure][name].tolist()):
                rows.extend((layer, head, name, value) for head, value in enumerate(values))
            bar.update(1)
    return pd.DataFrame(rows, columns=["layer", "head", "score", "value"])
