"""Null fields in rows: a prompt must not read ``Question: None``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lensprune.errors import unknown_name

__all__ = ["MissingColumn", "Null", "WatchedRow", "is_null", "null_error"]


class MissingColumn(KeyError):
    """A row lacks a column; the message has the nearest one."""

    def __str__(self) -> str:
        return str(self.args[0])


def is_null(value: Any) -> bool:
    """Whether a field is empty: JSON's ``null``, or the NaN of a table's empty cell."""
    return value is None or (isinstance(value, float) and value != value)


def null_error(what: str) -> ValueError:
    """The error for a null that a prompt or answer would show."""
    return ValueError(f"{what} is null, but the prompt or the answer needs it")


class WatchedRow(dict[str, Any]):
    """A row whose nulls can't be read: ``row[column]`` raises ``ValueError`` with the column's name.

    Nested rows are watched too. `get` and `items` return a null unchanged, for code that expects one.
    """

    def __init__(self, row: Mapping[str, Any], prefix: str = "") -> None:
        super().__init__(row)
        self._prefix = prefix

    def __getitem__(self, column: str) -> Any:
        if column not in self:
            columns = [f"{self._prefix}{known}" for known in self]
            raise MissingColumn(str(unknown_name("column", f"{self._prefix}{column}", columns)))
        value = super().__getitem__(column)
        name = f"{self._prefix}{column}"
        if is_null(value) or (isinstance(value, (list, tuple)) and any(is_null(part) for part in value)):
            raise null_error(f"column {name!r}")
        return WatchedRow(value, f"{name}.") if isinstance(value, Mapping) else value


class Null:
    """A null field in a template: false, equal to none, and an error if it would be shown."""

    def __init__(self, column: str) -> None:
        self._column = column

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, Null)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        raise null_error(f"column {self._column!r}")

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return str(self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise null_error(f"column {self._column!r}")
