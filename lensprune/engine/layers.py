"""Run single decoder layers of a Hugging Face model of any family on a flat batch of tokens.

The model's own forward prepares what its layers need (embeddings, rotary angles per layer type): it runs once with
every layer replaced by a recorder. Later each layer is called with the recorded arguments and another residual. Final
norm, unembedding and logit caps are the model's own too: it runs with the last layer replaced by a source of residuals.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int

from lensprune.engine.attention import ATTENTION_NAME, AttentionPlan, AttentionSettings
from lensprune.engine.edits import Edit, LayerEdits
from lensprune.engine.norms import FusedNorms
from lensprune.engine.out_of_memory import out_of_memory
from lensprune.engine.rotary import fuse_rotary
from lensprune.errors import LensPruneError, first_line
from lensprune.models.base import HookedModel, ModelFacts
from lensprune.models.bridge import unhooked_copy
from lensprune.models.positions import row_index_floor

__all__ = ["FlatBatch", "LayerStack", "UnsupportedByFastPath", "errors_as_unsupported"]


class UnsupportedByFastPath(LensPruneError):
    """The model cannot be run layer by layer; the hooked executor can still run it."""


@contextmanager
def errors_as_unsupported(facts: ModelFacts) -> Iterator[None]:
    """Turn an error in the model's own code into `UnsupportedByFastPath`; out-of-memory errors pass through."""
    try:
        yield
    except UnsupportedByFastPath:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise UnsupportedByFastPath(
            f"{facts.architecture}: cannot run layer by layer ({type(error).__name__}: {first_line(error)})"
        ) from error


@dataclass
class FlatBatch:
    """Tokens in one flat row: their positions, and each layer's arguments other than the residual."""

    position_ids: Int[torch.Tensor, "1 tok"]
    arguments: dict[int, dict[str, Any]] = field(default_factory=dict)

    def take(self, index: Int[torch.Tensor, " taken"] | slice, layer: int) -> FlatBatch:
        """The tokens at `index`, in that order, with the arguments of one layer's call; views if it is a range."""
        position_ids = self.position_ids[:, index]

        def pick(value: Any) -> Any:
            if value is self.position_ids:
                return position_ids
            if not self.is_by_token(value):
                return value
            return value[:, index] if value.ndim > 1 else value[index]

        return FlatBatch(position_ids, {layer: self.mapped(layer, pick)})

    def is_by_token(self, value: Any) -> bool:
        """Whether an argument is a tensor [1, tok, ...] or [tok]."""
        size = self.position_ids.shape[1]
        return isinstance(value, torch.Tensor) and (value.shape[:2] == (1, size) or value.shape == (size,))

    def mapped(self, layer: int, change: Callable[[Any], Any]) -> dict[str, Any]:
        """The arguments of one layer's call with `change` applied to each value, in tuples and lists, too."""

        def walk(value: Any) -> Any:
            return type(value)(map(walk, value)) if isinstance(value, (tuple, list)) else change(value)

        return {name: walk(value) for name, value in self.arguments[layer].items()}


class AttentionRecorder:
    """An attention plan that records what a layer passes."""

    settings: AttentionSettings | None = None

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, settings: AttentionSettings
    ) -> Float[torch.Tensor, "tok head d_head"]:
        self.settings = settings
        return q.new_zeros(q.shape[1], q.shape[0], v.shape[-1])


def _window_of(config: Any, layer: int) -> tuple[int | None, int | None]:
    """Size of a layer's sliding window and of its attention chunks, each ``None`` where the layer has none."""
    types = getattr(config, "layer_types", None)
    kind = types[layer] if types else "sliding, chunked"
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    chunk = getattr(config, "attention_chunk_size", None)
    return (window or None) if "sliding" in kind else None, (chunk or None) if "chunked" in kind else None


class LayerStack:
    """The decoder layers of a model without hook points that shares the hooked model's weights.

    Raises:
        UnsupportedByFastPath: there is no such twin, or its layers do not have the expected form, or attend in a way
            that an `AttentionPlan` does not cover.
    """

    def __init__(self, model: HookedModel) -> None:
        raw: Any = getattr(model, "raw_model", None)
        if raw is None:
            why = getattr(model, "no_raw_model", "") or "its adapter has none"
            raise UnsupportedByFastPath(f"the model can't be run without its hook points: {why}")
        if model.facts.kept_hooks:
            raise UnsupportedByFastPath(f"the model has a custom hook at {model.facts.kept_hooks[0]}")
        if not {p.data_ptr() for p in raw.parameters()} <= {p.data_ptr() for p in model.module.parameters()}:
            raise UnsupportedByFastPath("parameters of the model were replaced after it was loaded")
        # A separate module tree over the same tensors, because parts of it are replaced for good.
        raw = unhooked_copy(raw)
        device = torch.device(model.facts.device)
        self._norms = FusedNorms(raw, device)
        fuse_rotary(raw, device)
        bridge: Any = model.module
        try:
            self._layers = list(raw.get_submodule(bridge.adapter.component_mapping["blocks"].name))
            self._branches = {
                slot: [
                    self._branch_module(block, layer, slot.value)
                    for block, layer in zip(bridge.blocks, self._layers, strict=True)
                ]
                for slot in LayerEdits().branches
            }
            self._projections = [
                self._projection(block, layer) for block, layer in zip(bridge.blocks, self._layers, strict=True)
            ]
        except (AttributeError, KeyError, ValueError) as error:
            raise UnsupportedByFastPath(
                f"{model.facts.architecture}: no single module computes what the ablations change ({error})"
            ) from error
        if row_index_floor(raw.config) is not None:
            raise UnsupportedByFastPath(
                f"{model.facts.architecture}: it scales queries by their index in the row, not by their position"
            )
        self._raw = raw
        self._n_heads = model.facts.n_heads
        self._signatures = [inspect.signature(layer.forward) for layer in self._layers]
        for signature in self._signatures:
            if "attention_mask" not in signature.parameters:
                raise UnsupportedByFastPath(f"{model.facts.architecture}: its layers take no attention_mask")
        self._set_attention(raw)
        try:
            with torch.no_grad():
                self._try_layers(model.facts)
        except UnsupportedByFastPath:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            # The plan is passed where the attention mask was, and nothing else was changed.
            raise UnsupportedByFastPath(
                f"{model.facts.architecture}: its layers use the attention mask themselves instead of passing it "
                "to transformers' attention functions"
            ) from error

    def _try_layers(self, facts: ModelFacts) -> None:
        """Run one token through the layers, and refuse layers in which an `AttentionPlan` or an edit can't take
        effect."""
        recorders = [AttentionRecorder() for _ in self._layers]

        def watched(layer: int, forward: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                bound = self._signatures[layer].bind(*args, **kwargs)
                bound.arguments["attention_mask"] = recorders[layer]
                out = forward(*bound.args, **bound.kwargs)
                if isinstance(out, tuple):
                    raise UnsupportedByFastPath(f"{facts.architecture}: layer {layer} returns more than the residual")
                return out

            return call

        token = torch.zeros(1, 1, dtype=torch.long, device=facts.device)
        with self._replaced([watched(i, layer.forward) for i, layer in enumerate(self._layers)]):
            self._raw.base_model(input_ids=token, position_ids=token, use_cache=False)
        config = self._raw.config.get_text_config()
        for layer, recorder in enumerate(recorders):
            where = f"{facts.architecture}: layer {layer}"
            settings = recorder.settings
            if settings is None:
                raise UnsupportedByFastPath(f"{where} does not attend through transformers' attention functions")
            if settings.sinks:
                raise UnsupportedByFastPath(f"{where} has attention sinks")
            window, chunk = _window_of(config, layer)
            # Only the mask would reveal it, and a plan takes the mask's place.
            if settings.window is None and window is not None and window < facts.n_ctx:
                raise UnsupportedByFastPath(f"{where} attends to {window} tokens, but its attention does not say so")
            if chunk is not None and chunk < facts.n_ctx:
                raise UnsupportedByFastPath(f"{where} attends within chunks of {chunk} tokens")

    @staticmethod
    def _branch_module(block: Any, layer: torch.nn.Module, site: str) -> torch.nn.Module:
        if site not in block.hook_aliases:
            raise ValueError(f"{site} is not a module's output, but computed from it")
        component, hook = _one_module(site, block.hook_aliases[site])
        if hook != "hook_out":
            raise ValueError(f"{site} is {block.hook_aliases[site]}")
        return layer.get_submodule(block.submodules[component].name)

    @staticmethod
    def _projection(block: Any, layer: torch.nn.Module) -> torch.nn.Module:
        """The module whose input is ``hook_z``, after any norm or gate on attention's result."""
        component, hook = _one_module("hook_z", block.attn.hook_aliases["hook_z"])
        if hook != "hook_in":
            raise ValueError(f"hook_z is {block.attn.hook_aliases['hook_z']}")
        attention = layer.get_submodule(block.submodules["attn"].name)
        return attention.get_submodule(block.attn.submodules[component].name)

    @property
    def projections(self) -> list[torch.nn.Module]:
        """The output projection of each layer's attention, whose input is ``hook_z``."""
        return self._projections

    @staticmethod
    def _set_attention(raw: torch.nn.Module) -> None:
        # Set on the configs that the attention modules hold: set_attn_implementation would refuse an
        # unknown name on some families (Gemma 2).
        for module in raw.modules():
            config = getattr(module, "config", None)
            if config is not None and hasattr(config, "_attn_implementation"):
                config._attn_implementation_internal = ATTENTION_NAME

    def refresh(self) -> None:
        """Recompute what depends on weights alone, which may have been changed in place since the last run."""
        self._norms.refresh()

    @property
    def n_layers(self) -> int:
        return len(self._layers)

    def begin(
        self, input_ids: Int[torch.Tensor, "1 tok"], position_ids: Int[torch.Tensor, "1 tok"]
    ) -> tuple[FlatBatch, Float[torch.Tensor, "1 tok d_model"]]:
        """Embed tokens and record each layer's arguments; returns them and the residual that enters layer 0."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def record(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            calls.append(((hidden, *args), kwargs))
            return hidden

        with self._replaced([record] * self.n_layers):
            # Without the unembedding, which has the largest weights.
            self._raw.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        batch = FlatBatch(position_ids)
        for layer, (signature, (args, kwargs)) in enumerate(zip(self._signatures, calls, strict=True)):
            bound = signature.bind(*args, **kwargs)
            arguments = dict(bound.arguments)
            for name, parameter in signature.parameters.items():
                if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    arguments.update(arguments.pop(name, {}))
            arguments.pop(next(iter(signature.parameters)))
            # An attention plan takes its place.
            arguments.pop("attention_mask", None)
            batch.arguments[layer] = arguments
        return batch, calls[0][0][0]

    def run_layer(
        self,
        layer: int,
        hidden: Float[torch.Tensor, "1 tok d_model"],
        batch: FlatBatch,
        plan: AttentionPlan,
        edits: LayerEdits | None = None,
    ) -> Float[torch.Tensor, "1 tok d_model"]:
        """Residual after `layer`, given the residual before it, with the edits of its heads, attention and MLP branch.

        Edits of the layer's whole contribution are left to the caller.

        Raises:
            UnsupportedByFastPath: a module whose input or output was to be edited did not run.
        """
        arguments = {**batch.arguments[layer], "attention_mask": plan}
        if edits is None:
            return self._layers[layer](hidden, **arguments)
        positions = batch.position_ids[0]
        silent = set()

        def heard(site: str, edit: Callable[..., Any]) -> Callable[..., Any]:
            silent.add(site)

            def call(*call_args: Any) -> Any:
                silent.discard(site)
                return edit(*call_args)

            return call

        with ExitStack() as stack:
            for slot, branch_edits in edits.branches.items():
                if branch_edits:
                    edit = heard(slot.value, _branch_hook(branch_edits, positions))
                    stack.callback(self._branches[slot][layer].register_forward_hook(edit).remove)
            if edits.heads or edits.zeroed is not None:
                edit = heard("hook_z", self._heads_hook(edits, positions))
                stack.callback(self._projections[layer].register_forward_pre_hook(edit).remove)
            after = self._layers[layer](hidden, **arguments)
        if silent:
            raise UnsupportedByFastPath(f"layer {layer} does not call the module behind {min(silent)}")
        return after

    def _heads_hook(self, edits: LayerEdits, positions: torch.Tensor) -> Callable[..., Any]:
        def replace(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            (z,) = args
            return (edits.edit_z(z.reshape(len(positions), self._n_heads, -1), positions).reshape(z.shape),)

        return replace

    def logits(self, hidden: Float[torch.Tensor, "tok d_model"]) -> Float[torch.Tensor, "tok d_vocab"]:
        """Final norm and unembedding of residuals that left the last layer."""
        tokens = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)

        def inject(_: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return hidden[None]

        def skip(residual: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return residual

        with self._replaced([skip] * (self.n_layers - 1) + [inject]):
            return self._raw(input_ids=tokens, position_ids=tokens, use_cache=False).logits[0]

    @contextmanager
    def _replaced(self, functions: list[Callable[..., Any]]) -> Iterator[None]:
        for layer, function in zip(self._layers, functions, strict=True):
            layer.forward = function
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward


def _one_module(site: str, alias: Any) -> tuple[str, str]:
    """Component and hook of an alias such as ``mlp.hook_out``."""
    parts = alias.split(".") if isinstance(alias, str) else []
    if len(parts) != 2:
        raise ValueError(f"{site} is {alias if isinstance(alias, str) else ' or '.join(alias)}")
    return parts[0], parts[1]


def _branch_hook(edits: list[Edit], positions: torch.Tensor) -> Callable[..., Any]:
    def replace(module: torch.nn.Module, args: Any, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        changed = value.reshape(len(positions), -1).clone()
        for edit in edits:
            edit.write(changed, positions)
        value = changed.reshape(value.shape)
        return (value, *output[1:]) if isinstance(output, tuple) else value

    return replace
