"""Every figure draws the table that it gives, and refuses what it has nothing for."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

import lensprune as lp
from lensprune.ablation import Ablation, Head, Variant
from lensprune.attribution.figures.faithfulness import faithfulness_figure
from lensprune.attribution.figures.token_map import token_map, token_map_data
from lensprune.errors import UserError
from lensprune.heads.figures.scatter import head_function_scatter
from lensprune.results.analyses import analyses, shown_analyses
from lensprune.results.figures.protocols import protocol_pairs
from tests.helpers.made_runs import N_LAYERS, heads_run, layers_run

mpl.use("agg")


@pytest.fixture(scope="module")
def layers() -> lp.Run:
    return layers_run()


@pytest.fixture(scope="module")
def heads() -> lp.Run:
    return heads_run()


@pytest.fixture(autouse=True)
def _close() -> object:
    yield
    plt.close("all")


def first(axes: Axes | list[Axes]) -> Axes:
    return axes[0] if isinstance(axes, list) else axes


def test_an_unknown_kind_names_the_kinds(layers: lp.Run) -> None:
    with pytest.raises(UserError, match="did you mean depth") as caught:
        layers.plot("dept")
    assert all(row.name in str(caught.value) for row in analyses())


def test_a_run_has_the_figures_that_it_can_draw(layers: lp.Run, heads: lp.Run) -> None:
    assert [row.name for row, _ in shown_analyses(layers)] == ["depth", "failures", "lorenz", "protocols"]
    assert [row.name for row, _ in shown_analyses(heads, saved=True)] == ["depth", "heads"]
    with pytest.raises(UserError, match="no single head"):
        layers.plot("heads")
    with pytest.raises(UserError, match="facts_open"):
        layers.plot("open_closed")


@pytest.mark.parametrize("kind", ["depth", "protocols", "lorenz", "failures"])
def test_every_kind_draws_and_gives_its_data(layers: lp.Run, kind: str) -> None:
    assert first(layers.plot(kind)).has_data()
    assert len(layers.plot_data(kind)) > 0


def test_the_head_map_shows_the_needed_head_and_marks_it(heads: lp.Run) -> None:
    data = heads.plot_data("heads", task="facts", protocol="generate")
    needed = data[(data["layer"] == 1) & (data["head"] == 2)].iloc[0]
    assert needed["delta"] == -0.5
    assert data["significant"].sum() == 1
    assert needed["significant"]
    ax = first(heads.plot("heads", task="facts", protocol="generate"))
    drawn = ax.collections[0].get_array()
    assert drawn is not None
    grid = np.ma.filled(np.asarray(drawn, float), np.nan).reshape(2, -1)
    assert grid[1, 2] == -0.5
    assert np.nansum(grid) == -0.5
    assert ax.collections[1].get_offsets().tolist() == [[2.5, 1.5]]


@pytest.mark.slow
def test_save_and_plot_draw_the_same_map_of_all_heads(tmp_path: Path) -> None:
    """Two heads of four are swept: the map has four columns, in the file as on the screen."""
    variants = [Variant(a.name, (a,)) for a in (Ablation(Head(0, head), "zero") for head in range(2))]
    run = layers_run(tmp_path / "run", variants=variants, tasks=("facts",))
    assert run.spec.n_heads == 4
    run.save()
    ax = first(run.plot("heads"))
    assert ax.get_xlim() == (0, 4)
    ax.figure.savefig(tmp_path / "plotted.png", dpi=150)
    assert (tmp_path / "plotted.png").read_bytes() == (tmp_path / "run" / "figures" / "heads.png").read_bytes()


def test_protocols_ring_only_what_differs(layers: lp.Run) -> None:
    gap = layers.protocol_gap("facts")
    ax = protocol_pairs(gap)[0]
    ringed = ax.collections[1].get_offsets()
    assert len(ringed) == int((gap["q_lower"] <= 0.05).sum()) == N_LAYERS - 1


def test_failures_add_up(layers: lp.Run) -> None:
    counts = layers.plot_data("failures")
    sums = counts.groupby(["task", "protocol", "variant"])["share"].sum()
    assert sums.tolist() == pytest.approx([1.0] * 4 * (N_LAYERS + 1))
    lost = counts[(counts["layer"] == 0) & (counts["failure"] == "wrong_answer")]
    assert lost["share"].tolist() == [1.0] * 4
    clean = counts[counts["variant"] == lp.CLEAN.name]
    assert clean["layer"].isna().all()
    assert clean[clean["failure"] == "none"]["share"].tolist() == [1.0] * 4


def test_closed_and_open_book() -> None:
    run = layers_run(tasks=("facts", "facts_open"))
    data = run.plot_data("open_closed")
    assert set(data["task_a"]) == {"facts"}
    assert set(data["task_b"]) == {"facts_open"}
    axes = run.plot("open_closed")
    assert isinstance(axes, list)
    assert len(axes) == 2
    lines = axes[0].get_lines()
    assert any(len(line.get_xdata()) == N_LAYERS for line in lines)  # type: ignore[arg-type]


def test_lorenz_data_begin_at_nothing_and_end_at_all(heads: lp.Run) -> None:
    data = heads.plot_data("lorenz", task="facts", protocol="generate")
    assert data["share_of_effect"].iloc[[0, 1, -1]].tolist() == [0, 1, 1]
    assert len(data) == 9


def test_head_functions_against_effects() -> None:
    rng = np.random.default_rng(0)
    score = rng.uniform(size=12)
    joined = pd.DataFrame(
        {
            "layer": np.arange(12) // 4, "head": np.arange(12) % 4, "induction": score, "task": "t",
            "protocol": "generate", "ablation": "zero", "delta": -score, "q_loss": 0.5, "q_gain": 1.0,
            "at_chance": False,
        }
    )  # fmt: skip
    ax = head_function_scatter(joined, "induction")[0]
    assert "ρ −1.00" in ax.get_title().replace("-", "−")
    assert ax.texts[0].get_text() == f"L{int(score.argmax()) // 4}.H{int(score.argmax()) % 4}"
    with pytest.raises(UserError, match="induction"):
        head_function_scatter(joined, "inductoin")


def test_token_map_places_effects_and_escapes_tokens() -> None:
    frame = pd.DataFrame(
        [
            ("resid", layer, None, position, float(layer == 1 and position == 2))
            for layer in range(2)
            for position in range(3)
        ],
        columns=["site", "layer", "head", "position", "effect"],
    )
    tokens = ["$a$", "\u202e", "\n"]
    ax = token_map(frame, tokens)[0]
    drawn = np.asarray(ax.collections[0].get_array()).reshape(2, 3)
    assert drawn.tolist() == [[0, 0, 0], [0, 0, 1]]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["$a$", "\\u202e", "\\n"]
    ax.figure.canvas.draw()
    assert token_map_data(frame, tokens)["token"].tolist() == tokens * 2
    with pytest.raises(UserError, match="by_position"):
        token_map(frame.assign(position=-1), tokens)
    with pytest.raises(UserError, match="there are 2 tokens for 3 positions"):
        token_map(frame, tokens[:2])


def test_a_faithfulness_curve_shows_every_circuit_the_empty_one_too() -> None:
    table = pd.DataFrame({"fraction": [0.0, 0.01, 0.1, 1.0], "faithfulness": [-0.2, 0.3, 0.9, 1.0]})
    ax = faithfulness_figure(table, title="edges")
    drawn = ax.transData.transform(ax.lines[0].get_xydata())
    assert np.isfinite(drawn).all()
    assert (np.diff(drawn[:, 0]) > 0).all()
    assert ax.get_xlim()[0] == 0
    with pytest.raises(UserError, match="no circuits"):
        faithfulness_figure(table.head(1))
