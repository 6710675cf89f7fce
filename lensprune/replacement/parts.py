"""Parts of a model's weights that can be replaced by those of another model of the same shape."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lensprune.ablation.components import Attention, Head, check_component
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import ModelFacts

__all__ = ["COMPONENTS", "ComponentName", "Host", "Part", "WeightChange", "enumerate_parts", "whole_model"]

Host = Literal["base", "distilled"]
"""Which of the two models."""

ComponentName = Literal["attention_output", "attention", "mlp", "layer", "head", "norms", "embed", "unembed"]
"""``attention_output``: the attention's output projection. ``attention``: all its projections (and norms inside it).
``mlp``. ``layer``: the whole block with its norms. ``head``: a query head's rows of the query projection and its
columns of the output projection; keys and values belong to the group and stay. ``norms``: a block's norms, and the
final one. ``embed``: token and position embeddings. ``unembed``: the matrix that makes logits."""

COMPONENTS: tuple[str, ...] = get_args(ComponentName)
_WITHOUT_LAYER = ("embed", "unembed")


@dataclass(frozen=True)
class WeightChange:
    """Frobenius norm of distilled − base over a part's weights, and relative to the base's."""

    absolute: float
    relative: float


@dataclass(frozen=True)
class Part:
    """One component at one place; `layer` is ``None`` for embeddings, the unembedding and the final norm."""

    component: str
    layer: int | None = None
    head: int | None = None

    @property
    def label(self) -> str:
        if self.layer is None:
            return "final.norms" if self.component == "norms" else self.component
        if self.component == "layer":
            return f"L{self.layer}"
        return f"L{self.layer}.{f'H{self.head}' if self.component == 'head' else self.component}"

    @classmethod
    def parse(cls, label: str) -> Part:
        """The part with this label.

        Raises:
            ValueError: no part has it.
        """
        if label in _WITHOUT_LAYER:
            return cls(label)
        if label == "final.norms":
            return cls("norms")
        match = re.fullmatch(r"L(\d+)(?:\.(?:H(\d+)|(attention_output|attention|mlp|norms)))?", label)
        if match is None:
            raise ValueError(f"{label!r} is not the label of a part")
        layer, head, component = match.groups()
        return cls(component or ("layer" if head is None else "head"), int(layer), None if head is None else int(head))


def enumerate_parts(
    facts: ModelFacts, component: str, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> list[Part]:
    """The parts of one kind from bottom to top, in some layers (and heads) or in all.

    Raises:
        UserError: unknown component, a layer or head that the model lacks, or one given where it has no effect.
    """
    if component not in COMPONENTS:
        raise unknown_name("component", component, COMPONENTS)
    if heads is not None and component != "head":
        raise UserError(f"heads are given, but the component is {component}: use component head")
    if component in _WITHOUT_LAYER:
        if layers is not None:
            raise UserError(f"layers are given, but {component} has none: leave them out")
        return [Part(component)]
    chosen = list(range(facts.n_layers)) if layers is None else sorted(layers)
    for layer in chosen:
        check_component(Attention(layer), facts)
    if component == "head":
        wanted = range(facts.n_heads) if heads is None else heads
        for head in wanted:
            check_component(Head(0, head), facts)
        return [Part("head", layer, head) for layer in chosen for head in wanted]
    parts = [Part(component, layer) for layer in chosen]
    # The final norm comes after all layers, so it is left out where only some are chosen.
    return [*parts, Part("norms")] if component == "norms" and layers is None else parts


def whole_model(facts: ModelFacts) -> list[Part]:
    """Parts that together cover every weight."""
    return [Part("embed"), *(Part("layer", layer) for layer in range(facts.n_layers)), Part("norms"), Part("unembed")]
