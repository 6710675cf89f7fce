"""Rotary embeddings in one kernel: a model's own take ten, each of which a GPU's host takes longer to launch than to
run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from types import FunctionType, MethodType
from typing import Any

import torch
from jaxtyping import Float

from lensprune.engine.kernels import is_recent_gpu

__all__ = ["fuse_rotary", "rotary_kernel"]

_NAME = "apply_rotary_pos_emb"
"""What every family's module calls the function that rotates queries and keys."""

Rotated = tuple[torch.Tensor, torch.Tensor]


def fuse_rotary(root: torch.nn.Module, device: torch.device) -> int:
    """Let the attention modules below `root` rotate queries and keys by one kernel, where the device has one and the
    module's formula is the one that it computes; returns how many.

    Modules of other models, which share the functions, are left as they are, and so are modules with a forward of their
    own.
    """
    kernel = rotary_kernel(device)
    if kernel is None:
        return 0
    fused = 0
    for module in root.modules():
        forward = inspect.unwrap(type(module).forward)
        own = getattr(forward, "__globals__", {}).get(_NAME)
        if own is None or "forward" in vars(module):
            continue
        if _NAME not in forward.__code__.co_names or not _is_plain(own):
            continue
        names = {**forward.__globals__, _NAME: partial(_rotated, kernel, own)}
        made = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
        made.__kwdefaults__ = forward.__kwdefaults__
        module.forward = MethodType(made, module)
        fused += 1
    return fused


def rotary_kernel(device: torch.device) -> Callable[..., Rotated] | None:
    """The kernel of this device; ``None`` if there is none."""
    if not is_recent_gpu(device):
        return None
    try:
        from lensprune.engine.rotary_kernel import rotate
    except ImportError:
        # Builds of torch without Triton; the numbers are the same.
        return None
    return rotate


def _rotated(
    kernel: Callable[..., Rotated],
    own: Callable[..., Rotated],
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> Rotated:
    tensors = (q, k, cos, sin)
    same = {(t.dtype, t.shape[-1], t.stride(-1)) for t in tensors} == {(q.dtype, q.shape[-1], 1)}
    angles = (1, *q.shape[-2:])
    if args or kwargs or not same or q.ndim != 4 or len(q) != 1 or not cos.shape == sin.shape == angles:
        return own(*tensors, *args, **kwargs)
    if q.dtype == torch.float64 or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return own(*tensors)
    return kernel(*tensors)


@cache
def _is_plain(own: Callable[..., Any]) -> bool:
    """Whether a model's function is what the kernel computes, on random inputs."""
    if list(inspect.signature(own).parameters)[:4] != ["q", "k", "cos", "sin"]:
        return False
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 3, 5, 8), (1, 2, 5, 8), (1, 5, 8), (1, 5, 8))
    q, k, cos, sin = (torch.randn(*shape, generator=generator).bfloat16() for shape in shapes)
    try:
        found_q, found_k = own(q, k, cos, sin)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        # Angles or results of another form.
        return False
    return torch.equal(found_q, _plain(q, cos, sin)) and torch.equal(found_k, _plain(k, cos, sin))


def _plain(
    x: Float[torch.Tensor, "1 head tok d_head"],
    cos: Float[torch.Tensor, "1 tok d_head"],
    sin: Float[torch.Tensor, "1 tok d_head"],
) -> Float[torch.Tensor, "1 head tok d_head"]:
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]
