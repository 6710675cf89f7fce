"""What is published: workflows that call what there is, licences by name, and versions that are tried."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.licences import NOTICE_HEAD, dependencies
from tests.versions import COMBINATIONS

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.name for path in WORKFLOWS])
def test_workflows_call_targets_that_there_are(path: Path) -> None:
    read: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    commands = [step["run"] for job in read["jobs"].values() for step in job["steps"] if "run" in step]
    assert {"make test", "make docs", "make wheel-test"} <= set(commands)
    for command in commands:
        assert command.removeprefix("make ") in targets()
    assert read["permissions"] == {"contents": "read"}


def test_workflows_fit_the_schema() -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*command, *map(str, WORKFLOWS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pre_commit_runs_what_lint_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint: style\n")[2].partition("\nquick:")[0]
    assert {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks} == set(
        re.findall(r"\$\(BIN\)/([\w-]+)", lint)
    )


def test_notice_names_every_dependency_with_a_licence() -> None:
    text = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert text.startswith(NOTICE_HEAD)
    listed = dict(line.split(": ", 1) for line in text.removeprefix(NOTICE_HEAD).splitlines())
    assert list(listed) == [f"{name} [{extra}]" if extra else name for name, extra in sorted(dependencies().items())]
    assert not [name for name, stated in listed.items() if stated.startswith("not ") or "GPL-" in stated]


def test_the_oldest_versions_that_are_accepted_are_tried() -> None:
    """torch is accepted from 2.4 on; the page says that older ones than 2.13 are not tried."""
    accepted = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in PROJECT["dependencies"] if ">=" in line)  # type: ignore[union-attr]
    for name, field in (("transformers", "transformers"), ("transformer-lens", "transformer_lens")):
        assert any(getattr(wanted, field).startswith(f"{accepted[name]}.") for wanted in COMBINATIONS)
    assert PROJECT["requires-python"] == f">={COMBINATIONS[0].python}"
    page = (ROOT / "docs" / "reference" / "versions.md").read_text(encoding="utf-8")
    assert page.count("\n| 3.") == len(COMBINATIONS)
    assert "failed" not in page
