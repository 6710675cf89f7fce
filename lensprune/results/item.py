"""One item of a run: its question, and what the model answered under every variant."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lensprune.ablation.variants import CLEAN
from lensprune.errors import UserError, nearest
from lensprune.output.plain_text import for_terminal, visible, visible_end
from lensprune.output.tables import aligned
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.questions import Question
from lensprune.runs.records import CellKey

__all__ = ["ItemView", "item_of"]

_COLUMNS = [
    "variant", "protocol", "prediction", "correct", "failure", "gold_logprob", "logprob_margin", "option_logprobs",
    "n_tokens", "text", "n_thinking_tokens", "thinking", "sample",
]  # fmt: skip
SHOWN_VARIANTS = 20
_PROMPT_IN_TEXT = 1200
_PROMPT_IN_HTML = 20_000
"""Characters of a prompt that are shown, from its end, where the question is."""
_ANSWER = 60
"""Characters of an option or an answer in a cell of a table."""
_FIRST_IDS = 5


@dataclass(frozen=True, eq=False)
class ItemView:
    """One item of one task under one or more protocols; it prints as text, and as HTML in a notebook.

    Attributes:
        questions: what each protocol sent to the model.
        answers: one row per protocol, variant and sample, clean first: the records' columns, `option_logprobs` among
            them.
    """

    task: str
    item_id: str
    questions: Mapping[str, Question]
    answers: pd.DataFrame

    def options(self) -> pd.DataFrame:
        """One row per protocol, variant and option: its text, whether it is the right one, its log-probability (nats)
        and the lengths by which that can be divided."""
        rows = [
            (protocol, variant, option, i == question.gold, logprobs[i], *lengths)
            for protocol, question in self.questions.items()
            for variant, logprobs in self._of(protocol)[["variant", "option_logprobs"]].itertuples(index=False)
            for i, (option, *lengths) in enumerate(_options(question))
        ]
        columns = ["protocol", "variant", "option", "right", "logprob", "tokens", "characters", "bytes"]
        return pd.DataFrame(rows, columns=columns)

    def __repr__(self) -> str:
        parts = [f"Item {for_terminal(self.item_id)} of {for_terminal(self.task)}"]
        for protocol, question in self.questions.items():
            tables, left = _tables(question, self._of(protocol))
            right = " or ".join(for_terminal(text) for text in question.reference)
            parts += [protocol, _indented(visible_end(question.prompt, _PROMPT_IN_TEXT)), f"  right answer: {right}"]
            parts += [_indented(aligned(rows)) for rows in tables] + ([f"  {left}"] if left else [])
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        parts = [f"<p><b>Item {_safe(self.item_id)} of {_safe(self.task)}</b></p>"]
        for protocol, question in self.questions.items():
            tables, left = _tables(question, self._of(protocol))
            right = " or ".join(_safe(text) for text in question.reference)
            prompt = _safe(visible_end(question.prompt, _PROMPT_IN_HTML))
            parts += [
                f"<p><b>{_safe(protocol)}</b></p>",
                f'<pre style="white-space: pre-wrap; max-height: 20em; overflow: auto">{prompt}</pre>',
                f"<p>Right answer: {right}</p>",
                *map(_html_table, tables),
                f"<p>{_safe(left)}</p>" if left else "",
            ]
        return "".join(parts)

    def _of(self, protocol: str) -> pd.DataFrame:
        return self.answers[self.answers["protocol"] == protocol]


def item_of(outcomes: Outcomes, item_id: str | int, task: str | None = None, protocol: str | None = None) -> ItemView:
    """The item called `item_id`, under every protocol that used it or under `protocol`.

    Args:
        task: needed if several tasks have an item with that id.

    Raises:
        UserError: no item with that id (the message gives the nearest), or several; a task or protocol that is not part
            of this run; questions that are missing from the run folder.
    """
    wanted = str(item_id)
    of_condition = {condition: outcomes.questions(*condition) for condition in outcomes.select(task, protocol)}
    ids = {condition: table.column("item_id").to_pylist() for condition, table in of_condition.items()}
    places = {condition: item_ids.index(wanted) for condition, item_ids in ids.items() if wanted in item_ids}
    if not places:
        raise _unknown(wanted, list(dict.fromkeys(name for item_ids in ids.values() for name in item_ids)))
    tasks = list(dict.fromkeys(name for name, _ in places))
    if len(tasks) > 1:
        raise UserError(f"item {wanted!r} is in {len(tasks)} tasks ({', '.join(tasks)}): name one, task={tasks[0]!r}")
    finished = outcomes.finished()
    # With planned looks some variants were not measured on this item.
    rows = [
        row
        for key in finished
        if (place := places.get((key.task, key.protocol))) is not None
        for row in _samples(outcomes, key, place)
    ]
    questions = {p: Question.from_row(of_condition[t, p].slice(i, 1).to_pylist()[0]) for (t, p), i in places.items()}
    # Left to itself, pandas makes NaN of an answer that was not found.
    answers = pd.DataFrame(rows, columns=_COLUMNS, dtype=object)
    numbers = {"correct": bool, "gold_logprob": float, "logprob_margin": float, "n_tokens": int}
    return ItemView(tasks[0], wanted, questions, answers.astype(numbers))


def _samples(outcomes: Outcomes, key: CellKey, place: int) -> list[dict[str, Any]]:
    """The records of the item at this place of the questions of its task and protocol."""
    samples = outcomes.samples(key.task, key.protocol)
    return outcomes.cell(key, _COLUMNS, whole=True).slice(place * samples, samples).to_pylist()


def _unknown(wanted: str, ids: Sequence[str]) -> UserError:
    close = nearest(wanted, ids)
    more = f", ... ({len(ids)} items)" if len(ids) > _FIRST_IDS else ""
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose one of: {', '.join(ids[:_FIRST_IDS])}{more}"
    return UserError(f"unknown item {wanted!r}: {hint}")


def _options(question: Question) -> Iterator[tuple[str, int, int, int]]:
    """Each option with its tokens, characters and bytes."""
    lengths = (question.option_tokens, question.option_characters, question.option_bytes)
    return zip(question.options, *lengths, strict=True)


def _tables(question: Question, answers: pd.DataFrame) -> tuple[list[list[list[str]]], str]:
    """Tables of cells, headings first, and what they leave out: the options, where there are any, and the answers."""
    shown = _chosen(answers)
    left = f"{len(answers) - len(shown)} more variants are in .answers" if len(answers) > len(shown) else ""
    verdicts = ["right" if right else "wrong" for right in shown["correct"]]
    predictions = ["-" if prediction is None else _short(prediction) for prediction in shown["prediction"]]
    if not question.options:
        columns = {
            "variant": shown["variant"],
            "outcome": verdicts,
            "answer": predictions,
            "text": map(_short, shown["text"]),
        }
        if shown["thinking"].notna().any():
            columns["thinking"] = [_short(text or "") for text in shown["thinking"]]
            columns["its tokens"] = [f"{count or 0:.0f}" for count in shown["n_thinking_tokens"]]
        return [[[*columns], *map(list, zip(*columns.values(), strict=True))]], left
    listed = [["", "option", "tokens", ""]]
    for i, (option, tokens) in enumerate(zip(question.options, question.option_tokens, strict=True)):
        listed.append([str(i), _short(option), str(tokens), "right" if i == question.gold else ""])
    rows = [["log-probability of", *map(str, range(len(question.options))), "outcome", "answer"]]
    for name, logprobs, *said in zip(shown["variant"], shown["option_logprobs"], verdicts, predictions, strict=True):
        rows.append([name, *(f"{logprob:.3f}" for logprob in logprobs), *said])
    return [listed, rows], left


def _chosen(answers: pd.DataFrame) -> pd.DataFrame:
    """Up to `SHOWN_VARIANTS` rows: clean, then those whose outcome differs from clean's, in the run's order."""
    if len(answers) <= SHOWN_VARIANTS:
        return answers
    clean = answers["variant"] == CLEAN.name
    before = bool(answers.loc[clean, "correct"].any())
    order = (~clean).astype(int) + (answers["correct"] == before).where(~clean, False).astype(int)
    return answers.loc[order.sort_values(kind="stable").index[:SHOWN_VARIANTS].sort_values()]


def _short(text: str) -> str:
    line = for_terminal(text)
    return line if len(line) <= _ANSWER else f"{line[: _ANSWER - 1]}…"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.split("\n"))


def _html_table(rows: list[list[str]]) -> str:
    tags = ["th", *["td"] * (len(rows) - 1)]
    head, *body = [
        "<tr>" + "".join(f"<{tag}>{_safe(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in zip(tags, rows, strict=True)
    ]
    return f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"


def _safe(text: str) -> str:
    return html.escape(visible(text))
