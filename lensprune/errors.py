"""Errors that a user can act on, and the nearest valid name for a typo."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["HookNeverFired", "LensPruneError", "UserError", "first_line", "nearest", "unknown_name"]


class LensPruneError(Exception):
    """Base of every error that lensprune raises on purpose."""


class UserError(LensPruneError, ValueError):
    """A request that cannot be met; the command line prints it in one line and exits with 2."""


class HookNeverFired(LensPruneError, RuntimeError):
    """A hook of a variant did not run in any forward pass, so the variant would equal the clean model."""


def nearest(name: str, options: Iterable[str], n: int = 3) -> list[str]:
    """Return up to `n` of `options` that are spelled most like `name`, best first."""
    return difflib.get_close_matches(name, sorted(options), n=n, cutoff=0.4)


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; the error's type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def unknown_name(kind: str, name: str, options: Iterable[str]) -> UserError:
    """Build the error for a name that is not registered.

    Args:
        kind: what the name stands for, e.g. ``"task"``.
        name: the name that was given.
        options: every valid name.
    """
    names = sorted(options)
    close = nearest(name, names)
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose one of: {', '.join(names)}"
    return UserError(f"unknown {kind} {name!r}: {hint}")
