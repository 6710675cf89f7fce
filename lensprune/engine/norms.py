"""RMS norms in two or three kernels: a model's own take eight, each of which a GPU's host takes longer to launch than
to run."""

from __future__ import annotations

import inspect

import torch
from jaxtyping import Float
from torch.func import functional_call
from torch.nn.functional import rms_norm

__all__ = ["FusedNorms"]


class FusedNorms:
    """The RMS norms below a module, which use torch's kernel where it gives the same bits on the CPU as their own.

    On a GPU, the kernel may add up squares in another order. Weights that a norm changes before it multiplies by them
    are computed once: call `refresh` after weights have changed.
    """

    def __init__(self, root: torch.nn.Module) -> None:
        self.norms: list[_Norm] = []
        for module in root.modules():
            epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
            tensors = dict([*module.named_parameters(), *module.named_buffers()])
            if list(tensors) != ["weight"] or tensors["weight"].ndim != 1 or not isinstance(epsilon, float):
                continue
            if len(inspect.signature(module.forward).parameters) != 1:
                continue
            for kind in (_Norm, _GemmaNorm):
                if _same(module, kind, epsilon, tensors["weight"]):
                    norm = kind(tensors["weight"], epsilon)
                    module.forward = norm
                    self.norms.append(norm)
                    break

    def refresh(self) -> None:
        for norm in self.norms:
            norm.refresh()


class _Norm:
    """Llama's."""

    def __init__(self, weight: Float[torch.Tensor, " d"], epsilon: float) -> None:
        self.weight, self.epsilon = weight, epsilon
        self.refresh()

    def refresh(self) -> None:
        """Compute what depends on the weight alone."""

    def __call__(self, x: Float[torch.Tensor, "*tok d"]) -> Float[torch.Tensor, "*tok d"]:
        return self.weight * rms_norm(x, self.weight.shape, None, self.epsilon)


class _GemmaNorm(_Norm):
    """In float32, with weights that are differences from 1."""

    @torch.inference_mode(False)
    @torch.no_grad()
    def refresh(self) -> None:
        self.factor = 1.0 + self.weight.float()

    def __call__(self, x: Float[torch.Tensor, "*tok d"]) -> Float[torch.Tensor, "*tok d"]:
        return rms_norm(x.float(), self.factor.shape, self.factor, self.epsilon).type_as(x)


def _same(module: torch.nn.Module, kind: type[_Norm], epsilon: float, like: torch.Tensor) -> bool:
    """Whether `kind` is what the module computes, on random inputs and with random weights."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator).to(like.dtype) for shape in ((1, 3, *like.shape), like.shape))
    with torch.no_grad():
        return torch.equal(kind(weight, epsilon)(x), functional_call(module, {"weight": weight}, (x,)))
