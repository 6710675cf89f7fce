"""What the attention heads of a model do: one number per head and function."""

from lensprune.heads.agreement import Agreement, importance_agreement
from lensprune.heads.compensation import Compensation, estimated_compensation, pairwise_compensation
from lensprune.heads.rankings import Rankings, importance_of, read_rankings
from lensprune.heads.registry import ScoreOptions, register_head_score
from lensprune.heads.removal import RemovalCurves, removal_curves
from lensprune.heads.repeats import repeat_effects
from lensprune.heads.result import HeadTable
from lensprune.heads.scores import SCORES, head_scores, score_names
from lensprune.heads.table import scores_with_effects, top_heads

__all__ = [
    "SCORES",
    "Agreement",
    "Compensation",
    "HeadTable",
    "Rankings",
    "RemovalCurves",
    "ScoreOptions",
    "estimated_compensation",
    "head_scores",
    "importance_agreement",
    "importance_of",
    "pairwise_compensation",
    "read_rankings",
    "register_head_score",
    "removal_curves",
    "repeat_effects",
    "score_names",
    "scores_with_effects",
    "top_heads",
]
