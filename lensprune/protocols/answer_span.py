"""How many tokens of a generated text it takes until the answer is right."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from lensprune.errors import LensPruneError
from lensprune.protocols.base import ItemRequests
from lensprune.protocols.requests import GenerateRequest, GenerateResponse, Response
from lensprune.protocols.scoring import score_generation
from lensprune.protocols.stopping import read_generation
from lensprune.tasks.base import GenerationFormat, LoadedTask
from lensprune.tasks.prompts import format_of

__all__ = ["answer_spans"]


def answer_spans(
    tokenizer: PreTrainedTokenizerBase,
    task: LoadedTask,
    items: Sequence[ItemRequests],
    responses: Sequence[Response],
) -> list[int]:
    """Count the tokens of each generated answer up to the point where it is right and stays right.

    This is the shortest prefix of the answer that the task's filter and metric accept, along with every longer prefix:
    ``" oxygen"`` of ``" oxygen\\n"``, the steps up to the last ``5`` of ``"3 + 4 = 7. 7 - 2 = 5. I hope so."``.
    Thinking before the answer is counted too. 0 if the whole answer is wrong.

    Raises:
        LensPruneError: a response is not a generation.
    """
    form = format_of(task.task, "generate")
    if not isinstance(form, GenerationFormat):
        raise LensPruneError(f"task {task.task.name} is not answered by generation")
    spans = []
    for item, response in zip(items, responses, strict=True):
        [request] = item.requests
        if not isinstance(response, GenerateResponse) or not isinstance(request, GenerateRequest):
            raise LensPruneError(f"item {item.item.id}: a log-likelihood was returned for a generation request")
        size = len(response.token_ids)
        if not score_generation(form, item.item, response).correct:
            spans.append(0)
            continue
        while size > 1:
            ids = response.token_ids[: size - 1]
            read = read_generation(tokenizer, request, ids, response.stop_reason)
            if not score_generation(form, item.item, read).correct:
                break
            size -= 1
        spans.append(size)
    return spans
