"""Which versions work: ``make versions`` or ``python -m tests.versions [--write docs/reference/versions.md]``.

Makes an environment for each combination, below build/versions, and runs a slice of the tests in it. What can't be had,
such as an interpreter, is a row that says so.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.markdown import write_between

ROOT = Path(__file__).parents[1]
SLICE = (
    "tests/unit/models/test_load_folder.py",
    "tests/unit/engine/test_forked.py",
    "tests/unit/ablation/test_identities.py",
    "tests/unit/report/test_page.py",
)
"""Loading, both executors, what ablations do, and pages."""
NEEDED = ("hypothesis", "pytest", "pytest-timeout")


@dataclass(frozen=True)
class Combination:
    """Versions to be tried together."""

    python: str
    torch: str
    transformers: str
    transformer_lens: str

    @property
    def name(self) -> str:
        return "-".join([self.python, self.torch, self.transformers, self.transformer_lens])


COMBINATIONS = (
    Combination("3.11", "2.13.0", "5.9.0", "3.9.*"),
    Combination("3.11", "2.13.0", "5.9.0", "4.3.*"),
    Combination("3.11", "2.13.0", "5.24.0", "4.0.*"),
    Combination("3.11", "2.13.0", "5.24.0", "4.3.*"),
    Combination("3.12", "2.14.0", "5.24.0", "4.3.*"),
    Combination("3.13", "2.15.0", "5.24.0", "4.3.*"),
    Combination("3.14", "2.15.0", "5.24.0", "4.3.*"),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="Markdown file to write the table into")
    parser.add_argument("--envs", type=Path, default=ROOT / "build" / "versions", help="folder of environments, kept")
    parser.add_argument("--python", action="append", default=[], help="an interpreter to use; repeat for several")
    parser.add_argument("--only", action="append", metavar="NAME", help="this combination; repeat for several")
    options = parser.parse_args(arguments)
    names = [wanted.name for wanted in COMBINATIONS]
    unknown = next((name for name in options.only or [] if name not in names), None)
    if unknown is not None:
        parser.error(f"no combination {unknown}: choose from {', '.join(names)}")
    if options.only and options.write:
        parser.error("--only would leave rows of the page out: use it without --write")
    interpreters = {_version(path): path for path in options.python}
    lines = ["| Python | torch | transformers | TransformerLens | tests |", "| --- | --- | --- | --- | --- |"]
    worked = True
    for wanted in COMBINATIONS:
        if options.only and wanted.name not in options.only:
            continue
        row, fine = tried(wanted, options.envs / wanted.name, interpreters.get(wanted.python, wanted.python))
        worked &= fine
        lines.append(row)
        print(row, flush=True)
    if options.write is not None:
        write_between(options.write, "versions", "\n".join(lines))
    return 0 if worked else 1


def _version(interpreter: str) -> str:
    code = "import sys; print('{}.{}'.format(*sys.version_info))"
    return subprocess.run([interpreter, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def tried(wanted: Combination, environment: Path, interpreter: str) -> tuple[str, bool]:
    """The table's row of a combination, and whether nothing failed in it."""
    problem = _install(wanted, environment, interpreter)
    if problem:
        versions = (wanted.python, wanted.torch, wanted.transformers, wanted.transformer_lens)
        return f"| {' | '.join(versions)} | not tried: {problem} |", True
    python = environment / "bin" / "python"
    code = (
        "import sys; from importlib.metadata import version as v; "
        "print('%d.%d.%d' % sys.version_info[:3], *map(v, ('torch', 'transformers', 'transformer-lens')))"
    )
    versions = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not real_model", *SLICE]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    last = re.sub(r" in [\d.]+s.*| *=+ *", "", (done.stdout.strip().splitlines() or ["no output"])[-1])
    last = re.sub(r", \d+ warnings?|, \d+ deselected|\d+ deselected, ", "", last)
    if done.returncode:
        (environment / "failed.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        print(f"see {environment / 'failed.log'}", file=sys.stderr)
    return f"| {' | '.join(versions)} | {last} |", done.returncode == 0


def _install(wanted: Combination, environment: Path, interpreter: str) -> str:
    """Make the environment, unless it is there; returns why it can't be made, or nothing."""
    if (environment / "bin" / "lensprune").exists():
        return ""
    # `make` installs it beside its interpreter, which need not be on the path.
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        raise SystemExit("uv is needed: pip install uv")
    made = _run([uv, "venv", "--quiet", "--no-python-downloads", "--python", interpreter, str(environment)])
    if made:
        return f"no Python {wanted.python} on the machine"
    pins = [
        f"torch=={wanted.torch}",
        f"transformers=={wanted.transformers}",
        f"transformer-lens=={wanted.transformer_lens}",
    ]
    python = str(environment / "bin" / "python")
    return _run([uv, "pip", "install", "--quiet", "--python", python, *pins, "--editable", str(ROOT), *NEEDED])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.returncode:
        return ""
    lines = [line.strip(" ×╰─▶hint:") for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][:160] if lines else f"uv ended with {done.returncode}"


if __name__ == "__main__":
    sys.exit(main())
