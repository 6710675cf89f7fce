"""A user's own hooks: what they see, and what they can't do unnoticed."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import lensprune as lp
from lensprune.ablation.hooks import own_hooks, with_hook_names
from lensprune.ablation.variants import CLEAN, Variant
from lensprune.engine import make_executor
from lensprune.engine.hooked import HookedExecutor
from lensprune.engine.traces import trace_tokens
from lensprune.errors import UserError
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest, Request, Response
from tests.helpers.tiny_models import tiny
from tests.helpers.tolerances import equal

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


@pytest.mark.parametrize("change", [lambda value, hook: value[:, :1], lambda value, hook: value.mean()])
def test_a_result_of_another_shape_is_refused(change: Any) -> None:
    """Both would be broadcast: every token would get the first one's value, or one number."""
    with pytest.raises(UserError, match=rf"mine: the hook at {SITE} returned a tensor of shape \[.*of shape \[.*"):
        answers(Variant("mine", hooks=((SITE, change),)), 2048)


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
    assert all(equal(p, torch.arange(p.shape[1]).expand_as(p)) for _, p in seen if p.shape[1] > 1)
    steps = [p for _, p in seen if p.shape[1] == 1 and p.max() > 0]
    assert steps
    assert all(len(p.unique()) == 1 for p in steps)
    assert not any(hasattr(point, name) for point in points for name in ("positions", "tokens", "item"))


@pytest.mark.parametrize("executor", ["hooked", "forked"])
@pytest.mark.parametrize("max_tokens", [1, 2048])
def test_a_hook_is_told_the_item_of_each_row(executor: str, max_tokens: int) -> None:
    """Also where options share a context, two items ask the same, and rows are decoded."""
    scored = [
        LoglikelihoodRequest((5, 6, 7), (8,), "a"),
        LoglikelihoodRequest((5, 6, 7), (9,), "a"),
        LoglikelihoodRequest((5, 6, 7), (8,), "b"),
        LoglikelihoodRequest((5, 6, 9), (8, 4), "c"),
        LoglikelihoodRequest((5, 6, 7), (8,)),
    ]
    asked: list[Request] = [
        *scored,
        *(GenerateRequest((5, 6, 7), ("\x00",), 3, item=item) for item in ("a", "b")),
        GenerateRequest((5, 6), ("\x00",), 3, item="c"),
    ]
    factors = {"a": 0.5, "b": -2.0, "c": 3.0, None: 1.5}
    seen = set()

    def by_item(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        assert len(hook.item) == len(activation) == len(hook.tokens)
        seen.update((item, len(tokens)) for item, tokens in zip(hook.item, hook.tokens, strict=True))
        return activation * torch.tensor([factors[item] for item in hook.item], device=activation.device)[:, None, None]

    def times(factor: float) -> Variant:
        return Variant(str(factor), hooks=((SITE, lambda activation, hook: activation * factor),))

    runner = make_executor(executor, tiny("llama"), max_tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [found] = runner.run(asked, [Variant("mine", hooks=((SITE, by_item),))])
        expected = [next(iter(runner.run([request], [times(factors[request.item])]))).responses[0] for request in asked]
    for ours, alone in zip(values(list(found.responses)), values(expected), strict=True):
        assert ours == (pytest.approx(alone, abs=1e-5) if isinstance(ours, float) else alone)
    # Equal requests of two items have two answers.
    assert abs(values(expected)[0] - values(expected)[2]) > 1e-2
    assert {item for item, _ in seen} == set(factors)
    assert {item for item, size in seen if size == 1} == {"a", "b", "c"}


def test_a_traced_hook_is_told_the_item() -> None:
    asked = [LoglikelihoodRequest((5, 6, 7), (8, 9), item) for item in ("a", "b")]

    def by_item(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return (
            activation
            * torch.tensor([{"a": 0.5, "b": 3.0}[item] for item in hook.item], device=activation.device)[:, None, None]
        )

    model = tiny("llama")
    [traces] = trace_tokens(model, asked, [Variant("mine", hooks=((SITE, by_item),))])
    for request, trace, factor in zip(asked, traces, (0.5, 3.0), strict=True):
        variant = Variant("times", hooks=((SITE, lambda activation, hook, factor=factor: activation * factor),))
        [[alone]] = trace_tokens(model, [request], [variant])
        assert trace.logprob == pytest.approx(alone.logprob, abs=1e-5)
    assert abs(traces[0].logprob - traces[1].logprob).max() > 1e-2


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


@pytest.mark.parametrize("family", ["opt", "gpt_neo"])
def test_a_hook_whose_activation_the_model_does_not_read_is_named(family: str) -> None:
    model = tiny(family)

    def uniform(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.full_like(pattern, 1 / pattern.shape[-1])

    hooks = (("blocks.1.attn.hook_pattern", uniform), (SITE, halved))
    with pytest.warns(UserWarning, match=r"mine: hooks at blocks\.1\.attn\.hook_pattern ran and changed no logit"):
        list(HookedExecutor(model).run(requests(), [Variant("mine", hooks=hooks)]))


def halved(activation: torch.Tensor, hook: Any) -> torch.Tensor:
    return activation * 0.5


def in_place(activation: torch.Tensor, hook: Any) -> None:
    activation *= 0.5


def forgotten(activation: torch.Tensor, hook: Any) -> None:
    activation = activation * 0


def the_same(activation: torch.Tensor, hook: Any) -> torch.Tensor:
    return activation.clone()


@pytest.mark.parametrize("inert", [forgotten, the_same])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_inert_hook_among_active_ones_is_named(inert: Any, place: int) -> None:
    sites = [f"blocks.{layer}.hook_mlp_out" for layer in range(3)]
    functions = [halved, in_place, halved]
    functions[place] = inert
    variant = Variant("mine", hooks=tuple(zip(sites, functions, strict=True)))
    with pytest.warns(
        UserWarning, match=rf"mine: hooks at blocks\.{place}\.hook_mlp_out ran and changed no logit of 3"
    ):
        answers(variant, 2048)
    with pytest.warns(UserWarning, match=rf"hooks at blocks\.{place}\.hook_mlp_out ran"):
        trace_tokens(tiny("llama"), [LoglikelihoodRequest((5, 6, 7), (8,))], [variant])


def test_what_only_makes_others_needless_is_not_called_inert_twice() -> None:
    """Of two hooks that do the same, one is needed; and what a silent hook reads is there for the others."""
    kept: dict[str, torch.Tensor] = {}

    def reads(activation: torch.Tensor, hook: Any) -> None:
        kept["mean"] = activation.mean(dim=(0, 1), keepdim=True) * 0 + activation[:, :1]

    def writes(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return activation + kept["mean"]

    def zero(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return activation * 0

    site = "blocks.2.hook_mlp_out"
    hooks = ((SITE, reads), (site, zero), (site, zero), ("blocks.2.hook_resid_post", writes))
    with pytest.warns(UserWarning, match="changed no logit") as caught:
        answers(Variant("mine", hooks=hooks), 2048)
    [message] = [str(w.message) for w in caught if "no logit" in str(w.message)]
    assert f"hooks at {SITE}, {site} ran" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers(Variant("mine", hooks=((site, zero),)), 2048)


def test_traces_under_a_hook_see_no_padding() -> None:
    model = tiny("llama")
    asked = [r for r in requests() if isinstance(r, LoglikelihoodRequest)]
    variant = Variant("mine", hooks=((SITE, first_token_zeroed),))
    [together] = trace_tokens(model, asked, [variant])
    apart = [trace_tokens(model, [r], [variant])[0][0] for r in asked]
    for ours, alone in zip(together, apart, strict=True):
        assert ours.logprob == pytest.approx(alone.logprob, abs=1e-4)


def test_items_that_ask_the_same_stay_apart_where_rows_depend_on_each_other() -> None:
    """A hook that does to the whole batch what its first row's item says: equal prompts of two items are two calls."""
    factors = {"a": 0.5, "b": 3.0}

    def by_first_item(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return activation * factors[hook.item[0]]

    asked: list[Request] = [
        *(LoglikelihoodRequest((5, 6, 7), (8, 9), item) for item in factors),
        *(GenerateRequest((5, 6, 7), ("\x00",), 3, item=item) for item in factors),
    ]
    variant = Variant("mine", hooks=((SITE, by_first_item),))
    with pytest.warns(UserWarning, match="one prompt at a time"):
        together = values(answers(variant, 2048, asked))
    alone = [
        values(answers(Variant("mine", hooks=((SITE, lambda x, hook, f=f: x * f),)), 2048, [request]))[0]
        for request, f in zip(asked, [*factors.values()] * 2, strict=True)
    ]
    assert together == alone
    assert together[0] != together[1]


def halve(activation: torch.Tensor, hook: Any) -> torch.Tensor:
    return activation * 0.5


def test_a_function_that_chooses_names_is_their_hooks() -> None:
    """As in TransformerLens: every hook point that it accepts, each once whatever its names."""
    model = tiny("llama")
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.facts.n_layers)]
    chosen = Variant("mine", hooks=((lambda name: name.endswith("hook_z"), halve),))
    named = Variant("mine", hooks=tuple((name, halve) for name in names))
    assert [name for name, _ in own_hooks(with_hook_names(model, chosen))] == names
    assert values(answers(chosen, 2048)) == values(answers(named, 2048))
    assert values(answers(chosen, 2048)) != values(answers(CLEAN, 2048))
    with model.module.hooks(fwd_hooks=[(lambda name: name.endswith("hook_z"), halve)]):  # type: ignore[operator]
        theirs = answers(CLEAN, 2048)
    for mine, other in zip(values(answers(chosen, 2048)), values(theirs), strict=True):
        # Other batches: without hooks of their own, rows of unlike length share one.
        assert mine == (pytest.approx(other, abs=1e-4) if isinstance(mine, float) else other)


def test_two_names_of_one_hook_point_are_one_hook() -> None:
    fired: list[str] = []

    def count(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        fired.append(hook.name)
        return activation * 0.5

    aliases = ("blocks.1.hook_mlp_out", "blocks.1.mlp.hook_out")
    model = tiny("llama")
    assert set(aliases) <= model.hook_names()
    [asked] = [r for r in requests() if isinstance(r, LoglikelihoodRequest)][:1]
    resolved = with_hook_names(model, Variant("mine", hooks=((lambda name: name in aliases, count),)))
    assert len(resolved.hooks) == 1
    fired.clear()
    answers(resolved, 2048, [asked])
    once = len(fired)
    fired.clear()
    answers(Variant("mine", hooks=((aliases[0], count),)), 2048, [asked])
    assert once == len(fired) > 0


def test_a_sweep_and_a_trace_take_such_functions_too() -> None:
    model = tiny("llama")
    chosen = Variant("mine", hooks=((lambda name: name == SITE, halve),))
    run = lp.sweep(model, "facts", "default", chosen, limit=4, shots=0, progress=False)
    assert run.spec.variants[1]["hooks"][0]["name"] == SITE
    assert run.summary().set_index("variant").loc["mine", "component"] == "hooks"
    scored = [r for r in requests() if isinstance(r, LoglikelihoodRequest)]
    named = Variant("mine", hooks=((SITE, halve),))
    mine, theirs = (trace_tokens(model, scored, [variant])[0] for variant in (chosen, named))
    assert [t.logprob.tolist() for t in mine] == [t.logprob.tolist() for t in theirs]


@pytest.mark.parametrize(
    ("accepts", "message"),
    [
        (lambda name: "hook_zz" in name, "accepts no hook point"),
        (lambda name: False, "accepts no hook point"),
        (lambda name: name.no_such, r"fails on the hook name \S+: AttributeError: .*no_such.*; expected a function"),
        (lambda: True, r"fails on the hook name \S+: TypeError"),
    ],
)
def test_a_function_that_accepts_nothing_is_refused(accepts: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        answers(Variant("mine", hooks=((accepts, halve),)), 2048)
