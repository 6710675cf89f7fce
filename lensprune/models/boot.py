"""Boot a Hugging Face model as a TransformerBridge in raw mode, with its adapter attached."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lensprune.errors import LensPruneError, UserError, first_line
from lensprune.models.base import BosPolicy
from lensprune.models.bridge import BridgeModel, unhooked_copy
from lensprune.models.current import remember_weights
from lensprune.models.facts import Origin, hash_weights, model_facts
from lensprune.models.no_install import nothing_installed
from lensprune.models.self_check import check_hook_points
from lensprune.models.tokenizers import check_bos_policy

__all__ = ["ADAPTER_ATTRIBUTE", "attach", "boot_bridge", "tokenizer_for_boot"]

ADAPTER_ATTRIBUTE = "_lensprune"
"""Where a bridge keeps its `BridgeModel`."""


def boot_bridge(
    hf_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    source: str,
    bos: BosPolicy,
    self_check: bool,
    weights_hash: str | None = None,
) -> TransformerBridge:
    """Boot `hf_model` (changed in place) and attach its adapter.

    Args:
        weights_hash: known hash of exactly these weights; ``None`` computes it.

    Raises:
        UserError: a hook point that lensprune needs is missing or never fires.
        LensPruneError: zeroing a head leaves the logits unchanged, or removing the hook does not restore them.
    """
    check_bos_policy(bos, tokenizer)
    architecture = type(hf_model).__name__
    weights_hash = weights_hash or hash_weights(hf_model.state_dict())
    hf_model.eval()
    # Text-only configurations inside multimodal ones do not name their class, and the bridge selects by it.
    hf_model.config.architectures = [architecture]
    twin = unhooked_copy(hf_model)
    parameter = next(hf_model.parameters())
    with wrapping(architecture, name), nothing_installed():
        bridge = TransformerBridge.boot_transformers(
            # A bare name could be one of TransformerLens's aliases, and mean another model.
            name if "/" in name else f"lensprune/{name}",
            hf_model=hf_model,
            tokenizer=tokenizer_for_boot(tokenizer),
            device=parameter.device,
            dtype=parameter.dtype,
        )
    bridge.cfg.model_name = name
    facts = model_facts(
        Origin(name, source, architecture, weights_hash),
        bridge.cfg,
        hf_model.config,
        tokenizer,
        dtype=parameter.dtype,
        device=str(parameter.device),
        bos=bos,
    )
    with wrapping(architecture, name), nothing_installed():
        adapter = BridgeModel(bridge, tokenizer, facts, twin)
        check_hook_points(adapter, intervene=self_check)
    attach(bridge, adapter)
    return bridge


@contextmanager
def wrapping(architecture: str, name: str) -> Iterator[None]:
    """Turn errors inside TransformerLens or the wrapped model into a one-line `UserError`."""
    try:
        yield
    except LensPruneError:
        raise
    except Exception as error:
        raise UserError(
            f"architecture {architecture} of {name} is not supported: TransformerLens cannot wrap or run it "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def attach(bridge: Any, adapter: BridgeModel) -> None:
    """Attach `adapter` to `bridge`, so that only the bridge needs to be passed around."""
    bridge.__dict__[ADAPTER_ATTRIBUTE] = adapter
    remember_weights(bridge, adapter.facts.weights_hash)


def tokenizer_for_boot(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer that TransformerLens does not rebuild.

    The bridge rebuilds a tokenizer from its name, with BOS switched on and possibly over the network, unless the
    tokenizer's init arguments say that BOS is on already.
    """
    changed = copy.deepcopy(tokenizer)
    changed.init_kwargs = {**changed.init_kwargs, "name_or_path": changed.name_or_path, "add_bos_token": True}
    return changed
