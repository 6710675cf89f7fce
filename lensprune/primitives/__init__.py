"""Roles of heads and MLPs in step-by-step reasoning: effects on token classes, and causal tests by patching."""

from lensprune.primitives.battery import primitives, task_texts
from lensprune.primitives.chains import Wording
from lensprune.primitives.classes import CLASSES, mark_solution
from lensprune.primitives.result import Primitives
from lensprune.primitives.selectivity import selectivity
from lensprune.primitives.where import where_effects

__all__ = [
    "CLASSES",
    "Primitives",
    "Wording",
    "mark_solution",
    "primitives",
    "selectivity",
    "task_texts",
    "where_effects",
]
