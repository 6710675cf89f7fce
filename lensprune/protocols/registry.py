"""Protocols by name: which prompts of a task each uses, how it scores the answers, and what it measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar, overload

from lensprune.errors import UserError, unknown_name
from lensprune.registry import Registry

if TYPE_CHECKING:
    from lensprune.models.base import HookedModel
    from lensprune.protocols.base import Outcome, Prompt
    from lensprune.protocols.encoding import Encoder
    from lensprune.protocols.requests import Request, Response
    from lensprune.tasks.base import Item, PromptFormat, Task

__all__ = ["Protocol", "protocol_named", "protocol_names", "protocols_of", "register_protocol"]

Ask = Callable[["HookedModel", "Encoder", "PromptFormat", "Prompt", str], "tuple[Request, int]"]
Measure = Literal["logprob_margin", "correct"]
Score = Callable[["PromptFormat", "Item", "Sequence[Response]"], "Outcome"]


@dataclass(frozen=True)
class Protocol:
    """One way of prompting and scoring an item.

    `form`: the key of `Task.formats` whose prompts (and chance level) are used. `ask` returns one prompt's request and
    the number of tokens cut from it; it is called with the model, its encoder (which caches the item's last texts), the
    format, the prompt, and a text that names the item in errors. `score` makes one outcome from the format, the item
    and the responses to its requests. `measure`: the record column that resolves small effects best,
    ``logprob_margin`` if every outcome has one.
    """

    name: str
    summary: str
    form: str
    measure: Measure
    ask: Ask
    score: Score

    def format_of(self, task: Task) -> PromptFormat:
        """The format of `task` that this protocol uses.

        Raises:
            UserError: the task has none.
        """
        if self.form not in task.formats:
            raise unknown_name(f"protocol of task {task.name!r}", self.name, protocols_of(task))
        return task.formats[self.form]


_PROTOCOLS: Registry[Protocol] = Registry("protocol")

S = TypeVar("S", bound=Score)


@overload
def register_protocol(score: S) -> S: ...
@overload
def register_protocol(
    *, name: str | None = None, form: str | None = None, measure: Measure = "correct", ask: Ask | None = None
) -> Callable[[S], S]: ...
def register_protocol(
    score: S | None = None,
    *,
    name: str | None = None,
    form: str | None = None,
    measure: Measure = "correct",
    ask: Ask | None = None,
) -> S | Callable[[S], S]:
    """Register the decorated function, which scores an item's responses, as a protocol.

    The first line of its docstring describes the protocol.

    Args:
        score: the function; it takes the task's format, the item and its responses, and returns an `Outcome`.
        name: the protocol's name; ``None`` takes the function's name.
        form: the key of `Task.formats` whose prompts are used; ``None`` takes the protocol's name.
        measure: the record column that resolves small effects best.
        ask: makes one prompt's request, see `Protocol`; ``None`` requests log-likelihoods of options or a generation,
            depending on the format.

    Raises:
        UserError: the name is taken or contains characters other than letters, digits, _ and -; an unknown measure.

    Examples:
        >>> from dataclasses import replace
        >>> from lensprune.protocols import protocol_names, score_answer
        >>> @lp.register_protocol(form="continuation", measure="logprob_margin")
        ... def per_character(fmt, item, responses):
        ...     '''The option that is most likely per character.'''
        ...     return score_answer(replace(fmt, primary_metric="acc_norm"), item, responses)
        >>> "per_character" in protocol_names()
        True
    """

    def register(function: S) -> S:
        protocol_name = name or function.__name__
        row = Protocol(
            name=protocol_name,
            summary=(function.__doc__ or "").strip().partition("\n")[0],
            form=form or protocol_name,
            measure=measure,
            ask=ask or _ask,
            score=function,
        )
        if row.measure not in ("logprob_margin", "correct"):
            raise UserError(
                f"protocol {protocol_name!r}: unknown measure {row.measure!r}, expected logprob_margin or correct"
            )
        _PROTOCOLS.add(protocol_name, row, function)
        return function

    return register if score is None else register(score)


def protocol_named(name: str) -> Protocol:
    """The protocol called `name`.

    Raises:
        UserError: there is none.
    """
    return _PROTOCOLS.get(name)


def protocol_names() -> tuple[str, ...]:
    """Names of all protocols, built-in ones first."""
    return _PROTOCOLS.names()


def protocols_of(task: Task) -> list[str]:
    """Names of the protocols that `task` supports."""
    return [protocol.name for protocol in _PROTOCOLS.rows() if protocol.form in task.formats]


# torch and transformers take seconds to import, and protocol names need neither.
def _ask(model: HookedModel, encode: Encoder, fmt: PromptFormat, prompt: Prompt, where: str) -> tuple[Request, int]:
    from lensprune.protocols.encoding import ask_prompt

    return ask_prompt(model, encode, fmt, prompt, where)


def _score(fmt: PromptFormat, item: Item, responses: Sequence[Response]) -> Outcome:
    from lensprune.protocols.scoring import score_answer

    return score_answer(fmt, item, responses)


for _name, _measure, _summary in (
    ("default", "logprob_margin", "options are shown, and the likelihood of each option's letter is scored"),
    ("continuation", "logprob_margin", "options are not shown, and the likelihood of each option's text is scored"),
    ("generate", "correct", "an answer is generated up to a stop, then extracted from the text"),
):
    _PROTOCOLS.add(_name, Protocol(_name, _summary, _name, _measure, _ask, _score), Protocol)  # type: ignore[arg-type]
