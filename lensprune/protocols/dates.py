"""The date that chat templates with a clock write."""

from __future__ import annotations

from datetime import date

from lensprune.errors import UserError

__all__ = ["DEFAULT_DATE", "check_date"]

DEFAULT_DATE = "2024-07-26"
"""The date that Llama 3.1's template falls back on. With today's date, the prompts would change tomorrow and the run
could not be resumed."""


def check_date(text: str) -> None:
    """Raise `UserError` unless `text` is a date, YYYY-MM-DD."""
    try:
        usable = date.fromisoformat(text).isoformat() == text
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise UserError(f"template date {text!r} is not a date: expected one like {DEFAULT_DATE}")
