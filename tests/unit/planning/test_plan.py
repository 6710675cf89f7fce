"""`lensprune plan`: from a configuration alone, for any size of model."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lensprune as lp
from lensprune import cli
from lensprune.analysis.sequential import Looks
from lensprune.analysis.stopping import UntilWidth
from lensprune.costs import speed
from lensprune.costs.speed import Speed, estimated_seconds, measure_speed
from lensprune.errors import UserError
from lensprune.models.model_config import load_model_config
from lensprune.output.quantities import duration, quantity
from lensprune.planning.stopping import Profile, measured_at_looks, profile_of
from tests.helpers.families import byte_tokenizer

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture
def llama_8b(tmp_path: Path) -> Path:
    folder = tmp_path / "llama-8b"
    byte_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    return folder


def planned(folder: Path, **changes: Any) -> lp.Plan:
    options = {"tasks": ["facts", "arithmetic"], "protocols": ["default", "generate"], "limit": 4, "flops": 400e12}
    return lp.plan(folder, **{**options, **changes})


def test_a_model_of_eight_billion_needs_no_weights(llama_8b: Path) -> None:
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    plan = planned(llama_8b, dtype="bfloat16", device="cuda", bandwidth=3e12)
    assert (torch.cuda.memory_allocated() if torch.cuda.is_available() else 0) == before
    assert not list(llama_8b.glob("*.safetensors"))
    assert plan.shape.parameters == 8_030_261_248
    # 2 FLOPs a weight; the embedding's rows are looked up, not multiplied.
    assert plan.shape.flops_per_token == 2 * (8_030_261_248 - 128256 * 4096 - 65 * 4096)
    assert plan.memory.weights == 2 * 8_030_261_248
    assert plan.memory.process == 0
    assert (plan.n_variants, plan.n_cells) == (33, 33 * 4)
    assert plan.shared.tokens < plan.unshared.tokens
    assert plan.seconds > plan.cost.flops / 400e12 * 0.99
    text = str(plan)
    assert "8.03 G parameters" in text
    assert "132 cells" in text


def test_every_kind_of_sweep_can_be_planned(llama_8b: Path) -> None:
    from lensprune import VariantSelection

    heads = planned(llama_8b, variants=VariantSelection("heads", layers="0,31"), executor="hooked")
    assert heads.n_variants == 65
    assert heads.cost == heads.unshared
    late, early = (planned(llama_8b, variants=VariantSelection("layers", layers=layer)) for layer in ("31", "0"))
    assert late.shared.flops < early.shared.flops
    means = planned(llama_8b, variants=VariantSelection("mlp", "mean"), protocols=["default"])
    assert means.reference.tokens > 0
    options = {"protocols": ["default"], "tasks": ["facts"]}
    searched = planned(llama_8b, variants=VariantSelection("mlp", "optimal", layers="31"), **options)
    meant = planned(llama_8b, variants=VariantSelection("mlp", "mean", layers="31"), **options)
    assert searched.reference.flops > 1.5 * meant.reference.flops
    assert searched.shared.mlp - searched.reference.mlp == meant.shared.mlp - meant.reference.mlp


@pytest.mark.slow
def test_memory_grows_with_the_batch(llama_8b: Path) -> None:
    small, large = (planned(llama_8b, batch_tokens=n, device="cuda", limit=40) for n in (512, 8192))
    assert small.memory.total < large.memory.total
    assert small.memory.weights == large.memory.weights == 4 * 8_030_261_248


def test_a_gpu_of_this_machine_is_planned_with_its_free_memory(llama_8b: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"dtype": "bfloat16", "device": "cuda", "protocols": ["generate"], "tasks": ["facts"], "limit": 40}
    absent, told = planned(llama_8b, **options), planned(llama_8b, memory="48GB", **options)
    weights = 2 * 8_030_261_248
    # What is free besides the weights, of which 80% are taken.
    free = {"mem_get_info": (60_000_000_000 + weights, 80 * 10**9), "memory_reserved": 0, "memory_allocated": 0}
    for name, value in {**free, "device_count": 1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    here = planned(llama_8b, **options)
    assert here.memory == told.memory
    assert here.memory.cache > absent.memory.cache


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flops": 0}, "flops 0 is not a rate"),
        ({"flops": float("nan")}, "is not a rate"),
        ({"flops": None, "bandwidth": 1e12}, "without flops"),
        ({"executor": "forkd"}, "did you mean forked"),
        ({"dtype": "float8"}, "did you mean"),
        ({"tasks": ["fact"]}, "did you mean facts"),
        ({"bos": "allways"}, "did you mean always"),
        ({"flops": None, "device": "cuda:99"}, "give flops"),
        ({"device": "0"}, "'0' is not a device"),
    ],
)
def test_refusals(llama_8b: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned(llama_8b, **changes)


def test_a_loaded_model_is_refused() -> None:
    with pytest.raises(UserError, match="name or path"):
        lp.plan(torch.nn.Linear(1, 1), ["facts"])  # type: ignore[arg-type]


def test_command(llama_8b: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["plan", "--model", str(llama_8b), "--task", "facts", "--limit", "2", "--flops", "1e12"]
    assert cli.main([*arguments, "--out", str(llama_8b.parent / "out")]) == 0
    output = capsys.readouterr().out
    assert "33 cells" in output
    assert "1 TFLOP/s as given" in output
    assert not (llama_8b.parent / "out").exists()
    assert cli.main([*arguments, "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    told = lp.plan(llama_8b, "facts", limit=2, flops=1e12)
    assert (row["task"], row["protocol"], row["items"], row["variants"]) == ("facts", "default", 2, 33)
    assert (row["tokens_forked"], row["flops_hooked"]) == (told.shared.tokens, told.unshared.flops)
    assert (row["sweep_seconds"], row["sweep_memory"]) == (told.seconds, told.memory.total)
    assert row["tokens_hooked"] > row["tokens_forked"] > 0
    assert cli.main([*arguments, "--lm-eval-task", "arc_easy"]) == 2
    (llama_8b / "tokenizer.json").unlink()
    (llama_8b / "tokenizer_config.json").unlink()
    assert cli.main(arguments) == 2
    assert "has no tokenizer" in capsys.readouterr().err


@pytest.mark.slow
def test_a_measured_rate_is_a_rate(llama_8b: Path) -> None:
    shape = planned(llama_8b, limit=1).shape
    measured = measure_speed(shape, torch.float32, "cpu")
    assert measured.measured
    assert 1e8 < measured.flops < 1e14
    assert measured.bandwidth is not None
    assert 1e8 < measured.bandwidth < 1e14


def test_a_pause_while_measuring_makes_a_machine_no_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, clock = itertools.count(), [0.0]

    def product() -> torch.Tensor:
        clock[0] += 0.2 if next(calls) == 4 else 0.002
        return torch.empty(0)

    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    # With the pause in the mean it would be 140.
    assert speed._rate(product, torch.device("cpu"), 0.1) == pytest.approx(500)


def test_decoding_is_bound_by_reading_weights(llama_8b: Path) -> None:
    plan = planned(llama_8b, protocols=["generate"], tasks=["facts"])
    weight_bytes = 2 * plan.shape.parameters
    slow = estimated_seconds(plan.cost, Speed(1e30, 1e12, False), weight_bytes, 2)
    assert plan.cost.cached > 0
    assert slow == pytest.approx((plan.cost.passes * weight_bytes + 2 * plan.cost.cached) / 1e12)
    fast = estimated_seconds(plan.cost, Speed(1e12, 1e30, False), weight_bytes, 2)
    assert fast == pytest.approx(plan.cost.flops / 1e12)


def test_long_generations_are_planned_by_length(llama_8b: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"dtype": "bfloat16", "device": "cuda", "tasks": ["arithmetic"], "limit": 16, "shots": 0}
    options |= {"protocols": ["generate"], "variants": lp.VariantSelection("layers", "skip", "0-3"), "flops": 400e12}
    options |= {"memory": "48GB", "bandwidth": 3e12}
    plan = planned(llama_8b, **options, max_new_tokens=4096)
    assert [one.new_tokens for one in plan.lengths] == [512, 1024, 2048, 4096]
    # 2 (keys, values) × 8 heads × 128 × 32 layers × 2 bytes.
    per_token = 131072
    prompt = plan.lengths[0].row_bytes // per_token - 512
    assert 5 < prompt < 100
    assert [one.row_bytes for one in plan.lengths] == [(prompt + one.new_tokens) * per_token for one in plan.lengths]
    assert [one.rows for one in plan.lengths] == sorted((one.rows for one in plan.lengths), reverse=True)
    assert all(one.rows * one.row_bytes < 30e9 for one in plan.lengths)
    assert plan.lengths[-1].rows > 16
    last, first = plan.lengths[-1], plan.lengths[0]
    assert (last.tokens, last.seconds, last.memory) == (plan.cost.tokens, plan.seconds, plan.memory.total)
    # Every step reads all that was written before, and fewer texts fit beside each other.
    assert last.seconds > 12 * first.seconds
    assert last.tokens == pytest.approx(8 * first.tokens, rel=0.1)
    reading = (plan.cost.passes * 2 * plan.shape.parameters + 2 * plan.cost.cached) / 3e12
    assert plan.cost.cached * 2 > plan.cost.passes * 5e9
    assert plan.seconds == pytest.approx(reading, rel=0.1)
    assert f"4096        {quantity(last.tokens)}" in plan.text
    assert planned(llama_8b, **options, max_new_tokens=256).lengths == ()
    hooked = planned(llama_8b, **options, executor="hooked", max_new_tokens=1024)
    assert [one.rows for one in hooked.lengths][-1] >= 1
    # Samples are rows of their own.
    sampled = planned(llama_8b, **options, max_new_tokens=256, temperature=0.6, samples=4)
    once = planned(llama_8b, **options, max_new_tokens=256)
    assert sampled.conditions[0].items == once.conditions[0].items
    assert sampled.conditions[0].requests == 4 * once.conditions[0].requests


def test_numbers_for_people() -> None:
    assert (quantity(0), quantity(999), quantity(8.03e9, "B"), quantity(999.9)) == ("0", "999", "8.03 GB", "1 k")
    assert (duration(3), duration(200), duration(86400 * 3)) == ("3.0 seconds", "3.3 minutes", "3.0 days")


def test_screening_is_counted_with_its_estimates(llama_8b: Path) -> None:
    whole = planned(llama_8b, variants="heads", tasks=["facts"], protocols=["default"])
    screened = planned(llama_8b, variants="heads", tasks=["facts"], protocols=["default"], screen=0.1)
    heads = 32 * 32
    assert (whole.n_variants, screened.n_variants) == (1 + heads, 1 + 155 + 51)
    clean = planned(llama_8b, variants=[lp.CLEAN, *lp.each_layer(facts_of(llama_8b))[-1:]], protocols=["default"])
    # The clean model's share is a little less than that of both: without the last layer, the head alone runs again.
    once = clean.conditions[0].shared.flops
    # A forward and a backward pass beside a share of the heads, which lie evenly over depth; 2 % for uneven thirds.
    left = screened.conditions[0].shared.flops - 2 * once
    assert left / whole.conditions[0].shared.flops == pytest.approx(207 / 1025, rel=0.02)
    # The best of three rules: three such pairs of passes, and twice the strongest tenth instead of 1.5 times.
    options: dict[str, Any] = {"tasks": ["facts"], "protocols": ["default"], "screen": 0.1, "screen_rule": "any"}
    best = planned(llama_8b, variants="heads", **options)
    assert best.n_variants == 1 + 206 + 51
    left = best.conditions[0].shared.flops - 6 * once
    assert left / whole.conditions[0].shared.flops == pytest.approx(258 / 1025, rel=0.02)


@pytest.mark.slow
def test_memory_bounds_what_comes_on_top_of_the_weights(llama_8b: Path) -> None:
    arguments = {"tasks": ["facts"], "protocols": ["continuation", "generate"], "limit": 200, "device": "cpu"}
    free, bounded = planned(llama_8b, **arguments), planned(llama_8b, **arguments, memory="2GB")
    assert bounded.memory.total - bounded.memory.weights - bounded.memory.process <= 2e9
    assert free.memory.total - free.memory.weights - free.memory.process > 2e9
    with pytest.raises(UserError, match="is too little for"):
        planned(llama_8b, **arguments, memory="1MB")


def facts_of(folder: Path) -> Any:
    return load_model_config(folder).facts


def test_a_sweep_that_stops_early_is_simulated() -> None:
    asked: dict[str, Any] = {"limit": 40, "shots": 0, "flops": 1e12, "bandwidth": 1e11}
    whole = lp.plan("toy-distilled", "arithmetic", "continuation", "heads", **asked)
    early = lp.plan("toy-distilled", "arithmetic", "continuation", "heads", lost_more_than=0.05, looks="20,40", **asked)
    assert early.seconds == whole.seconds
    assert whole.expected_seconds is None
    [stop] = early.stops
    n = early.n_variants - 1
    assert stop.measured[0] == n
    assert 0 < stop.measured[1] < n
    assert early.expected_seconds is not None
    assert 0 < early.expected_seconds < early.seconds
    assert stop.cost.flops < early.shared.flops
    share = (stop.measured[0] + stop.measured[1]) / (2 * n)
    assert (
        f"arithmetic, continuation: stopping early measures about {share:.0%} of the cells, if 4% of the parts"
        in str(early)
    )
    assert "time:    about " in str(early)


def test_blocks_of_all_variants_cost_as_much_as_all() -> None:
    """Where nothing is detected or given up, all looks ask all."""
    profile, looks = Profile(1.0, 0.1, 0.1, 0.0), Looks((10, 20), margin=0.1)
    assert measured_at_looks(profile, looks, 6, 6)[0] == 6
    never = UntilWidth((10, 20, 30), 0.01)
    assert measured_at_looks(profile, never, 6, 6).tolist() == [6, 6, 6]
    heads = lp.each_head(lp.load_model("toy-distilled"), "zero")
    assert profile_of(heads, "generate").share < 0.1
    layers = lp.each_layer(lp.load_model("toy-distilled"))
    assert profile_of(layers, "continuation").most > profile_of(layers, "generate").most


def test_screening_asks_those_that_lose_most_and_controls() -> None:
    looks = Looks((20, 40, 80), margin=0.05)
    profile = Profile(0.1, 0.4, 0.4, 0.0)
    found = measured_at_looks(profile, looks, 40, 12, controls=8)
    assert found[0] == 12
    assert found[1] <= 4
