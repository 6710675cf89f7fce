"""Base ↔ distilled: which parts of the weights carry what distillation brought."""

from lensprune.delta.measure import measure_delta
from lensprune.delta.pair import ModelPair, model_pair
from lensprune.delta.parts import COMPONENTS, Part
from lensprune.delta.result import DeltaRun
from lensprune.delta.swaps import Swap

__all__ = ["COMPONENTS", "DeltaRun", "ModelPair", "Part", "Swap", "measure_delta", "model_pair"]
