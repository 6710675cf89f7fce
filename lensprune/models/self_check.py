"""Checks at loading: the hook points exist, fire with the right shapes, and change the logits."""

from __future__ import annotations

from typing import Any

import torch

from lensprune.errors import LensPruneError, UserError
from lensprune.models.base import HookedModel, HookFunction, NamedHook
from lensprune.precision import widened

__all__ = ["REQUIRED_HOOKS", "check_hook_points", "required_hooks"]

REQUIRED_HOOKS = (
    "hook_resid_pre",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "attn.hook_z",
    "attn.hook_pattern",
)
"""Hook points that every block must have."""

_ROWS, _POSITIONS = 2, 6


def required_hooks(n_layers: int) -> list[str]:
    """Full names of the required hook points of every layer."""
    return [f"blocks.{layer}.{hook}" for layer in range(n_layers) for hook in REQUIRED_HOOKS]


def check_hook_points(model: HookedModel, *, intervene: bool = True) -> None:
    """Run the model once and check that every required hook point fires with the shape the ablations rely on.

    Args:
        intervene: also check that zeroing one head changes the logits, that removing the hook restores them bit for
            bit, and that a key/value cache is filled.

    Raises:
        UserError: a required hook point is missing, silent or of another shape; the message names the architecture.
            Logits that are not numbers, with `intervene`; the message names the weight.
        LensPruneError: the intervention had no effect, or a lasting one.
    """
    facts = model.facts
    names = required_hooks(facts.n_layers)
    missing = [name for name in names if name not in model.hook_names()]
    _refuse(model, "lacks", missing)

    seen: dict[str, tuple[int, ...]] = {}
    z_size: dict[int, torch.Tensor] = {}

    def record(name: str) -> HookFunction:
        def hook(activation: torch.Tensor, hook: Any) -> None:
            seen[name] = tuple(activation.shape)
            if name.endswith("attn.hook_z") and activation.ndim == 4:
                z_size[int(name.split(".")[1])] = widened(activation.detach()).norm(dim=-1).amax(dim=(0, 1))

        return hook

    clean = _logits(model, [(name, record(name)) for name in names])
    _refuse(model, "never runs", [name for name in names if name not in seen])
    residual = (_ROWS, _POSITIONS, facts.d_model)
    expected = {
        "attn.hook_z": (_ROWS, _POSITIONS, facts.n_heads, facts.d_head),
        "attn.hook_pattern": (_ROWS, facts.n_heads, _POSITIONS, _POSITIONS),
    }
    wrong = [
        f"{name} {list(seen[name])} instead of {list(expected.get(name.split('.', 2)[2], residual))}"
        for name in names
        if seen[name] != expected.get(name.split(".", 2)[2], residual)
    ]
    _refuse(model, "gives another shape at", wrong)
    if intervene:
        _refuse_nan(model, clean)
        _check_intervention(model, clean, z_size)
        _check_cache(model)


def _refuse_nan(model: HookedModel, logits: torch.Tensor) -> None:
    if not bool(logits.isnan().any()):
        return
    broken = [name for name, weight in model.module.named_parameters() if not bool(weight.isfinite().all())]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise UserError(
            f"model {model.facts.name} gives logits that are not numbers (NaN): its weight {broken[0]}{more} holds "
            "NaN or infinity; the file is damaged, or the weights do not fit this dtype"
        )
    raise UserError(
        f"model {model.facts.name} gives logits that are not numbers (NaN) in {model.facts.dtype}, though its "
        "weights are finite: use another dtype, such as bfloat16 or float32"
    )


def _check_intervention(model: HookedModel, clean: torch.Tensor, z_size: dict[int, torch.Tensor]) -> None:
    # A designed or trained model may have heads that write nothing, so the strongest head of each layer is tried.
    strongest = sorted(z_size, key=lambda layer: float(z_size[layer].max()), reverse=True)
    for layer in strongest:
        head = int(z_size[layer].argmax())

        def zero(z: torch.Tensor, hook: Any, head: int = head) -> torch.Tensor:
            z = z.clone()
            z[:, :, head] = 0
            return z

        changed = not torch.equal(_logits(model, [(f"blocks.{layer}.attn.hook_z", zero)]), clean)
        if not torch.equal(_logits(model), clean):
            raise LensPruneError(
                f"{model.facts.name}: after the hook on head {head} of layer {layer} was removed, the logits were not "
                "restored bit for bit, so a hook left something in place"
            )
        if changed:
            return
    raise LensPruneError(
        f"{model.facts.name}: zeroing attn.hook_z of the strongest head of any of {len(strongest)} layers left the "
        "logits unchanged, so ablations would silently do nothing"
    )


def _check_cache(model: HookedModel) -> None:
    # A cache that stays empty gives fluent nonsense instead of an error.
    cache = model.new_cache()
    ids = torch.zeros(1, _POSITIONS, dtype=torch.long, device=next(model.module.parameters()).device)
    with torch.no_grad():
        model.forward(ids, torch.ones_like(ids), torch.arange(_POSITIONS, device=ids.device)[None], cache=cache)
    length = cache.get_seq_length() if hasattr(cache, "get_seq_length") else _POSITIONS
    if length != _POSITIONS:
        raise LensPruneError(
            f"{model.facts.name}: the key/value cache holds {length} of {_POSITIONS} tokens after a forward pass, so "
            "generation would not see its own prompt: these versions of transformers and transformer-lens don't match"
        )


def _logits(model: HookedModel, hooks: list[NamedHook] | None = None) -> torch.Tensor:
    device = next(model.module.parameters()).device
    count = _ROWS * _POSITIONS
    ids = (torch.arange(count, device=device) * 7 + 3).remainder(model.facts.d_vocab).reshape(_ROWS, _POSITIONS)
    positions = torch.arange(_POSITIONS, device=device).expand(_ROWS, _POSITIONS)
    with torch.no_grad(), model.hooks(hooks or []):
        return model.forward(ids, torch.ones_like(ids), positions)


def _refuse(model: HookedModel, verb: str, hooks: list[str]) -> None:
    if hooks:
        shown = ", ".join(hooks[:6]) + (f" and {len(hooks) - 6} more" if len(hooks) > 6 else "")
        raise UserError(
            f"architecture {model.facts.architecture} of {model.facts.name} is not supported: it {verb} {shown}"
        )
