"""``python -m lensprune.toys``: train the trio."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from lensprune.toys.build import build
from lensprune.toys.recipe import RECIPE


def main() -> None:
    """Read the arguments and build."""
    parser = argparse.ArgumentParser(prog="python -m lensprune.toys", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/toys"), help="folder (default: runs/toys)")
    parser.add_argument("--scale", type=float, default=1.0, help="times the recipe's steps (default: 1)")
    parser.add_argument("--seed", type=int, default=RECIPE.seed, help="of weights and texts (default: 0)")
    arguments = parser.parse_args()
    build(
        replace(RECIPE.scaled(arguments.scale), seed=arguments.seed),
        arguments.out,
        log=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    main()
