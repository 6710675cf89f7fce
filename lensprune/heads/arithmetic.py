"""Heads' attention in sums: to operands, operators and results."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float

from lensprune.engine.patterns import read_patterns
from lensprune.errors import UserError
from lensprune.heads.registry import HeadScore, Measured, ScoreOptions, measured_by
from lensprune.models.base import HookedModel
from lensprune.models.spans import EncodedText, encode_with_spans
from lensprune.tasks import load_task
from lensprune.tasks.prompts import build_context, format_of

__all__ = ["ARITHMETIC", "MarkedSum", "arithmetic_attention", "mark_sum", "measure_arithmetic"]

_NUMBER = re.compile(r"\d+")
_OPERATOR = re.compile(r"[-+*/]")
_RESULT = re.compile(r"=\s*(-?\d+)")


@dataclass(frozen=True)
class MarkedSum:
    """A prompt that ends in a sum to solve, and the token positions of its parts.

    `operands` and `operators` are those of the sum to solve; each operator comes with the operand before it. `results`
    are the results of the worked examples before it (none without examples).
    """

    ids: tuple[int, ...]
    operands: tuple[int, ...]
    operators: tuple[int, ...]
    in_front: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    results: tuple[int, ...]


def mark_sum(model: HookedModel, context: str, question: str) -> MarkedSum:
    """Find the parts of `question`, which ends `context`, among the tokens of `context`.

    Raises:
        UserError: `context` does not end in `question`, or the question has no operand or operator.
    """
    if not context.endswith(question):
        raise UserError(f"the prompt does not end in its question {question!r}")
    encoded = encode_with_spans(model, context)
    start = len(context) - len(question)

    def tokens(pattern: re.Pattern[str], group: int, first: int, last: int) -> list[tuple[int, ...]]:
        return [tuple(encoded.positions(*match.span(group))) for match in pattern.finditer(context, first, last)]

    operands = tokens(_NUMBER, 0, start, len(context))
    operators = tokens(_OPERATOR, 0, start, len(context))
    if not operands or not operators:
        raise UserError(f"the question {question!r} has no operand or no operator")
    in_front = [(operator, _last_before(encoded, operands, operator)) for operator in operators]
    return MarkedSum(
        encoded.ids,
        _flat(operands),
        _flat(operators),
        tuple(in_front),
        _flat(tokens(_RESULT, 1, 0, start)),
    )


def _flat(groups: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted({position for group in groups for position in group}))


def _last_before(
    encoded: EncodedText, operands: Sequence[tuple[int, ...]], operator: tuple[int, ...]
) -> tuple[int, ...]:
    before = [operand for operand in operands if operand[-1] < operator[0]]
    if not before:
        raise UserError("an operator has no operand before it, or shares a token with it")
    return before[-1]


def arithmetic_attention(model: HookedModel, sums: Sequence[MarkedSum]) -> Measured:
    """Attention on the parts of sums, [layer, head] each, mean over the sums.

    ``operand_attention``, ``operator_attention``, ``result_attention``: summed attention from the last token, where
    the result is predicted, to the operands and operators of the sum and to the results of worked examples.
    ``operand_at_operator``: attention from an operator to the operand before it.
    """
    if not sums:
        raise UserError("no sum given: at least one is needed")
    shape = (model.facts.n_layers, model.facts.n_heads)
    names = ("operand_attention", "operator_attention", "result_attention", "operand_at_operator")
    totals = {name: torch.zeros(*shape, dtype=torch.float64) for name in names}
    for marked in sums:
        read_patterns(model, [marked.ids], _reader(marked, totals))
    return {name: total / len(sums) for name, total in totals.items()}


def _reader(
    marked: MarkedSum, totals: dict[str, torch.Tensor]
) -> Callable[[int, Float[torch.Tensor, "row head query key"]], None]:
    def read(layer: int, pattern: Float[torch.Tensor, "row head query key"]) -> None:
        by_head = pattern[0].cpu().double()
        last = by_head[:, -1]
        totals["operand_attention"][layer] += last[:, list(marked.operands)].sum(-1)
        totals["operator_attention"][layer] += last[:, list(marked.operators)].sum(-1)
        totals["result_attention"][layer] += last[:, list(marked.results)].sum(-1)
        for operator, operand in marked.in_front:
            attention = by_head[:, list(operator)][:, :, list(operand)].sum(-1).mean(-1)
            totals["operand_at_operator"][layer] += attention / len(marked.in_front)

    return read


def measure_arithmetic(model: HookedModel, options: ScoreOptions) -> Measured:
    """`arithmetic_attention` on the bundled sums, after their worked examples."""
    loaded = load_task("arithmetic", limit=options.limit, shots=options.shots, seed=options.seed)
    form = format_of(loaded.task, "generate")
    sums = [mark_sum(model, build_context(form, item), form.context(item.doc)) for item in loaded.items]
    return arithmetic_attention(model, sums)


ARITHMETIC: list[HeadScore] = measured_by(
    measure_arithmetic,
    (
        "operand_attention",
        "summed attention from the last token of a sum to its operands",
        "after Stolfo et al. 2023, arXiv 2305.15054",
        "0 to 1",
    ),
    (
        "operator_attention",
        "summed attention from the last token of a sum to its operators",
        "after Zhang et al. 2024, arXiv 2409.01659",
        "0 to 1",
    ),
    (
        "result_attention",
        "summed attention from the last token of a sum to the results of the worked examples",
        "defined here",
        "0 to 1",
    ),
    (
        "operand_at_operator",
        "attention from an operator to the operand before it",
        "defined here",
        "0 to 1",
    ),
)
