"""Errors that a user can act on, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["HookNeverFired", "LensPruneError", "UserError", "first_line", "nearest", "unknown_name"]


class LensPruneError(Exception):
    """Base class of lensprune's errors.

    Examples:
        >>> issubclass(lp.UserError, lp.LensPruneError), issubclass(lp.HookNeverFired, lp.LensPruneError)
        (True, True)
    """


class UserError(LensPruneError, ValueError):
    """Invalid input; the command line prints it in one line and exits with code 2.

    Examples:
        >>> lp.load_task("fact")
        Traceback (most recent call last):
            ...
        lensprune.errors.UserError: unknown task 'fact': did you mean facts ...
    """


class HookNeverFired(LensPruneError, RuntimeError):
    """A hook of a variant did not run in any forward pass, so the variant would equal the clean model.

    Examples:
        >>> from lensprune.ablation import BatchState, VariantHooks
        >>> hooks = VariantHooks(lp.as_hooked_model(model), lp.each_mlp(model)[0], BatchState())
        >>> hooks.check_fired()  # no forward pass has run
        Traceback (most recent call last):
            ...
        lensprune.errors.HookNeverFired: ...
    """


def nearest(name: str, options: Iterable[str], n: int = 3) -> list[str]:
    """Return up to `n` of `options` that are spelled most like `name`, best first."""
    return difflib.get_close_matches(name, sorted(options), n=n, cutoff=0.4)


def first_line(error: BaseException) -> str:
    """The first line of another library's error message, or the error's type if there is no message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def unknown_name(kind: str, name: str, options: Iterable[str]) -> UserError:
    """Build the error for a name that is not registered.

    Args:
        kind: what the name means, e.g. ``"task"``.
        name: the name that was given.
        options: every valid name.
    """
    names = sorted(options)
    close = nearest(name, names)
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose one of: {', '.join(names)}"
    return UserError(f"unknown {kind} {name!r}: {hint}")
