"""How an item is prompted and scored."""

from typing import TYPE_CHECKING

from lensprune.registry import lazy_names

if TYPE_CHECKING:
    from lensprune.protocols.aggregation import aggregate
    from lensprune.protocols.base import Failure, ItemRequests, Outcome, Prompt
    from lensprune.protocols.building import build_requests, score_items
    from lensprune.protocols.degenerate import is_degenerate
    from lensprune.protocols.encoding import ask_prompt
    from lensprune.protocols.registry import Protocol, protocol_named, protocol_names, register_protocol
    from lensprune.protocols.requests import (
        GenerateRequest,
        GenerateResponse,
        LoglikelihoodRequest,
        LoglikelihoodResponse,
        Request,
        Response,
    )
    from lensprune.protocols.scoring import score_answer
    from lensprune.protocols.stop_strings import StopStrings
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
    "Protocol",
    "Request",
    "Response",
    "StopMatcher",
    "StopStrings",
    "aggregate",
    "ask_prompt",
    "build_requests",
    "is_degenerate",
    "protocol_named",
    "protocol_names",
    "register_protocol",
    "score_answer",
    "score_items",
]

__getattr__ = lazy_names(
    __name__,
    (
        "registry",
        "requests",
        "base",
        "degenerate",
        "stop_strings",
        "stopping",
        "scoring",
        "aggregation",
        "encoding",
        "building",
    ),
)
