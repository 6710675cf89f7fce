"""What the tables of parts, ablations, protocols and executors hold, and that the documentation lists all of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lensprune as lp
from lensprune.ablation.choices import branch_names, head_names, head_words, indexed_words, over_words, reference_kinds
from lensprune.ablation.components import Component, Slot, parts
from lensprune.ablation.kinds import ablation_kinds
from lensprune.engine import executor_names
from lensprune.protocols import protocol_named, protocol_names
from lensprune.results.analyses import analyses
from tests.helpers.tiny_models import tiny

ROOT = Path(__file__).parents[2]
HOOKS = {Slot.ATTENTION: "hook_attn_out", Slot.MLP: "hook_mlp_out", Slot.HEADS: "attn.hook_z"}


def _first_column(page: str, header: str) -> set[str]:
    """The words in backticks in the first column of the table of `page` below `header`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    rows = text.partition(f"| {header} |")[2].splitlines()[2:]
    column: list[str] = []
    for row in rows:
        if not row.startswith("|"):
            break
        column += re.findall(r"`(\w+)", row.split("|")[1])
    return set(column)


def test_words() -> None:
    assert over_words() == ("layers", "attention", "mlp", "heads", "kv-groups", "heads-and-groups")
    assert indexed_words() == ("heads", "kv-groups", "heads-and-groups")
    assert head_words() == ("heads", "kv-groups")
    assert branch_names() == ("layer", "attention", "mlp")
    assert head_names() == ("head", "kv_group")
    assert list(ablation_kinds()) == ["skip", "zero", "mean", "resample", "optimal", "cut"]
    assert reference_kinds() == ["mean", "resample", "optimal"]
    assert protocol_names() == ("default", "continuation", "generate")
    assert [protocol_named(name).measure for name in protocol_names()] == [
        "logprob_margin",
        "logprob_margin",
        "correct",
    ]
    assert executor_names() == ("forked", "forked-graphs", "hooked")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_part_knows_its_place(family: str) -> None:
    model = tiny(family)
    facts = model.facts
    for part in parts():
        for component in part.each(facts, 1):
            assert Component.from_json(component.to_json()) == component
            assert component.part is part
            if part.slot is not Slot.CONTRIBUTION:
                assert component.site == f"blocks.1.{HOOKS[part.slot]}"
                assert component.site in model.hook_names()
    group = lp.KVGroup(1, facts.n_key_value_heads - 1)
    size = facts.n_heads // facts.n_key_value_heads
    assert group.selected(facts) == list(range(facts.n_heads - size, facts.n_heads))
    assert lp.Head(1, 2).selected(facts) == [2]
    assert lp.MLP(1).selected(facts) is lp.Layer(1).selected(facts) is None
    labels = [c.label for c in (lp.Layer(2), lp.Attention(2), lp.MLP(2), lp.Head(2, 3), lp.KVGroup(2, 1))]
    assert labels == ["L2", "L2.attention", "L2.mlp", "L2.H3", "L2.KV1"]
    assert lp.KVGroup(2, 1).to_json() == {"kind": "kv_group", "layer": 2, "group": 1}


def test_the_documentation_lists_every_row() -> None:
    assert _first_column("docs/reference/ablations.md", "component") == {part.component.__name__ for part in parts()}
    assert _first_column("docs/reference/ablations.md", "ablation") == set(ablation_kinds())
    assert _first_column("docs/reference/protocols.md", "protocol") == set(protocol_names())
    assert _first_column("docs/reference/figures.md", "analysis") == {row.name for row in analyses()}
    page = ROOT / "docs" / "reference" / "commands.md"
    [paragraph] = [p for p in page.read_text(encoding="utf-8").split("\n\n") if p.startswith("`--over`")]
    words = set(re.findall(r"`([\w-]+)`", paragraph))
    assert set(over_words()) | set(ablation_kinds()) <= words
