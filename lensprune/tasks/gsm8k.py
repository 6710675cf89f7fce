"""GSM8K (Cobbe et al. 2021): grade-school word problems with worked steps, also with a chain-of-thought prompt."""

from __future__ import annotations

import re

from lensprune.tasks.base import Doc, Task
from lensprune.tasks.numeric import number_choices, number_generation, numeric_chance
from lensprune.tasks.registry import register_task
from lensprune.tasks.sources import Dataset

__all__ = ["CHAIN_OF_THOUGHT_EXAMPLES", "CHAIN_OF_THOUGHT_PATTERN", "CHAIN_OF_THOUGHT_UNTIL", "gsm8k", "gsm8k_cot"]

_ROWS = Dataset(folder="gsm8k", columns=("question", "answer"), hub="openai/gsm8k", config="main")
_LICENCE = "MIT"
_SOURCE = "https://github.com/openai/grade-school-math"

CHAIN_OF_THOUGHT_PATTERN = r"The answer is (\-?[0-9\.\,]+)."
CHAIN_OF_THOUGHT_UNTIL = ("Q:", "</s>", "<|im_end|>")
CHAIN_OF_THOUGHT_EXAMPLES: tuple[Doc, ...] = (
    {
        "question": "There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they "
        "are done, there will be 21 trees. How many trees did the grove workers plant today?",
        "target": "There are 15 trees originally. Then there were 21 trees after some more were planted. So there "
        "must have been 21 - 15 = 6. The answer is 6.",
    },
    {
        "question": "If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking "
        "lot?",
        "target": "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5. The answer is 5.",
    },
    {
        "question": "Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have left "
        "in total?",
        "target": "Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. After "
        "eating 35, they had 74 - 35 = 39. The answer is 39.",
    },
    {
        "question": "Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many "
        "lollipops did Jason give to Denny?",
        "target": "Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave Denny 20 - "
        "12 = 8. The answer is 8.",
    },
    {
        "question": "Shawn has five toys. For Christmas, he got two toys each from his mom and dad. How many toys does "
        "he have now?",
        "target": "Shawn started with 5 toys. If he got 2 toys each from his mom and dad, then that is 4 more toys. 5 "
        "+ 4 = 9. The answer is 9.",
    },
    {
        "question": "There were nine computers in the server room. Five more computers were installed each day, from "
        "monday to thursday. How many computers are now in the server room?",
        "target": "There were originally 9 computers. For each of 4 days, 5 more computers were added. So 5 * 4 = 20 "
        "computers were added. 9 + 20 is 29. The answer is 29.",
    },
    {
        "question": "Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On wednesday, he lost 2 more. How "
        "many golf balls did he have at the end of wednesday?",
        "target": "Michael started with 58 golf balls. After losing 23 on tuesday, he had 58 - 23 = 35. After losing 2 "
        "more, he had 35 - 2 = 33 golf balls. The answer is 33.",
    },
    {
        "question": "Olivia has $23. She bought five bagels for $3 each. How much money does she have left?",
        "target": "Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 dollars. So she has 23 - 15 "
        "dollars left. 23 - 15 is 8. The answer is 8.",
    },
)
"""The eight examples of Wei et al. 2022 (chain-of-thought prompting, Table 20), as in lm-eval's gsm8k_cot."""


def final_answer(doc: Doc) -> str:
    """The number after ``####`` in a GSM8K row, or after "The answer is" in a chain-of-thought example.

    Raises:
        ValueError: the row has neither.
    """
    if "answer" in doc:
        _, mark, number = str(doc["answer"]).rpartition("####")
        if not mark:
            raise ValueError("the answer has no '####' before its number")
        return number.strip()
    match = re.search(r"The answer is (.*)\.$", str(doc["target"]))
    if match is None:
        raise ValueError("the example does not end in 'The answer is …'")
    return match[1]


def _question(doc: Doc) -> str:
    return f"Question: {doc['question']}"


def _prompt(doc: Doc) -> str:
    return f"Question: {doc['question']}\nAnswer:"


def _cot_question(doc: Doc) -> str:
    return f"Q: {doc['question']}"


def _cot_prompt(doc: Doc) -> str:
    return f"Q: {doc['question']}\nA:"


@register_task
def gsm8k() -> Task:
    """lm-eval's ``gsm8k`` under ``generate`` (5 shots drawn per item; strict-match decides)."""
    return Task(
        name="gsm8k",
        summary="grade-school word problems, worked steps, 5 shots",
        kind="reasoning",
        formats={
            **number_choices(_question, _prompt, final_answer),
            "generate": number_generation(
                _prompt,
                lambda doc: str(doc["answer"]),
                final_answer,
                strict_pattern=r"#### (\-?[0-9\.\,]+)",
                until=("Question:", "</s>", "<|im_end|>"),
            ),
        },
        chance=numeric_chance,
        load=_ROWS,
        default_shots=5,
        lm_eval={"generate": "gsm8k"},
        licence=_LICENCE,
        source=_SOURCE,
    )


@register_task
def gsm8k_cot() -> Task:
    """lm-eval's ``gsm8k_cot`` under ``generate`` (8 fixed examples, the same for all items)."""
    return Task(
        name="gsm8k_cot",
        summary="GSM8K with the eight fixed chain-of-thought examples of Wei et al.",
        kind="reasoning",
        formats={
            **number_choices(_cot_question, _cot_prompt, final_answer),
            "generate": number_generation(
                _cot_prompt,
                lambda doc: final_answer(doc) if "answer" in doc else str(doc["target"]),
                final_answer,
                strict_pattern=CHAIN_OF_THOUGHT_PATTERN,
                until=CHAIN_OF_THOUGHT_UNTIL,
            ),
        },
        chance=numeric_chance,
        load=_ROWS,
        default_shots=8,
        fewshot_sampler="first_n",
        fixed_fewshot=CHAIN_OF_THOUGHT_EXAMPLES,
        lm_eval={"generate": "gsm8k_cot"},
        licence=_LICENCE,
        source=_SOURCE,
    )
