"""Token traces: forked = hooked on every family, and each column against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lensprune.ablation import CLEAN, Ablation, Head, Layer, Variant, collect_reference, each_attention, each_layer
from lensprune.engine.traces import trace_tokens
from lensprune.errors import UserError
from lensprune.protocols.requests import LoglikelihoodRequest
from tests.helpers.families import FAMILIES
from tests.helpers.tiny_models import TEXTS, likelihood_requests, tiny
from tests.helpers.tolerances import assert_tensors_agree, rounding, size_of


def asked(family: str) -> list[LoglikelihoodRequest]:
    return [r for r in likelihood_requests(tiny(family)) if isinstance(r, LoglikelihoodRequest)]


@pytest.mark.parametrize("family", FAMILIES)
def test_forked_equals_hooked(family: str) -> None:
    model = tiny(family)
    variants = [
        CLEAN,
        *each_layer(model),
        *each_attention(model, "mean", [1]),
        Variant("heads", (Ablation(Head(0, 1), "zero"), Ablation(Head(2, 3), "zero"))),
    ]
    reference = collect_reference(model, [[10, 11, 12, 13], [20, 21, 22]], variants)
    requests = asked(family)
    done: list[int] = []
    fast = trace_tokens(model, requests, variants, reference=reference, most_positions=9, progress=done.append)
    slow = trace_tokens(model, requests, variants, reference=reference, executor="hooked")
    assert sum(done) == len(requests) * len(variants)
    size = size_of(*(b.logprob for other in slow for b in other))
    for mine, other in zip(fast, slow, strict=True):
        assert len(mine) == len(other) == len(requests)
        for a, b, request in zip(mine, other, requests, strict=True):
            assert len(a.logprob) == len(request.continuation_ids)
            assert_tensors_agree(a.logprob, b.logprob, torch.float32, size=size)
            # Differences of two log-probabilities, and a mean of such differences.
            np.testing.assert_allclose(a.regret, b.regret, rtol=0, atol=rounding(torch.float32, size, terms=2))
            np.testing.assert_allclose(a.kl, b.kl, rtol=0, atol=rounding(torch.float32, size, terms=2))
    assert max(b.regret.max() for other in slow for b in other) > 0
    assert max(trace.kl.max() for trace in fast[0]) <= rounding(torch.float32, size, terms=2)
    assert min(trace.kl.mean() for trace in fast[1]) > 1e-3


@pytest.mark.parametrize("family", ["gpt_neo", "gpt_oss", "qwen2_moe"])
def test_attention_of_another_kind_takes_the_hooked_path(family: str) -> None:
    model = tiny(family)
    with pytest.warns(UserWarning, match="take the hooked path"):
        [fast] = trace_tokens(model, asked(family), [CLEAN])
    [slow] = trace_tokens(model, asked(family), [CLEAN], executor="hooked")
    for mine, other in zip(fast, slow, strict=True):
        assert (mine.logprob == other.logprob).all()


def test_columns_by_definition() -> None:
    model = tiny("llama")
    context, continuation = tuple(model.tokenizer.encode(TEXTS[0])), tuple(model.tokenizer.encode(" so it is"))
    variant = Variant("L1", (Ablation(Layer(1), "skip"),))
    [[trace]] = trace_tokens(model, [LoglikelihoodRequest(context, continuation)], [variant])
    ids = torch.tensor([context + continuation])
    positions = torch.arange(ids.shape[1])[None]

    def distribution(*hooks: tuple[str, object]) -> torch.Tensor:
        with torch.inference_mode(), model.hooks(list(hooks)):  # type: ignore[arg-type]
            logits = model.forward(ids, torch.ones_like(ids), positions)[0].cpu()
        return logits[len(context) - 1 : -1].double().log_softmax(-1)

    kept: list[torch.Tensor] = []
    clean = distribution()
    changed = distribution(
        ("blocks.1.hook_resid_pre", lambda x, hook: kept.append(x)),
        ("blocks.1.hook_resid_post", lambda x, hook: kept[-1]),
    )
    given = changed[range(len(continuation)), list(continuation)]
    size = size_of(given)
    assert_tensors_agree(trace.logprob, given, torch.float32, size=size)
    assert_tensors_agree(trace.regret, changed.max(-1).values - given, torch.float32, size=size, terms=2)
    assert_tensors_agree(trace.kl, (clean.exp() * (clean - changed)).sum(-1), torch.float32, size=size, terms=2)
    assert (trace.agrees == (changed.argmax(-1).cpu().numpy() == np.array(continuation))).all()


def test_a_models_own_greedy_text_has_no_regret() -> None:
    model = tiny("qwen3")
    ids = list(model.tokenizer.encode(TEXTS[1]))
    size = len(ids)
    for _ in range(6):
        row = torch.tensor([ids])
        with torch.inference_mode():
            logits = model.forward(row, torch.ones_like(row), torch.arange(len(ids))[None], logits_to_keep=1)
        ids.append(int(logits[0, -1].argmax()))
    for executor in ("forked", "hooked"):
        [[trace]] = trace_tokens(
            model, [LoglikelihoodRequest(tuple(ids[:size]), tuple(ids[size:]))], [CLEAN], executor=executor
        )
        assert trace.agrees.all()
        assert trace.kl.max() < 1e-5


def test_users_hooks_and_mistakes() -> None:
    model = tiny("gpt2")
    spoilt = Variant("spoilt", hooks=(("blocks.1.attn.hook_z", lambda z, hook: z * float("nan")),))
    for [trace] in zip(*trace_tokens(model, asked("gpt2")[:3], [spoilt]), strict=True):
        assert np.isnan(trace.kl).all()
        assert not trace.agrees.any()
    with pytest.raises(UserError, match="forked"):
        trace_tokens(model, [], [CLEAN], executor="froked")
    with pytest.raises(UserError, match="'clean' is used twice"):
        trace_tokens(model, asked("gpt2")[:1], [CLEAN, CLEAN])
    with pytest.raises(UserError, match="needs reference"):
        trace_tokens(model, [], each_attention(model, "mean"))
