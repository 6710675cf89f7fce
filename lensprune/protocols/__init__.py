"""How an item is asked and scored."""

from lensprune.protocols.aggregate import aggregate
from lensprune.protocols.base import Failure, ItemRequests, Outcome, Prompt
from lensprune.protocols.building import build_requests
from lensprune.protocols.degenerate import is_degenerate
from lensprune.protocols.requests import (
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    LoglikelihoodResponse,
    Request,
    Response,
)
from lensprune.protocols.scoring import score_items
from lensprune.protocols.stopping import StopMatcher

__all__ = [
    "Failure",
    "GenerateRequest",
    "GenerateResponse",
    "ItemRequests",
    "LoglikelihoodRequest",
    "LoglikelihoodResponse",
    "Outcome",
    "Prompt",
    "Request",
    "Response",
    "StopMatcher",
    "aggregate",
    "build_requests",
    "is_degenerate",
    "score_items",
]
