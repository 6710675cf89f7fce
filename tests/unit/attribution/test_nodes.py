"""Attribution to parts: sums that must come out, brute force, finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lensprune.attribution import (
    PromptPair,
    activation_patching,
    attribution_patching,
    direct_logit_attribution,
    logit_lens,
    source_attribution,
)
from lensprune.attribution.runs import capture, edit_hook, last_logits, run_hooked
from lensprune.errors import UserError
from tests.helpers.attribution import PAIRS, UNEVEN, effect, logit_size, metric
from tests.helpers.families import FAMILIES
from tests.helpers.tiny_models import double, tiny
from tests.helpers.tolerances import assert_tensors_agree, equal


@pytest.mark.parametrize("family", FAMILIES)
def test_contributions_add_up_to_the_logit_difference(family: str) -> None:
    model = tiny(family)
    found = direct_logit_attribution(model, UNEVEN)
    expected = torch.tensor([metric(model, pair, pair.clean) for pair in UNEVEN])
    size = logit_size(model)
    if family == "gemma2":
        cap = model.module.original_model.config.final_logit_softcapping
        logits = torch.stack([last_logits(model, torch.tensor([pair.clean]))[0] for pair in UNEVEN]).double()
        raw = torch.atanh(logits / cap) * cap
        expected = torch.stack([own[pair.answer] - own[pair.wrong] for own, pair in zip(raw, UNEVEN, strict=True)])
        # Undoing the cap multiplies the rounding of a capped logit by the slope of atanh.
        size = float((logits.abs() / (1 - (logits / cap) ** 2)).max())
    assert_tensors_agree(found.logit_difference, expected, torch.float32, size=size, terms=2)
    for unit, rows in (("head", 3 * 6 + 2), ("component", 3 * 2 + 2), ("layer", 3 + 2)):
        table = found.table(unit)
        assert len(table) == rows
        assert_tensors_agree(table["value"].sum(), expected.mean(), torch.float32, size=size, terms=2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_half_precision_is_the_same_to_its_own_precision(family: str, dtype: str) -> None:
    model, exact = tiny(family, dtype), double(family)
    for method in (
        lambda m: direct_logit_attribution(m, PAIRS).table()["value"],
        lambda m: logit_lens(m, PAIRS)["logit_difference"],
        lambda m: activation_patching(m, PAIRS, ["head", "resid"])["effect"],
        lambda m: attribution_patching(m, PAIRS, ["head", "resid"])["effect"],
    ):
        expected = method(exact)
        error = (method(model) - expected).abs().max() / expected.abs().max()
        assert error < (0.15 if dtype == "bfloat16" else 0.02)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_a_head_is_the_sum_over_its_source_tokens(family: str) -> None:
    model = tiny(family)
    heads = direct_logit_attribution(model, PAIRS[:1]).table()
    sources = source_attribution(model, PAIRS[0])
    assert len(sources) == 12 * 6
    for (layer, head), own in sources.groupby(["layer", "head"]):
        expected = heads[heads["part"] == f"L{layer}.H{head}"]["value"].iloc[0]
        assert_tensors_agree(own["value"].sum(), expected, torch.float32, size=logit_size(model), terms=2)
    assert len(source_attribution(model, PAIRS[0], [(1, 2)])) == 6
    with pytest.raises(UserError, match="does not exist"):
        source_attribution(model, PAIRS[0], [(9, 0)])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_lens_ends_in_the_models_answer(family: str) -> None:
    model = tiny(family)
    table = logit_lens(model, UNEVEN)
    assert list(table["depth"]) == [0, 1, 2, 3]
    expected = np.mean([metric(model, pair, pair.clean) for pair in UNEVEN])
    found = table["logit_difference"].iloc[-1]
    assert_tensors_agree(found, expected, torch.float32, size=logit_size(model), terms=2)
    assert (table["answer_logprob"] < 0).all()
    assert table["answer_rank"].between(0, model.facts.d_vocab - 1).all()


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_patching_the_whole_first_residual_is_the_other_run(direction: str) -> None:
    model = tiny("llama")
    frame = activation_patching(model, UNEVEN, ["resid", "head", "mlp", "attention"], direction=direction)
    clean = np.mean([metric(model, pair, pair.clean) for pair in UNEVEN])
    corrupt = np.mean([metric(model, pair, pair.corrupt) for pair in UNEVEN])
    sign = 1 if direction == "noise" else -1
    size = logit_size(model)
    expected = sign * (corrupt - clean)
    assert_tensors_agree(effect(frame, "resid", 0), expected, torch.float32, size=size, terms=4)
    share = frame[(frame["site"] == "resid") & (frame["layer"] == 0)]["share"].iloc[0]
    assert_tensors_agree(share, 1, torch.float32, size=size / abs(expected), terms=4)
    assert len(frame) == 3 * (3 + 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_the_whole_residual_of_any_layer_is_the_other_run(family: str) -> None:
    """Layers below the patch are not run again, so this also tests what a run from the middle gives."""
    model = tiny(family)
    before = last_logits(model, torch.tensor([PAIRS[0].clean]))
    frame = activation_patching(model, PAIRS, ["resid"])
    whole = np.mean([metric(model, pair, pair.corrupt) - metric(model, pair, pair.clean) for pair in PAIRS])
    size = logit_size(model) / abs(whole)
    assert_tensors_agree(frame["share"], np.ones(len(frame)), torch.float32, size=size, terms=4)
    assert equal(last_logits(model, torch.tensor([PAIRS[0].clean])), before)


def test_patching_by_position_is_what_one_hook_does() -> None:
    model = tiny("gpt2")
    frame = activation_patching(model, PAIRS, ["head", "resid", "mlp"], by_position=True)
    for site, hook, head in (
        ("head", "attn.hook_z", 2),
        ("resid", "hook_resid_pre", None),
        ("mlp", "hook_mlp_out", None),
    ):
        expected = 0.0
        for pair in PAIRS:
            name = f"blocks.1.{hook}"
            _, kept = capture(model, torch.tensor([pair.corrupt]), [name])

            def put(
                activation: torch.Tensor, kept: dict = kept, name: str = name, head: int | None = head
            ) -> torch.Tensor:
                changed = activation.clone()
                where = (0, 4) if head is None else (0, 4, head)
                changed[where] = kept[name][where]
                return changed

            with torch.no_grad():
                logits = run_hooked(model, torch.tensor([pair.clean]), [(name, edit_hook(put))])[0]
            expected += float(logits[pair.answer] - logits[pair.wrong]) - metric(model, pair, pair.clean)
        found = effect(frame, site, 1, head, 4)
        assert_tensors_agree(found, expected / 2, torch.float32, size=logit_size(model), terms=4)


def test_standard_errors_are_those_of_the_pairs_taken_one_by_one() -> None:
    model = tiny("llama")

    def assert_same(found: object, expected: object) -> None:
        assert_tensors_agree(found, expected, torch.float32, size=logit_size(model), terms=4)

    for method in (activation_patching, attribution_patching):
        single = [method(model, [pair], ["head"])["effect"] for pair in UNEVEN]
        together = method(model, UNEVEN, ["head"])
        values = np.stack(single)
        assert_same(together["effect"], values.mean(0))
        assert_same(together["standard_error"], values.std(0, ddof=1) / 3**0.5)
        assert method(model, UNEVEN[:1], ["head"])["standard_error"].isna().all()
    table = direct_logit_attribution(model, UNEVEN).table("layer")
    values = np.stack([direct_logit_attribution(model, [pair]).table("layer")["value"] for pair in UNEVEN])
    assert_same(table["standard_error"], values.std(0, ddof=1) / 3**0.5)


def test_batched_patching_is_sequential_patching() -> None:
    model = tiny("qwen3")
    size = logit_size(model)
    change = abs(np.mean([metric(model, pair, pair.corrupt) - metric(model, pair, pair.clean) for pair in UNEVEN]))
    for many, one in (
        [activation_patching(model, UNEVEN, ["head", "attention"], rows=rows) for rows in (64, 1)],
        [attribution_patching(model, UNEVEN, ["head", "attention"], batch_size=batch_size) for batch_size in (8, 1)],
    ):
        shares = [frame.pop("share") for frame in (many, one)]
        assert_tensors_agree(many, one, torch.float32, size=size, terms=4)
        assert_tensors_agree(*shares, torch.float32, size=size / change, terms=4)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_attribution_patching_is_the_derivative_by_finite_differences(family: str) -> None:
    # The error of a central difference is step² (1e-5) of the third derivative, plus float32 rounding in norms and
    # softmaxes over the step (1e-7 / 3e-3 = 4e-5 of what passes through them). A step near the cube root of 1e-7
    # balances the two. A wrong factor or a lost term costs much more than 0.5 %.
    model, step = double(family), 3e-3
    frame = attribution_patching(model, PAIRS, ["head", "mlp", "resid", "attention"], by_position=True)
    for site, hook, layer, head in (
        ("head", "attn.hook_z", 0, 3),
        ("head", "attn.hook_z", 2, 1),
        ("mlp", "hook_mlp_out", 1, None),
        ("resid", "hook_resid_pre", 0, None),
        ("attention", "hook_attn_out", 1, None),
    ):
        name = f"blocks.{layer}.{hook}"
        for position in (2, 5):
            slopes = []
            for pair in PAIRS:
                _, source = capture(model, torch.tensor([pair.corrupt]), [name])
                ends = []
                for sign in (1, -1):

                    def move(x: torch.Tensor, sign: int = sign, source: dict = source) -> torch.Tensor:
                        changed = x.clone()
                        where = (0, position) if head is None else (0, position, head)  # noqa: B023
                        changed[where] += sign * step * (source[name][where] - x[where])  # noqa: B023
                        return changed

                    with torch.no_grad():
                        logits = run_hooked(model, torch.tensor([pair.clean]), [(name, edit_hook(move))])[0]
                    ends.append(float(logits[pair.answer] - logits[pair.wrong]))
                slopes.append((ends[0] - ends[1]) / (2 * step))
            assert effect(frame, site, layer, head, position) == pytest.approx(np.mean(slopes), rel=5e-3, abs=2e-5)


@pytest.mark.parametrize("function", [activation_patching, attribution_patching])
def test_refusals(function) -> None:
    model = tiny("llama")
    for arguments, message in (
        ({"sites": ["haed"]}, "did you mean head"),
        ({"sites": []}, "no site"),
        ({"direction": "up"}, "unknown direction"),
    ):
        with pytest.raises(UserError, match=message):
            function(model, PAIRS, **arguments)
    with pytest.raises(UserError, match="the same length"):
        function(model, UNEVEN, by_position=True)
    with pytest.raises(UserError, match="at least one"):
        function(model, [])


def test_pairs_that_are_none() -> None:
    with pytest.raises(UserError, match="must correspond"):
        PromptPair((1, 2), (1,), 3, 4)
    with pytest.raises(UserError, match="same token"):
        PromptPair((1, 2), (1, 3), 3, 3)
