"""What heads do while a model reasons in steps: effects on classes of tokens, and causal tests by patching."""

from lensprune.heads.reasoning.battery import primitives, task_texts
from lensprune.heads.reasoning.chains import Wording
from lensprune.heads.reasoning.classes import CLASSES, mark_solution
from lensprune.heads.reasoning.result import Primitives
from lensprune.heads.reasoning.selectivity import selectivity

__all__ = ["CLASSES", "Primitives", "Wording", "mark_solution", "primitives", "selectivity", "task_texts"]
