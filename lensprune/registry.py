"""Tables of named things that plug-ins can extend, and packages whose names are imported on first use."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from lensprune.errors import UserError, unknown_name

__all__ = ["Registry", "in_words", "lazy_names", "names_given"]

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_\-]*")


class Registry(Generic[T]):
    """Rows by name, in order of registration.

    Args:
        what: what a name means, in messages.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._rows: dict[str, T] = {}
        self._origins: dict[str, tuple[str, str]] = {}

    def add(self, name: str, row: T, defined_by: Any) -> None:
        """Register `row` as `name`.

        `defined_by` is the function or class that the row came from: rerunning a notebook cell replaces the row.

        Raises:
            UserError: the name is taken by something else, or contains characters other than letters, digits, _ and -.
        """
        if not _NAME.fullmatch(name):
            raise UserError(f"{self._what} name {name!r}: start with a letter, and use letters, digits, _ and - only")
        origin = (str(defined_by.__module__), str(defined_by.__qualname__))
        taken_by = self._origins.get(name)
        if taken_by is not None and taken_by != origin:
            raise UserError(f"{self._what} name {name!r} is taken by {'.'.join(taken_by)}: choose another name")
        self._rows[name] = row
        self._origins[name] = origin

    def get(self, name: str) -> T:
        """The row called `name`.

        Raises:
            UserError: there is none; the message gives the nearest names.
        """
        if name not in self._rows:
            raise unknown_name(self._what, str(name), self._rows)
        return self._rows[name]

    @property
    def by_name(self) -> Mapping[str, T]:
        """A live read-only view of the rows."""
        return MappingProxyType(self._rows)

    def names(self) -> tuple[str, ...]:
        return tuple(self._rows)

    def rows(self) -> tuple[T, ...]:
        return tuple(self._rows.values())


def names_given(what: str, given: object) -> tuple[str, ...]:
    """One name, or several, as a tuple.

    Args:
        what: what a name means, in the message.

    Raises:
        UserError: something that is no name, such as the function of a task, whose own name it proposes.
    """
    names = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    for one in names:
        if not isinstance(one, str):
            name = getattr(one, "name", None) or getattr(one, "__name__", None)
            raise UserError(
                f"{what} {one!r}: expected a name" + (f", such as {name!r}" if isinstance(name, str) else "")
            )
    return names


def in_words(names: Sequence[str], last: str = "or") -> str:
    """``a, b or c``."""
    return f" {last} ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def lazy_names(package: str, modules: Sequence[str]) -> Callable[[str], Any]:
    """``__getattr__`` for a package whose public names are imported on first use.

    torch and transformers take seconds to import, and tables of names need neither.

    Args:
        modules: the package's modules, cheapest imports first; a name is looked up in their ``__all__``.
    """

    def get(name: str) -> Any:
        if name in sys.modules[package].__all__:
            for module in modules:
                home = importlib.import_module(f"{package}.{module}")
                if name in home.__all__:
                    value = getattr(home, name)
                    setattr(sys.modules[package], name, value)
                    return value
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
