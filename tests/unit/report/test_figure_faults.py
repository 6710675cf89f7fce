"""What was wrong with figures when they were looked at, and no figure may do again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

import lensprune as lp
from lensprune.ablation.components import Head
from lensprune.analysis.failures import FAILURES
from lensprune.analysis.removal import removal_curve_table
from lensprune.attribution.figures.faithfulness import faithfulness_figure
from lensprune.attribution.figures.token_map import token_map
from lensprune.heads.figures.scatter import head_function_scatter
from lensprune.output.drawing.heatmap import head_heatmaps
from lensprune.output.drawing.style import name_points, panels, short_tasks
from lensprune.output.plain_text import in_ranges
from lensprune.replacement.figures import effect_against_weights, effect_by_depth
from lensprune.results.figures.depth import delta_by_depth
from lensprune.results.figures.failures import _LOOKS
from lensprune.results.figures.removal import removal_figure
from tests.helpers.made_cells import skip
from tests.helpers.made_runs import heads_run, layers_run

mpl.use("agg")
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _closed() -> Any:
    yield
    plt.close("all")


def listed(axes: Axes | list[Axes]) -> list[Axes]:
    return axes if isinstance(axes, list) else [axes]


def joined(n: int = 24) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "layer": np.arange(n) // 4, "head": np.arange(n) % 4, "induction": rng.uniform(size=n), "task": "t",
            "protocol": "generate", "ablation": "zero", "delta": -rng.uniform(size=n),
            "q_loss": np.where(np.arange(n) % 3, 0.5, 0.01), "q_gain": 1.0, "at_chance": False,
        }
    )  # fmt: skip


def shares(component: str = "mlp", n: int = 8) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    frames = []
    for direction in ("forward", "backward"):
        effect = rng.uniform(-0.1, 0.6, size=n)
        label = "L{}.H1" if component == "head" else "L{}.mlp"
        frames.append(
            pd.DataFrame(
                {
                    "task": "t", "protocol": "generate", "direction": direction,
                    "part": [label.format(i) for i in range(n)], "component": component, "layer": np.arange(n),
                    "head": 1 if component == "head" else pd.NA, "n": 40, "gain": 0.5, "gain_is_clear": True,
                    "effect": effect, "ci_low": effect - 0.1, "ci_high": effect + 0.1,
                    "weight_change": rng.uniform(size=n),
                }
            )
        )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def curves() -> pd.DataFrame:
    rows = [("important_first", -1, k, 0.9 - 0.1 * k) for k in range(1, 8)]
    rows += [("random", seed, k, 0.9 - 0.01 * k * seed) for seed in range(3) for k in range(1, 8)]
    points = pd.DataFrame(rows, columns=["order", "seed", "k", "accuracy"])
    points = points.assign(
        task="t", protocol="default", mode="remove", n=20, chance=0.0, at_chance=False, accuracy_clean=0.9
    )
    delta = points["accuracy"] - 0.9
    return removal_curve_table(points.assign(delta=delta, ci_low=delta - 0.1, ci_high=delta + 0.1))


FIGURES: dict[str, Callable[[], Axes | list[Axes]]] = {
    "depth": lambda: layers_run().plot("depth"),
    "depth of heads": lambda: heads_run().plot("depth"),
    "heads": lambda: heads_run().plot("heads"),
    "protocols": lambda: layers_run().plot("protocols"),
    "failures": lambda: layers_run().plot("failures"),
    "lorenz of one": lambda: heads_run().plot("lorenz", task="facts", protocol="generate"),
    "lorenz of several": lambda: heads_run().plot("lorenz"),
    "closed and open": lambda: layers_run(tasks=("facts", "facts_open")).plot("open_closed"),
    "variants": lambda: layers_run(variants=sets()).plot(),
    "scatter": lambda: cast(list[Axes], head_function_scatter(joined(), "induction")),
    "removal": lambda: cast(list[Axes], removal_figure(curves())),
    "faithfulness": lambda: faithfulness_figure(curve()),
    "replacements": lambda: cast(list[Axes], effect_by_depth(shares(), n_layers=8)),
    "replaced heads": lambda: cast(list[Axes], effect_by_depth(shares("head"), n_layers=8)),
    "weights": lambda: cast(list[Axes], effect_against_weights(shares())),
}


def sets() -> list[lp.Variant]:
    pairs = [[lp.Ablation(Head(layer, head), "zero") for head in range(2)] for layer in range(4)]
    return [
        *(lp.Variant(f"set {i}", tuple(pair)) for i, pair in enumerate(pairs)),
        lp.Variant("mine", hooks=(("x", print),)),
    ]


def curve() -> pd.DataFrame:
    return pd.DataFrame(
        {"fraction": [0.0, 0.001, 0.01, 0.1, 0.5, 1.0], "faithfulness": [-0.2, 0.1, 0.3, 0.9, 1.0, 1.0]}
    )


def drawn(axes: list[Axes]) -> Figure:
    figure = cast(Figure, axes[0].get_figure(root=True))
    figure.canvas.draw()
    return figure


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_no_legend_stands_on_data_and_no_tick_is_mathematics(name: str) -> None:
    axes = listed(FIGURES[name]())
    figure = drawn(axes)
    legends = [*figure.legends, *(legend for ax in axes if (legend := ax.get_legend()) is not None)]
    for legend in legends:
        box = legend.get_window_extent()
        assert not any(box.overlaps(ax.get_window_extent()) for ax in axes)
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
    labels = [label.get_text() for ax in axes for label in (*ax.get_xticklabels(), *ax.get_yticklabels())]
    assert any(labels)
    assert not any("$" in label for label in labels)


@pytest.mark.parametrize("name", FIGURES)
def test_titles_are_within_the_figure_and_apart(name: str) -> None:
    axes = listed(FIGURES[name]())
    figure = drawn(axes)
    boxes = [
        box
        for ax in axes
        for box in (ax.title.get_window_extent(), ax._left_title.get_window_extent())
        if box.width > 1
    ]  # type: ignore[attr-defined]
    assert boxes or name in ("lorenz of one", "lorenz of several", "faithfulness")
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 - 1 <= box.x0
        assert box.x1 <= figure.bbox.x1 + 1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_small_multiples_name_what_is_needed_and_where_chance_is() -> None:
    run = layers_run()
    axes = cast(list[Axes], run.plot())
    assert [ax.get_title(loc="left").splitlines()[0] for ax in axes] == [
        "facts, default", "facts, generate", "arithmetic, default", "arithmetic, generate",
    ]  # fmt: skip
    assert [ax.get_title(loc="left").splitlines()[2] for ax in axes[:2]] == ["needs 0", "needs 0–9"]
    assert all("clean 1.00, n 40" in ax.get_title(loc="left") for ax in axes)
    for ax in axes[:2]:
        [region] = [patch for patch in ax.patches if patch.get_gid() == "chance"]
        assert region.get_extents().transformed(ax.transData.inverted()).y1 == pytest.approx(0.25 - 1.0)
        assert [text.get_text() for text in ax.texts] == ["first 30%", "middle", "last 30%"]
        named = next(line for line in ax.lines if line.get_gid() == "significant")
        assert 0 in np.asarray(named.get_xdata()).tolist()
    [deltas] = [line for line in axes[1].lines if line.get_gid() == "delta"]
    assert np.asarray(deltas.get_ydata()).tolist() == [-1.0, *[-0.5] * 9]


def test_a_figure_that_leaves_variants_out_says_so() -> None:
    """Layers and heads beside four sets and a hook, which are drawn; both titles say how many of how many."""
    heads = [lp.Variant(a.name, (a,)) for h in range(4) for a in (lp.Ablation(Head(1, h), "zero"),)]
    run = layers_run(variants=[skip(2), *heads, *sets()], tasks=("facts",), protocols=("default",))
    [sets_only] = listed(run.plot())
    assert [label.get_text() for label in sets_only.get_yticklabels()] == [variant.name for variant in sets()]
    [depth] = listed(run.plot("depth"))
    titles = [cast(Figure, ax.figure).get_suptitle() for ax in (sets_only, depth)]
    assert titles == [f"{run.spec.model}: 5 of 10 variants", f"{run.spec.model}: 1 of 10 variants"]
    [ax] = listed(layers_run(variants=[skip(2), skip(3), *sets()[:1]], tasks=("facts",), protocols=("default",)).plot())
    assert ax.get_xlabel().startswith("layer removed")
    [ax] = listed(layers_run(tasks=("facts",), protocols=("default",)).plot())
    assert " of " not in cast(Figure, ax.figure).get_suptitle()


def test_only_measured_layers_have_a_row() -> None:
    variants = [
        lp.Variant(a.name, (a,)) for layer in (2, 20) for h in range(4) for a in (lp.Ablation(Head(layer, h), "zero"),)
    ]
    run = layers_run(variants=variants, tasks=("facts",), protocols=("default",), n_layers=30)
    [ax] = listed(run.plot("heads"))
    assert ax.get_ylim() == (0, 2)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["2", "20"]
    assert ax.get_ylabel() == "layer (2 of 30 swept)"
    frame = pd.DataFrame(
        [(layer, h, "s", 0.5) for layer in (2, 20) for h in (1, 3)], columns=["layer", "head", "score", "value"]
    )
    [ax] = head_heatmaps(frame)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["2", "20"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "3"]


def test_layers_between_measured_ones_are_not_drawn() -> None:
    run = layers_run(variants=[skip(2), skip(20)], tasks=("facts",), protocols=("default",), n_layers=30)
    [ax] = listed(run.plot())
    assert ax.get_xlim() == (1.2, 20.8)
    assert ax.get_xticks().tolist() == [2, 20]
    [deltas] = [line for line in ax.lines if line.get_gid() == "delta"]
    assert np.isnan(np.asarray(deltas.get_ydata(), float)[1:-1]).all()


def test_what_is_never_negative_has_no_scale_with_two_signs() -> None:
    frame = pd.DataFrame(
        [
            (layer, h, name, value)
            for layer in range(2)
            for h in range(2)
            for name, value in (("entropy", 1.5 + h), ("copying", h - 0.5))
        ],
        columns=["layer", "head", "score", "value"],
    )
    entropy, copying = (ax.collections[0].get_clim() for ax in head_heatmaps(frame))
    assert entropy == (0.0, 2.5)
    assert copying == (-0.5, 0.5)
    same = [ax.collections[0].get_clim() for ax in head_heatmaps(frame, label="nats")]
    assert same == [(-2.5, 2.5), (-0.5, 0.5)]


def test_maps_are_drawn_once_however_many_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    draw = Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, renderer: (drawn.append(self), draw(self, renderer))[1])
    frame = pd.DataFrame(
        [(layer, h, f"score {n}", n + h) for layer in range(2) for h in range(2) for n in range(3)],
        columns=["layer", "head", "score", "value"],
    )
    first, *_ = head_heatmaps(frame)
    assert not drawn
    first.figure.canvas.draw()
    assert len(drawn) == 1
    # seaborn's own map can tell.
    sns.heatmap(np.ones((2, 2)), ax=panels(1)[1][0])
    assert len(drawn) == 2


@pytest.mark.slow
def test_wrong_answers_are_not_green() -> None:
    ax = listed(layers_run().plot("failures"))[0]
    figure = drawn(listed(ax))
    handles = figure.legends[0].legend_handles
    colours = {text.get_text(): handle for text, handle in zip(figure.legends[0].get_texts(), handles, strict=True)}
    red, green, blue = to_rgb(cast(Any, colours["wrong answer"]).get_facecolor())
    assert red > green
    assert red > blue


@pytest.mark.parametrize("name", ["scatter", "weights", "replaced heads", "depth of heads"])
def test_points_have_names_that_stand_apart_and_inside(name: str) -> None:
    axes = listed(FIGURES[name]())
    drawn(axes)
    for ax in axes:
        names = [text for text in ax.texts if text.get_text().startswith("L")]
        assert len(names) >= 1
        boxes = [Text.get_window_extent(text) for text in names]
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[i + 1 :])
            assert ax.get_window_extent().x0 <= box.x0
            assert box.x1 <= ax.get_window_extent().x1


def test_names_of_points_at_one_place_stand_apart() -> None:
    _, [ax] = panels(1)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    name_points(ax, ["first one", "second one", "third one"], [0.98] * 3, [0.02] * 3)
    boxes = [Text.get_window_extent(text) for text in ax.texts]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert all(box.x1 <= ax.get_window_extent().x1 for box in boxes)


def test_tokens_can_be_read() -> None:
    """A prompt of 90 tokens whose first 40 have no effect: the others, in rows of up to 36."""
    frame = pd.DataFrame(
        [("resid", layer, None, position, float(position >= 40)) for layer in range(4) for position in range(90)],
        columns=["site", "layer", "head", "position", "effect"],
    )
    axes = token_map(frame, [f"token{i}" for i in range(90)])
    figure = drawn(axes)
    shown = [label.get_text() for ax in axes for label in ax.get_xticklabels() if label.get_text()]
    assert shown == [f"token{i}" for i in range(38, 90)]
    assert "38 tokens before them without effect" in axes[0].get_title()
    assert all(label.get_fontsize() >= 8 for ax in axes for label in ax.get_xticklabels())
    assert figure.get_figwidth() < 13
    for ax in axes:
        boxes = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
        assert not any(a.overlaps(b) for a, b in pairwise(boxes))


def test_task_names_are_as_short_as_they_can_be() -> None:
    long = "kv_retrieval[pairs=4,ending=reopened]"
    assert short_tasks([long, "facts"]) == {long: "kv_retrieval", "facts": "facts"}
    other = "kv_retrieval[pairs=8,ending=reopened]"
    assert short_tasks([long, other]) == {long: "kv_retrieval[pairs=4]", other: "kv_retrieval[pairs=8]"}
    assert short_tasks([long, "kv_retrieval"]) == {long: long, "kv_retrieval": "kv_retrieval"}


def test_ranges() -> None:
    assert in_ranges([18, 16, 0, 1, 17, 5]) == "0–1, 5, 16–18"
    assert in_ranges([]) == ""


def test_a_figure_can_be_drawn_on_axes_of_ones_own() -> None:
    run = layers_run()
    figure, grid = plt.subplots(2, 2)
    mine = grid[0, 1]
    ax = run.plot("depth", "facts", "generate", ax=mine)
    assert ax is mine
    assert "facts, generate" in mine.get_title(loc="left")
    assert len(plt.get_fignums()) == 1
    assert not grid[0, 0].lines
    assert run.plot("depth", ax=grid) == list(grid.ravel())
    assert figure.get_suptitle() == ""
    heads_run().plot("lorenz", "facts", "generate", ax=grid[1, 0])
    run.plot("failures", "facts", "generate", ax=grid[1, 1])
    figure.canvas.draw()


def test_another_number_of_axes_is_refused() -> None:
    run = layers_run()
    _, [one, other] = plt.subplots(1, 2)
    with pytest.raises(
        lp.UserError, match="the figure has 4 panels, and ax is for 1 panel: name a task and a protocol"
    ):
        run.plot(ax=one)
    with pytest.raises(lp.UserError, match="1 panel, and ax is for 2 panels"):
        run.plot("depth", "facts", "default", ax=[one, other])
    with pytest.raises(lp.UserError, match="expected a matplotlib Axes"):
        run.plot(ax="here")  # type: ignore[arg-type]
    assert len(plt.get_fignums()) == 1


def test_runs_of_sets_and_hooks_have_a_figure() -> None:
    run = layers_run(
        variants=sets(), right=lambda task, protocol, variant, n: np.arange(n) % 4 != int(variant.name == "set 2")
    )
    assert run.plot_data().equals(run.plot_data("variants"))
    data = run.plot_data()
    assert data["variant"].unique().tolist() == [v.name for v in sets()]
    axes = listed(run.plot())
    assert [label.get_text() for label in axes[0].get_yticklabels()] == [v.name for v in sets()]
    with pytest.raises(lp.UserError, match="use depth"):
        layers_run().plot("variants")


def test_a_panel_at_chance_claims_nothing() -> None:
    run = layers_run(tasks=("facts",), protocols=("default",), right=lambda *given: np.arange(given[3]) % 4 == 0)
    [ax] = listed(run.plot())
    assert ax.get_title(loc="left").splitlines()[1:] == ["clean 0.25, n 40: at chance (0.25)"]
    assert not ax.collections
    assert not [patch for patch in ax.patches if patch.get_gid() == "chance"]
    assert delta_by_depth(run.summary())


def test_every_kind_of_failure_has_a_look() -> None:
    assert set(_LOOKS) == set(FAILURES)
    assert len(set(_LOOKS.values())) == len(FAILURES)
