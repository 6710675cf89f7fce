"""Base ↔ distilled: which parts of the weights carry what distillation brought."""

from lensprune.replacement.measure import measure_delta
from lensprune.replacement.pair import ModelPair, model_pair
from lensprune.replacement.parts import COMPONENTS, Part
from lensprune.replacement.result import DeltaRun
from lensprune.replacement.swaps import Swap

__all__ = ["COMPONENTS", "DeltaRun", "ModelPair", "Part", "Swap", "measure_delta", "model_pair"]
