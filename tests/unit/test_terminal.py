"""Streams and progress bars whose reader leaves, whose disk is full, or whose encoding lacks a character."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lensprune import cli
from lensprune.terminal import LastingStream, progress_bar, stage

SWEEP = ["sweep", "--model", "toy-base", "--task", "arithmetic", "--limit", "2", "--over", "layers", "--layers", "0"]
FULL = Path("/dev/full")


class Gone(io.StringIO):
    """A stream whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def run(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "lensprune", *arguments], check=False, **options)


def unread() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def test_a_lost_stream_takes_everything_and_keeps_the_first_error() -> None:
    stream = LastingStream(Gone())
    assert stream.write("abc") == 3
    stream.writelines(["d", "e"])
    stream.flush()
    assert isinstance(stream.failure, BrokenPipeError)
    closed = LastingStream(io.StringIO())
    closed._stream.close()
    print("x", file=closed)  # type: ignore[call-overload]
    assert isinstance(closed.failure, ValueError)
    assert not closed.isatty()
    none = LastingStream(None)
    assert (none.write("x"), none.isatty(), none.failure) == (1, False, None)


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("utf-8", "Δμ a → b é 犬"), ("cp1252", "du a -> b é ?"), ("latin-1", "du a -> b é ?"), ("ascii", "du a -> b ? ?")],
)
def test_what_an_encoding_lacks_is_written_in_plain_letters(encoding: str, expected: str) -> None:
    raw = io.BytesIO()
    stream = LastingStream(io.TextIOWrapper(raw, encoding=encoding))
    stream.write("Δμ a → b é 犬")
    stream.flush()
    assert raw.getvalue().decode(encoding) == expected
    assert stream.failure is None


def test_a_bar_without_a_reader_lets_the_work_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    for stream in (Gone(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress_bar(shown=True, total=3) as bar:
            for number in range(3):
                bar.set_description(f"Δ {number}")
                bar.update(1)
                done.append(number)
        assert bar.n == 3
    assert done == [0, 1, 2] * 2


def test_bars_without_a_total_or_with_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(shown=True) as bar:
        bar.update(3)
    assert "3 row [" in capsys.readouterr().err
    with progress_bar(shown=True, total=0) as bar:
        bar.set_description("nothing")
        bar.update(0)
    assert capsys.readouterr().err == ""


def test_main_leaves_the_streams_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    assert cli.main(["models"]) == 0
    assert (sys.stdout, sys.stderr) == before
    assert "smollm2-135m" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_goes_on_without_anyone_at_either_stream(tmp_path: Path) -> None:
    lost = unread()
    result = run([*SWEEP, "--out", str(tmp_path / "run")], stdout=lost, stderr=lost)
    os.close(lost)
    assert result.returncode == 0
    assert len(list((tmp_path / "run" / "records").glob("*.parquet"))) == 2


def test_a_process_prints_in_any_encoding() -> None:
    code = "from lensprune.terminal import lasting_streams\nwith lasting_streams(): print('\\u0394\\u03bc \\u2192')"
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    assert result.stdout == b"du ->\n"


@pytest.mark.skipif(not FULL.exists(), reason="no device that is always full")
def test_output_that_could_not_be_written_is_a_failure_in_one_line() -> None:
    with FULL.open("w") as full:
        result = run(["tasks"], stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1
    assert result.stderr.decode().splitlines() == [
        "lensprune: standard output could not be written (No space left on device)"
    ]


def test_closed_output_is_no_failure_and_no_file_of_ours_takes_its_place(tmp_path: Path) -> None:
    def close() -> None:
        os.close(1)
        os.close(2)

    result = run(["models"], preexec_fn=close)
    assert result.returncode == 0
    code = (
        "import os, sys\nos.close(1)\nfrom lensprune.terminal import lasting_streams\n"
        "with lasting_streams():\n sys.exit(open(sys.argv[1], 'w').fileno() == 1)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], check=False).returncode == 0


def test_the_reader_of_a_list_may_leave() -> None:
    lost = unread()
    result = run(["tasks"], stdout=lost, stderr=subprocess.PIPE)
    os.close(lost)
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_command_that_fails_says_so_whoever_listens() -> None:
    lost = unread()
    assert run(["sweep", "--model", "toy-base"], stdout=lost, stderr=lost).returncode == 2
    os.close(lost)


class Terminal(io.StringIO):
    """Text in memory that calls itself a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("where", ["file", "terminal", "notebook"])
def test_a_stage_is_named_where_it_can_be_taken_back(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal() if where == "terminal" else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    # A kernel that was merely imported doesn't make this a notebook; a shell that has one does.
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    shell = SimpleNamespace(kernel=object()) if where == "notebook" else None
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    with stage("loading", shown=True):
        pass
    assert ("loading" in stream.getvalue()) == (where != "file")
    if where != "file":
        assert stream.getvalue().endswith("\r")
