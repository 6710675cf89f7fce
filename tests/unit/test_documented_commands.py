"""Commands in the README, the documentation and its examples parse, and what they name exists."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from lensprune.cli import _parser
from lensprune.errors import UserError
from lensprune.protocols import build_requests
from tests.helpers.chat_models import chat_tokenizer
from tests.helpers.toy_task import loaded, model

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SETTINGS = ROOT / "docs" / "how-to" / "model-settings.md"
REFERENCE = ROOT / "docs" / "reference" / "commands.md"
ALIKE = {"Qwen3": "qwen", "DeepSeek-R1": "deepseek", "Llama-3.1": "llama", "gpt-oss": "channels"}
"""Tokenizers with templates of the structure of these models'."""

_BLOCK = re.compile(r"^```(?:bash|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:lensprune|make|python -m) [^`]+)`")


def commands(text: str, program: str) -> list[list[str]]:
    """The command lines of a program in code blocks and in running text, as words; placeholders are left in."""
    lines = [line for block in _BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += _INLINE.findall(text)
    return [shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} ")]


def parses(words: list[str]) -> bool:
    try:
        _parser().parse_args(words[1:])
    except UserError:
        return False
    except SystemExit:  # --help and --version end here
        return True
    return True


def whole(words: list[str]) -> bool:
    """Whether it is a command to type and no mention of one, as in ``lensprune plan --workers``."""
    return "--model" in words or "--parts" in words or (len(words) > 2 and not words[2].startswith("--"))


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_commands_parse(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    wrong = [shlex.join(words) for words in commands(text, "lensprune") if whole(words) and not parses(words)]
    assert not wrong


def test_every_command_has_an_example_and_a_table_of_options() -> None:
    [every] = [action.choices for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)]
    text = REFERENCE.read_text(encoding="utf-8")
    assert set(every) - {words[1] for words in commands(text, "lensprune")} == set()
    tables = set(re.findall(r"<!-- table: options of (\w+)(?: beyond \w+)? -->", text))
    assert tables <= set(every)
    # `tasks` has the one option of `models`.
    assert set(every) - tables == {"tasks"}


@pytest.mark.parametrize(
    "words",
    [words for words in commands(SETTINGS.read_text(encoding="utf-8"), "lensprune") if "--model" in words],
    ids=lambda words: Path(words[-1]).name,
)
def test_templates_take_the_settings_of_their_models(words: list[str]) -> None:
    given = _parser().parse_args(words[1:])
    [tokenizer] = [chat_tokenizer(like) for name, like in ALIKE.items() if name in given.model]
    names = ("chat_template", "template_args", "thinking", "thinking_budget", "fewshot_as_multiturn", "system")
    asked = build_requests(
        model(n_ctx=2048, tokenizer=tokenizer),
        loaded(),
        "generate",
        **{name: getattr(given, name) for name in names},
    )
    assert given.chat_template
    assert asked


def test_targets_and_modules_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    texts = [path.read_text(encoding="utf-8") for path in PAGES]
    named = {words[1] for text in texts for words in commands(text, "make")}
    assert len(named) > 8
    assert named <= targets
    modules = {words[2] for text in texts for words in commands(text, "python") if words[1] == "-m"}
    assert len(modules) > 4
    assert [name for name in sorted(modules) if name != "pytest" and importlib.util.find_spec(name) is None] == []


def test_a_wrong_command_is_found() -> None:
    page = (
        "```\nlensprune sweep --model m \\\n    --task facts  # why\nlensprune sweep --modle m\n```\n`lensprune report`"
    )
    found = commands(page, "lensprune")
    assert found[0] == ["lensprune", "sweep", "--model", "m", "--task", "facts"]
    assert [parses(words) for words in found] == [True, False, False]
    assert sum(len(commands(path.read_text(encoding="utf-8"), "lensprune")) for path in PAGES) > 50
