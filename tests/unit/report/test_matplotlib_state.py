"""Drawing leaves matplotlib as it was: the backend, its settings, and whether figures appear by themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

INLINE = "module://matplotlib_inline.backend_inline"
ROOT = Path(__file__).parents[3]

_STATE = """
import matplotlib

def state():
    return matplotlib.get_backend(), matplotlib.is_interactive(), dict(matplotlib.rcParams)
"""
# What matplotlib itself makes of a first figure: the backend resolves there and may set what it needs.
_PLAIN = (
    _STATE
    + """
import matplotlib.pyplot as plt
plt.close(plt.figure())
"""
)
_OURS = (
    _STATE
    + """
import lensprune as lp
from tests.helpers.made_runs import layers_run
from pathlib import Path
import matplotlib.pyplot as plt
{wanted}
run = layers_run(Path({folder!r}))
run.report(), run.plot(), plt.close("all")
"""
)


def _child(source: str, backend: str | None) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "DISPLAY")}
    environment |= {"PYTHONPATH": str(ROOT), "LENSPRUNE_OFFLINE": "1"} | ({"MPLBACKEND": backend} if backend else {})
    done = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def _in_a_shell(*cells: str) -> str:
    """A program that runs cells as a notebook does, and prints how many images each one shows."""
    return (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "from IPython.utils.capture import capture_output\n"
        "shell, shown = InteractiveShell.instance(), []\n"
        f"for cell in {list(cells)!r}:\n"
        "    with capture_output() as got:\n"
        "        shell.run_cell(cell).raise_error()\n"
        "    shown.append(sum('image/png' in out.data for out in got.outputs))\n"
        "print(*shown)\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", [None, "agg"], ids=["headless", "after_a_figure"])
def test_state_is_left_as_it_was(backend: str | None, tmp_path: Path) -> None:
    before = "plt.close(plt.figure())\n" if backend else ""
    own = _OURS.format(wanted=f"{before}plain = state()", folder=str(tmp_path / "run"))
    changed = (
        "now = state()\n"
        "print(now[:2] == plain[:2], sorted(k for k in now[2] if now[2][k] != plain[2][k]), now[0].lower())"
    )
    assert _child(own + changed, backend) == "True [] agg"


@pytest.mark.slow
def test_figures_appear_in_a_notebook_and_the_inline_backend_keeps_what_it_sets(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib_inline")
    told = "open({path!r}, 'w').write(f'{{state()[:2]}}\\n{{sorted(state()[2].items())}}')"
    ours, plain = tmp_path / "ours", tmp_path / "plain"
    shown = _child(
        _in_a_shell(
            # Files and a report first: the backend loads while they are drawn.
            _OURS.format(wanted="", folder=str(tmp_path / "run")),
            "run.plot();",
            "run.plot('failures', protocol='generate');",
            "plt.plot([1, 2]);",
            told.format(path=str(ours)),
        ),
        INLINE,
    )
    assert shown == "0 1 1 1 0"
    _child(_in_a_shell(_PLAIN, told.format(path=str(plain))), INLINE)
    assert ours.read_text() == plain.read_text()
    now = plain.read_text().splitlines()[0]
    assert "inline" in now
    assert "True" in now
