"""Everything that runs a model, on the pretend GPU and on the CPU: the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import lensprune as lp
from lensprune.ablation import CLEAN, Variant, collect_reference, each_head, each_layer, each_mlp
from lensprune.attribution.methods import METHODS, AttributionOptions
from lensprune.attribution.report import attribution_report
from lensprune.divergence.report import fidelity_report
from lensprune.engine import ForkedExecutor, HookedExecutor
from lensprune.engine.estimates import estimate_logprobs
from lensprune.engine.traces import trace_tokens
from lensprune.errors import UserError
from lensprune.heads.report import heads_report
from lensprune.models import as_hooked_model, load_model
from lensprune.models.base import HookedModel
from lensprune.primitives.report import primitives_report
from lensprune.protocols.requests import LoglikelihoodRequest
from tests.helpers.generation import REFERENCE_PROMPTS, requests_for, variants_for
from tests.helpers.pretend_gpu import PretendTensor, counting
from tests.helpers.tiny_models import folder, likelihood_requests
from tests.helpers.tolerances import assert_logprobs_agree, assert_responses_agree, assert_tensors_agree

FAMILIES = ("llama", "gpt2", "gemma3", "mixtral")
"""With key/value groups; with fused projections and learned positions; with windows; with experts."""


@cache
def model(device: str, family: str = "llama", dtype: str = "float32", seed: int = 0) -> HookedModel:
    path = family if family.startswith("toy") else folder(family, seed)
    return as_hooked_model(load_model(path, device=device, dtype=dtype))


def both(measure: Callable[[HookedModel], Any], family: str = "llama") -> tuple[Any, Any]:
    """What `measure` gives for the model on the GPU, and on the CPU."""
    return measure(model("cuda", family)), measure(model("cpu", family))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_lies_on_the_device(family: str) -> None:
    loaded = model("cuda", family)
    assert loaded.facts.device == "cuda:0"
    assert all(isinstance(own, PretendTensor) for own in loaded.module.parameters())
    assert loaded.facts.weights_hash == model("cpu", family).facts.weights_hash


@pytest.mark.parametrize("executor", [ForkedExecutor, HookedExecutor])
@pytest.mark.parametrize("family", FAMILIES)
def test_executors(family: str, executor: Any) -> None:
    few = executor is HookedExecutor

    def run(own: HookedModel) -> list[Any]:
        variants = variants_for(own)[:: 9 if few else 2]
        reference = collect_reference(own, REFERENCE_PROMPTS, variants, mode="per_position")
        return list(executor(own).run(requests(own), variants, reference=reference))

    def requests(own: HookedModel) -> list[Any]:
        return [*likelihood_requests(own)[:: 5 if few else 1], *requests_for(own, 4)[:: 4 if few else 1]]

    found, expected = both(run, family)
    cpu = model("cpu", family)
    reference = collect_reference(cpu, REFERENCE_PROMPTS, variants_for(cpu), mode="per_position")
    assert_responses_agree(cpu, requests(cpu), found, expected, reference)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_takes_the_gpus_kernels(dtype: str, family: str) -> None:
    own = model("cuda", family, dtype)
    requests = [r for r in likelihood_requests(own) if isinstance(r, LoglikelihoodRequest)]
    variants = [CLEAN, *each_layer(own, layers=[1]), *each_head(own, layers=[0], heads=[1])]
    hooked = list(HookedExecutor(own).run(requests, variants))
    with counting() as counts:
        forked = list(ForkedExecutor(own).run([*requests, *requests_for(own, 3)], variants))
    assert counts.kernels["aten._flash_attention_forward"]
    assert counts.kernels["triton.attend_rows"]
    assert counts.kernels["triton.rotate"]
    by_hooks = {answered.variant.name: answered.responses for answered in hooked}
    assert {answered.variant.name for answered in forked} == set(by_hooks)
    for answered in forked:
        found, expected = answered.responses[: len(requests)], by_hooks[answered.variant.name]
        assert_logprobs_agree(found, expected, getattr(torch, dtype))


def test_a_user_s_hooks() -> None:
    def halved(z: torch.Tensor, hook: Any) -> torch.Tensor:
        return z * 0.5

    variants = [CLEAN, Variant("mine", hooks=(("blocks.1.attn.hook_z", halved),))]
    found, expected = both(lambda own: list(ForkedExecutor(own).run(likelihood_requests(own), variants)))
    assert_responses_agree(model("cpu"), likelihood_requests(model("cpu")), found, expected)
    elsewhere = Variant("mine", hooks=(("blocks.1.attn.hook_z", lambda z, hook: z.cpu() * 0.5),))
    with pytest.raises(UserError, match=r"mine: the hook at blocks.1.attn.hook_z returned a tensor on cpu for an"):
        list(ForkedExecutor(model("cuda")).run(likelihood_requests(model("cuda")), [elsewhere]))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_optimal_constants(family: str) -> None:
    def constants(own: HookedModel) -> np.ndarray:
        variants = [*each_head(own, "optimal", [1], [1]), *each_mlp(own, "optimal", [1])]
        reference = collect_reference(own, REFERENCE_PROMPTS, variants)
        assert {value.device.type for value in reference.optimal.values()} == {own.facts.device.partition(":")[0]}
        return np.concatenate([value.cpu().flatten().numpy() for value in reference.optimal.values()])

    found, expected = both(constants, family)
    # A search of many steps, each of which depends on the one before.
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize("executor", ["forked", "hooked"])
def test_traces(executor: str) -> None:
    def traces(own: HookedModel) -> np.ndarray:
        asked = [r for r in likelihood_requests(own) if isinstance(r, LoglikelihoodRequest)]
        variants = each_layer(own)[:2]
        return np.concatenate(
            [t.logprob for traces in trace_tokens(own, asked, variants, executor=executor) for t in traces]
        )

    assert_tensors_agree(*both(traces), torch.float32)


def test_estimates() -> None:
    def estimates(own: HookedModel) -> np.ndarray:
        asked = [r for r in likelihood_requests(own) if isinstance(r, LoglikelihoodRequest)]
        return np.concatenate([np.ravel(e) for e in estimate_logprobs(own, asked, each_head(own, layers=[0, 1]))])

    assert_tensors_agree(*both(estimates), torch.float32, terms=16)


def tables(run: Callable[[HookedModel, Path], Any], tmp_path: Path, family: str) -> None:
    """A report's tables hold the same, whose numbers are differences of logits."""
    for device in ("cuda", "cpu"):
        run(model(device, family), tmp_path / device)
    names = sorted(path.relative_to(tmp_path / "cpu") for path in (tmp_path / "cpu").rglob("*.csv"))
    assert names
    for name in names:
        found, expected = (pd.read_csv(tmp_path / device / name) for device in ("cuda", "cpu"))
        drop = [column for column in expected if "seconds" in column]
        found, expected = found.drop(columns=drop), expected.drop(columns=drop)
        numbers = expected.select_dtypes("floating").columns
        pd.testing.assert_frame_equal(found.drop(columns=numbers), expected.drop(columns=numbers))
        np.testing.assert_allclose(
            found[numbers].astype(float), expected[numbers].astype(float), rtol=1e-3, atol=1e-4, err_msg=str(name)
        )


CASES = [*((method, "llama") for method in METHODS), ("eap-ig", "gpt2"), ("eap-ig", "mixtral"), ("atp", "gemma3")]


@pytest.mark.parametrize(("method", "family"), CASES)
def test_attribution(method: str, family: str, tmp_path: Path) -> None:
    options = AttributionOptions(receiver="L1.H2") if method == "qk" else None

    def report(own: HookedModel, out: Path) -> Any:
        return attribution_report(
            own.module, method, "arithmetic", out, limit=2, shots=0, options=options, progress=False
        )

    tables(report, tmp_path, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads(family: str, tmp_path: Path) -> None:
    tables(lambda own, out: heads_report(own.module, out, limit=2, shots=0), tmp_path, family)


def test_fidelity(tmp_path: Path) -> None:
    """Of right answers, which random models don't give."""
    tables(
        lambda own, out: fidelity_report(own.module, ["kv_retrieval[pairs=4]"], out, limit=4, progress=False),
        tmp_path,
        "toy-distilled",
    )


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_primitives(family: str, tmp_path: Path) -> None:
    tables(
        lambda own, out: primitives_report(own.module, out, limit=6, shots=0, draws=2),
        tmp_path,
        family,
    )


@pytest.mark.parametrize(("family", "component"), [("llama", "head"), ("gpt2", "attention_output"), ("mixtral", "mlp")])
def test_replacement(family: str, component: str, tmp_path: Path) -> None:
    def replace(own: HookedModel, out: Path) -> None:
        other = load_model(folder(family, 1), device=own.facts.device)
        lp.measure_replacement(
            own.module, other, ["arithmetic"], ["default", "generate"], component=component, limit=2, shots=0,
            layers="0,1", out=out, progress=False,
        )  # fmt: skip

    tables(replace, tmp_path, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sweep(family: str, tmp_path: Path) -> None:
    def run(own: HookedModel, out: Path) -> None:
        variants = [*each_layer(own, "mean")[:1], *each_head(own, "resample")[:1]]
        lp.sweep(
            own.module, ["arithmetic"], ["default", "generate"], variants, limit=2, shots=1, out=out, progress=False
        )

    tables(run, tmp_path, family)


def test_a_screened_sweep(tmp_path: Path) -> None:
    def run(own: HookedModel, out: Path) -> None:
        lp.sweep(own.module, ["facts"], ["default"], "heads", limit=2, shots=0, screen=0.3, out=out, progress=False)

    tables(run, tmp_path, "llama")
