"""A whole sweep on a HookedTransformer gives the bridge's numbers; needs TransformerLens 3.9."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lensprune as lp
from lensprune.models import hooked_transformer
from lensprune.sweeps.selection import VariantSelection
from tests.helpers.tolerances import assert_records_agree

pytestmark = pytest.mark.skipif(
    hooked_transformer.HookedTransformer is None, reason="TransformerLens 4 has no HookedTransformer"
)


@pytest.mark.parametrize(
    ("over", "kind"),
    [("layers", "skip"), ("attention", "mean"), ("mlp", "zero"), ("heads", "zero"), ("kv-groups", "mean")],
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_sweep_gives_the_bridges_numbers(
    family: str, over: str, kind: str, family_folder: Callable[[str], Path]
) -> None:
    folder = family_folder(family)
    records = []
    for hooked in (True, False):
        run = lp.sweep(
            lp.load_model(folder, device="cpu", hooked_transformer=hooked),
            ["facts", "arithmetic"],
            ["default", "continuation", "generate"],
            VariantSelection(over, kind, layers="1"),
            limit=2,
            shots=1,
            executor="hooked",
            progress=False,
        )
        records.append(run.records())
    assert_records_agree(*records, torch.float32)


def test_the_default_executor_says_that_the_hooked_one_takes_over(family_folder: Callable[[str], Path]) -> None:
    model = lp.load_model(family_folder("llama"), device="cpu", hooked_transformer=True)
    with pytest.warns(UserWarning, match="using the hooked executor instead"):
        lp.sweep(model, ["facts"], ["continuation"], lp.each_layer(model)[:1], limit=1, shots=0, progress=False)
