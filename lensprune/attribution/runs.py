"""Forward passes of attribution: unpadded rows, the last position's logits, activations read or replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int

from lensprune.attribution.graph import ReaderGroup
from lensprune.errors import UserError
from lensprune.models.base import HookedModel, HookFunction, NamedHook
from lensprune.models.resume import resumed_at

__all__ = [
    "Edit",
    "capture",
    "edge_inputs",
    "edit_hook",
    "last_logits",
    "require_split_inputs",
    "run_from",
    "run_hooked",
]

Edit = Callable[[torch.Tensor], torch.Tensor | None]
"""Maps an activation to its replacement; ``None`` leaves it unchanged."""


def edit_hook(edit: Edit) -> HookFunction:
    """Wrap an edit in TransformerLens's hook signature."""

    def hook(activation: torch.Tensor, hook: Any) -> torch.Tensor | None:
        return edit(activation)

    return hook


def run_hooked(
    model: HookedModel, tokens: Int[torch.Tensor, "row pos"], hooks: Sequence[NamedHook] = ()
) -> Float[torch.Tensor, "row d_vocab"]:
    """Logits after the last token of unpadded rows, with hooks. Gradient mode is the caller's."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    with model.hooks(list(hooks)):
        return model.forward(tokens, torch.ones_like(tokens), positions, logits_to_keep=1)[:, -1]


def last_logits(model: HookedModel, tokens: Int[torch.Tensor, "row pos"]) -> Float[torch.Tensor, "row d_vocab"]:
    """Logits of the unchanged model after the last token."""
    with torch.no_grad():
        return run_hooked(model, tokens)


def run_from(
    model: HookedModel,
    layer: int,
    residual: Float[torch.Tensor, "row pos d_model"],
    tokens: Int[torch.Tensor, "row pos"],
    hooks: Sequence[NamedHook],
) -> Float[torch.Tensor, "row d_vocab"]:
    """`run_hooked` from `layer` on, given the residual stream before it; `hooks` at that point see `residual`."""
    with resumed_at(model, layer, residual) as start:
        return run_hooked(model, tokens, [*start, *hooks])


def capture(
    model: HookedModel, tokens: Int[torch.Tensor, "row pos"], names: Iterable[str]
) -> tuple[Float[torch.Tensor, "row d_vocab"], dict[str, torch.Tensor]]:
    """Logits after the last token, and the activations at the named hook points."""
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Edit:
        def look(activation: torch.Tensor) -> None:
            kept[name] = activation.detach().clone()

        return look

    with torch.no_grad():
        logits = run_hooked(model, tokens, [(name, edit_hook(keep(name))) for name in names])
    return logits, kept


def require_split_inputs(model: HookedModel, groups: Iterable[ReaderGroup]) -> None:
    """Raise `UserError` unless heads' writes add up in the residual stream and the inputs of `groups` can be changed
    separately.

    One token is run to check this: TransformerLens lists input hooks that never run on some architectures (the MLP
    input of Cohere, Phi and Bloom), and edges into them would silently have no effect.
    """
    module: Any = model.module
    if any("ln1_post" in block._modules for block in module.blocks):
        raise UserError(
            f"{model.facts.architecture} norms the sum of its heads before adding it to the residual stream, so no "
            "edge leaves a single head: edges and paths are not defined for it; use method atp or dla"
        )
    silent = {group.hook for group in groups}

    def fired(name: str) -> HookFunction:
        return edit_hook(lambda activation: silent.discard(name))

    known = silent & model.hook_names()
    token = torch.zeros(1, 1, dtype=torch.long, device=model.facts.device)
    if silent:
        try:
            with torch.no_grad(), edge_inputs(model):
                run_hooked(model, token, [(name, fired(name)) for name in sorted(known)])
        except NotImplementedError:
            # TransformerLens raises this for attention whose inputs it can't split (GPT-Neo, OPT): rejected below with
            # the
            # same message as inputs that never run.
            silent |= known
    if silent:
        name = min(silent)
        more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
        raise UserError(
            f"{model.facts.architecture} has no separate inputs at {name}{more}, so edges into them can't be "
            "changed: use method atp or dla, or path_patching to the receiver 'logits'"
        )


@contextmanager
def edge_inputs(model: HookedModel) -> Iterator[None]:
    """Give every head its own copy of the residual stream as query, key and value input, and MLPs a hooked input.

    ``hook_q_input`` is then [row, pos, head, d_model], ``hook_k_input`` and ``hook_v_input`` [row, pos, kv head,
    d_model], all before the norm, as is ``hook_mlp_in`` [row, pos, d_model]. The model's own settings are restored.
    """
    module: Any = model.module
    cfg = module.cfg
    split, joint, mlp = cfg.use_split_qkv_input, bool(getattr(cfg, "use_attn_in", False)), cfg.use_hook_mlp_in
    try:
        if joint:
            module.set_use_attn_in(False)
        module.set_use_split_qkv_input(True)
        module.set_use_hook_mlp_in(True)
        yield
    finally:
        module.set_use_split_qkv_input(split)
        module.set_use_hook_mlp_in(mlp)
        if joint:
            module.set_use_attn_in(True)
