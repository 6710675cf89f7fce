"""Counterfactual pairs of bundled tasks: another value at the queried key, another operand in the sum."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from string import ascii_lowercase
from typing import Any

from lensprune.attribution.pairs import PromptPair, pair_from_texts
from lensprune.errors import UserError, unknown_name
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel
from lensprune.tasks import load_task
from lensprune.tasks.base import Doc, GenerationFormat
from lensprune.tasks.bundled.arithmetic import worked_steps
from lensprune.tasks.prompts import build_context

__all__ = ["COUNTERFACTUALS", "counterfactual_pairs", "other_operand", "other_value"]

_TRIES = 40


def other_value(doc: Doc, random: Random) -> dict[str, Any]:
    """Change the queried key's value in a key-value row to an unused value of the same form.

    Digits become digits and Latin letters become letters of the same case, hexadecimal ones if all letters of the value
    are from a to f.

    Raises:
        UserError: no such value in 40 tries: the value has no digit or Latin letter, or all others are taken.
    """
    current = str(doc["value"])
    taken = {current, *(str(held) for _, held in doc["ordered_kv_records"])}
    letters = ascii_lowercase if re.search(r"[g-zA-Z]", current) else "abcdef"
    for _ in range(_TRIES):
        value = re.sub(r"[0-9a-zA-Z]", lambda match: _other_character(match[0], letters, random), current)
        if value not in taken:
            records = [[key, value if key == doc["key"] else held] for key, held in doc["ordered_kv_records"]]
            return {**doc, "ordered_kv_records": records, "value": value}
    raise UserError(
        f"value {current!r}: no unused value of the same form was found in {_TRIES} tries: expected a value with "
        "digits or Latin letters to change"
    )


def _other_character(character: str, letters: str, random: Random) -> str:
    if character.isdecimal():
        return random.choice("123456789")
    return random.choice(letters if character.islower() else letters.upper())


def other_operand(doc: Doc, random: Random) -> dict[str, Any]:
    """Replace one operand of a chain by another with the same number of digits, so that the result changes (never to a
    negative one)."""
    parts = str(doc["question"]).split()
    numbers, signs = [int(n) for n in parts[::2]], parts[1::2]
    for _ in range(_TRIES):
        place = random.randrange(len(numbers))
        digits = len(str(numbers[place]))
        number = random.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)
        changed = [*numbers[:place], number, *numbers[place + 1 :]]
        steps, answer = worked_steps(changed, signs)
        if number != numbers[place] and answer >= 0 and str(answer) != str(doc["answer"]):
            question = str(changed[0]) + "".join(f" {s} {n}" for s, n in zip(signs, changed[1:], strict=True))
            return {**doc, "question": question, "answer": str(answer), "steps": steps}
    raise UserError(f"no operand of the sum {doc['question']!r} can be changed so that its result changes")


COUNTERFACTUALS: dict[str, Callable[[Doc, Random], dict[str, Any]]] = {
    "kv_retrieval": other_value,
    "arithmetic": other_operand,
}
"""How each task's rows are changed so that the answer changes."""


def counterfactual_pairs(
    model: AnyModel,
    task: str,
    *,
    limit: int = 20,
    shots: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
) -> list[PromptPair]:
    """Make counterfactual pairs from a bundled task's ``generate`` prompts: an item, and a copy with a different
    answer.

    Both prompts have the same few-shot examples and the same number of tokens; the metric is about the first token at
    which the answers differ. Items without such a counterpart in 40 tries are left out.

    Args:
        model: a loaded model.
        task: ``kv_retrieval`` or ``arithmetic``, with parameters in brackets as for a sweep.
        limit, shots, seed, data_dir: choose the task's items, as in `load_task`.

    Returns:
        At most `limit` pairs, in the order of the items.

    Raises:
        UserError: a task without counterfactuals, or no item that has a counterpart.

    Examples:
        >>> task = "kv_retrieval[pairs=4,ending=reopened,answer=text]"
        >>> pairs = lp.counterfactual_pairs(model, task, limit=2)
        >>> [len(pair.clean) == len(pair.corrupt) for pair in pairs]
        [True, True]
    """
    hooked = as_hooked_model(model)
    loaded = load_task(task, limit=limit, shots=shots, seed=seed, data_dir=None if data_dir is None else Path(data_dir))
    name = loaded.task.name.partition("[")[0]
    if name not in COUNTERFACTUALS:
        raise unknown_name("task with counterfactuals", name, COUNTERFACTUALS)
    form = loaded.task.formats["generate"]
    if not isinstance(form, GenerationFormat):
        raise UserError(f"task {name!r} is not answered by generation, so it has no counterfactual pairs")
    pairs = []
    reason: UserError | None = None
    for item in loaded.items:
        random = Random(f"counterfactual {name} {seed} {item.id}")
        for _ in range(_TRIES):
            try:
                changed = replace(item, doc=COUNTERFACTUALS[name](item.doc, random))
            except UserError as error:
                # The function has already made all the tries itself.
                reason = error
                break
            prompts = [build_context(form, one) for one in (item, changed)]
            answers = [form.target_delimiter + form.target(one.doc) for one in (item, changed)]
            try:
                pair = pair_from_texts(hooked, *prompts, *answers)
            except UserError as error:
                reason = error
                continue
            if len(pair.clean) > hooked.facts.n_ctx:
                raise UserError(
                    f"item {item.id} of task {name!r} has {len(pair.clean)} tokens, more than the model's context"
                )
            pairs.append(replace(pair, label=item.id))
            break
    if not pairs:
        why = f": {reason}" if reason else ""
        raise UserError(f"no item of task {name!r} has a counterpart of the same number of tokens{why}")
    return pairs
