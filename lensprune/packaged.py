"""Data that ships with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["data_folder"]


def data_folder() -> Path:
    """The folder of data that ships with the package, in a wheel and in a checkout."""
    packaged = Path(str(files("lensprune"))) / "data"
    return packaged if packaged.is_dir() else Path(str(files("lensprune"))).parent / "data"
