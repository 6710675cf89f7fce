"""Generation shared by both executors: which token comes next, what is forced, and when a text ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from lensprune.engine.greedy import GreedyRules
from lensprune.engine.sampling import draw, noise_key, warped
from lensprune.engine.scoring import eos_token_ids
from lensprune.models.base import HookedModel
from lensprune.precision import widened
from lensprune.protocols.requests import ForcedEnd, GenerateRequest, GenerateResponse, StopReason
from lensprune.protocols.stop_strings import StopStrings
from lensprune.protocols.stopping import StopMatcher

__all__ = ["Generation", "Generator", "RowWork"]


class Generation:
    """One request while it is answered, token by token. Made by `Generator.start`.

    Tokens of a `ForcedEnd` count as generated; neither a stop string nor EOS among them ends the text. With a
    `Thinking`, an end is forced only on thinking that has begun.
    """

    def __init__(self, request: GenerateRequest, matcher: StopMatcher, *, takes_likeliest: bool) -> None:
        self.request = request
        self._matcher = matcher
        self._end = request.forced_end
        """``None`` once the marker is written or forced, or where there was no thinking to end."""
        self._begun = request.thinking is None or request.thinking.opened
        self.takes_likeliest = takes_likeliest
        """Whether the next token, unless it is forced, is the one with the highest logit."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens so far."""
        return self._matcher.token_ids

    @property
    def last(self) -> int:
        """The newest token."""
        return self._matcher.last

    def __len__(self) -> int:
        return len(self._matcher)

    @property
    def forced(self) -> int | None:
        """The next token, where it is forced."""
        end, place = self._end, len(self)
        return None if end is None or place < end.after else end.forced_ids[place - end.after]

    def add(self, chosen: int, *, finite: bool = True) -> GenerateResponse | None:
        """Append `chosen`, or the token that is forced here. Returns the response if the text ends.

        Args:
            finite: whether the logits were finite; otherwise the text ends without the token.
        """
        if not finite:
            return self._matcher.response("non_finite")
        reason = self._matcher.push(chosen) if self._end is None else self._add_before_end(self._end, chosen)
        if reason is None and len(self._matcher) >= self.request.max_new_tokens:
            reason = "length"
        return None if reason is None else self._matcher.response(reason)

    def _add_before_end(self, end: ForcedEnd, chosen: int) -> StopReason | None:
        """As `add`, while an end may have to be forced; returns why the text ends."""
        reason, forced = None, self.forced
        if forced is None:
            reason = self._matcher.push(chosen)
            thinking = self.request.thinking
            self._begun |= thinking is not None and self._matcher.ends_in(thinking.start_ids)
            done = self._matcher.ends_in(end.marker_ids) or (len(self) == end.after and not self._begun)
        else:
            self._matcher.force(forced)
            done = len(self) == end.after + len(end.forced_ids)
        if done:
            self._end = None
        return reason


class Generator:
    """Starts a model's generations and chooses their next tokens."""

    def __init__(self, model: HookedModel) -> None:
        self._model = model
        self._rules: dict[str, GreedyRules] = {}
        self._stops: dict[tuple[str, ...], StopStrings] = {}
        self._eos: dict[str, frozenset[int]] = {}

    def start(self, request: GenerateRequest) -> Generation:
        """A generation with no token yet.

        Raises:
            UserError: the model's generation config applies and has an unsupported setting.
        """
        settings = self._rules_of(request).settings
        until, config = tuple(request.until), request.generation_config
        # Tokenizers take long to say what their special tokens are.
        if until not in self._stops:
            self._stops[until] = StopStrings(self._model.tokenizer, until)
        if config not in self._eos:
            self._eos[config] = eos_token_ids(self._model, config)
        matcher = StopMatcher(self._stops[until], self._eos[config], request.thinking)
        return Generation(request, matcher, takes_likeliest=request.sampling is None and not settings)

    def _rules_of(self, request: GenerateRequest) -> GreedyRules:
        config = request.generation_config
        if config not in self._rules:
            self._rules[config] = GreedyRules(self._model, config)
        return self._rules[config]

    def choose(
        self, logits: Float[torch.Tensor, "row d_vocab"], rows: Sequence[Generation]
    ) -> Int[torch.Tensor, " row"]:
        """The next token of each row, before any forced token: the most likely one, or a sampled one."""
        chosen = logits.argmax(-1)
        drawn: dict[tuple[float, float, int], list[int]] = defaultdict(list)
        changed: dict[int, Float[torch.Tensor, " d_vocab"]] = {}
        for place, row in enumerate(rows):
            if row.takes_likeliest or row.forced is not None:
                continue
            rules, sampling = self._rules_of(row.request), row.request.sampling
            if rules.settings:
                changed[place] = rules.scores(logits[place], row.request.context_ids, row.token_ids)
            if sampling is not None:
                drawn[sampling.temperature, sampling.top_p, sampling.top_k].append(place)
            elif place in changed:
                chosen[place] = changed[place].argmax()
        for places in drawn.values():
            scores, keys = widened(logits[places]), []
            for i, place in enumerate(places):
                sampling, row = rows[place].request.sampling, rows[place]
                assert sampling is not None
                keys.append(noise_key(sampling, row.request.item, len(row)))
                if place in changed:
                    scores[i] = changed[place]
            sampled = rows[places[0]].request.sampling
            assert sampled is not None
            chosen[places] = draw(warped(scores, sampled), keys)
        return chosen


class RowWork:
    """Fraction of each row that is done, by tokens: first its prompt, then each new token; see `WorkCallback`."""

    def __init__(self, prompt_tokens: Sequence[float], max_new_tokens: Sequence[int]) -> None:
        self._prompt, self._new = np.array(prompt_tokens, dtype=float), np.array(max_new_tokens, dtype=float)
        self._whole = self._prompt + self._new

    @property
    def prompts(self) -> Float[np.ndarray, " row"]:
        """Fraction of each row done once its prompt has run."""
        return self._prompt / self._whole

    def so_far(self, rows: np.ndarray, lengths: np.ndarray) -> Float[np.ndarray, " step_row"]:
        """Fraction of each of `rows` done with its prompt and so many new tokens."""
        return (self._prompt[rows] + lengths) / self._whole[rows]

    def step(self, rows: np.ndarray, ended_at: np.ndarray) -> Float[np.ndarray, " step_row"]:
        """Fraction of each of `rows` done by one more token.

        Args:
            ended_at: the length of each text that ends with this token; 0 for those that go on.
        """
        spared = np.where(ended_at > 0, self._new[rows] - ended_at, 0)
        return (1 + spared) / self._whole[rows]
