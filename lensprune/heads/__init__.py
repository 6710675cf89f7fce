"""What the attention heads of a model do: one number a head and function."""

from lensprune.heads.scores import SCORES, head_scores, score_names
from lensprune.heads.table import scores_with_effects, top_heads

__all__ = ["SCORES", "head_scores", "score_names", "scores_with_effects", "top_heads"]
