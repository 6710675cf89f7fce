"""Reference prompts of mean, resample and optimal ablation: few-shot examples or a text file, never scored items."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from lensprune.errors import LensPruneError, UserError
from lensprune.models import encode
from lensprune.models.base import HookedModel
from lensprune.paths import usable_path
from lensprune.protocols import build_requests
from lensprune.protocols.arguments import PromptArguments
from lensprune.protocols.registry import protocol_named
from lensprune.protocols.requests import LoglikelihoodRequest
from lensprune.runs.spec import canonical_json
from lensprune.tasks.base import Doc, Item, LoadedTask, MultipleChoiceFormat, ProtocolName, RowRequest

__all__ = ["fewshot_prompts", "prompts_hash", "read_reference_text", "text_prompts"]

MAX_PROMPTS = 32
MAX_TEXT_TOKENS = 512
_MAX_TEXT_BYTES = 16 * 2**20


def _key(doc: Doc) -> str:
    return canonical_json({str(k): repr(v) for k, v in doc.items()})


def fewshot_prompts(
    model: HookedModel,
    task: LoadedTask,
    protocol: ProtocolName,
    *,
    data_dir: Path | None,
    **wording: Unpack[PromptArguments],
) -> list[tuple[int, ...]]:
    """Make up to `MAX_PROMPTS` prompts from few-shot examples, in the protocol's format.

    Each example of a seeded draw is used as the question, after as many other examples (of its subject, if examples are
    drawn by subject) as the scored items have; under the likelihood protocols its right answer follows.

    Args:
        wording: see `lensprune.sweep`.

    Raises:
        UserError: no example is left that is not scored, or one can't become a prompt.
    """
    scored = {_key(item.doc) for item in task.items}
    pool = [doc for doc in _pool(task, data_dir) if _key(doc) not in scored]
    if not pool:
        raise UserError(
            f"task {task.task.name} has no few-shot examples apart from the scored items, so mean and resample have no "
            "reference: give a text file as reference"
        )
    generator = random.Random(f"reference {task.seed}")
    items = []
    for index in generator.sample(range(len(pool)), min(MAX_PROMPTS, len(pool))):
        doc = pool[index]
        others = [other for other in pool if other is not doc and _group(task, other) == _group(task, doc)]
        shots = tuple(generator.sample(others, min(task.shots, len(others))))
        items.append(Item(id=f"reference {index}", doc=doc, cluster=task.task.cluster(doc), fewshot=shots))
    if any(_key(doc) in scored for item in items for doc in (item.doc, *item.fewshot)):
        raise LensPruneError(f"a reference prompt of task {task.task.name} holds a scored item")
    form = protocol_named(protocol).format_of(task.task)
    try:
        built = build_requests(model, replace(task, items=tuple(items)), protocol, **wording)
        right = [form.gold(example.item.doc) if isinstance(form, MultipleChoiceFormat) else 0 for example in built]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"a few-shot example of task {task.task.name} can't become a prompt ({type(error).__name__}: {error})"
        ) from error
    prompts = []
    for example, index in zip(built, right, strict=True):
        request = example.requests[index]
        answer = request.continuation_ids if isinstance(request, LoglikelihoodRequest) else ()
        # The model never reads an answer's last token, so a context may have been left one token too long for it.
        prompts.append((request.context_ids + answer)[-model.facts.n_ctx :])
    return prompts


def _pool(task: LoadedTask, data_dir: Path | None) -> Sequence[Doc]:
    if task.task.fixed_fewshot is not None:
        return task.task.fixed_fewshot
    # A task without shots was loaded without examples, but they are needed here.
    return task.task.load(RowRequest(data_dir=data_dir, shots=max(MAX_PROMPTS, task.shots), seed=task.seed)).fewshot


def _group(task: LoadedTask, doc: Doc) -> str | None:
    return task.task.cluster(doc) if task.task.by_cluster else None


def read_reference_text(path: str | Path) -> str:
    """Read a reference file.

    Raises:
        UserError: missing, not UTF-8, empty, or larger than 16 MiB.
    """
    file = usable_path(path, "reference file")
    try:
        if not file.is_file():
            raise UserError(f"reference file {path} does not exist: give fewshot or a text file")
        if file.stat().st_size > _MAX_TEXT_BYTES:
            raise UserError(f"reference file {path} is larger than 16 MiB: a few thousand words are enough")
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"reference file {path} is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"cannot read reference file {path}: {error.strerror}") from None
    if not text.strip():
        raise UserError(f"reference file {path} is empty")
    return text


def text_prompts(model: HookedModel, text: str, where: str) -> list[tuple[int, ...]]:
    """The first `MAX_PROMPTS` pieces of `text`, each of up to `MAX_TEXT_TOKENS` tokens that fit the model.

    Raises:
        UserError: the text has no token.
    """
    ids = list(encode(model, text))
    size = min(MAX_TEXT_TOKENS, model.facts.n_ctx)
    prompts = [tuple(ids[start : start + size]) for start in range(0, min(len(ids), size * MAX_PROMPTS), size)]
    if not prompts:
        raise UserError(f"reference file {where} has no token")
    return prompts


def prompts_hash(prompts: Sequence[Sequence[int]]) -> str:
    """sha256 over token ids."""
    return hashlib.sha256(canonical_json([list(p) for p in prompts]).encode()).hexdigest()
