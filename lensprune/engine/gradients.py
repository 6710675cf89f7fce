"""Gradients under a rule of `lensprune.engine.gradient_rules`, implemented with hooks only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float

from lensprune.engine.activations import START, KeptActivations
from lensprune.engine.gradient_rules import TEMPERATURE, check_rule
from lensprune.errors import UserError
from lensprune.models.base import HookedModel, HookFunction, NamedHook
from lensprune.models.weights import FrozenNorm, frozen_norm

__all__ = ["gradient_rule", "held_norms"]

_TOKENS = 4


@contextmanager
def gradient_rule(model: HookedModel, rule: str) -> Iterator[None]:
    """Make gradients through the model follow `rule`, also those of activations kept by hooks added in this context.

    A few tokens run first, to check that everything the rule changes affects the logits.

    Raises:
        UserError: an unknown rule, or a model that does not support it: a norm that is neither LayerNorm nor RMSNorm,
            or a hook point that is missing, never runs or does not reach the logits.
    """
    check_rule(rule)
    if rule == "plain":
        yield
        return
    acting = _Rule(model, rule)
    with acting.installed():
        acting.check()
        yield


@contextmanager
def held_norms(module: torch.nn.Module) -> Iterator[None]:
    """Make gradients through the norms inside `module` those of linear maps: their scales are held constant.

    Raises:
        UserError: a norm is neither LayerNorm nor RMSNorm.
    """
    with _held(_norms([module])):
        yield


class _GradientOf(torch.autograd.Function):
    """A value with the gradient of another tensor of its shape."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, surrogate: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, gradients[0]


def _with_gradient_of(value: torch.Tensor, surrogate: torch.Tensor) -> torch.Tensor:
    return _GradientOf.apply(value.detach(), surrogate.to(value.dtype))


class _Rule:
    """The hooks of one rule on one model."""

    def __init__(self, model: HookedModel, rule: str) -> None:
        self._model = model
        self._rule = rule
        self._kept: dict[str, torch.Tensor] = {}
        self._acting: dict[str, torch.Tensor] | None = None
        self._named = [hook for layer in range(model.facts.n_layers) for hook in self._of_layer(layer)]
        known = model.hook_names()
        missing = [name for name, _ in self._named if name not in known]
        if missing:
            raise self._refusal(f"there is no {missing[0]}")
        # Measured before any hook is attached.
        try:
            original = getattr(model.module, "original_model", None)
            self._norms = _norms([model.module] if original is None else [model.module, original])
        except UserError as error:
            raise self._refusal(str(error)) from error

    def _refusal(self, why: str) -> UserError:
        return UserError(
            f"gradient rule {self._rule} does not work with {self._model.facts.architecture}: {why}; use rule plain"
        )

    @contextmanager
    def installed(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(_held(self._norms))
            stack.enter_context(self._model.hooks(self._named))
            yield

    def check(self) -> None:
        """Run a few tokens, and refuse the model if one of the rule's changes does not reach the logits."""
        facts = self._model.facts
        tokens = torch.arange(_TOKENS, device=facts.device)[None] % facts.d_vocab
        self._acting = {}
        start = (START, KeptActivations().keep(START))
        try:
            with torch.enable_grad(), self._model.hooks([start]):
                logits = self._model.forward(tokens, torch.ones_like(tokens), torch.arange(_TOKENS)[None])
                acting = self._acting
                silent = next((name for name, _ in self._named if name in self._must_act and name not in acting), None)
                if silent is not None:
                    raise self._refusal(f"{silent} never runs")
                gradients = torch.autograd.grad(logits.sum(), list(acting.values()), allow_unused=True)
        finally:
            self._acting = None
        for name, gradient in zip(acting, gradients, strict=True):
            if gradient is None:
                raise self._refusal(f"a change at {name} does not reach the logits")

    @property
    def _must_act(self) -> set[str]:
        ends = ("attn.hook_pattern", "mlp.hook_post") if self._rule == "relp" else ("attn.hook_pattern", "attn.hook_z")
        return {name for name, _ in self._named if name.endswith(ends)}

    def _put(self, name: str, activation: torch.Tensor) -> torch.Tensor:
        if self._acting is not None:
            activation = activation if activation.requires_grad else activation.requires_grad_()
            self._acting[name] = activation
        return activation

    def _of_layer(self, layer: int) -> list[NamedHook]:
        attention, mlp = f"blocks.{layer}.attn", f"blocks.{layer}.mlp"
        if self._rule == "gim":
            return [
                (f"{attention}.hook_attn_scores", self._keep(f"{attention}.hook_attn_scores", halved=True)),
                self._edit(f"{attention}.hook_pattern", lambda p: self._softer(p, f"{attention}.hook_attn_scores")),
                self._edit(f"{attention}.hook_z", lambda z: _with_gradient_of(z, z / 2)),
            ]
        hooks = [
            self._edit(f"{attention}.hook_pattern", torch.Tensor.detach),
            (f"{mlp}.hook_pre", self._keep(f"{mlp}.hook_pre")),
            self._edit(f"{mlp}.hook_post", lambda post: self._relevance(post, mlp)),
        ]
        if f"{mlp}.hook_pre_linear" in self._model.hook_names():
            hooks.append((f"{mlp}.hook_pre_linear", self._keep(f"{mlp}.hook_pre_linear")))
        return hooks

    def _keep(self, name: str, *, halved: bool = False) -> HookFunction:
        def look(activation: torch.Tensor, hook: Any) -> torch.Tensor | None:
            if not halved:
                self._kept[name] = activation
                return None
            self._kept[name] = _with_gradient_of(activation, activation / 2)
            return self._kept[name]

        return look

    def _edit(self, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> NamedHook:
        def edit(activation: torch.Tensor, hook: Any) -> torch.Tensor:
            return self._put(name, change(activation))

        return name, edit

    def _softer(self, pattern: torch.Tensor, name: str) -> torch.Tensor:
        """The pattern with the softmax's Jacobian at `TEMPERATURE`."""
        if name not in self._kept:
            raise self._refusal(f"{name} never runs")
        # A row that sees nothing may be all −∞: its gradient is 0, and must not become NaN.
        scores = self._kept.pop(name)
        scores = scores.clamp(min=torch.finfo(scores.dtype).min)
        if self._acting is not None and not torch.allclose(
            scores.softmax(-1, dtype=torch.float32), pattern.float(), atol=1e-2
        ):
            raise self._refusal(f"the pattern is not the softmax of {name}")
        # Softmax of scores / T has the Jacobian (diag(p) − p pᵀ) / T.
        return _with_gradient_of(pattern, TEMPERATURE * (scores / TEMPERATURE).softmax(-1))

    def _relevance(self, post: torch.Tensor, mlp: str) -> torch.Tensor:
        """The down projection's input, as a linear map of its own inputs with coefficients post / input."""
        inputs = [self._kept.pop(name) for name in (f"{mlp}.hook_pre", f"{mlp}.hook_pre_linear") if name in self._kept]
        if not inputs:
            raise self._refusal(f"{mlp}.hook_pre never runs")
        if self._acting is not None and not _element_by_element(post, inputs):
            raise self._refusal(f"{mlp}.hook_post is not an elementwise function of {mlp}.hook_pre")
        value = post.detach()
        parts = []
        for given in inputs:
            fixed = given.detach()
            parts.append(given * torch.where(fixed == 0, 0, value / fixed))
        return _with_gradient_of(value, sum(parts[1:], parts[0]) / len(parts))


def _element_by_element(output: torch.Tensor, inputs: Sequence[torch.Tensor]) -> bool:
    """Whether the largest element of `output` depends on its own element of each of `inputs`, and on no other."""
    if any(given.shape != output.shape for given in inputs):
        return False
    place = int(output.detach().abs().argmax())
    gradients = torch.autograd.grad(output.flatten()[place], list(inputs), retain_graph=True, allow_unused=True)
    elsewhere = torch.arange(output.numel(), device=output.device) != place
    return all(g is not None and not bool(g.flatten()[elsewhere].any()) for g in gradients)


def _norms(roots: Sequence[torch.nn.Module]) -> list[tuple[Any, FrozenNorm]]:
    """Every norm inside `roots` (the bridge's and the module that it wraps) with its linear map.

    Raises:
        UserError: a norm is neither LayerNorm nor RMSNorm.
    """
    measured: dict[int, FrozenNorm] = {}
    norms: list[tuple[Any, FrozenNorm]] = []
    seen: set[int] = set()
    for module in chain.from_iterable(root.modules() for root in roots):
        wrapped: Any = getattr(module, "original_component", None)
        for norm in (module, wrapped):
            if norm is None or id(norm) in seen or "norm" not in type(norm).__name__.lower():
                continue
            seen.add(id(norm))
            inner = getattr(norm, "original_component", None) or norm
            if id(inner) not in measured:
                measured[id(inner)] = frozen_norm(inner)
            norms.append((norm, measured[id(inner)]))
    return norms


@contextmanager
def _held(norms: Sequence[tuple[Any, FrozenNorm]]) -> Iterator[None]:
    with ExitStack() as stack:
        for module, frozen in norms:
            hook_in, hook_out = getattr(module, "hook_in", None), getattr(module, "hook_out", None)
            if hook_in is None or hook_out is None:
                stack.callback(module.register_forward_hook(_hold_scale(frozen)).remove)
            else:
                # At TransformerLens's own hook points: what is kept at a norm's output has the rule's gradient too.
                held = _HeldNorm(frozen)
                stack.callback(hook_in.register_forward_hook(held.look).remove)
                stack.callback(hook_out.register_forward_hook(held.replace).remove)
        yield


def _frozen_output(frozen: FrozenNorm, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """The output of a norm, with the gradient of a linear map: its scale is held constant."""
    linear = frozen.centre(x) * frozen.weight
    with torch.no_grad():
        held = linear.detach()
        along = (held * (output.detach().to(held.dtype) - frozen.bias)).sum(-1, keepdim=True)
        # An all-zero input, such as a padding token's, reveals no scale; no gradient flows back to it.
        scale: Float[torch.Tensor, "*rows 1"] = torch.where(along > 0, held.square().sum(-1, keepdim=True) / along, 1)
    return _with_gradient_of(output, linear / scale)


def _hold_scale(frozen: FrozenNorm) -> Callable[..., torch.Tensor]:
    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return _frozen_output(frozen, args[0], output)

    return hook


class _HeldNorm:
    """A norm's input at its first hook point, and its output at its last."""

    def __init__(self, frozen: FrozenNorm) -> None:
        self._frozen = frozen
        self._input: torch.Tensor | None = None

    def look(self, module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self._input = output

    def replace(
        self, module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor | None:
        x, self._input = self._input, None
        return None if x is None else _frozen_output(self._frozen, x, output)
