"""Ensure that loading a model never installs anything.

TransformerLens 4.3 runs ``uv pip`` or ``pip`` when it boots a multimodal model and torchvision is missing. While a
model is loaded, an audit hook refuses to start an installer in any way: as a process, from a shell, or pip as a module.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lensprune.errors import UserError

__all__ = ["INSTALLERS", "nothing_installed"]

INSTALLERS = frozenset(
    {"pip", "uv", "uvx", "pipx", "easy_install", "ensurepip", "conda", "mamba", "micromamba", "poetry", "pdm", "pixi"}
    | {"apt", "apt-get", "yum", "dnf", "brew", "npm"}
)
"""Names of programs and modules that install software."""

_COMMAND_ENDS = {
    "subprocess.Popen": 2,
    "os.system": 1,
    "os.exec": 2,
    "os.posix_spawn": 2,
    "os.spawn": 3,
    "pty.spawn": 1,
}
"""Audit events of starting a program, and how many of their arguments are the command; environments follow."""


class _Guard:
    """The audit hook. Audit hooks can't be removed, so there is only one, which does nothing outside the context."""

    def __init__(self) -> None:
        self.depth = 0
        self._hooked = False

    def enter(self) -> None:
        if not self._hooked:
            sys.addaudithook(self._refuse)
            self._hooked = True
        self.depth += 1

    def _refuse(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.depth:
            return
        if event == "import":
            if str(args[0]).split(".")[0] in ("pip", "ensurepip"):
                raise _refusal(f"import {args[0]}")
        elif event in _COMMAND_ENDS:
            words = list(_words(args[: _COMMAND_ENDS[event]]))
            if any(_program(word) in INSTALLERS for word in words):
                raise _refusal(" ".join(dict.fromkeys(words)))


_GUARD = _Guard()


@contextmanager
def nothing_installed() -> Iterator[None]:
    """Context manager in which starting an installer raises `UserError`, in every thread."""
    _GUARD.enter()
    try:
        yield
    finally:
        _GUARD.depth -= 1


def _words(values: tuple[Any, ...]) -> Iterator[str]:
    """The words of a command, given as program, arguments or shell text."""
    for value in values:
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, (str, bytes, os.PathLike)):
                yield from (word for word in re.split(r"[\s;&|()]+", os.fsdecode(part)) if word)


def _program(word: str) -> str:
    # pip3.11 is pip.
    return re.sub(r"[\d.]*(\.exe)?$", "", Path(word.strip("'\"")).name)


def _refusal(command: str) -> UserError:
    return UserError(
        f"the model's code tried to install software ({command}), and nothing is installed while a model is loaded: "
        "install what the model needs yourself"
    )
