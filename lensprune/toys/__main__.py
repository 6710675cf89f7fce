"""``python -m lensprune.toys``: train the trio, and the thinker from its distilled model."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from lensprune.models import BUNDLED
from lensprune.toys.build import build
from lensprune.toys.recipe import RECIPE
from lensprune.toys.thinker import build_thinker


def main() -> None:
    """Read the arguments and build."""
    parser = argparse.ArgumentParser(prog="python -m lensprune.toys", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/toys"), help="output folder (default: runs/toys)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiple of the recipe's steps (default: 1)")
    parser.add_argument("--seed", type=int, default=RECIPE.seed, help="seed of weights and texts (default: 0)")
    parser.add_argument(
        "--only-thinker", action="store_true", help="train only the thinker, from the bundled toy-distilled"
    )
    arguments = parser.parse_args()
    recipe = replace(RECIPE.scaled(arguments.scale), seed=arguments.seed)
    if arguments.only_thinker:
        distilled = BUNDLED["toy-distilled"].folder()
    else:
        build(recipe, arguments.out, log=_log)
        distilled = arguments.out / "toy-distilled"
    build_thinker(recipe, distilled, arguments.out, log=_log)


def _log(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
