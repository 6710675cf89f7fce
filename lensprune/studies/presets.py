"""The study of arXiv 2510.02091 as named presets: which parts are swept on which tasks, and the choices made."""

from __future__ import annotations

from dataclasses import dataclass

from lensprune.tasks.bundled import DEMO_TASKS

__all__ = ["PRESETS", "Preset", "ReplacementPart", "StudyPart", "ThinkingPart"]

_ALL = ("default", "continuation", "generate")


@dataclass(frozen=True)
class StudyPart:
    """One sweep of a study; `depth` restricts it to layers between two shares of the depth, the first one included."""

    name: str
    question: str
    tasks: tuple[str, ...]
    protocols: tuple[str, ...]
    over: str
    ablation: str
    limit: int | None
    depth: tuple[float, float] | None = None

    def layers(self, n_layers: int) -> str | None:
        """The layers of `depth` as a selection reads them; ``None`` for all."""
        if self.depth is None:
            return None
        chosen = [layer for layer in range(n_layers) if self.depth[0] * n_layers <= layer < self.depth[1] * n_layers]
        return ",".join(map(str, chosen or [int(self.depth[0] * n_layers)]))


@dataclass(frozen=True)
class ReplacementPart:
    """One replacement of weights between the base and the distilled model, in both directions."""

    name: str
    question: str
    tasks: tuple[str, ...]
    protocols: tuple[str, ...]
    component: str
    mode: str
    limit: int | None


@dataclass(frozen=True)
class ThinkingPart:
    """Sweeps by generation of the base and the distilled model, with thinking on, off, and under `budgets` (tokens).

    `pair` is measured unless other models are given; ``None``: the preset's own.
    """

    name: str
    question: str
    tasks: tuple[str, ...]
    over: str
    ablation: str
    limit: int | None
    shots: int | None
    max_new_tokens: int
    budgets: tuple[int, ...]
    pair: tuple[str, str] | None = None


@dataclass(frozen=True)
class Preset:
    """The sweeps of a study, and the choices that the paper leaves open.

    `pair` is the base and the distilled model that are compared unless others are given; without either the study
    has no such part. `pair_sweeps` run on both of them, `replacements` exchange weights between them, and `thinking`
    measures both in their own chat formats.
    """

    name: str
    summary: str
    parts: tuple[StudyPart, ...]
    choices: tuple[str, ...]
    pair: tuple[str, str] | None
    pair_sweeps: tuple[StudyPart, ...]
    replacements: tuple[ReplacementPart, ...]
    thinking: tuple[ThinkingPart, ...] = ()


def _replacements(task: str, limit: int) -> tuple[ReplacementPart, ...]:
    """Attention outputs and whole layers, one by one and cumulatively from the bottom."""
    made = []
    for component, words in (("attention_output", "attention output"), ("layer", "layer")):
        single = f"What does each {words} bring, put into the base or missing from the distilled model?"
        cumulative = f"And {words}s 1, 2, … from the bottom together?"
        for mode, question in (("single", single), ("cumulative", cumulative)):
            made.append(
                ReplacementPart(f"{component}-{mode}", question, (task,), ("generate",), component, mode, limit)
            )
    return tuple(made)


_CHOICES = (
    "Layers are skipped (the block adds nothing); branches, heads and key/value groups are set to zero.",
    "A head is one query head; key/value groups are swept separately.",
    "Items, examples and generated tasks are drawn with seed 0 unless another is given.",
    "Greedy decoding with the task's stop strings and limit.",
    "Intervals are paired over items; q is the false discovery rate of one-sided tests within a task and protocol.",
    "Early layers are the first 30% of the depth; a loss of less than 0.05 counts as none.",
    "Base and distilled model answer the same items, with the same prompts; for thinking, each in its own chat "
    "format if it has one.",
    "Exchanged weights are copied whole, in both directions; cumulative exchanges begin at the bottom; prompts and "
    "decoding are then the distilled model's for both.",
)
_CHAINS = "arithmetic[operands=3,largest=9,subtract=True]"
_LONG_CHAINS = "arithmetic[operands=4,largest=9,subtract=True]"
_KV_SHORT = "kv_retrieval[pairs=4,ending=reopened,answer=text]"
_KV = "kv_retrieval[ending=reopened,answer=text]"

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "smoke",
            "Bundled tasks with few items: it runs every kind of sweep, but can detect only the largest losses.",
            (
                StudyPart(
                    "layers", "Which layers are needed, and does the protocol matter?",
                    DEMO_TASKS, _ALL, "layers", "skip", 20,
                ),
                StudyPart(
                    "open-book", "Does a supporting fact change which layers are needed?",
                    ("facts", "facts_open"), ("continuation",), "layers", "skip", 20,
                ),
                StudyPart(
                    "heads", "Which heads of the middle layers carry retrieval?",
                    (_KV,), ("continuation",), "heads", "zero", 20, (0.5, 0.62),
                ),
            ),
            (
                "Tasks are the bundled ones, 20 items each; heads only of layers from 50% to 62% of the depth.",
                "The distilled pair is the bundled one of 4 layers, on chains of three numbers, which distilling "
                "taught it, and on retrieval, which both know; 100 items.",
                "For thinking, toy-base is compared with the toy that thinks, on chains of four numbers, of which "
                "budgets of 7, 13 and 19 tokens leave one, two and all three steps; 100 items.",
                *_CHOICES,
            ),
            ("toy-base", "toy-distilled"),
            (
                StudyPart(
                    "layers", "Does the distilled model need other layers than the base?",
                    (_CHAINS, _KV_SHORT), ("generate",), "layers", "skip", 100,
                ),
            ),
            _replacements(_CHAINS, 100),
            (
                ThinkingPart(
                    "thinking", "Does a model need other layers when it thinks first, and how much thinking?",
                    (_LONG_CHAINS,), "layers", "skip", 100, None, 60, (7, 13, 19), ("toy-base", "toy-thinker"),
                ),
            ),
        ),
        Preset(
            "full",
            "The paper's kinds of tasks with 200 items each, from the hub or --data-dir; made for one GPU.",
            (
                StudyPart(
                    "knowledge", "Which layers does knowledge need?",
                    ("mmlu", "hellaswag", "openbookqa", "openbookqa_open"), _ALL, "layers", "skip", 200,
                ),
                StudyPart(
                    "retrieval", "Which layers does retrieval need?",
                    (_KV, "kv_retrieval[pairs=20]"), _ALL, "layers", "skip", 200,
                ),
                StudyPart(
                    "reasoning", "Which layers does reasoning need?",
                    ("gsm8k_cot", "mathqa"), _ALL, "layers", "skip", 200,
                ),
                StudyPart(
                    "retrieval-heads", "Do few heads carry retrieval?", (_KV,), ("continuation",), "heads", "zero", 100
                ),
                StudyPart(
                    "retrieval-groups", "And key/value groups?", (_KV,), ("continuation",), "kv-groups", "zero", 100
                ),
                StudyPart(
                    "reasoning-heads", "Do few heads carry reasoning?",
                    ("gsm8k_cot",), ("generate",), "heads", "zero", 100,
                ),
            ),
            (
                "200 items per task (mmlu: 200 per subject), 100 for heads and groups.",
                "The distilled pair is the one given: its layers on 200 items of gsm8k_cot and of retrieval, "
                "exchanges on 100 of gsm8k_cot.",
                "For thinking, 100 items of gsm8k without examples; 4,096 new tokens, budgets of 256 and 1,024.",
                *_CHOICES,
            ),
            None,
            (
                StudyPart(
                    "layers", "Does the distilled model need other layers than the base?",
                    ("gsm8k_cot", _KV), ("generate",), "layers", "skip", 200,
                ),
            ),
            _replacements("gsm8k_cot", 100),
            (
                ThinkingPart(
                    "thinking", "Does a model need other layers when it thinks first, and how much thinking?",
                    ("gsm8k",), "layers", "skip", 100, 0, 4096, (256, 1024),
                ),
            ),
        ),
    )
}  # fmt: skip
"""Presets by name."""
