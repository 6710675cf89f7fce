"""How far two computations of the same numbers may differ: rounding, and nothing else.

Every tolerance on a model's outputs follows from `rounding`: the precision they were computed in, the size of
what was summed and the length of the sum. Greedy choices may differ only where rounding leaves them open.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from lensprune.ablation import CLEAN, BatchState, ReferenceActivations, Variant, VariantHooks
from lensprune.engine import VariantResponses
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import GenerateRequest, GenerateResponse, LoglikelihoodResponse, Request, Response

__all__ = [
    "ROUNDINGS",
    "assert_close",
    "assert_greedy",
    "assert_logprobs_agree",
    "assert_records_agree",
    "assert_responses_agree",
    "assert_tensors_agree",
    "assert_zero",
    "equal",
    "precision",
    "rounding",
    "size_of",
]

ROUNDINGS = 8
"""Units in the last place that two correct ways through a model may lie apart; about 2 are measured."""

DECIDED = 0.9
"""Share of greedy choices that must not depend on rounding."""


def precision(model: HookedModel) -> float:
    """Relative precision of `model`'s outputs.

    Hugging Face computes RMS norms and softmaxes in float32 whatever the model's type (GPT-2's keep it). In a float64
    model their inputs agree to 1e-15 and are rounded alike, unless one lies on the boundary between two float32
    numbers. That moves one of the `d_model` terms of later sums by a float32 rounding. Sums of independent terms are
    √d_model times as large as a term, so the sum moves by a share eps / √d_model. It is a rare event, not one of
    `ROUNDINGS` in a row: hence the division, which `rounding` undoes.
    """
    dtype: torch.dtype = getattr(torch, model.facts.dtype)
    if dtype == torch.float64 and model.facts.architecture != "GPT2LMHeadModel":
        return torch.finfo(torch.float32).eps / model.facts.d_model**0.5 / ROUNDINGS
    return torch.finfo(dtype).eps


def rounding(dtype: torch.dtype | float, size: float, terms: int = 1, roundings: float = ROUNDINGS) -> float:
    """Largest difference between two computations of a sum of `terms` numbers of magnitude `size`.

    `dtype` is the type they were computed in, or a relative precision. Roundings of different terms are independent,
    so that they grow with the root of their number.
    """
    eps = torch.finfo(dtype).eps if isinstance(dtype, torch.dtype) else dtype
    assert math.isfinite(size)
    assert size > 0
    return roundings * eps * size * terms**0.5


def _array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=float)


def size_of(*values: Any) -> float:
    """Largest finite magnitude in tensors, arrays or lists; the size of logits, where effects are sums of them."""
    arrays = [np.abs(_array(v)) for v in values]
    return float(max(array[np.isfinite(array)].max(initial=0) for array in arrays))


def assert_tensors_agree(
    found: Any,
    expected: Any,
    dtype: torch.dtype | float,
    *,
    size: float | None = None,
    terms: int = 1,
    roundings: float = ROUNDINGS,
    at_most: float = math.inf,
) -> None:
    """`found` and `expected` (tensors, arrays, numbers, lists, or frames with equal columns) differ by rounding only.

    `dtype` is the type or the relative precision of the less precise of the two computations, which may differ from
    the type of the results. `size` is that of the terms, by default the largest magnitude in `expected`; give it where
    `expected` is a difference of larger numbers. `at_most` bounds the tolerance where computations are known to lie
    closer together than rounding allows. Columns of frames that hold no floats must be equal. `expected` must not be
    all zero: use `assert_zero` where zero is right.
    """
    if isinstance(expected, pd.DataFrame):
        floats = expected.select_dtypes("floating").columns
        pd.testing.assert_frame_equal(found.drop(columns=floats), expected.drop(columns=floats))
        assert list(found.columns) == list(expected.columns)
        found, expected = found[floats], expected[floats]
    left, right = _array(found), _array(expected)
    assert left.shape == right.shape
    assert np.any(right != 0), "nothing but zeros is compared"
    allowed = rounding(dtype, size_of(right) if size is None else size, terms, roundings)
    np.testing.assert_allclose(left, right, rtol=0, atol=min(allowed, at_most))


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """`torch.equal`, wherever the two lie."""
    return torch.equal(a.cpu(), b.cpu())


def assert_close(found: torch.Tensor, expected: torch.Tensor, **options: float) -> None:
    """`torch.testing.assert_close`, wherever the two lie."""
    torch.testing.assert_close(found.cpu(), expected.cpu(), **options)


def assert_records_agree(
    found: pd.DataFrame,
    expected: pd.DataFrame,
    dtype: torch.dtype | float,
    *,
    size: float | None = None,
    at_most: float = math.inf,
) -> None:
    """Two frames of `Run.records` are equal but for rounding of log-probabilities; see `assert_tensors_agree`."""
    numbers, lists = ["gold_logprob", "logprob_margin"], "option_logprobs"
    others = [*numbers, lists]
    pd.testing.assert_frame_equal(found.drop(columns=others), expected.drop(columns=others))
    sizes = [[-1 if own is None else len(own) for own in frame[lists]] for frame in (found, expected)]
    assert sizes[0] == sizes[1]
    for left, right in (
        (found[numbers], expected[numbers]),
        (found[lists].explode().astype(float), expected[lists].explode().astype(float)),
    ):
        assert_tensors_agree(left, right, dtype, size=size, at_most=at_most)


def assert_zero(
    values: Any, dtype: torch.dtype | float, *, size: float, terms: int = 1, at_most: float = math.inf
) -> None:
    """`values` are differences of numbers of magnitude `size` that are equal up to rounding."""
    array = _array(values)
    assert array.size > 0
    np.testing.assert_allclose(array, 0, rtol=0, atol=min(rounding(dtype, size, terms), at_most))


def assert_logprobs_agree(
    found: Sequence[Response],
    expected: Sequence[Response],
    dtype: torch.dtype | float,
    at_most: float = math.inf,
) -> None:
    """The log-probabilities and numbers of tokens of two sequences of responses agree; others are passed over.

    An error in a log-probability of −0.5 scales with the logits, so that the size is the largest of the set.
    """
    pairs = [
        (a, b)
        for a, b in zip(found, expected, strict=True)
        if isinstance(a, LoglikelihoodResponse) and isinstance(b, LoglikelihoodResponse)
    ]
    assert len(pairs) == sum(isinstance(b, LoglikelihoodResponse) for b in expected)
    assert [a.n_tokens for a, _ in pairs] == [b.n_tokens for _, b in pairs]
    assert_tensors_agree([a.logprob for a, _ in pairs], [b.logprob for _, b in pairs], dtype, at_most=at_most)


def assert_responses_agree(
    model: HookedModel,
    requests: Sequence[Request],
    found: Sequence[VariantResponses],
    expected: Sequence[VariantResponses],
    reference: ReferenceActivations | None = None,
) -> None:
    """All responses agree, in whatever order: log-probabilities within rounding, and the same greedy choices.

    A choice may differ from the expected one only where both tokens are within rounding of the largest logit, by a
    forward pass over the expected tokens. After such a token a row is no longer compared. `DECIDED` of the generations
    must be equal to their end, and as large a share of the flags of log-likelihoods.
    """
    by_name = {f.variant.name: f for f in found}
    assert sorted(f.variant.name for f in found) == sorted(e.variant.name for e in expected)
    rows: Counter[type] = Counter()
    undecided: dict[type, list[tuple[str, int]]] = defaultdict(list)
    for other in expected:
        mine = by_name[other.variant.name]
        assert len(mine.responses) == len(other.responses) == len(requests)
        if any(isinstance(r, LoglikelihoodResponse) and not math.isnan(r.logprob) for r in other.responses):
            assert_logprobs_agree(mine.responses, other.responses, precision(model))
        for i, (request, a, b) in enumerate(zip(requests, mine.responses, other.responses, strict=True)):
            rows[type(request)] += 1
            assert type(a) is type(b)
            if _same_choices(a, b):
                continue
            assert _left_open(model, other.variant, reference, request, a, b), (other.variant.name, i, a, b)
            undecided[type(request)].append((other.variant.name, i))
    assert rows
    for kind, open_rows in undecided.items():
        assert len(open_rows) <= (1 - DECIDED) * rows[kind], (
            f"rounding decides {len(open_rows)} of {rows[kind]} {kind.__name__}s: {open_rows}"
        )


def assert_greedy(
    model: HookedModel,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    variant: Variant = CLEAN,
    reference: ReferenceActivations | None = None,
) -> None:
    """Each new token of `rows` (context, new tokens) has the largest logit of a forward pass over the whole row.

    Without a cache, padding or other rows. Where rounding decides, any token within it may be chosen.
    """
    chosen, decided = 0, 0
    for context, new in rows:
        logits = _logits(model, variant, reference, [*context, *new][:-1])[-len(new) :]
        short = logits.max(-1).values - logits[torch.arange(len(new)), list(new)]
        assert float(short.max()) <= rounding(precision(model), size_of(logits), terms=2)
        chosen, decided = chosen + len(new), decided + int((short == 0).sum())
    assert chosen > 0
    assert decided >= DECIDED * chosen, f"rounding decides {chosen - decided} of {chosen} tokens"


def _same_choices(a: Response, b: Response) -> bool:
    if isinstance(a, LoglikelihoodResponse) and isinstance(b, LoglikelihoodResponse):
        return a.is_greedy == b.is_greedy
    return a == b


def _left_open(
    model: HookedModel,
    variant: Variant,
    reference: ReferenceActivations | None,
    request: Request,
    a: Response,
    b: Response,
) -> bool:
    """Whether rounding may decide the first choice in which two responses differ.

    A flag is the conjunction of its tokens': one token that is clearly not the best settles it, and so do tokens that
    are all clearly the best. Only where the smallest margin of a token is within rounding is the flag open.
    """
    if isinstance(request, GenerateRequest):
        assert isinstance(a, GenerateResponse)
        assert isinstance(b, GenerateResponse)
        first = next((i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y), None)
        if first is None:
            return False
        logits = _logits(model, variant, reference, request.context_ids + b.token_ids[:first])[-1]
        chosen = logits[[a.token_ids[first], b.token_ids[first]]]
        return bool(logits.max() - chosen.min() <= rounding(precision(model), size_of(logits), terms=2))
    logits = _logits(model, variant, reference, request.input_ids)[-len(request.continuation_ids) :]
    given = logits[torch.arange(len(logits)), list(request.continuation_ids)]
    others = logits.scatter(1, torch.tensor(request.continuation_ids)[:, None], -math.inf).max(-1).values
    margins = given - others
    token = int(margins.argmin())
    return bool(margins[token].abs() <= rounding(precision(model), size_of(logits[token]), terms=2))


def _logits(
    model: HookedModel, variant: Variant, reference: ReferenceActivations | None, token_ids: Sequence[int]
) -> torch.Tensor:
    """`(position, token)`: one row, without padding or cache, on the CPU in double precision."""
    ids = torch.tensor([token_ids], device=model.facts.device)
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    hooks = VariantHooks(model, variant, BatchState(positions), reference)
    with torch.inference_mode(), model.hooks(hooks.named):
        return model.forward(ids, torch.ones_like(ids), positions)[0].double().cpu()
