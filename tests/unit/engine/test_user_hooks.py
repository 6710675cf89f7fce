"""A user's own hooks: what they see, and what they can't do unnoticed."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from lensprune.ablation.variants import CLEAN, Variant
from lensprune.engine import make_executor
from lensprune.engine.hooked import HookedExecutor
from lensprune.engine.traces import trace_tokens
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest, Request, Response
from tests.helpers.tiny_models import tiny

SITE = "blocks.1.hook_resid_pre"


def first_token_zeroed(activation: torch.Tensor, hook: Any) -> torch.Tensor:
    activation = activation.clone()
    if activation.shape[1] > 1:
        activation[:, 0] = 0
    return activation


def by_position(activation: torch.Tensor, hook: Any) -> torch.Tensor:
    return torch.where((hook.positions == 0)[..., None], 0, activation)


def requests() -> list[Request]:
    """Contexts of several lengths, some of one."""
    contexts = [tuple(range(10 * i, 10 * i + size)) for i, size in enumerate((5, 5, 3, 7, 5, 3), start=1)]
    scored = [LoglikelihoodRequest(context, (7, 9)) for context in contexts]
    return [*scored, *(GenerateRequest(context, ("\x00",), 3) for context in contexts)]


def answers(variant: Variant, max_tokens: int, asked: list[Request] | None = None) -> list[Response]:
    [answered] = HookedExecutor(tiny("llama"), max_tokens=max_tokens).run(asked or requests(), [variant])
    return list(answered.responses)


def values(responses: list[Response]) -> list[Any]:
    return [getattr(r, "logprob", None) or r.token_ids for r in responses]  # type: ignore[union-attr]


@pytest.mark.parametrize("function", [first_token_zeroed, by_position])
def test_the_first_position_is_the_first_token_whatever_the_batch(function: Any) -> None:
    variant = Variant("mine", hooks=((SITE, function),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together, apart, clean = answers(variant, 2048), answers(variant, 1), answers(CLEAN, 2048)
    for ours, alone, untouched in zip(values(together), values(apart), values(clean), strict=True):
        if isinstance(ours, float):
            assert ours == pytest.approx(alone, abs=1e-4)
            assert abs(ours - untouched) > 1e-4
        else:
            assert ours == alone


def test_a_hook_is_told_the_tokens_and_their_positions() -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    points = []

    def look(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        assert hook.tokens.shape == hook.positions.shape == activation.shape[:2]
        seen.append((hook.tokens, hook.positions))
        points.append(hook)
        return activation * 0.5

    asked = [r for r in requests() if isinstance(r, GenerateRequest)]
    answers(Variant("mine", hooks=((SITE, look),)), 2048, list(asked))
    prompts = {tuple(row.tolist()) for tokens, _ in seen for row in tokens if len(row) > 1}
    assert prompts == {r.context_ids for r in asked}
    assert all(torch.equal(p, torch.arange(p.shape[1]).expand_as(p)) for _, p in seen if p.shape[1] > 1)
    steps = [p for _, p in seen if p.shape[1] == 1 and p.max() > 0]
    assert steps
    assert all(len(p.unique()) == 1 for p in steps)
    assert not any(hasattr(point, "positions") for point in points)


def test_a_hook_that_mixes_the_rows_of_a_batch_is_named_and_runs_row_by_row() -> None:
    def mixed(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return activation + activation.mean(dim=0, keepdim=True)

    variant = Variant("mine", hooks=((SITE, mixed),))
    with pytest.warns(
        UserWarning, match=r"mine: what the hooks at blocks\.1\.hook_resid_pre do .* one prompt at a time"
    ):
        together = answers(variant, 2048)
    with pytest.warns(UserWarning, match="one prompt at a time"):
        apart = answers(variant, 1)
    for ours, alone in zip(values(together), values(apart), strict=True):
        assert ours == (pytest.approx(alone, abs=1e-4) if isinstance(ours, float) else alone)


def only_first_row(activation: torch.Tensor, hook: Any) -> torch.Tensor:
    activation = activation.clone()
    activation[0] = 0
    return activation


def test_a_hook_on_one_row_of_the_batch_is_named() -> None:
    with pytest.warns(UserWarning, match="one prompt at a time"):
        answers(Variant("mine", hooks=((SITE, only_first_row),)), 2048)


@pytest.mark.parametrize("executor", ["hooked", "forked"])
def test_a_hook_that_changes_nothing_is_named(executor: str) -> None:
    def forgets_to_return(activation: torch.Tensor, hook: Any) -> None:
        activation = activation * 0

    variant = Variant("mine", hooks=((SITE, forgets_to_return),))
    with pytest.warns(UserWarning, match=r"mine: hooks at blocks\.1\.hook_resid_pre ran and changed no logit"):
        list(make_executor(executor, tiny("llama")).run(requests(), [variant]))


def test_traces_under_a_hook_see_no_padding() -> None:
    model = tiny("llama")
    asked = [r for r in requests() if isinstance(r, LoglikelihoodRequest)]
    variant = Variant("mine", hooks=((SITE, first_token_zeroed),))
    [together] = trace_tokens(model, asked, [variant])
    apart = [trace_tokens(model, [r], [variant])[0][0] for r in asked]
    for ours, alone in zip(together, apart, strict=True):
        assert ours.logprob == pytest.approx(alone.logprob, abs=1e-4)
