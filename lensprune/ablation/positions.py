"""Positions: which tokens of a text an ablation changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from lensprune.errors import UserError, nearest

__all__ = ["ALL", "EDGE", "TOKEN_CLASSES", "Positions", "Spans", "positions_named"]

ALL = "all"
"""Every token; the default."""

EDGE = "<-"
"""Between destination and source in names of cut attention edges: ``last<-0``."""

TOKEN_CLASSES = ("operand", "operator", "result", "carried", "conclusion", "answer", "words")
"""Classes of the tokens of worked solutions; `lensprune.primitives.classes` assigns them."""

Spans: TypeAlias = Sequence[tuple[int, int]]
"""The characters that each token covers."""

_REGEX = "regex:"
_INDEX = re.compile(r"(-?\d+)|(-?\d+)?:(-?\d+)?")
_GENERATED = re.compile(r"generated\[(.*)\]")
_STEP = re.compile(r"step\[\d+\](\.(\w+))?")
_EXAMPLES = "all, prompt, last, generated, generated[0:3], -5:, 0 or regex:PATTERN"


@dataclass(frozen=True)
class _Part:
    """Some tokens of the prompt or of the text after it (`of`): those from `start` to `stop`, as in a slice, or those
    that share a character with a match; or those of a class (`of` is ``class``), a step, or a class within a step."""

    of: str
    start: int | None = None
    stop: int | None = None
    pattern: re.Pattern[str] | None = None
    name: str = ""

    def holds(self, token_class: str) -> bool:
        """Whether the class of a token, like ``result`` or ``step[0].result``, is this one."""
        step, _, kind = token_class.rpartition(".")
        return self.name in (token_class, step, kind) and bool(token_class)


_NAMED = {"prompt": _Part("prompt"), "last": _Part("prompt", -1), "generated": _Part("generated")}


@dataclass(frozen=True)
class Positions:
    """Which tokens an ablation changes; made by `positions_named`.

    The prompt is what a request conditions on; *generated* is what follows it: the tokens that a model generates, or
    those of the text that is scored. `text` is the selector in its shortest form.
    """

    text: str
    parts: tuple[_Part, ...]

    def in_prompt(self, size: int, read: Callable[[], tuple[str, Spans]]) -> list[bool]:
        """Which of a prompt's `size` tokens are chosen.

        Args:
            read: returns the prompt's text, and the characters of each token; called only for a regular expression.
        """
        chosen = [False] * size
        for part in self.parts:
            if part.of != "prompt":
                continue
            if part.pattern is None:
                places = list(range(size)[part.start : part.stop])
            else:
                text, spans = read()
                places = _touched(part.pattern, text, spans)
            for place in places:
                chosen[place] = True
        return chosen

    @property
    def classes(self) -> tuple[str, ...]:
        """The token classes among the parts."""
        return tuple(part.name for part in self.parts if part.of == "class")

    def in_classes(self, classes: Sequence[str]) -> list[bool]:
        """Which tokens have one of the classes, given each token's class ("": none)."""
        kinds = [part for part in self.parts if part.of == "class"]
        return [any(part.holds(kind) for part in kinds) for kind in classes]

    def in_generated(self, step: int) -> bool:
        """Whether the token that follows the prompt after `step` others is chosen."""
        return any(
            step >= (part.start or 0) and (part.stop is None or step < part.stop)
            for part in self.parts
            if part.of == "generated"
        )


def _touched(pattern: re.Pattern[str], text: str, spans: Spans) -> list[int]:
    """Tokens with at least one character of a match."""
    inside = [False] * (len(text) + 1)
    for match in pattern.finditer(text):
        inside[match.start() : match.end()] = [True] * (match.end() - match.start())
    return [place for place, (start, stop) in enumerate(spans) if any(inside[start:stop])]


@lru_cache(maxsize=1024)
def positions_named(text: str) -> Positions:
    """Read a selector of positions.

    ``all``; ``prompt``; ``last``, the prompt's last token; an index or a slice of the prompt as in Python: ``0``,
    ``-5:``, ``3:7``; ``generated``, the tokens after the prompt, ``generated[2]`` or ``generated[0:3]``, some of them;
    ``regex:PATTERN``, the prompt's tokens that share a character with a match; in worked solutions whose tokens have
    classes, one of `TOKEN_CLASSES`, a step ``step[0]``, or a class within a step, ``step[0].result``. Several,
    separated by commas, are combined; a regular expression comes last, since it may contain commas.

    Raises:
        UserError: anything else, an empty range, or a regular expression that cannot be read.

    Examples:
        >>> from lensprune.ablation.positions import positions_named
        >>> positions_named("-2:").in_prompt(5, lambda: ("", []))
        [False, False, False, True, True]
    """
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"positions {text!r} can't be read: expected {_EXAMPLES}")
    parts: list[_Part] = []
    names: list[str] = []
    rest: str | None = text.strip()
    while rest is not None:
        if rest.startswith(_REGEX):
            name, rest = rest, None
        else:
            name, comma, after = rest.partition(",")
            name, rest = name.strip(), after.strip() if comma else None
        parts += _parts(name, text)
        if name not in names:
            names.append(name)
    everything = ALL in names or {"prompt", "generated"} <= set(names)
    return Positions(ALL if everything else ",".join(names), tuple(parts))


def _parts(name: str, text: str) -> list[_Part]:
    if name == ALL:
        return [_Part("prompt"), _Part("generated")]
    if name in _NAMED:
        return [_NAMED[name]]
    if name.startswith(_REGEX):
        try:
            return [_Part("prompt", pattern=re.compile(name.removeprefix(_REGEX)))]
        except re.error as error:
            raise UserError(
                f"positions {text!r}: the regular expression {name.removeprefix(_REGEX)!r} can't be read: {error}"
            ) from None
    step = _STEP.fullmatch(name)
    if name in TOKEN_CLASSES or (step is not None and step[2] in (None, *TOKEN_CLASSES)):
        return [_Part("class", name=name)]
    steps = _GENERATED.fullmatch(name)
    index = _INDEX.fullmatch(steps[1] if steps else name)
    if index is None or name == "":
        close = nearest(name, [ALL, *_NAMED, _REGEX, *TOKEN_CLASSES])
        hint = f"did you mean {' or '.join(close)}?" if close else f"expected {_EXAMPLES}"
        raise UserError(f"positions {text!r}: {name!r} can't be read: {hint}")
    start, stop = _ends(index)
    if steps and min(start or 0, stop or 0) < 0:
        raise UserError(f"positions {text!r}: {name!r} counts from the end, which is not known: count from the start")
    if not any(range(size)[start:stop] for size in (2**20, 2**20 + 1)):
        raise UserError(f"positions {text!r}: {name!r} is empty: the first must come before the last")
    return [_Part("generated" if steps else "prompt", start, stop)]


def _ends(index: re.Match[str]) -> tuple[int | None, int | None]:
    """Start and stop of a slice; an index is a slice of one."""
    if index[1] is not None:
        place = int(index[1])
        return place, place + 1 if place != -1 else None
    start, stop = (None if end is None else int(end) for end in (index[2], index[3]))
    return start, stop
