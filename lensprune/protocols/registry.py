"""Protocols by name: which prompt of a task each asks, how it scores the answers, and what it measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

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
Score = Callable[["PromptFormat", "Item", "Sequence[Response]"], "Outcome"]


@dataclass(frozen=True)
class Protocol:
    """One way of asking and scoring an item.

    `form`: the key of `Task.formats` whose prompts are asked; chance is that form's. `ask` gives one prompt's request
    and the number of tokens cut from it; it is called with the model, its encoder (which remembers the item's last
    texts), the format, the prompt, and words that name the item in an error. `score` makes one outcome of the format,
    the item and the answers to its requests. `measure`: the column of a record that tells small effects best,
    ``logprob_margin`` where every outcome has one.
    """

    name: str
    summary: str
    form: str
    measure: Literal["logprob_margin", "correct"]
    ask: Ask
    score: Score

    def format_of(self, task: Task) -> PromptFormat:
        """The format in which `task` is asked.

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
def register_protocol(*, name: str | None = None, **properties: Any) -> Callable[[S], S]: ...
def register_protocol(score: S | None = None, *, name: str | None = None, **properties: Any) -> S | Callable[[S], S]:
    """Decorator: make a way of scoring a protocol, known by the function's name (or by `name`)::

        @register_protocol(form="continuation", measure="logprob_margin")
        def per_character(fmt: PromptFormat, item: Item, responses: Sequence[Response]) -> Outcome:
            \"\"\"The option that is most likely per character.\"\"\"
            return score_answer(replace(fmt, primary_metric="acc_norm"), item, responses)

    The first line of its docstring says what it does. `form` is the protocol's own name unless it is given, `measure`
    is ``correct``, and `ask` asks what the format says: log-likelihoods of options, or a generation. See `Protocol`.

    Raises:
        UserError: the name is taken, or can't be one.
    """

    def register(function: S) -> S:
        protocol_name = name or function.__name__
        row = Protocol(
            name=protocol_name,
            summary=(function.__doc__ or "").strip().partition("\n")[0],
            score=function,
            **{"form": protocol_name, "measure": "correct", "ask": _ask, **properties},
        )
        if row.measure not in ("logprob_margin", "correct"):
            raise UserError(
                f"protocol {protocol_name!r}: unknown measure {row.measure!r}, expected logprob_margin or correct"
            )
        _PROTOCOLS.add(protocol_name, row, function)
        return function

    return register if score is None else register(score)


def protocol_named(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UserError: there is none.
    """
    return _PROTOCOLS.get(name)


def protocol_names() -> tuple[str, ...]:
    """All protocols, those of the package first."""
    return _PROTOCOLS.names()


def protocols_of(task: Task) -> list[str]:
    """Names of the protocols under which `task` can be asked."""
    return [protocol.name for protocol in _PROTOCOLS.rows() if protocol.form in task.formats]


# Torch and transformers take seconds to import, and the names of protocols need neither.
def _ask(model: HookedModel, encode: Encoder, fmt: PromptFormat, prompt: Prompt, where: str) -> tuple[Request, int]:
    from lensprune.protocols.encoding import ask_prompt

    return ask_prompt(model, encode, fmt, prompt, where)


def _score(fmt: PromptFormat, item: Item, responses: Sequence[Response]) -> Outcome:
    from lensprune.protocols.scoring import score_answer

    return score_answer(fmt, item, responses)


for _name, _measure, _summary in (
    ("default", "logprob_margin", "the options are shown, and the likelihood of each one's letter is taken"),
    ("continuation", "logprob_margin", "the options are not shown, and the likelihood of each one's text is taken"),
    ("generate", "correct", "decoding until a stop, then the answer is extracted"),
):
    _PROTOCOLS.add(_name, Protocol(_name, _summary, _name, _measure, _ask, _score), Protocol)  # type: ignore[arg-type]
