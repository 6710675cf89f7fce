"""Planned FLOPs against those that PyTorch counts while tiny models of every family really run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lensprune.ablation import CLEAN, Variant, each_head, each_layer, layer_range
from lensprune.costs.cost import Cost, blocks_cost
from lensprune.costs.shape import ModelShape, model_shape
from lensprune.costs.shared import shared_cost
from lensprune.costs.unshared import unshared_cost
from lensprune.engine import ForkedExecutor, HookedExecutor
from lensprune.models.base import HookedModel
from lensprune.models.model_config import load_model_config
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest, Request
from tests.helpers.families import FAMILIES, save_folder
from tests.helpers.flops import counter
from tests.helpers.tiny_models import likelihood_requests, tiny

FACTS = tiny("llama").facts
"""Stands for any model's facts where only likelihoods are counted."""


def counted(executor: Any, requests: Sequence[Request], variants: Sequence[Variant]) -> int:
    with counter() as flops:
        list(executor.run(requests, variants))
    return flops.get_total_flops()


@pytest.fixture
def shape_of(family_folder: Any) -> Any:
    return lambda family: model_shape(load_model_config(family_folder(family)))


def shared_prefix(model: HookedModel) -> list[Request]:
    encode = model.tokenizer.encode
    prefix = tuple(encode("a prefix that all of these requests share, long enough to be worth a node of its own " * 2))
    return [
        LoglikelihoodRequest(prefix + tuple(encode(question)), tuple(encode(option)))
        for question in ("one", "other")
        for option in (" yes", " no")
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_facts_are_the_loaded_model_s(family: str, family_folder: Any, shape_of: Any) -> None:
    model = tiny(family)
    shape = shape_of(family)
    raw = model.raw_model  # type: ignore[attr-defined]
    assert shape.parameters == sum(p.numel() for p in raw.parameters())
    facts, planned = model.facts, load_model_config(family_folder(family)).facts
    for name in ("architecture", "n_layers", "n_heads", "n_key_value_heads", "d_head", "d_model", "d_vocab", "n_ctx"):
        assert getattr(planned, name) == getattr(facts, name), name
    assert planned.tokenizer_hash == facts.tokenizer_hash


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_pass_costs_what_pytorch_counts(family: str, shape_of: Any) -> None:
    model, shape = tiny(family), shape_of(family)
    ids = torch.arange(2 * 40, device=model.facts.device).reshape(2, 40)
    positions = torch.arange(40, device=ids.device).expand(2, 40)
    with torch.no_grad(), counter() as flops:
        model.raw_model(  # type: ignore[attr-defined]
            input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, logits_to_keep=1
        )
    planned = blocks_cost(shape, 80, 2 * 40**2).flops + 2 * 2 * shape.unembedding
    # Rotary angles are a product too (tokens × half a head).
    # Not planned: 2 % for what is not a product of weights or of attention.
    assert planned == pytest.approx(flops.get_total_flops(), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "phi3"])
def test_hooked_and_forked_cost_what_pytorch_counts(family: str, shape_of: Any) -> None:
    model, shape = tiny(family), shape_of(family)
    requests = [*likelihood_requests(model), *shared_prefix(model)]
    variants = [CLEAN, *each_layer(model), *each_head(model, layers=[1], heads=[0, 1]), layer_range(model, 1, 2)]
    # A plan promises FLOPs within 5 % for passes that share nothing and 10 % for those that share prefixes.
    for budget in (2048, 300):
        planned = unshared_cost(shape, requests, len(variants), budget).flops
        assert planned == pytest.approx(counted(HookedExecutor(model, budget), requests, variants), rel=0.05)
        planned = shared_cost(shape, model.facts, requests, variants, budget).flops
        assert planned == pytest.approx(counted(ForkedExecutor(model, budget), requests, variants), rel=0.1)


def test_hooked_generation_costs_what_pytorch_counts(shape_of: Any) -> None:
    model, shape = tiny("llama"), shape_of("llama")
    requests: list[Request] = [GenerateRequest(tuple(range(4, 4 + n)), (), 7) for n in (9, 20, 33)]
    [answers] = HookedExecutor(model, 2048).run(requests, [CLEAN])
    assert all(len(response.token_ids) == 7 for response in answers.responses)  # type: ignore[union-attr]
    planned = unshared_cost(shape, requests, 2, 2048)
    counted_flops = counted(HookedExecutor(model, 2048), requests, [CLEAN, *each_layer(model, layers=[1])])
    assert planned.flops == pytest.approx(counted_flops, rel=0.05)
    assert planned.passes == 2 * 6
    assert 0 < planned.decode_flops < planned.flops


def test_forked_generation_is_bounded_from_above(shape_of: Any) -> None:
    """With one variant no text is shared, so the bound is what is run; with several it is no less."""
    model, shape = tiny("llama"), shape_of("llama")
    prompts = [tuple(range(4, 4 + n)) for n in (60, 61, 70)]
    requests: list[Request] = [GenerateRequest(prompt, (), 7) for prompt in prompts]
    for chosen, within in (([CLEAN], 0.1), ([CLEAN, *each_layer(model), *each_head(model, layers=[1])], None)):
        planned = shared_cost(shape, model.facts, requests, chosen, None)
        found = counted(ForkedExecutor(model), requests, chosen)
        assert planned.passes == 6
        if within is not None:
            assert planned.flops == pytest.approx(found, rel=within)
        else:
            assert 0.95 * found <= planned.flops <= 1.6 * found


def test_what_decode_steps_read_of_keys_and_values_by_hand(shape_of: Any) -> None:
    model, shape = tiny("llama"), shape_of("llama")
    alone: list[Request] = [GenerateRequest(tuple(range(4, 64)), (), 7)]
    # Six steps: the first attends to 61 positions, each further one to one more.
    positions = 6 * 60 + 6 * 7 / 2
    per_position = 3 * 2 * 2 * 8
    assert shared_cost(shape, model.facts, alone, [CLEAN], None).cached == positions * per_position
    assert unshared_cost(shape, alone, 2, None).cached == 2 * positions * per_position
    # A shared prefix is read once a step, whatever the number of rows.
    prefix = tuple(range(4, 54))
    both: list[Request] = [GenerateRequest((*prefix, end), (), 7, item=str(end)) for end in (100, 101)]
    positions = 6 * 50 + 2 * (6 * 1 + 6 * 7 / 2)
    assert shared_cost(shape, model.facts, both, [CLEAN], None).cached == positions * per_position


def llama(**changes: int) -> ModelShape:
    from lensprune.costs.shape import LayerShape

    values = {"parameters": 0, "n_heads": 4, "n_key_value_heads": 2, "d_head": 8, "d_model": 32, "d_vocab": 100}
    return ModelShape(layers=(LayerShape(10, 100),) * 4, unembedding=3200, **{**values, **changes})


def skip(layer: int) -> Variant:
    from tests.helpers.made_cells import skip as made

    return made(layer)


def test_sharing_by_hand() -> None:
    """Two requests share 20 of 22 tokens; layers 1 and 3 of 4 are skipped."""
    prefix = tuple(range(20))
    requests: list[Request] = [LoglikelihoodRequest((*prefix, 50 + i), (60, 61)) for i in range(2)]
    shape = llama()
    unshared = unshared_cost(shape, requests, 3, None)
    assert unshared.tokens == 3 * 2 * 22
    assert unshared.scored == 3 * 2 * 2
    shared = shared_cost(shape, FACTS, requests, [CLEAN, skip(1), skip(3)], None)
    # Clean: 24 distinct tokens through layers 0 to 2; skip 1 runs layers 2 and 3 only, skip 3 none. The last layer runs
    # for the 4 scored positions only, two in each branch.
    assert shared.tokens == 24 * (3 + 1) / 4 + 4 * 2 / 4
    assert shared.scored == 3 * 4
    assert shared.mlp == 2 * 100 * (24 * 4 + 4 * 2)
    assert shared.unembedding == 2 * 12 * 3200
    pairs = 20**2 + 2 * 2**2 + 20 * 4
    # Skip 1 takes over nothing but the residual: layer 1 itself is never run.
    last_pairs = 4 * 20 + 2 * 2 * 2
    assert shared.scores == 4 * 4 * 8 * (pairs * 4 + last_pairs * 2)


def test_one_skip_variant_alone_needs_no_clean_layer_above_it() -> None:
    requests: list[Request] = [LoglikelihoodRequest((1, 2, 3), (4,))]
    cost = shared_cost(llama(), FACTS, requests, [skip(2)], None)
    # Layers 0 and 1, then the last one for the one scored position.
    assert cost.tokens == (3 * 2 + 1) / 4


def test_costs_add_and_scale() -> None:
    cost = Cost(tokens=1, attention=2, scores=3, mlp=4, unembedding=5)
    assert (cost + cost) == cost * 2
    assert (cost * 3).flops == 42


def test_folder_without_tokenizer_says_so(tmp_path: Any) -> None:
    from lensprune.errors import UserError

    folder = save_folder("llama", tmp_path / "bare")
    for file in folder.glob("token*"):
        file.unlink()
    for file in folder.glob("special*"):
        file.unlink()
    with pytest.raises(UserError, match="no tokenizer"):
        load_model_config(folder)
