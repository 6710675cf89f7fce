"""RMS norms in few kernels: a model's own take eight, each of which a GPU's host takes longer to launch than to run."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch.func import functional_call
from torch.nn.functional import rms_norm

from lensprune.engine.kernels import is_recent_gpu

__all__ = ["FusedNorms", "norm_kernel"]

Kernel = Callable[..., torch.Tensor]


def norm_kernel(device: torch.device) -> Kernel | None:
    """The kernel of this device for a norm and its weight; ``None`` if there is none."""
    if not is_recent_gpu(device):
        return None
    try:
        from lensprune.engine.norm_kernel import rms_norm as kernel
    except ImportError:
        # Builds of torch without Triton; the numbers are the same.
        return None
    return kernel


class FusedNorms:
    """The RMS norms below a module whose formula, in torch's kernel, gives the same bits on the CPU as the module.

    They use that kernel on a CPU. A GPU has one that multiplies by the weight, too, and may add up squares in another
    order. Weights that a norm changes before it multiplies by them are computed once: call `refresh` after weights have
    changed.
    """

    def __init__(self, root: torch.nn.Module, device: torch.device) -> None:
        self.norms: list[_Norm] = []
        kernel = norm_kernel(device)
        for module in root.modules():
            epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
            tensors = dict([*module.named_parameters(), *module.named_buffers()])
            if list(tensors) != ["weight"] or tensors["weight"].ndim != 1 or not isinstance(epsilon, float):
                continue
            if len(inspect.signature(module.forward).parameters) != 1:
                continue
            for kind in (_Norm, _GemmaNorm):
                if _same(module, kind, epsilon, tensors["weight"]):
                    norm = kind(tensors["weight"], epsilon, kernel)
                    module.forward = norm
                    self.norms.append(norm)
                    break

    def refresh(self) -> None:
        for norm in self.norms:
            norm.refresh()


class _Norm:
    """Llama's."""

    rounds_first = True

    def __init__(self, weight: Float[torch.Tensor, " d"], epsilon: float, kernel: Kernel | None = None) -> None:
        self.weight, self.epsilon = weight, epsilon
        self._kernel = kernel if weight.is_contiguous() else None
        self.refresh()

    def refresh(self) -> None:
        """Compute what depends on the weight alone."""
        self.factor = self.weight

    def __call__(self, x: Float[torch.Tensor, "*tok d"]) -> Float[torch.Tensor, "*tok d"]:
        if self._kernel is None or not self._kernel_takes(x):
            return self._in_torch(x)
        return self._kernel(x, self.factor, self.epsilon, rounds_first=self.rounds_first)

    def _kernel_takes(self, x: torch.Tensor) -> bool:
        with_gradients = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        same = x.dtype == self.weight.dtype != torch.float64
        rows = x.ndim > 2 and x.stride(-1) == 1 and x.shape[:-3].numel() == 1
        return same and rows and not with_gradients

    def _in_torch(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * rms_norm(x, self.weight.shape, None, self.epsilon)


class _GemmaNorm(_Norm):
    """In float32, with weights that are differences from 1."""

    rounds_first = False

    @torch.inference_mode(False)
    @torch.no_grad()
    def refresh(self) -> None:
        factor = 1.0 + self.weight.float()
        if "factor" in vars(self) and self.factor.device == factor.device:
            # Graphs may hold the address.
            self.factor.copy_(factor)
        else:
            self.factor = factor

    def _in_torch(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x.float(), self.factor.shape, self.factor, self.epsilon).type_as(x)


def _same(module: torch.nn.Module, kind: type[_Norm], epsilon: float, like: torch.Tensor) -> bool:
    """Whether `kind` is what the module computes, on random inputs and with random weights."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator).to(like.dtype) for shape in ((1, 3, *like.shape), like.shape))
    with torch.no_grad():
        return torch.equal(kind(weight, epsilon)(x), functional_call(module, {"weight": weight}, (x,)))
