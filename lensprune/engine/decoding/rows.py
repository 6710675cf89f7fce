"""The rows of a decoder: one for each variant and request."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from lensprune.ablation.variants import Variant
from lensprune.engine.decoding.groups import kv_bytes_per_token
from lensprune.engine.decoding.prompts import PromptSet
from lensprune.engine.edits import first_layer
from lensprune.engine.marks import token_of
from lensprune.models.base import ModelFacts
from lensprune.protocols.requests import GenerateRequest

__all__ = ["RowTable"]


@dataclass(frozen=True)
class RowTable:
    """Rows numbered variant by variant, those of each in the order of `requests`.

    `variants` are sorted by first changed layer, which `firsts` holds, and `order` says where each was in the caller's
    list. `requests` have no marks; `prompts` has.
    """

    variants: list[Variant]
    order: list[int]
    firsts: np.ndarray
    requests: list[GenerateRequest]
    prompts: PromptSet
    prompt_of_request: np.ndarray
    n_layers: int

    @classmethod
    def of(cls, variants: Sequence[Variant], requests: Sequence[GenerateRequest], n_layers: int) -> RowTable:
        """Of variants in any order; contexts of the requests may be `marked`."""
        order = sorted(range(len(variants)), key=lambda i: first_layer(variants[i], n_layers))
        prompts = PromptSet.of([request.context_ids for request in requests])
        place = {prompt: i for i, prompt in enumerate(prompts.prompts)}
        return cls(
            variants=[variants[i] for i in order],
            order=order,
            firsts=np.array([first_layer(variants[i], n_layers) for i in order]),
            requests=[replace(r, context_ids=tuple(map(token_of, r.context_ids))) for r in requests],
            prompts=prompts,
            prompt_of_request=np.array([place[request.context_ids] for request in requests]),
            n_layers=n_layers,
        )

    @cached_property
    def fingerprint(self) -> int:
        """Of the prompts, their layout and the requests; where it is equal, keys and values can be exchanged."""
        prompts = self.prompts
        tokens = [token_of(token) for prompt in prompts.prompts for token in prompt]
        layout = [prompts.lengths, prompts.rest, prompts.last_token, prompts.block_of, prompts.widths, tokens]
        generated = [request.max_new_tokens for request in self.requests]
        parts = [np.asarray(part, dtype=np.int64).reshape(-1) for part in (*layout, self.prompt_of_request, generated)]
        return zlib.crc32(np.concatenate([*parts, [len(part) for part in parts]]).tobytes())

    def __len__(self) -> int:
        return len(self.variants) * len(self.requests)

    @cached_property
    def most(self) -> int:
        """Most tokens that a row generates."""
        return max(request.max_new_tokens for request in self.requests)

    def rows_of(self, variants: range) -> np.ndarray:
        """All rows of consecutive variants."""
        return np.arange(variants.start * len(self.requests), variants.stop * len(self.requests))

    def variant_of(self, rows: np.ndarray) -> np.ndarray:
        return rows // len(self.requests)

    def request_of(self, rows: np.ndarray) -> np.ndarray:
        return rows % len(self.requests)

    def prompt_of(self, rows: np.ndarray) -> np.ndarray:
        return self.prompt_of_request[self.request_of(rows)]

    def block_of(self, rows: np.ndarray) -> np.ndarray:
        """The block of each row's prompt, see `PromptSet`."""
        return self.prompts.block_of[self.prompt_of(rows)]

    def first_of(self, rows: np.ndarray) -> np.ndarray:
        """The first layer that each row's variant changes."""
        return self.firsts[self.variant_of(rows)]

    def differs_below(self, variant: int, layer: int) -> bool:
        """Whether the variant has keys and values of its own at this layer."""
        return self.firsts[variant] < layer and not any(
            a.replaces_block and a.component.layer == layer for a in self.variants[variant].ablations
        )

    @cached_property
    def own_layers(self) -> np.ndarray:
        """At how many layers each variant has keys and values of its own."""
        layers = range(self.n_layers)
        return np.array([sum(self.differs_below(v, layer) for layer in layers) for v in range(len(self.variants))])

    def most_kv_bytes(self, rows: np.ndarray, facts: ModelFacts) -> int:
        """Most bytes of keys and values that the rows may come to: each has its last token, and no two agree.

        Those of the clean model's prompts are not among them.
        """
        variants = self.variant_of(rows)
        layers = self.own_layers[variants]
        tokens = layers * np.array(self.prompts.widths)[self.block_of(rows)]
        tokens += (layers + np.minimum(self.first_of(rows) + 1, self.n_layers)) * self.most
        prefixes = int(self.own_layers[np.unique(variants)].sum()) * self.prompts.shared_tokens
        return kv_bytes_per_token(facts) * (int(tokens.sum()) + prefixes)
