"""The fields of lm-eval's task files: which are used, which don't change results here, and why the others are
rejected."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lensprune.errors import UserError, nearest
from lensprune.paths import nearest_path
from lensprune.tasks.base import Doc
from lensprune.tasks.templates import text_of

__all__ = [
    "FEWSHOT_OVERRIDES",
    "FEWSHOT_REFUSED",
    "FEWSHOT_USED",
    "FILTERS_REFUSED",
    "METRICS_REFUSED",
    "NEEDED",
    "OWN",
    "REFUSED",
    "USED",
    "WITHOUT_EFFECT",
    "TaskFields",
    "check_keys",
    "read_fields",
]

NEEDED = ("task", "doc_to_text", "doc_to_target")

OWN = ("chance", "closed_book", "columns", "folder", "kind", "primary_metric", "protocols", "question", "summary")
"""Fields that lm-eval lacks."""

USED = (
    *NEEDED,
    "dataset_kwargs",
    "dataset_name",
    "dataset_path",
    "description",
    "doc_to_choice",
    "fewshot_config",
    "fewshot_delimiter",
    "fewshot_split",
    "filter_list",
    "generation_kwargs",
    "include",
    "metric_list",
    "num_fewshot",
    "output_type",
    "repeats",
    "target_delimiter",
    "test_split",
    "training_split",
    "validation_split",
)

WITHOUT_EFFECT = {
    "doc_to_decontamination_query": "contamination is not checked",
    "metadata": "free text",
    "should_decontaminate": "contamination is not checked",
    "tag": "a name for listings",
    "task_alias": "a name for tables",
}

_PYTHON = "Python code is not run from a task file; use @register_task"
_GROUP = "groups of tasks are not supported; give the tasks one by one"
REFUSED = {
    "aggregate_metric_list": _GROUP,
    "class": _PYTHON,
    "custom_dataset": _PYTHON,
    "doc_to_audio": "only text prompts are supported",
    "doc_to_image": "only text prompts are supported",
    "gen_prefix": "it is not supported; write the start of the answer at the end of doc_to_text",
    "group": _GROUP,
    "group_alias": _GROUP,
    "process_docs": _PYTHON,
    "process_results": _PYTHON,
    "task_list": _GROUP,
    "unsafe_code": "generated code is never run",
    "use_prompt": "promptsource is not supported; write the template in doc_to_text",
}

FEWSHOT_OVERRIDES = ("doc_to_choice", "doc_to_target", "doc_to_text", "fewshot_delimiter", "target_delimiter")
FEWSHOT_USED = ("sampler", "samples", "split", *FEWSHOT_OVERRIDES)
FEWSHOT_REFUSED = {
    "fewshot_indices": "lm-eval 0.4.13 reads it but draws from all rows; put the wanted rows into samples",
    "gen_prefix": REFUSED["gen_prefix"],
    "process_docs": _PYTHON,
}

FILTERS_REFUSED = {
    "custom": _PYTHON,
    "decontaminate": "contamination is not checked",
    "format_span": "answers are compared as written",
    "multi_choice_regex": "it needs the options of each row; use regex",
    "regex_pos": "it extracts a list of tags; use regex",
    "take_first_k": "only one answer is generated; use take_first",
}

METRICS_REFUSED = {
    name: "only accuracy is measured"
    for name in (
        "acc_all",
        "acc_mutual_info",
        "bits_per_byte",
        "bleu",
        "brier_score",
        "byte_perplexity",
        "bypass",
        "chrf",
        "chrf++",
        "f1",
        "likelihood",
        "mcc",
        "perplexity",
        "ter",
        "word_perplexity",
    )
}


@dataclass(frozen=True)
class TaskFields:
    """The fields of one task file, as `read_fields` returns them."""

    path: Path
    config: Mapping[str, Any]

    def error(self, message: str) -> UserError:
        """An error message that names the file."""
        return UserError(f"{self.path}: {message}")

    def of_kind(self, field: str, kind: type | tuple[type, ...], default: Any, what: str) -> Any:
        """A field, or `default` where it is absent; raises `UserError` for a value of another kind than `what`."""
        value = self.config.get(field)
        if value is None:
            return default
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(f"field {field!r} is {value!r}, expected {what}")
        return value

    def text(self, field: str) -> Callable[[Doc], str]:
        """A column name or template as a function of a row."""
        return text_of(self.of_kind(field, str, "", "text"), f"{self.path}: {field}")


def check_keys(
    given: Mapping[Any, Any], used: Collection[str], refused: Mapping[str, str], where: str, what: str = "field"
) -> None:
    """Reject keys of `given` that are not in `used`; null and ``false`` values are ignored.

    Raises:
        UserError: a rejected name with its reason, or an unknown one with the nearest name.
    """
    for name, value in given.items():
        if name in used:
            continue
        if name in refused:
            if value is None or value is False:
                continue
            raise UserError(f"{where}: {what} {name!r} is not supported: {refused[name]}")
        close = nearest(str(name), used, n=1)
        hint = f"did you mean {close[0]}?" if close else f"{what}s are: {', '.join(sorted(used))}"
        raise UserError(f"{where}: unknown {what} {name!r}: {hint}")


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a task file, which override those of the files that it includes.

    Raises:
        UserError: a file that can't be read, is not a mapping, or includes itself; a field that is rejected, unknown or
            missing.
    """
    config = _read(path, ())
    check_keys(config, (*USED, *OWN, *WITHOUT_EFFECT), REFUSED, str(path))
    if isinstance(config.get("task"), (list, dict)):
        raise UserError(f"{path}: field 'task' lists several: {_GROUP}")
    for field in NEEDED:
        if config.get(field) is None:
            raise UserError(f"{path}: field {field!r} is missing")
    return config


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise UserError(f"{path}: the file includes itself")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{nearest_path(path)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        hint = "; Python code is not run from YAML, use @register_task" if "!function" in reason else ""
        raise UserError(f"{path}: not a task file ({reason}){hint}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a mapping of fields, got {type(config).__name__}")
    included = config.pop("include", None) or []
    files = [included] if isinstance(included, str) else included
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise UserError(f"{path}: field 'include' is {included!r}, expected the path of a task file, or several")
    merged: dict[str, Any] = {}
    for file in files:
        merged |= _read(path.parent / file, (*above, path.resolve()))
    return merged | config
