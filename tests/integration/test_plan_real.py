"""A plan for the real model against what running it really takes: FLOPs by part, and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

import lensprune as lp
from tests.helpers.flops import counter

WITHIN = 0.2


def by_part(flops: FlopCounterMode) -> dict[str, int]:
    """FLOPs of the attention modules, the MLPs and the unembedding, over all layers."""
    parts: dict[str, int] = defaultdict(int)
    for module, counts in flops.get_flop_counts().items():
        name = module.rsplit(".", 1)[-1]
        if name in ("self_attn", "mlp", "lm_head"):
            parts[name] += sum(counts.values())
    return dict(parts)


@pytest.mark.parametrize("executor", ["hooked", "forked"])
def test_flops_are_those_of_a_real_sweep(smollm2: Any, executor: str) -> None:
    options: dict[str, Any] = {
        "tasks": ["facts"],
        "protocols": ["default"],
        "variants": lp.VariantSelection("layers", layers="3,20"),
        # The forked executor tries itself out on a few tokens, which must not show.
        "limit": 48 if executor == "forked" else 12,
        "executor": executor,
    }
    plan = lp.plan("smollm2-135m", **options, flops=1e12)
    with counter() as flops:
        lp.sweep(smollm2, **options, progress=False)
    assert plan.cost.flops == pytest.approx(flops.get_total_flops(), rel=WITHIN)
    parts = by_part(flops)
    if executor == "forked":
        # The hooked executor's modules are the bridge's, whose names nest.
        assert plan.cost.attention + plan.cost.scores == pytest.approx(parts["self_attn"], rel=WITHIN)
        assert plan.cost.mlp == pytest.approx(parts["mlp"], rel=WITHIN)
        assert plan.cost.unembedding == pytest.approx(parts["lm_head"], rel=WITHIN)


MEASURED = """
import sys
import lensprune as lp

def memory(field):
    status = open("/proc/self/status").read()
    return int(status.split(field + ":")[1].split()[0]) * 1024

task, protocol, limit, executor, batch_tokens = sys.argv[1:]
model = lp.load_model("smollm2-135m", device="cpu")
loaded = memory("VmRSS")
lp.sweep(model, [task], [protocol], lp.VariantSelection("layers", layers="15"), limit=int(limit),
         executor=executor, batch_tokens=int(batch_tokens), progress=False)
# A child's ru_maxrss begins with its parent's memory on Linux; VmHWM is the process's own.
print(loaded, memory("VmHWM"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's memory from /proc")
@pytest.mark.real_model
@pytest.mark.parametrize(
    ("executor", "task", "protocol", "limit", "batch_tokens"),
    [
        ("forked", "facts", "default", 30, 8192),
        ("hooked", "kv_retrieval[pairs=20]", "generate", 3, 2048),
    ],
)
def test_memory_is_that_of_a_real_sweep(
    smollm2: Any, executor: str, task: str, protocol: str, limit: int, batch_tokens: int
) -> None:
    selection = lp.VariantSelection("layers", layers="15")
    plan = lp.plan(
        "smollm2-135m", [task], [protocol], selection, limit=limit, executor=executor, batch_tokens=batch_tokens,
        device="cpu", flops=1e12,
    )  # fmt: skip
    arguments = [task, protocol, str(limit), executor, str(batch_tokens)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LENSPRUNE_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    loaded, peak = map(int, result.stdout.split()[-2:])
    # What the libraries take differs from machine to machine (see LIBRARIES); what a sweep adds does not.
    process = loaded - plan.memory.weights
    planned, measured = plan.memory.total - plan.memory.process, peak - process
    print(
        f"{arguments}: planned {planned / 1e6:.0f} MB beside the libraries, measured {measured / 1e6:.0f} MB; "
        f"libraries {process / 1e6:.0f} MB; {plan.memory}"
    )
    assert planned == pytest.approx(measured, rel=WITHIN)
    # What the libraries take varies with their versions; the plan must not be off by a factor of two.
    assert plan.memory.process == pytest.approx(process, rel=0.5)
