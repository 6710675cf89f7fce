"""What a notebook shows of runs and variants is escaped."""

from __future__ import annotations

import lensprune as lp
from tests.helpers.made_runs import HOSTILE, layers_run


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


def test_an_item_is_escaped_for_notebook_and_terminal() -> None:
    item = layers_run(n=4, text=HOSTILE, tasks=("<b>",)).item("item 1")
    shown, printed = item._repr_html_(), repr(item)
    # Two prompts; eleven answers under default, and under generate answers and texts.
    assert shown.count("window.hit = 1") == 2 + 11 + 2 * 11
    for markup in ("<script", "<img", "<b>&", "<b><", "\u202e", "\x1b"):
        assert markup not in shown
    assert "Item item 1 of &lt;b&gt;" in shown
    assert "window.hit = 1" in printed
    assert "\u202e" not in printed
    assert "\x1b" not in printed


def test_an_item_shows_first_whose_outcome_changed() -> None:
    item = layers_run(n=4, tasks=("facts",), protocols=("default",), n_layers=40).item("item 1")
    printed = repr(item)
    assert "21 more variants are in .answers" in printed
    assert [line.split()[0] for line in printed.splitlines() if "right    " in line or "wrong    " in line][:3] == [
        "clean",
        "L0.skip",
        "L1.skip",
    ]


def test_a_long_prompt_shows_its_end() -> None:
    item = layers_run(n=4, text="x" * 5000 + " the question", tasks=("facts",), protocols=("default",)).item("item 0")
    assert "(+3816 characters) … xxx" in repr(item)
    assert "xxx the question" in repr(item)
    assert len(repr(item)) < 4000
    assert len(item.questions["default"].prompt) == 5016
