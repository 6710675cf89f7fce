"""Two models that differ only in their weights, checked before anything is replaced."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lensprune.engine.scoring import eos_token_ids
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.models.bridge import BridgeModel
from lensprune.precision import doubled, widened
from lensprune.replacement.in_place import replaced
from lensprune.replacement.parts import Host, Part, WeightChange
from lensprune.replacement.tensors import part_tensors, plain_attention, require_bridge, twin_tensors, weights_are_tied

__all__ = ["ModelPair", "check_tokenizers", "model_pair", "weight_change"]

_NOT_FUNCTION = frozenset(
    {
        "_name_or_path", "architectures", "attention_dropout", "attn_pdrop", "bos_token_id",
        "chunk_size_feed_forward", "classifier_dropout", "dtype", "embd_pdrop", "eos_token_id",
        "hidden_dropout", "hidden_dropout_prob", "id2label", "initializer_range", "is_encoder_decoder",
        "label2id", "max_position_embeddings", "max_window_layers", "output_attentions",
        "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type", "resid_pdrop",
        "return_dict", "summary_first_dropout", "task_specific_params", "torch_dtype", "transformers_version",
        "use_cache",
    }
)  # fmt: skip
"""Fields of a configuration that do not change what a forward pass computes from given weights."""

_PROBE_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Relative tolerance of logits, by their `accumulation_dtype`; half precision sums in the same order too."""


@dataclass(frozen=True)
class ModelPair:
    """A base and a distilled model of one shape and one tokenizer."""

    base: BridgeModel
    distilled: BridgeModel
    tied: bool
    notes: tuple[str, ...]

    def host(self, which: Host) -> BridgeModel:
        return self.base if which == "base" else self.distilled

    def replaced(self, parts: Sequence[Part], alpha: float = 1.0) -> AbstractContextManager[None]:
        """Context manager in which both models have each other's `parts` (at α = 1), or are interpolated by α."""
        pairs: dict[tuple[int, tuple[int, ...]], tuple[torch.Tensor, torch.Tensor]] = {}
        for part in parts:
            here, there = part_tensors(self.base, part), part_tensors(self.distilled, part)
            if here.keys() != there.keys():
                missing = sorted(here.keys() ^ there.keys())[0]
                raise UserError(f"{part.label} can't be replaced: only one of the two models holds {missing}")
            for name, tensor in here.items():
                # A norm inside two parts of one set is replaced once.
                pairs[tensor.data_ptr(), tuple(tensor.shape)] = (tensor, there[name])
        return replaced(list(pairs.values()), alpha)


def model_pair(base: HookedModel, distilled: HookedModel, *, renamed_tokens: bool = False) -> ModelPair:
    """Check that the two models can exchange weights.

    Args:
        renamed_tokens: accept special tokens of the same ids that the two spell differently, with a note.

    Raises:
        UserError: another kind of model, architecture, dtype or device; the first parameter whose shape differs;
            a setting that changes what the weights mean; the first token that differs; or an architecture in which
            an exchange does not reach the hooked model.
    """
    a, b = require_bridge(base), require_bridge(distilled)
    if a is b or a.raw_model is b.raw_model:
        raise UserError("base and distilled are the same loaded model: load it twice to exchange its parts with itself")
    for what in ("architecture", "dtype", "device", "bos_policy"):
        here, there = getattr(a.facts, what), getattr(b.facts, what)
        if here != there:
            raise UserError(f"base and distilled differ in {what}: {here} and {there}")
    _check_shapes(a, b)
    _check_configs(a.raw_model.config, b.raw_model.config)  # type: ignore[union-attr]
    renamed = check_tokenizers(a.tokenizer, b.tokenizer, renamed_tokens)
    tied = weights_are_tied(a)
    if tied != weights_are_tied(b):
        raise UserError("only one of base and distilled ties its unembedding to its embedding")
    pair = ModelPair(a, b, tied, ())
    _check_reach(pair)
    return ModelPair(a, b, tied, (*renamed, *_notes(pair)))


def _check_shapes(base: BridgeModel, distilled: BridgeModel) -> None:
    here = {n: tuple(p.shape) for n, p in base.raw_model.named_parameters()}  # type: ignore[union-attr]
    there = {n: tuple(p.shape) for n, p in distilled.raw_model.named_parameters()}  # type: ignore[union-attr]
    for name in [*here, *(n for n in there if n not in here)]:
        if here.get(name) != there.get(name):
            shapes = [("none" if shape is None else str(list(shape))) for shape in (here.get(name), there.get(name))]
            raise UserError(
                f"base and distilled differ in shape: {name} is {shapes[0]} in base, {shapes[1]} in distilled"
            )


def _check_configs(base: Any, distilled: Any) -> None:
    known = type(base)().to_dict()
    here, there = base.to_dict(), distilled.to_dict()
    for name in known:
        if name not in _NOT_FUNCTION and here.get(name) != there.get(name):
            raise UserError(
                f"base and distilled compute differently: {name} is {here.get(name)} in base, {there.get(name)} in "
                "distilled, so exchanging weights would not turn one into the other"
            )


def check_tokenizers(
    base: PreTrainedTokenizerBase, distilled: PreTrainedTokenizerBase, renamed_tokens: bool
) -> list[str]:
    """Refuse tokenizers that encode a text differently.

    Returns:
        A note about special tokens with different names, if `renamed_tokens` accepts them.
    """
    here = {i: token for token, i in base.get_vocab().items()}
    there = {i: token for token, i in distilled.get_vocab().items()}
    differing = [i for i in sorted(here.keys() | there.keys()) if here.get(i) != there.get(i)]
    # A special token is cut out of a text before anything else, so its spelling changes no other token.
    special = set(base.added_tokens_decoder) & set(distilled.added_tokens_decoder)
    for i in differing:
        if i not in special:
            raise UserError(
                f"base and distilled have different tokenizers: token {i} is {here.get(i)!r} in base, {there.get(i)!r} "
                "in distilled"
            )
    named = ", ".join(f"{i} ({here[i]!r} in base, {there[i]!r} in distilled)" for i in differing[:3])
    if len(differing) > 3:
        named += f" and {len(differing) - 3} more"
    if differing and not renamed_tokens:
        raise UserError(
            f"base and distilled spell special tokens differently: {named}; all else is the same: accept that with "
            "renamed_tokens=True (--renamed-tokens) if no prompt spells one out"
        )
    rules = [_rules(tokenizer, differing) for tokenizer in (base, distilled)]
    for name in rules[0]:
        if rules[0][name] != rules[1][name]:
            raise UserError(
                f"base and distilled have different tokenizers: the same tokens, but another {name.replace('_', ' ')}"
            )
    return [f"special tokens are spelled differently: {named}"] if differing else []


def _rules(tokenizer: PreTrainedTokenizerBase, renamed: Sequence[int]) -> dict[str, str]:
    """What determines ids besides the vocabulary, by section; tokens whose ids are in `renamed` are listed by id."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    sections = json.loads(backend.to_str()) if backend is not None else {}
    kept = ("normalizer", "pre_tokenizer", "post_processor", "model", "added_tokens")
    names = {str(tokenizer.convert_ids_to_tokens(i)): f"token {i}" for i in renamed}

    def by_id(value: Any) -> Any:
        if isinstance(value, dict):
            return {names.get(key, key): by_id(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [by_id(entry) for entry in value]
        return names.get(value, value) if isinstance(value, str) else value

    rules = {name: by_id(sections.get(name)) for name in kept}
    rules["added_tokens"] = [token for token in rules["added_tokens"] or () if token["id"] not in renamed]
    # Prompts contain no padding token.
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    rules["special_tokens"] = {name: by_id(str(token)) for name, token in special.items()}
    return {name: json.dumps(rule, sort_keys=True) for name, rule in rules.items()}


def _check_reach(pair: ModelPair) -> None:
    """Exchange one layer and check that both models change, and that the bridge still computes what its twin does."""
    device = pair.base.facts.device
    ids = (torch.arange(12, device=device) * 7 + 3).remainder(pair.base.facts.d_vocab)[None]
    positions = torch.arange(12, device=device)[None]
    with torch.no_grad(), pair.replaced([Part("layer", pair.base.facts.n_layers - 1)]):
        for model in (pair.base, pair.distilled):
            hooked = widened(model.forward(ids, torch.ones_like(ids), positions))
            with plain_attention(model) as twin:
                plain = widened(
                    twin(
                        input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=False
                    ).logits
                )
            scale = max(1.0, float(plain.abs().max()))
            if not float((hooked - plain).abs().max()) <= _PROBE_TOLERANCE[plain.dtype] * scale:
                raise UserError(
                    f"weights of {pair.base.facts.architecture} can't be replaced in place: its hooked model keeps "
                    "copies that an exchange does not reach"
                )


def weight_change(pair: ModelPair, parts: Sequence[Part]) -> WeightChange:
    """‖distilled − base‖ over the weights of `parts`, each counted once, and that over ‖base‖; sums in float64."""
    changed = size = 0.0
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for part in parts:
        there = twin_tensors(pair.distilled, part)
        for name, tensor in twin_tensors(pair.base, part).items():
            key = (tensor.data_ptr(), tuple(tensor.shape))
            if key not in seen:
                seen.add(key)
                old = doubled(tensor.detach())
                changed += float((doubled(there[name].detach()) - old).pow(2).sum())
                size += float(old.pow(2).sum())
    return WeightChange(changed**0.5, (changed / size) ** 0.5 if size else float("nan"))


def _notes(pair: ModelPair) -> list[str]:
    notes = []
    if pair.base.facts.weights_hash == pair.distilled.facts.weights_hash:
        notes.append("both models have the same weights, so no replacement changes anything")
    for component in ("embed", "unembed", "norms"):
        if component == "unembed" and pair.tied:
            notes.append("the unembedding is the embedding (tied): they are replaced together")
            continue
        layers = range(pair.base.facts.n_layers) if component == "norms" else ()
        change = weight_change(pair, [*(Part(component, layer) for layer in layers), Part(component)])
        state = "identical" if change.absolute == 0 else f"different (‖ΔW‖/‖W‖ = {change.relative:.3g})"
        notes.append(f"{component}: {state}")
    ends = [sorted(eos_token_ids(model)) for model in (pair.base, pair.distilled)]
    if ends[0] != ends[1]:
        notes.append(f"texts end at different tokens: {ends[0]} in base, {ends[1]} in distilled")
    contexts = (pair.base.facts.n_ctx, pair.distilled.facts.n_ctx)
    if contexts[0] != contexts[1]:
        notes.append(f"contexts of {contexts[0]} and {contexts[1]} tokens: prompts are cut to the shorter")
    return notes
