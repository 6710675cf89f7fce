"""Layers of decode steps as CUDA graphs: one for what a layer computes before it attends, and one for what comes after.

A layer's kernels take a GPU's host longer to launch one by one than the GPU needs to run them, unless there are very
many tokens; a graph is a single launch. Attention stays outside: its keys and tables change from step to step.

A graph has a fixed number of tokens, so calls of similar size share one, and what is beyond their tokens is computed
for nobody. It is used once it has given the layer's own numbers.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float

from lensprune.engine.attention import AttentionPlan, AttentionSettings
from lensprune.engine.edits import LayerEdits
from lensprune.engine.kernels import is_recent_gpu
from lensprune.engine.layers import FlatBatch, LayerStack
from lensprune.engine.out_of_memory import out_of_memory, release_cached
from lensprune.errors import LensPruneError, UserError, first_line
from lensprune.models.base import HookedModel

__all__ = ["LayerGraphs", "check_graphs", "graph_size"]

logger = logging.getLogger("lensprune")

CALLS_BEFORE = 2
"""Calls of a layer and size that run without a graph first: to capture one takes as long as some calls."""

MAX_TOKENS = 4096
"""With more tokens a layer takes the GPU longer than the host, and what is computed for nobody costs time."""

LEAST_STEP = 64
"""A GPU takes about as long for a single token as for this many."""

MAX_SIZES = 6
"""Sizes whose graphs are kept: each takes memory of its own, and a step needs a few of them."""

IDLE_STEPS = 8
"""Decode steps for which a size was not used before another may take its place."""

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float64: 1e-12}
"""Largest difference from the layer's own numbers, by the largest of these: some kernels add in any order."""

Pair = tuple[torch.Tensor, torch.Tensor]


class NotCapturable(LensPruneError):
    """A layer that can't be replayed as graphs."""


class WaitsForHost(NotCapturable):
    """A layer that reads something back from the GPU."""


def graph_size(n_tokens: int) -> int:
    """Tokens of the graph that a call of so many takes: at most a quarter more, or 63."""
    step = max(LEAST_STEP, 2 ** (n_tokens.bit_length() - 3))
    return -(-n_tokens // step) * step


def check_graphs(model: HookedModel) -> None:
    """Raise `UserError` unless the model lies on one GPU for which there are graphs."""
    devices = {parameter.device for parameter in model.module.parameters()}
    if len(devices) > 1:
        raise UserError(
            f"CUDA graphs need the model on one GPU, but it is on {len(devices)}: use the executor 'forked'"
        )
    if not is_recent_gpu(torch.device(model.facts.device)):
        raise UserError(
            f"CUDA graphs need an NVIDIA GPU, Ampere or later, but the model is on {model.facts.device}: use the "
            "executor 'forked'"
        )


class LayerGraphs:
    """Runs a stack's layers, by graphs where it can. Weights may change in place meanwhile, but must stay where they
    are."""

    def __init__(self, stack: LayerStack, device: torch.device) -> None:
        self.stack, self._device = stack, device
        self._calls: Counter[tuple[int, int]] = Counter()
        self._n_calls = 0
        self._sizes: dict[int, _Size] = {}
        self._takes_z: dict[int, bool] = {}
        self._pool: Any = None
        self._stream: Any = None
        self.failed = ""
        """Why no graphs are used any more."""

    def release(self) -> None:
        """Give back the memory of all graphs; they are captured anew when they are needed."""
        self._calls.clear()
        self._sizes.clear()

    def run_layer(
        self,
        layer: int,
        hidden: Float[torch.Tensor, "1 tok d_model"],
        batch: FlatBatch,
        plan: AttentionPlan,
        edits: LayerEdits | None = None,
    ) -> Float[torch.Tensor, "1 tok d_model"]:
        """As `LayerStack.run_layer`; valid until the next but one layer runs."""
        by_graph = not self.failed and hidden.shape[1] <= MAX_TOKENS
        if by_graph and (edits is None or not any(edits.branches.values())):
            call, size = _Call.of(hidden, batch, layer, plan, edits), graph_size(hidden.shape[1])
            self._calls[layer, size] += 1
            may_replay = self._calls[layer, size] > CALLS_BEFORE and self._may_replay(layer, call)
            if may_replay and not self.failed and (of_size := self._of_size(size)) is not None:
                if layer not in of_size.graphs:
                    return self._captured(layer, of_size, call)
                if of_size.graphs[layer].constants == call.constants:
                    return of_size.graphs[layer].run(call)
        return self.stack.run_layer(layer, hidden, batch, plan, edits)

    def _of_size(self, size: int) -> _Size | None:
        """What is kept for calls of this size; ``None`` if there is no room, since others are in use."""
        self._n_calls += 1
        if size not in self._sizes:
            if len(self._sizes) == MAX_SIZES:
                oldest = min(self._sizes.values(), key=lambda own: own.used_at)
                if oldest.used_at > self._n_calls - IDLE_STEPS * self.stack.n_layers:
                    return None
                del self._sizes[oldest.n_tokens]
            self._sizes[size] = _Size(size)
        self._sizes[size].used_at = self._n_calls
        return self._sizes[size]

    def _may_replay(self, layer: int, call: _Call) -> bool:
        if layer not in self._takes_z:
            try:
                self._takes_z[layer] = self._projects_z(layer, call)
            except WaitsForHost as error:
                self._give_up(layer, error)
                return False
        fixed = not any(isinstance(value, torch.Tensor) for value in call.constants)
        return fixed and (self._takes_z[layer] or not call.edits_heads)

    def _projects_z(self, layer: int, call: _Call) -> bool:
        """Whether attention's result itself enters the output projection, without a gate or norm in between.

        Raises:
            WaitsForHost: the layer reads something back. Until torch 2.12, a capture that fails leaves the allocator
                unusable, so it is better not begun.
        """
        z: list[torch.Tensor] = []
        projected: list[torch.Tensor] = []

        class Recorder:
            def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, settings: Any) -> torch.Tensor:
                z.append(q.new_zeros(q.shape[1], q.shape[0], v.shape[-1]))
                return z[0]

        def look(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            projected.append(args[0])

        hook = self.stack.projections[layer].register_forward_pre_hook(look)
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            # That it is a prototype.
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        try:
            self.stack.run_layer(layer, call.hidden, call.batch, Recorder())
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise WaitsForHost(first_line(error)) from error
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            hook.remove()
        if len(z) != 1 or len(projected) != 1:
            return False
        return projected[0].data_ptr() == z[0].data_ptr() and projected[0].numel() == z[0].numel()

    def _captured(self, layer: int, of_size: _Size, call: _Call) -> torch.Tensor:
        """The layer's own result for the call, with which a graph that is captured now is compared."""
        padded = call.padded(of_size.n_tokens, of_size.buffer)
        watched = _Watched(call)
        own = self.stack.run_layer(layer, padded.hidden, padded.batch, watched)
        try:
            of_size.graphs[layer] = self._capture(layer, of_size, padded, watched, own)
        except Exception as error:
            self._give_up(layer, error)
        return own[:, : call.n_tokens]

    def _give_up(self, layer: int, error: Exception) -> None:
        # The layer itself had room; fewer rows would not help where graphs have none.
        self.failed = "memory ran out" if out_of_memory(error) else first_line(error) or type(error).__name__
        logger.warning(f"decode steps run without CUDA graphs: layer {layer} can't be captured ({self.failed})")
        self.release()

    def _capture(self, layer: int, of_size: _Size, padded: _Call, watched: _Watched, own: torch.Tensor) -> _LayerGraph:
        if watched.calls != 1:
            raise NotCapturable(f"it attends {watched.calls} times")
        qkv = tuple(of_size.buffer(f"qkv {i}", t) for i, t in enumerate(watched.qkv))
        z = of_size.buffer("z", watched.z)
        # The layer after this one reads this one's result.
        out = of_size.buffer(f"out {layer % 2}", own)
        if not any(own.graphs for own in self._sizes.values()):
            # A pool ends with its last graph.
            self._pool = torch.cuda.graph_pool_handle()
        if not of_size.graphs:
            # Captures can't take what is cached.
            release_cached()
        if self._stream is None:
            # One for all: libraries keep memory for each stream.
            self._stream = torch.cuda.Stream(self._device)
        seam, stream = _Seam(self._pool, qkv, z), self._stream
        current = torch.cuda.current_stream(self._device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream), seam:
            out.copy_(self.stack.run_layer(layer, padded.hidden, padded.batch, seam))
        current.wait_stream(stream)
        graph = _LayerGraph(seam.graphs, padded, qkv, z, out, watched.settings)
        z.copy_(watched.z)
        found = graph.replayed(lambda: None)
        for what, mine, right in (*zip("qkv", qkv, watched.qkv, strict=True), ("result", found, own)):
            most = float(right.nan_to_num(0.0, 0.0, 0.0).abs().max())
            if not torch.allclose(mine, right, rtol=0.0, atol=TOLERANCE[right.dtype] * most, equal_nan=True):
                raise NotCapturable(f"its graph gives another {what}")
        return graph


@dataclass
class _Size:
    """Graphs for calls of up to `n_tokens`, by layer, and the tensors that they read and write."""

    n_tokens: int
    used_at: int = 0
    graphs: dict[int, _LayerGraph] = field(default_factory=dict)
    buffers: dict[Any, torch.Tensor] = field(default_factory=dict)

    def buffer(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A tensor at a fixed address, which layers share, of this shape and type."""
        key = name, like.shape, like.dtype
        if key not in self.buffers:
            self.buffers[key] = like.new_zeros(like.shape)
        return self.buffers[key]


@dataclass(frozen=True)
class _Call:
    """A layer's call: its residual, the other tensors with one entry per token, and its `constants`."""

    hidden: Float[torch.Tensor, "1 tok d_model"]
    batch: FlatBatch
    layer: int
    plan: AttentionPlan
    edits: LayerEdits | None
    tensors: Sequence[torch.Tensor]
    constants: Sequence[Any]

    @classmethod
    def of(
        cls,
        hidden: torch.Tensor,
        batch: FlatBatch,
        layer: int,
        plan: AttentionPlan,
        edits: LayerEdits | None,
    ) -> _Call:
        tensors: list[torch.Tensor] = []
        constants: list[Any] = []

        def sort(value: torch.Tensor | Any) -> Any:
            (tensors if batch.is_by_token(value) else constants).append(value)
            return value

        batch.mapped(layer, sort)
        return cls(hidden, batch, layer, plan, edits, tensors, constants)

    @property
    def n_tokens(self) -> int:
        return self.hidden.shape[1]

    @property
    def edits_heads(self) -> bool:
        return self.edits is not None and (bool(self.edits.heads) or self.edits.zeroed is not None)

    def padded(self, size: int, buffer: Callable[[str, torch.Tensor], torch.Tensor]) -> _Call:
        """The same with `size` tokens, in buffers."""
        numbers = iter(range(len(self.tensors)))

        def copied(name: str, value: torch.Tensor) -> torch.Tensor:
            shape = (1, size, *value.shape[2:]) if value.ndim > 1 else (size,)
            whole = buffer(name, value.new_empty(shape))
            _first(whole, self.n_tokens).copy_(value)
            return whole

        def replaced(value: Any) -> Any:
            return copied(f"argument {next(numbers)}", value) if self.batch.is_by_token(value) else value

        arguments = self.batch.mapped(self.layer, replaced)
        batch = FlatBatch(copied("positions", self.batch.position_ids), {self.layer: arguments})
        return _Call.of(copied("hidden", self.hidden), batch, self.layer, self.plan, None)

    def attended(
        self, qkv: Sequence[torch.Tensor], settings: AttentionSettings
    ) -> Float[torch.Tensor, "tok head d_head"]:
        """``hook_z`` of the call's tokens, with the heads' edits; `qkv` may have more."""
        q, k, v = (t[:, : self.n_tokens] for t in qkv)
        z = self.plan.attend(q, k, v, settings)
        return z if self.edits is None else self.edits.edit_z(z, self.batch.position_ids[0])


def _first(tensor: torch.Tensor, n_tokens: int) -> torch.Tensor:
    return tensor[:, :n_tokens] if tensor.ndim > 1 else tensor[:n_tokens]


class _Watched:
    """Attention of a call's tokens among others, which get zeros."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        self.calls = 0

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, settings: AttentionSettings
    ) -> Float[torch.Tensor, "tok head d_head"]:
        self.calls += 1
        self.qkv, self.settings = (q, k, v), settings
        self.z = q.new_zeros(q.shape[1], q.shape[0], v.shape[-1])
        self.z[: self._call.n_tokens] = self._call.attended((q, k, v), settings)
        return self.z


class _Seam:
    """While it is entered, kernels are captured: those before attention and those after it, in one graph each."""

    def __init__(self, pool: Any, qkv: Sequence[torch.Tensor], z: torch.Tensor) -> None:
        self.graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        self._pool, self._qkv, self._z = pool, qkv, z
        self._running = self.graphs[0]

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, settings: AttentionSettings
    ) -> Float[torch.Tensor, "tok head d_head"]:
        for fixed, own in zip(self._qkv, (q, k, v), strict=True):
            fixed.copy_(own)
        self.graphs[0].capture_end()
        self._begin(self.graphs[1])
        return self._z

    def _begin(self, graph: Any) -> None:
        self._running = graph
        # Other threads may go on using the device.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def __enter__(self) -> None:
        self._begin(self.graphs[0])

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._running.capture_end()
            return
        # After an error, ending the capture fails, too, but ends it.
        with suppress(RuntimeError):
            self._running.capture_end()


@dataclass(frozen=True)
class _LayerGraph:
    """One layer's graphs, for calls of up to so many tokens as their `padded` call has."""

    graphs: tuple[Any, Any]
    padded: _Call
    qkv: Sequence[torch.Tensor]
    z: Float[torch.Tensor, "tok head d_head"]
    out: Float[torch.Tensor, "1 tok d_model"]
    settings: AttentionSettings

    @property
    def constants(self) -> Sequence[Any]:
        return self.padded.constants

    def run(self, call: _Call) -> Float[torch.Tensor, "1 tok d_model"]:
        n = call.n_tokens
        for fixed, own in zip((self.padded.hidden, *self.padded.tensors), (call.hidden, *call.tensors), strict=True):
            _first(fixed, n).copy_(own)

        def attend() -> None:
            self.z[:n].copy_(call.attended(self.qkv, self.settings))

        return self.replayed(attend)[:, :n]

    def replayed(self, attend: Callable[[], None]) -> Float[torch.Tensor, "1 tok d_model"]:
        before, after = self.graphs
        before.replay()
        attend()
        after.replay()
        return self.out
