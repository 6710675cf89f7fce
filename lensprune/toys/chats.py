"""Training texts for the thinking toy: chains in its chat template, with or without thinking."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from transformers import PreTrainedTokenizerFast

from lensprune.tasks.base import Doc
from lensprune.toys.texts import Piece, Text, TextSource, direct_answer
from lensprune.toys.tokenizer import END_OF_THOUGHT, THOUGHT

__all__ = ["ChatSource"]

_SHOTS = (0, 0, 0, 1, 2, 4)
_EXAMPLES_PER_TEXT = 8
_OPERANDS = (2, 3, 3, 4, 4)
_THINKING = 0.7
_CUT = 0.25
_AS_TURNS = 0.3
_THOUGHT_TOKENS = re.compile(r" [^ .]+|\.")


class ChatSource(TextSource):
    """An endless stream of chats, the same for the same seed, on the questions of `TextSource`.

    With thinking, the worked steps are between the think markers and only the answer follows; without, the answer
    follows the empty block that the template writes. Some thoughts are cut at a random point; the end marker after them
    is not learnt, since a thinking budget forces it, and the answer must be given from the steps so far.
    """

    def __init__(self, seed: int, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(seed, worked=True)
        self._tokenizer = tokenizer

    def chat(self, operands: int, *, thinking: bool, cut: bool = False, shots: int = 0, as_turns: bool = False) -> Text:
        """One question and its answer.

        Args:
            cut: end the thinking early, at a random token.
            shots: examples with worked steps, in the question's message as in a default evaluation.
            as_turns: make each example a separate turn.
        """
        fmt = self._chains[operands]
        subtract = self._draw_subtract()
        *examples, row = [self._question(operands, subtract) for _ in range(shots + 1)]
        turns = [(fmt.context(doc), fmt.target(doc)) for doc in examples] if as_turns else []
        question = fmt.context(row) if as_turns else self.example_prompt(operands, examples, row)
        messages = [
            {"role": role, "content": content}
            for turn in turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
        prompt = self._tokenizer.apply_chat_template(
            [*messages, {"role": "user", "content": question}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
        answer = f"{fmt.target_delimiter}{_answer(row, operands)}{self._tokenizer.eos_token}"
        if not thinking:
            return [Piece(str(prompt), False), Piece(answer, True)]
        tokens = _THOUGHT_TOKENS.findall(f"{fmt.target_delimiter}{row['steps']}")
        if cut:
            tokens = tokens[: self._random.randrange(len(tokens))]
        return [
            Piece(str(prompt), False),
            Piece(THOUGHT + "".join(tokens), True),
            Piece(END_OF_THOUGHT, not cut),
            Piece(answer, True),
        ]

    def mixed(self) -> Text:
        """One or several independent chats, one after another."""
        shots = self._random.choice(_SHOTS)
        pieces: Text = []
        for _ in range(self._random.randint(1, _EXAMPLES_PER_TEXT // (shots + 1))):
            thinking = self._random.random() < _THINKING
            pieces += self.chat(
                self._random.choice(_OPERANDS),
                thinking=thinking,
                cut=thinking and self._random.random() < _CUT,
                shots=shots,
                as_turns=self._random.random() < _AS_TURNS,
            )
        return pieces

    def kinds(self) -> dict[str, Callable[[], Text]]:
        """Chats of each kind, as in a default evaluation."""
        return {
            f"chains of {operands}{' with thought' if thinking else ''}": partial(
                self.chat, operands, thinking=thinking, shots=4
            )
            for operands in (3, 4)
            for thinking in (True, False)
        }


def _answer(row: Doc, operands: int) -> str:
    return direct_answer(row) if operands > 2 else str(row["answer"])
