"""What a notebook shows of runs and variants is escaped."""

from __future__ import annotations

import lensprune as lp
from tests.helpers.made_runs import layers_run


def test_a_variant_says_what_happens_where() -> None:
    variant = lp.Variant(
        "<b>x</b>", (lp.Ablation(lp.Head(3, 1), "zero"),), (("blocks.0.<i>", lambda value, hook: value),)
    )
    shown = variant._repr_html_()
    assert "&lt;b&gt;x&lt;/b&gt;" in shown
    assert "<td>L3.H1</td><td>zero</td>" in shown
    assert "blocks.0.&lt;i&gt;" in shown
    assert "nothing is changed" in lp.CLEAN._repr_html_()


def test_a_run_shows_its_largest_losses() -> None:
    run = layers_run(n=20, tasks=("<script>",))
    shown = run._repr_html_()
    assert "<script>" not in shown
    assert "L0.skip" in shown
