"""The sweeps that are timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lensprune.ablation import CLEAN, Variant, each_head, each_layer
from lensprune.tasks.base import ProtocolName

__all__ = ["WORKS", "Setting", "Work", "variants_of"]


@dataclass(frozen=True)
class Setting:
    """What both sides run: a model in one precision, on one device, with so many threads."""

    model: str
    device: str
    dtype: str
    threads: int

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class Work:
    """One sweep: every layer skipped or every head zeroed, and the clean model, on the first items of a task.

    `limit` counts items of each subject where there are subjects. Where a side would take too long it is timed on a
    sample and its time scaled: ours on the clean model and every `our_step`-th component, the peer, which shares
    nothing between variants or items, on `peer_variants` and the first `peer_limit` items (of each subject). lm-eval
    has no task for `hooked`'s works. With `screen`, so large a share of the heads is measured after an estimate of all.
    """

    name: str
    task: str
    protocol: ProtocolName
    over: Literal["layers", "heads"]
    limit: int
    shots: int | None
    peer: Literal["lm-eval", "hooked"] = "lm-eval"
    peer_variants: tuple[str, ...] = ("L3.skip", "L15.skip", "L27.skip")
    subjects: tuple[str, ...] = ()
    form: str = ""
    max_new_tokens: int | None = None
    our_step: int = 1
    peer_limit: int | None = None
    screen: float | None = None


SUBJECTS = ("anatomy", "philosophy", "virology")
HEADS = Work(
    "openbookqa_heads",
    "openbookqa",
    "continuation",
    "heads",
    40,
    0,
    peer_variants=("L3.H1.zero", "L15.H5.zero", "L27.H8.zero"),
    our_step=7,
)

WORKS: dict[str, Work] = {
    work.name: work
    for work in (
        Work("mmlu_default", "mmlu", "default", "layers", 12, 5, subjects=SUBJECTS, our_step=6),
        Work(
            "mmlu_continuation",
            "mmlu",
            "continuation",
            "layers",
            12,
            5,
            subjects=SUBJECTS,
            form="_continuation",
            our_step=6,
            peer_limit=3,
        ),
        Work("hellaswag", "hellaswag", "continuation", "layers", 40, 0, our_step=6),
        Work("gsm8k_cot", "gsm8k_cot", "generate", "layers", 16, 8, max_new_tokens=64),
        HEADS,
        replace(HEADS, name="openbookqa_heads_screened", our_step=1, screen=0.1),
        Work("kv_retrieval", "kv_retrieval", "generate", "layers", 12, None, peer="hooked"),
    )
}


def variants_of(work: Work, model: Any) -> Sequence[Variant]:
    """The clean model first, then every component."""
    return [CLEAN, *(each_layer(model) if work.over == "layers" else each_head(model))]
