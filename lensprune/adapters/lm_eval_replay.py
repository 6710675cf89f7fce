"""Two lm-eval models: one that only records requests, and one that replays stored answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lensprune.errors import LensPruneError, UserError
from lensprune.models import encode, prefix_token_id
from lensprune.models.base import HookedModel
from lensprune.protocols.encoding import generate_request, loglikelihood_request, needed_prefix
from lensprune.protocols.requests import (
    GenerateResponse,
    LoglikelihoodRequest,
    LoglikelihoodResponse,
    Request,
    Response,
)
from lensprune.tasks.generation_settings import greedy_settings

__all__ = ["Key", "RecordingLM", "ReplayingLM"]

Key = tuple[str, str]
"""Kind of request, and its arguments as JSON."""


def request_key(instance: Any) -> Key:
    """The key that identifies equal lm-eval instances."""
    return instance.request_type, json.dumps(instance.args, sort_keys=True, default=str)


class _HookedLM(LM):
    """What lm-eval reads from a model besides its answers."""

    def __init__(self, model: HookedModel) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = model.tokenizer
        self.eot_token_id = model.tokenizer.eos_token_id
        self.max_length = model.facts.n_ctx

    def get_model_info(self) -> dict[str, Any]:
        facts = self.model.facts
        return {
            "model_dtype": facts.dtype,
            "model_source": facts.source,
            "model_weights_hash": facts.weights_hash,
            "model_bos_policy": facts.bos_policy,
        }


class RecordingLM(_HookedLM):
    """Records every request, equal ones once, and returns an arbitrary valid answer to each.

    A request's item is ``task/document`` of the first document that sends it.
    """

    def __init__(self, model: HookedModel) -> None:
        super().__init__(model)
        self._spans: dict[Key, tuple[int, int]] = {}
        self.requests: list[Request] = []

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        for instance in requests:
            self._record(instance, self._pair)
        return [(-1.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        for instance in requests:
            self._record(instance, self._windows)
        return [-1.0] * len(requests)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        for instance in requests:
            self._record(instance, self._generation)
        return [""] * len(requests)

    def answers(self, responses: Sequence[Response]) -> dict[Key, list[Response]]:
        """The executor's responses to `requests`, by lm-eval's requests (a rolling one has several)."""
        return {key: list(responses[start:end]) for key, (start, end) in self._spans.items()}

    def _record(self, instance: Any, build: Any) -> None:
        key = request_key(instance)
        if key in self._spans:
            return
        where = f"lm-eval task {instance.task_name!r}, document {instance.doc_id}"
        expected = 1 if build == self._windows else 2
        if len(instance.args) != expected:
            raise UserError(f"{where}: the request reads images or audio, which lensprune does not support")
        start = len(self.requests)
        item = f"{instance.task_name}/{instance.doc_id}"
        self.requests += [replace(request, item=item) for request in build(*instance.args, where)]
        self._spans[key] = (start, len(self.requests))

    def _pair(self, context: str, continuation: str, where: str) -> list[Request]:
        request, _ = loglikelihood_request(
            partial(encode, self.model), prefix_token_id(self.model), self.max_length, context, continuation, where
        )
        return [request]

    def _windows(self, text: str, where: str) -> list[Request]:
        windows = get_rolling_token_windows(
            token_list=encode(self.model, text),
            prefix_token=needed_prefix(prefix_token_id(self.model), where),
            max_seq_len=self.max_length,
            context_len=1,
        )
        pairs = [make_disjoint_window(window) for window in windows]
        return [LoglikelihoodRequest(tuple(context), tuple(continuation)) for context, continuation in pairs]

    def _generation(self, context: str, arguments: Mapping[str, Any], where: str) -> list[Request]:
        until, max_new_tokens = greedy_settings(arguments, (), where)
        request, _ = generate_request(
            partial(encode, self.model),
            prefix_token_id(self.model),
            self.max_length,
            context,
            until,
            max_new_tokens,
            where,
        )
        return [request]


class ReplayingLM(_HookedLM):
    """Answers from one variant's responses."""

    def __init__(self, model: HookedModel, answers: Mapping[Key, list[Response]], variant: str) -> None:
        super().__init__(model)
        self._answers = answers
        self._variant = variant

    def get_model_info(self) -> dict[str, Any]:
        return {**super().get_model_info(), "variant": self._variant}

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        return [(response.logprob, response.is_greedy) for (response,) in map(self._likelihoods, requests)]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        return [sum(response.logprob for response in self._likelihoods(instance)) for instance in requests]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        return [r.text for instance in requests for r in self._recall(instance) if isinstance(r, GenerateResponse)]

    def _likelihoods(self, instance: Any) -> list[LoglikelihoodResponse]:
        return [r for r in self._recall(instance) if isinstance(r, LoglikelihoodResponse)]

    def _recall(self, instance: Any) -> list[Response]:
        key = request_key(instance)
        if key not in self._answers:
            raise LensPruneError(
                f"lm-eval task {instance.task_name!r} makes different requests for document {instance.doc_id} each "
                "time, so variants cannot share them"
            )
        return self._answers[key]
