"""How the answers of a task file are scored: its ``metric_list`` and its ``filter_list``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lensprune.errors import unknown_name
from lensprune.tasks.filters import FilterChain, RegexFilter, remove_whitespace
from lensprune.tasks.yaml_fields import (
    FILTERS_REFUSED,
    METRICS_REFUSED,
    TaskFields,
    check_keys,
)

__all__ = ["CHOICE_METRICS", "MATCH_OPTIONS", "STEP_KEYS", "read_filters", "read_metrics"]

MATCH_OPTIONS = ("regexes_to_ignore", "ignore_case", "ignore_punctuation", "ignore_numbers")
_METRIC_KEYS = ("metric", "aggregation", "higher_is_better", "hf_evaluate")
CHOICE_METRICS = ("acc", "acc_norm", "acc_bytes")
STEP_KEYS = {
    "lowercase": (),
    "majority_vote": (),
    "map": ("mapping_dict", "default_value"),
    "regex": ("regex_pattern", "group_select", "fallback"),
    "remove_whitespace": (),
    "take_first": (),
    "uppercase": (),
}
_ONE_ANSWER = ("take_first", "majority_vote")
"""Filters that choose among several sampled answers; with one answer they choose that one."""
_INVALID = "[invalid]"


def read_metrics(fields: TaskFields) -> Sequence[Mapping[str, Any]]:
    """The entries of ``metric_list``, checked."""
    entries = fields.of_kind("metric_list", list, [], "a list")
    known = (*(CHOICE_METRICS if fields.config.get("doc_to_choice") is not None else ()), "exact_match")
    for entry in entries:
        name = entry.get("metric") if isinstance(entry, dict) else None
        if name in METRICS_REFUSED:
            raise fields.error(f"metric_list: metric {name!r} is not supported: {METRICS_REFUSED[name]}")
        if name not in known:
            raise fields.error(f"metric_list: {entry!r}, expected a metric: {', '.join(known)}")
        _check_metric(fields, entry)
    names = [entry["metric"] for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise fields.error(f"metric_list: {twice!r} is listed twice")
    return entries


def _check_metric(fields: TaskFields, entry: Mapping[str, Any]) -> None:
    where = f"metric_list: {entry['metric']}"
    options = MATCH_OPTIONS if entry["metric"] == "exact_match" else ()
    check_keys(entry, (*_METRIC_KEYS, *options), {}, f"{fields.path}: {where}", "setting")
    for name, expected in (("aggregation", "mean"), ("higher_is_better", True), ("hf_evaluate", False)):
        if entry.get(name, expected) != expected:
            raise fields.error(f"{where}: {name} is {entry[name]!r}, expected {expected!r}")
    for name in options:
        value = entry.get(name)
        if name == "regexes_to_ignore":
            if value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
                raise fields.error(f"{where}: {name} is {value!r}, expected a list of regular expressions")
            for pattern in value or []:
                _compiled(fields, pattern, where)
        elif not isinstance(value, bool | None):
            raise fields.error(f"{where}: {name} is {value!r}, expected true or false")


def read_filters(fields: TaskFields) -> tuple[FilterChain, ...]:
    """The chains of ``filter_list``; without any, one that takes the answer as it is."""
    chains = []
    for entry in fields.of_kind("filter_list", list, [], "a list"):
        if not isinstance(entry, dict) or "name" not in entry or not isinstance(entry.get("filter"), list):
            raise fields.error(f"filter_list: {entry!r}, expected the fields name and filter")
        check_keys(entry, ("name", "filter"), {}, f"{fields.path}: filter_list", "setting")
        steps = [_step(fields, step) for step in entry["filter"]]
        chains.append(FilterChain(str(entry["name"]), tuple(step for step in steps if step is not None)))
    names = [chain.name for chain in chains]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise fields.error(f"filter_list: the name {twice!r} is given twice")
    return tuple(chains) or (FilterChain("none", ()),)


def _step(fields: TaskFields, step: Mapping[str, Any]) -> Callable[[str], str | None] | None:
    function = step.get("function") if isinstance(step, dict) else None
    if function in FILTERS_REFUSED:
        raise fields.error(f"filter_list: filter {function!r} is not supported: {FILTERS_REFUSED[function]}")
    if function not in STEP_KEYS:
        raise unknown_name(f"filter function in {fields.path}", str(function), STEP_KEYS)
    check_keys(step, ("function", *STEP_KEYS[function]), {}, f"{fields.path}: filter_list: {function}", "setting")
    if function == "regex":
        return _regex(fields, step)
    if function == "map":
        mapping, default = step.get("mapping_dict") or {}, step.get("default_value")
        if not isinstance(mapping, dict):
            raise fields.error(f"filter_list: mapping_dict is {mapping!r}, expected a mapping")
        words = {str(key): str(value) for key, value in mapping.items()}
        return lambda text: words.get(text, None if default is None else str(default))
    simple = {"lowercase": str.lower, "uppercase": str.upper, "remove_whitespace": remove_whitespace}
    return None if function in _ONE_ANSWER else simple[function]


def _regex(fields: TaskFields, step: Mapping[str, Any]) -> RegexFilter:
    pattern = str(step.get("regex_pattern", r"#### (\-?[0-9\.\,]+)"))
    _compiled(fields, pattern, "filter_list")
    group, fallback = step.get("group_select", 0), step.get("fallback", _INVALID)
    if isinstance(group, bool) or not isinstance(group, int):
        raise fields.error(f"filter_list: group_select is {group!r}, expected a whole number")
    if not isinstance(fallback, str):
        raise fields.error(f"filter_list: fallback is {fallback!r}, expected text")
    return RegexFilter("regex", pattern, group, None if fallback == _INVALID else fallback)


def _compiled(fields: TaskFields, pattern: str, where: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise fields.error(f"{where}: {pattern!r} is not a regular expression ({error})") from None
