"""What happened to a model after it was loaded: edited weights, hooks, compatibility mode, another dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lensprune as lp
from lensprune.ablation import CLEAN, Ablation, Layer, Variant
from lensprune.engine import HookedExecutor, make_executor
from lensprune.errors import UserError
from lensprune.models import as_hooked_model, load_model
from lensprune.models.adapt import current_model
from lensprune.protocols.requests import LoglikelihoodRequest
from tests.helpers.families import save_folder
from tests.helpers.tolerances import assert_logprobs_agree, precision

ARGUMENTS: dict[str, Any] = {
    "tasks": ["facts"],
    "protocols": ["continuation"],
    "limit": 3,
    "shots": 0,
    "progress": False,
}


SKIP = Variant("L0.skip", (Ablation(Layer(0), "skip"),))


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return load_model(save_folder("llama", tmp_path / "model"), device="cpu")


def mean_logprob(run: Any) -> float:
    return float(run.summary().query("variant == 'clean'").mean_gold_logprob.iloc[0])


@pytest.mark.parametrize("way", ["data", "no_grad", "numpy", "hook view", "buffer"])
def test_edited_weights_have_another_hash_and_undone_edits_the_old_one(model: Any, way: str) -> None:
    before = current_model(model).facts.weights_hash
    weight = model.original_model.get_parameter(
        "model.layers.1.mlp._original_component.down_proj._original_component.weight"
    )
    kept = weight.detach().clone()
    buffer = next(b for name, b in model.original_model.named_buffers() if name.endswith("inv_freq"))
    angles = buffer.clone()
    match way:
        case "data":
            weight.data.zero_()
        case "no_grad":
            with torch.no_grad():
                weight[0, 0] += 1e-3
        case "numpy":
            weight.detach().numpy()[:, [0, 1]] = kept.numpy()[:, [1, 0]]
        case "hook view":
            with torch.no_grad():
                model.blocks[1].mlp.W_out.zero_()
        case "buffer":
            buffer.mul_(2)
    edited = current_model(model).facts.weights_hash
    assert edited != before
    assert as_hooked_model(model).facts.weights_hash == edited
    weight.data.copy_(kept)
    buffer.copy_(angles)
    assert current_model(model).facts.weights_hash == before


def test_a_model_edited_in_place_is_refused_in_a_known_folder(model: Any, tmp_path: Path) -> None:
    run = lp.sweep(model, variants=[SKIP], out=tmp_path / "run", **ARGUMENTS)
    for layer in model.original_model.model.layers:
        for parameter in layer.parameters():
            parameter.data.zero_()
    with pytest.raises(UserError, match="the model's weights"):
        lp.sweep(model, variants=[SKIP], out=tmp_path / "run", **ARGUMENTS)
    edited = lp.sweep(model, variants=[SKIP], **ARGUMENTS)
    assert abs(mean_logprob(edited) - mean_logprob(run)) > 0.01


def test_a_replaced_parameter_is_seen_and_leaves_the_fast_path(model: Any) -> None:
    before = current_model(model).facts.weights_hash
    projection = next(m for n, m in model.original_model.named_modules() if n.endswith("down_proj._original_component"))
    projection.weight = torch.nn.Parameter(projection.weight * 2)
    hooked = current_model(model)
    assert hooked.facts.weights_hash != before
    with pytest.warns(UserWarning, match="parameters of the model were replaced"):
        assert make_executor("forked", hooked).name == "hooked"


def _permanent_hook(model: Any) -> str:
    model.add_hook("blocks.1.hook_resid_post", lambda value, hook: value.roll(1, -1), is_permanent=True)
    return "blocks.1"


def _torch_hook(model: Any) -> str:
    model.blocks[1].register_forward_hook(lambda module, args, output: None)
    return "blocks.1|layers.1"


@pytest.mark.parametrize("leave", [_permanent_hook, _torch_hook])
def test_a_hook_left_on_the_model_is_named_and_refused(model: Any, leave: Any) -> None:
    as_hooked_model(model)
    where = leave(model)
    for use in (as_hooked_model, lambda m: lp.sweep(m, variants=[SKIP], **ARGUMENTS)):
        with pytest.raises(UserError, match=rf"a custom hook at .*({where}).*keep_hooks=True"):
            use(model)


def test_kept_hooks_are_part_of_the_model_and_recorded(model: Any) -> None:
    plain = lp.sweep(model, variants=[SKIP], **ARGUMENTS)
    assert plain.spec.kept_hooks == ()
    _permanent_hook(model)
    with pytest.warns(UserWarning, match="the model has a custom hook at"):
        run = lp.sweep(model, variants=[SKIP], keep_hooks=True, **ARGUMENTS)
    [name] = run.spec.kept_hooks
    assert "blocks.1" in name
    assert run.spec.digest != plain.spec.digest
    assert type(run.spec).from_json(run.spec.to_json()) == run.spec
    assert abs(mean_logprob(run) - mean_logprob(plain)) > 0.01
    model.reset_hooks(including_permanent=True)
    again = lp.sweep(model, variants=[SKIP], **ARGUMENTS)
    assert mean_logprob(again) == mean_logprob(plain)


def test_compatibility_mode_after_loading_is_refused(model: Any) -> None:
    as_hooked_model(model)
    model.enable_compatibility_mode(disable_warnings=True)
    for use in (as_hooked_model, current_model):
        with pytest.raises(UserError, match="compatibility mode"):
            use(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_follows_the_parameters(model: Any, dtype: torch.dtype) -> None:
    first = current_model(model).facts
    model.to(dtype)
    hooked = current_model(model)
    assert hooked.facts.dtype == str(dtype).removeprefix("torch.")
    assert hooked.facts.weights_hash != first.weights_hash
    # Padded, and through both executors.
    requests = [LoglikelihoodRequest(tuple(range(10, 10 + n)), (7, 8)) for n in (4, 9)]
    executor = make_executor("forked", hooked)
    assert executor.name == "forked"
    [fast], [slow] = executor.run(requests, [CLEAN]), HookedExecutor(hooked).run(requests, [CLEAN])
    assert_logprobs_agree(fast.responses, slow.responses, precision(hooked))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_follows_the_parameters(model: Any) -> None:
    model.to("cuda")
    assert current_model(model).facts.device == "cuda:0"
    assert lp.sweep(model, variants=[SKIP], **ARGUMENTS).spec.device == "cuda"


def test_a_name_is_no_loaded_model() -> None:
    with pytest.raises(UserError, match="has no hooks: give"):
        as_hooked_model("smollm2-135m", keep_hooks=True)
    with pytest.raises(UserError, match="keep_hooks is given with the name 'toy-base': only a loaded model has hooks"):
        lp.sweep("toy-base", variants=[SKIP], keep_hooks=True, **ARGUMENTS)
