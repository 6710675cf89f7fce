"""What common random numbers save, as a Markdown table:
``python -m tests.coupling_table [--items first] [--write docs/reference/protocols.md]``.

Parts are removed, and each item is sampled several times. Of these samples the variance of Δμ over the random numbers
is estimated for one sample of each item: coupled, where clean model and variant draw with the same numbers, and
independent, where they don't.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import lensprune as lp
from tests.helpers.markdown import write_between

WORKS = (
    (
        "toy-distilled",
        "arithmetic[operands=3,largest=9,subtract=True]",
        30,
        6,
        lp.VariantSelection("heads", "zero", "0-1"),
    ),
    ("smollm2-135m", "facts", 16, 6, lp.VariantSelection("layers", "skip", "3,13,23")),
    ("smollm2-135m", "facts", 16, 6, lp.VariantSelection("heads", "zero", "12", "0-2")),
    ("smollm2-135m", "arithmetic", 16, 6, lp.VariantSelection("layers", "skip", "3,13,23")),
)
"""Model, task, items, samples, what is removed."""


def variances(right: pd.DataFrame, variant: str) -> tuple[float, float]:
    """Variance of Δμ over random numbers with one sample of each item: coupled, and independent.

    Args:
        right: whether it is right, by (item, sample), with a column for each variant.
    """
    clean, changed = (right[name].unstack("sample").to_numpy(float) for name in ("clean", variant))
    n = len(clean)
    coupled = (changed - clean).var(axis=1, ddof=1).sum() / n**2
    independent = (changed.var(axis=1, ddof=1) + clean.var(axis=1, ddof=1)).sum() / n**2
    return coupled, independent


def row(model: str, task: str, items: int, samples: int, removed: lp.VariantSelection, *, order: str) -> list[str]:
    """One line: accuracies, and the ratio of the variances, of all parts together and its range."""
    run = lp.sweep(
        model,
        task,
        "generate",
        removed,
        limit=items,
        items=order,
        samples=samples,
        temperature=0.7,
        device="cpu",
        progress=False,
    )
    records = run.records().astype({"correct": float})
    right = records.pivot(index=["item_id", "sample"], columns="variant", values="correct")
    pairs = np.array([variances(right, name) for name in right.columns if name != "clean"])
    known = pairs[pairs[:, 0] > 0]
    ratios = known[:, 1] / known[:, 0]
    deviations = np.sqrt(pairs.mean(axis=0))
    return [
        model,
        task,
        f"{len(pairs)} {removed.over}",
        f"{items} × {samples}",
        f"{right['clean'].mean():.2f}",
        f"{deviations[1]:.4f}",
        f"{deviations[0]:.4f}",
        f"{pairs[:, 1].sum() / pairs[:, 0].sum():.1f}",
        f"{np.median(ratios):.1f} ({ratios.min():.1f} to {ratios.max():.1f})",
    ]


def table(order: str) -> str:
    """All of `WORKS`, on items that are ``drawn`` or the ``first``."""
    heads = [
        "model", "task", "removed", "items × samples", "clean accuracy", "σ of Δμ, independent", "σ of Δμ, common",
        "variance ratio", "median over parts (range)",
    ]  # fmt: skip
    lines = [heads, ["---"] * len(heads), *(row(*work, order=order) for work in WORKS)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put it between the page's marks")
    parser.add_argument("--items", choices=("drawn", "first"), default="drawn", help="which items (default: drawn)")
    arguments = parser.parse_args()
    made = table(arguments.items)
    print(made)
    if arguments.write is not None:
        write_between(arguments.write, "coupling", made)


if __name__ == "__main__":
    main()
