"""Extract answers as chat and reasoning models state them: boxed, bold, with units, as a fraction, or as a letter."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from math import prod

__all__ = ["BOXED", "STATED", "BoxedFilter", "StatedLetter", "stated_number"]

BOXED = "boxed"
STATED = "stated"

_BOX = re.compile(r"\\f?boxed\s*\{")
_ESCAPES = re.compile(r"\\[{}]")


@dataclass(frozen=True)
class BoxedFilter:
    r"""The content of the last ``\boxed{…}`` in a text, with nested braces; ``None`` if there is no complete one."""

    name: str = BOXED

    def __call__(self, text: str) -> str | None:
        contents = [_braced(text, match.end()) for match in _BOX.finditer(text)]
        whole = [content.strip() for content in contents if content is not None]
        return whole[-1] if whole else None


def _braced(text: str, start: int) -> str | None:
    """`text` from `start` up to the brace that closes the one opened before it; ``None`` if none does."""
    depth, escaped = 1, {match.start() + 1 for match in _ESCAPES.finditer(text)}
    for i in range(start, len(text)):
        if text[i] in "{}" and i not in escaped:
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return text[start:i]
    return None


_LETTER = r"""
    [\s*_(\[$]* (?:\\f?boxed\s*\{)? (?:\\text\s*\{)? \(?
    ( [b-hj-z] (?![\w'’]) | [ai] (?= \s* (?:[.,;:)\]*_}$\n] | \Z | because\b) ) )
    """
_ANSWER = r"""
    (?: \\f?boxed\s*\{ \s* (?:\\text\s*\{)?
      | \banswer\b (?:\s+is)? \s*:? (?:[\s*_]* \b(?:option|choice)\b)? )
    """
# A sentence about an option may say that it is wrong: it counts only if no answer is named.
_SAID = [
    re.compile(named + _LETTER, re.IGNORECASE | re.VERBOSE)
    for named in (_ANSWER, r"\b(?:option|choice)\b (?:\s+is)? \s*:?")
]
_BOLD = re.compile(r"\*\*\(?([A-Z])\)?[.:]?\*\*")
_ALONE = re.compile(r"^\W*([A-Z])\W*$", re.MULTILINE)


@dataclass(frozen=True)
class StatedLetter:
    r"""The letter that a text states as its answer last: "Answer: (B)", "the answer is B", ``\boxed{B}``.

    Without such words, the last option that is named, else the last letter in bold, else the last letter on a line of
    its own. ``None`` if there is none of these.
    """

    name: str = STATED

    def __call__(self, text: str) -> str | None:
        for pattern in (*_SAID, _BOLD, _ALONE):
            matches = pattern.findall(text)
            if matches:
                return str(matches[-1]).upper()
        return None


_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]+)\}\s*\{([^{}]+)\}|(\d)\s*(\d))")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
# A unit's own power is no power of the number: degrees, and \text{ cm}^2.
_UNIT_POWER = re.compile(r"\^\s*\{?\\circ\}?|(\\(?:text|mathrm|mbox)\s*\{[^{}\d]*\})\s*\^\s*(?:\{[23]\}|[23])")
_DROPPED = re.compile(r"\\(?:left|right|[!,;: ()\[\]$%])|[$€£%*_`~]")
_ALGEBRA = re.compile(
    r"\^|\\(?:times|cdot|sqrt|pm|pi|infty|binom)|[×√π±∞]|\d[eE][-+]?\d|\d\s*[!⁰¹²³⁴⁵⁶⁷⁸⁹]|\d[kKMBT]\b"
    r"|\bhalf\b|\b(?:and|plus)\s+(?:an?|one|two|three)\s+\w+(?:th|rd|er)s?\b"
)
_VULGAR = re.compile(r"[¼-¾⅐-⅞↉]")
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?<![\w.])([-−+]?)\s?(?:(\d+)\s+(\d+)\s*/\s*(\d+)|({_UNSIGNED})(?:\s*/\s*({_UNSIGNED}))?)(?!\d)"
    rf"((?:[\s-]*\b(?:{'|'.join(_SCALES)})s?\b)*)",
    re.ASCII | re.IGNORECASE,
)


def stated_number(text: str) -> Fraction | None:
    r"""The one number in `text`, exactly: ``**42**``, ``$1,234.50``, ``18 dollars``, ``x = 3/4``, ``\frac{3}{4}``,
    ``1 1/2``, ``3½``, ``1.5 million``, ``18\text{ cm}^2``, ``50\%`` (50). ``None`` if there is no number, or several
    after the last equals sign, or powers, roots, factorials and the like, or what could be read in two ways (``5k``,
    ``2 and a half``).

    It is read by `fractions.Fraction`, from digits only: an algebra system would run a model's text as code
    (``sympify``) or need another parser (math-verify), and these answers aren't algebra.
    """
    text = _UNIT_POWER.sub(lambda m: m[1] or " ", text.replace("⁄", "/"))
    if _ALGEBRA.search(text):
        return None
    # Written as 1⁄2 in Unicode's compatible form.
    text = _VULGAR.sub(lambda m: f" {unicodedata.normalize('NFKC', m[0]).replace('⁄', '/')} ", text)
    plain = _WRAPPED.sub(r" \1 ", text.replace("{,}", ","))
    plain = _FRACTION.sub(lambda m: f" {m[1] or m[3]}/{m[2] or m[4]} ", _DROPPED.sub("", plain))
    stated = list(_NUMBER.finditer(plain.rpartition("=")[2]))
    if len(stated) != 1:
        return None
    sign, whole, over, under, number, divisor, scales = stated[0].groups()
    numbers = [Fraction(part.replace(",", "")) for part in (over or number, under or divisor or "1")]
    if not numbers[1]:
        return None
    value = numbers[0] / numbers[1] + (Fraction(whole) if whole else 0)
    value *= prod(factor for word, factor in _SCALES.items() for _ in range(scales.lower().count(word)))
    return -value if sign in ("-", "−") else value
