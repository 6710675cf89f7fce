"""``python -m lensprune.toys.study``: train students with several seeds, and test whether distillation spreads
reasoning."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lensprune.analysis.concentration_change import Comparison, compare, over_seeds
from lensprune.errors import UserError
from lensprune.output.drawing.style import colours, panels
from lensprune.output.files import write_atomically
from lensprune.output.plain_text import write_csv
from lensprune.output.tables import aligned
from lensprune.results.run import Run
from lensprune.sweeps.run import sweep
from lensprune.toys.build import TEACHER_WEIGHTS, build
from lensprune.toys.recipe import RECIPE, Recipe

__all__ = ["TASKS", "Study", "robustness_curves", "study"]

TASKS = ("kv_retrieval[pairs=4,ending=reopened,answer=text]", "arithmetic[operands=3,largest=9,subtract=True]")
"""The tasks that the trio is trained for and measured on."""

_STUDENTS = ("base", "distilled", "worked")
_OVER = {"layers": "layer", "heads": "head"}
_PROTOCOL = "generate"


@dataclass(frozen=True)
class Study:
    """`per_seed`: `compare` of every seed; `answers`: `over_seeds` of it; `layers`: Δμ of each skipped layer."""

    per_seed: pd.DataFrame
    answers: pd.DataFrame
    layers: pd.DataFrame


def study(
    seeds: Sequence[int],
    out: str | Path,
    *,
    recipe: Recipe = RECIPE,
    tasks: Sequence[str] = TASKS,
    limit: int = 200,
    progress: bool = True,
    log: Callable[[str], None] = print,
) -> Study:
    """Train students from every seed, all with the first seed's teacher, and sweep them over layers and heads.

    The base is compared with the distilled model and, as a control, with a model that learnt worked steps from data,
    which separates the effect of distillation from that of worked steps.

    Finished stages are kept in `out`: rerun with the same arguments to resume. Writes ``per_seed.csv``,
    ``answers.csv``, ``layers.csv`` and ``layers.png``.

    Args:
        limit: items per task.

    Raises:
        UserError: no seeds or a duplicate seed, or a folder with different training or different sweeps.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds {list(seeds)}: expected one or more distinct seeds")
    folder = Path(out)
    first = folder / f"seed{seeds[0]}" / "toys"
    rows: list[pd.DataFrame] = []
    curves: list[pd.DataFrame] = []
    for seed in seeds:
        place = folder / f"seed{seed}"
        build(
            replace(recipe, seed=seed),
            place / "toys",
            teacher_weights=None if seed == seeds[0] else first / "work" / TEACHER_WEIGHTS,
            with_control=True,
            log=lambda line, seed=seed: log(f"seed {seed} {line}"),  # type: ignore[misc]
        )
        for over, component in _OVER.items():
            runs = [
                sweep(
                    str(place / "toys" / f"toy-{student}"),
                    tuple(tasks),
                    (_PROTOCOL,),
                    over,
                    limit=limit,
                    device="cpu",
                    out=place / f"{student}-{over}",
                    progress=progress,
                )
                for student in _STUDENTS
            ]
            rows.extend(compare(comparison) for comparison in _comparisons(seed, component, runs))
            if over == "layers":
                curves.extend(_curve(seed, student, run) for student, run in zip(_STUDENTS, runs, strict=True))
    per_seed = pd.concat(rows, ignore_index=True)
    result = Study(per_seed, over_seeds(per_seed), pd.concat(curves, ignore_index=True))
    for name in ("per_seed", "answers", "layers"):
        write_csv(getattr(result, name), folder / f"{name}.csv")
    figure = cast(Figure, robustness_curves(result.layers)[0].figure)
    write_atomically(folder / "layers.png", lambda path: figure.savefig(path, dpi=150, format="png"))
    plt.close(figure)
    return result


def _comparisons(seed: int, component: str, runs: Sequence[Run]) -> list[Comparison]:
    effects = [run.effects(component=component) for run in runs]
    clean = [
        run.summary().query("variant == 'clean'").set_index("task")["accuracy"].astype(float).to_dict() for run in runs
    ]
    return [
        Comparison(student, seed, component, base, other, clean[0][base.task], clean[place][base.task])
        for place, student in enumerate(_STUDENTS[1:], start=1)
        for base, other in zip(effects[0], effects[place], strict=True)
    ]


def _curve(seed: int, student: str, run: Run) -> pd.DataFrame:
    frame = run.summary()
    columns = ["task", "layer", "accuracy_clean", "accuracy", "delta", "ci_low", "ci_high", "q_loss"]
    layers = frame[frame["component"] == "layer"][columns]
    return layers.assign(seed=seed, student=student)[["student", "seed", *columns]]


def robustness_curves(layers: pd.DataFrame) -> list[Axes]:
    """Accuracy with each layer skipped: one panel per task, thin lines for seeds, thick for the mean, dotted: clean."""
    tasks = list(layers["task"].unique())
    _, axes = panels(len(tasks), size=(5.6, 4.2), sharey=True, title="one layer skipped")
    shades = dict(zip(_STUDENTS, colours(len(_STUDENTS)), strict=True))
    for ax, task in zip(axes, tasks, strict=True):
        for student, marker in zip(_STUDENTS, ("o", "s", "^"), strict=True):
            curves = layers[(layers["task"] == task) & (layers["student"] == student)]
            for _, line in curves.groupby("seed"):
                ax.plot(line["layer"], line["accuracy"], color=shades[student], linewidth=0.7, alpha=0.5)
            mean = curves.groupby("layer")["accuracy"].mean()
            ax.plot(mean.index, mean, color=shades[student], marker=marker, linewidth=2, label=student)
            ax.axhline(curves["accuracy_clean"].mean(), color=shades[student], linestyle=":", linewidth=1)
        ax.set(title=task, xlabel="skipped layer", ylim=(-0.03, 1.03))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("accuracy")
    axes[-1].legend(frameon=False)
    return axes


def study_table(result: Study) -> str:
    """The answers as a text table."""
    rows = [
        ["student", "task", "parts", "statistic", "seeds", "base", "student's", "difference", "95% interval", "answer"]
    ]
    for _, row in result.answers.iterrows():
        numbers = [f"{row[name]:.2f}" for name in ("base", "value")]
        interval = f"[{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]"
        names = [str(row[name]) for name in ("student", "task", "component", "statistic", "n_seeds")]
        rows.append([*names, *numbers, f"{row['difference']:+.2f}", interval, str(row["answer"])])
    return aligned(rows)


def main() -> None:
    """Read the arguments, run the study and print the answers."""
    parser = argparse.ArgumentParser(prog="python -m lensprune.toys.study", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (default: 0 1 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"), help="output folder (default: runs/seeds)")
    parser.add_argument("--limit", type=int, default=200, help="items per task (default: 200)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiple of the recipe's steps (default: 1)")
    arguments = parser.parse_args()
    result = study(
        arguments.seeds,
        arguments.out,
        recipe=RECIPE.scaled(arguments.scale),
        limit=arguments.limit,
        log=lambda line: print(line, flush=True),
    )
    print(study_table(result))
    print(f"tables, figure, runs and models: {arguments.out}")


if __name__ == "__main__":
    main()
