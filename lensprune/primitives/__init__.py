"""What heads do while a model reasons in steps: effects on classes of tokens, and causal tests by patching."""

from lensprune.primitives.battery import primitives, task_texts
from lensprune.primitives.chains import Wording
from lensprune.primitives.classes import CLASSES, mark_solution
from lensprune.primitives.result import Primitives
from lensprune.primitives.selectivity import selectivity

__all__ = ["CLASSES", "Primitives", "Wording", "mark_solution", "primitives", "selectivity", "task_texts"]
