"""Base ↔ distilled: which parts of the weights carry the gain of distillation."""

from typing import TYPE_CHECKING

from lensprune.registry import lazy_names

if TYPE_CHECKING:
    from lensprune.replacement.measure import measure_replacement
    from lensprune.replacement.pair import ModelPair, model_pair
    from lensprune.replacement.parts import COMPONENTS, Part
    from lensprune.replacement.result import ReplacementRun
    from lensprune.replacement.variants import Replacement

__all__ = ["COMPONENTS", "ModelPair", "Part", "Replacement", "ReplacementRun", "measure_replacement", "model_pair"]

__getattr__ = lazy_names(__name__, ("parts", "variants", "result", "pair", "measure"))
