"""The real model for comparisons with lm-eval, and the table at the end of the run."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest


@dataclass
class ParityRow:
    """One comparison; `logprob_difference` is ``None`` where nothing is scored by log-likelihood."""

    task: str
    variant: str
    items: int
    requests: int
    logprob_difference: float | None
    mismatches: dict[str, int] = field(default_factory=dict)


ROWS = pytest.StashKey[list[ParityRow]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.fixture(scope="session")
def parity_rows(request: pytest.FixtureRequest) -> list[ParityRow]:
    """Rows of the table that is printed when the run ends."""
    return request.config.stash[ROWS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.mismatches))
    header = ["task", "variant", "items", "requests", "max |Δ log-prob|", *(f"{kind} ≠" for kind in kinds)]
    lines = [
        [
            row.task,
            row.variant,
            str(row.items),
            str(row.requests),
            "" if row.logprob_difference is None else f"{row.logprob_difference:.1e}",
            *(str(row.mismatches.get(kind, "")) for kind in kinds),
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    terminalreporter.section("agreement with lm-eval")
    for line in [header, *lines]:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
