"""The first difference between two specs, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lensprune.runs.spec import SweepSpec, canonical_json

__all__ = ["first_difference"]


def _there_and_here(mine: Any, theirs: Any) -> str:
    return f"{_short(mine)} there, {_short(theirs)} here"


_COMPARED_FIRST = (
    "architecture", "weights_hash", "config_hash", "protocols", "tasks", "variants", "settings_of", "template_date",
    "chat_template", "fewshot_as_multiturn", "system", "template_args", "thinking", "think_tokens", "thinking_budget",
    "thinking_prefix", "keep_eos", "primary_metric",
)  # fmt: skip


_MEANINGS = {
    "weights_hash": "the model's weights",
    "config_hash": "the model's configuration",
    "tokenizer_hash": "the tokenizer",
    "conditions": "the prompts",
    "template_date": "the chat template's date (template_date)",
    "template_args": "the chat template's arguments (template_args)",
    "system": "the system prompt",
    "decoding": "the generation config",
    "settings_of": "whose settings count (settings_of)",
    "kept_hooks": "the model's own hooks",
}


def first_difference(there: SweepSpec, here: SweepSpec) -> str | None:
    """Describe the first difference between two specs that affects results; ``None`` if there is none."""
    mine, theirs = there.numbers(), here.numbers()
    for name in dict.fromkeys([*_COMPARED_FIRST, *mine, *theirs]):
        if mine.get(name) != theirs.get(name):
            return _describe(name, mine.get(name), theirs.get(name))
    return None


def _short(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _describe(name: str, mine: Any, theirs: Any) -> str:
    """Where two values of the field `name` differ, in words: `mine` there, `theirs` here."""
    label = _MEANINGS.get(name, name)
    if name == "screen" and mine is None:
        return "all heads are measured there, a screened part of them here"
    if name == "screen" and theirs is None:
        return "a screened part of the heads is measured there, all of them here"
    if name == "variants" and (difference := _describe_names(mine, theirs)) is not None:
        return difference
    if isinstance(mine, list) and isinstance(theirs, list):
        return f"{label}{_describe_lists(name, mine, theirs)}"
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return f"{label}: {_describe_entry(mine, theirs)}"
    return f"{label}: {_there_and_here(mine, theirs)}"


def _describe_names(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str | None:
    """How two lists of variants differ by their names; ``None`` where they have the same."""
    names, other_names = [v["name"] for v in mine], [v["name"] for v in theirs]
    if names == other_names:
        return None
    return f"variants: {len(names)} there ({_ends(names)}), {len(other_names)} here ({_ends(other_names)})"


def _describe_lists(name: str, mine: list[Any], theirs: list[Any]) -> str:
    """The first entries that differ; the lists themselves where their lengths do, or entries are plain."""
    different = next((pair for pair in zip(mine, theirs, strict=False) if pair[0] != pair[1]), None)
    if len(mine) == len(theirs) and different is not None and isinstance(different[0], dict):
        owner = " ".join(str(different[0][key]) for key in ("name", "task", "protocol") if key in different[0])
        return f" of {owner}: {_describe_entry(*different)}"
    if name == "tasks":
        mine, theirs = ([task["name"] for task in tasks] for tasks in (mine, theirs))
    return f": {_there_and_here(mine, theirs)}"


def _describe_entry(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """The first entry, by name, in which two mappings differ."""
    changed = next(key for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key))
    there, here = mine.get(changed), theirs.get(changed)
    if changed == "generation" and there and here:
        return f"{changed}, {_describe_entry(there, here)}"
    return f"{changed} {_there_and_here(there, here)}"


def _ends(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, ..., {names[-1]}"
