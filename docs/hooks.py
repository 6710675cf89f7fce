"""What MkDocs adds while it builds the site: notebooks as tutorials, and tables that the package itself writes.

A page gets such a table where it says ``<!-- table: tasks -->`` or ``<!-- table: options of sweep -->``.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TUTORIALS = "Tutorials"

_TABLE = re.compile(r"<!-- table: (?:tasks|options of ([\w-]+)(?: beyond ([\w-]+))?) -->")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List every notebook in the navigation, by its title, in the order in which they are to be read."""
    [section] = [entry for entry in config.nav or [] if TUTORIALS in entry]
    section[TUTORIALS] = [
        "tutorials/index.md",
        *({title(read(path)): f"tutorials/{path.stem}.md"} for path in in_reading_order()),
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every notebook as a page, with its images."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, images = page(read(path), path.stem)
        files.append(File.generated(config, f"tutorials/{path.stem}.md", content=text))
        for name, content in images.items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    for path in sorted((NOTEBOOKS / "figures").glob("*.png")):
        files.append(File.generated(config, f"tutorials/figures/{path.name}", content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables where a page asks for them."""
    return _TABLE.sub(lambda found: options(found[1], found[2]) if found[1] else tasks(), markdown)


def in_reading_order() -> list[Path]:
    """The notebooks, each followed by the one that it names as the next."""
    found = [min(NOTEBOOKS.glob("*.ipynb"))]
    while (following := NOTEBOOKS / next_of(read(found[-1]))) not in found:
        found.append(following)
    if left := set(NOTEBOOKS.glob("*.ipynb")) - set(found):
        raise ValueError(f"no notebook leads to {', '.join(sorted(path.name for path in left))}")
    return found


def next_of(notebook: dict[str, Any]) -> str:
    """The file that a notebook's last cell names as the next to read."""
    [name] = re.findall(r"\*\*Next:\*\* .*?\]\((\w+\.ipynb)\)", "".join(notebook["cells"][-1]["source"]))
    return str(name)


def read(path: Path) -> dict[str, Any]:
    """A notebook's JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def title(notebook: dict[str, Any]) -> str:
    """The first heading of a notebook."""
    return next(
        line.removeprefix("# ").strip()
        for cell in notebook["cells"]
        if cell["cell_type"] == "markdown"
        for line in cell["source"]
        if line.startswith("# ")
    )


def page(notebook: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its images by name."""
    parts, images = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(linked(source))
        elif source.strip():
            parts.append(f"```python\n{source}\n```")
            for output in cell["outputs"]:
                if "image/png" in output.get("data", {}):
                    name = f"{stem}_{len(images)}.png"
                    images[name] = base64.b64decode("".join(output["data"]["image/png"]))
                    parts.append(f"![Output of the cell above]({name})")
                else:
                    parts.append(shown(output))
    return "\n\n".join(part for part in parts if part) + "\n", images


def shown(output: dict[str, Any]) -> str:
    """An output without an image; progress bars and warnings, on stderr, are left out."""
    if output["output_type"] == "stream":
        text = "".join(output["text"]) if output["name"] == "stdout" else ""
        return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
    data = output.get("data", {})
    if "text/html" in data:
        # Without pandas' own styling, a table gets that of site.css.
        text = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
        text = re.sub(r'<table border="\d" class="dataframe">', '<table class="dataframe">', text)
        return "<div>\n" + "\n".join(line for line in text.splitlines() if line.strip()) + "\n</div>"
    text = "".join(data.get("text/plain", []))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


def linked(source: str) -> str:
    """A cell's links, from the notebooks' folder to the site: ``../docs/x.md`` becomes ``../x.md``."""
    source = re.sub(r"\]\(\.\./docs/", "](../", source)
    source = re.sub(r"\]\(\.\./README\.md", "](../index.md", source)
    return re.sub(r"\]\(([\w-]+)\.ipynb", r"](\1.md", source)


def tasks() -> str:
    """One row per task."""
    from lensprune.protocols.registry import protocols_of
    from lensprune.tasks import get_task, task_names

    rows = []
    for name in task_names():
        task = get_task(name)
        parameters = ", ".join(f"{key}={value}" for key, value in task.parameters.items())
        rows.append([f"`{name}`", task.summary, ", ".join(protocols_of(task)), parameters])
    return markdown_table(["task", "what it is", "protocols", "parameters and their defaults"], rows)


def options(command: str, beyond: str | None = None) -> str:
    """One row per option of a command; of those that `beyond` has too, none."""
    from lensprune.cli import _parser

    [commands] = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    known = set() if beyond is None else {a.dest for a in commands.choices[beyond]._actions}
    actions = [a for group in commands.choices[command]._action_groups for a in group._group_actions]
    rows = [
        [invocation(action), action.help or ""]
        for action in actions
        if not isinstance(action, argparse._HelpAction) and action.dest not in known
    ]
    return markdown_table(["option", "meaning"], rows)


def invocation(action: argparse.Action) -> str:
    """How an option is written, as in ``--limit N``."""
    name = ", ".join(action.option_strings)
    value = "" if action.nargs == 0 else action.metavar or ("" if name else action.dest)
    return f"`{' '.join(part for part in (name, str(value)) if part)}`"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; cells are plain text, or begin with a backtick."""
    cells = [[cell if cell.startswith("`") else html.escape(cell, quote=False) for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
