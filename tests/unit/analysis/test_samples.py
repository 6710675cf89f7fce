"""Several samples of each item: items are what is counted, with the mean of their samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.head_effects import read_effects
from lensprune.analysis.intervals import mean_intervals
from lensprune.analysis.protocol_gap import protocol_gap
from lensprune.analysis.randomization import sign_flip_p
from lensprune.analysis.summary import read_group, summarise
from lensprune.runs.cell_store import MemoryStore
from lensprune.runs.chance import at_chance
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.questions import questions_hash
from lensprune.runs.records import CellKey, cell_table
from lensprune.runs.spec import ConditionSpec
from tests.helpers.made_cells import outcome, questions, requests, skip, spec

ITEMS, SAMPLES = 12, 3
VARIANTS = (CLEAN, skip(0), skip(1))
RIGHT = {
    variant.name: np.random.default_rng(i).random((ITEMS, SAMPLES)) < share
    for i, (variant, share) in enumerate(zip(VARIANTS, (0.8, 0.4, 0.7), strict=True))
}


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """Under generate each item is sampled; under default it is asked once, as its first sample turned out."""
    store, asked = MemoryStore(), {}
    cells = []
    for protocol, samples in (("default", 1), ("generate", SAMPLES)):
        table = questions(ITEMS, scored=protocol == "default")
        asked["t", protocol] = table
        generation = {"samples": samples} if samples > 1 else {}
        cells.append(ConditionSpec("t", protocol, "p" * 64, questions_hash(table), generation=generation))
        for variant in VARIANTS:
            key = CellKey(variant.name, "t", protocol)
            made = [
                outcome(i, bool(RIGHT[variant.name][i, s]), sample=s, stop_reason="length" if s else "eos")
                for i in range(ITEMS)
                for s in range(samples)
            ]
            repeated = [request for request in requests(ITEMS) for _ in range(samples)]
            store.write(key, cell_table(key, variant, made, repeated, [0.25] * len(made)))
    store.keep_questions(asked)
    return Outcomes(replace(spec(VARIANTS, ("t",), ("default", "generate")), conditions=tuple(cells)), store)


def test_the_summary_counts_items(outcomes: Outcomes) -> None:
    rows = summarise(outcomes).query("protocol == 'generate'").set_index("variant")
    assert rows["n"].eq(ITEMS).all()
    assert rows["samples"].eq(SAMPLES).all()
    means = {name: right.mean(axis=1) for name, right in RIGHT.items()}
    differences = np.stack([means[v.name] - means["clean"] for v in VARIANTS[1:]], axis=1)
    assert np.ptp(differences) > 0.5
    expected = mean_intervals(differences)
    changed = rows.loc[[v.name for v in VARIANTS[1:]]]
    assert changed["delta"].tolist() == pytest.approx(expected.delta.tolist())
    assert changed["ci_low"].tolist() == pytest.approx(expected.low.tolist())
    assert changed["ci_high"].tolist() == pytest.approx(expected.high.tolist())
    p = sign_flip_p(np.rint(SAMPLES * differences))
    assert changed["p_value"].tolist() == pytest.approx(p.tolist())
    assert changed["q_loss"].iloc[0] < 0.05 < changed["q_loss"].iloc[1]
    # As many records that were independent would claim more.
    records = mean_intervals((RIGHT["L1.skip"].astype(float) - RIGHT["clean"]).reshape(-1, 1))
    assert records.high[0] - records.low[0] != pytest.approx(expected.high[1] - expected.low[1])


def test_one_sample_is_the_summary_of_always(outcomes: Outcomes) -> None:
    rows = summarise(outcomes).query("protocol == 'default'").set_index("variant")
    assert rows["samples"].eq(1).all()
    group = read_group(outcomes, "t", "default")
    assert group is not None
    assert group.cells["L0.skip"].correct.dtype == bool
    assert rows.loc["L0.skip", "delta"] == RIGHT["L0.skip"][:, 0].mean() - RIGHT["clean"][:, 0].mean() != 0


def test_the_first_sample_of_each_item_decides_about_chance(outcomes: Outcomes) -> None:
    group = read_group(outcomes, "t", "generate")
    assert group is not None
    assert group.at_chance is at_chance(RIGHT["clean"][:, 0], np.full(ITEMS, 0.25)) is False
    assert len(group.chances) == ITEMS


def test_effects_and_gaps_pair_items(outcomes: Outcomes) -> None:
    effects = read_effects(outcomes, "t", "generate", component="layer")
    expected = np.stack([RIGHT[v.name].mean(axis=1) - RIGHT["clean"].mean(axis=1) for v in VARIANTS[1:]], axis=1)
    np.testing.assert_allclose(effects.differences, expected)
    assert effects.item_ids == tuple(f"item {i}" for i in range(ITEMS))
    gap = protocol_gap(outcomes).set_index("variant")
    once = np.stack([RIGHT[v.name][:, 0].astype(float) - RIGHT["clean"][:, 0] for v in VARIANTS[1:]], axis=1)
    assert gap["n"].eq(ITEMS).all()
    assert gap["gap"].tolist() == pytest.approx((expected - once).mean(axis=0).tolist())
    assert gap["p_value"].tolist() == pytest.approx(sign_flip_p(np.rint(SAMPLES * (expected - once))).tolist())


def test_questions_are_stored_once_and_belong_to_every_sample(outcomes: Outcomes) -> None:
    records = outcomes.records("clean", "t", "generate", prompts=True)
    assert len(records) == ITEMS * SAMPLES
    assert outcomes.questions("t", "generate").num_rows == ITEMS
    assert records["prompt"].tolist() == [f"{i}: What is it?" for i in range(ITEMS) for _ in range(SAMPLES)]
