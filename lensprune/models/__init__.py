"""Load a model, or wrap a loaded one."""

from typing import TYPE_CHECKING

from lensprune.registry import lazy_names

if TYPE_CHECKING:
    from lensprune.models.adapt import as_hooked_model
    from lensprune.models.base import BosPolicy, HookedModel, HookFunction, ModelFacts, NamedHook
    from lensprune.models.bridge import BridgeModel
    from lensprune.models.hooked_transformer import HookedTransformerModel
    from lensprune.models.load import load_model
    from lensprune.models.sources.bundled import BUNDLED, BundledModel
    from lensprune.models.tokenizers import encode, prefix_token_id

__all__ = [
    "BUNDLED",
    "BosPolicy",
    "BridgeModel",
    "BundledModel",
    "HookFunction",
    "HookedModel",
    "HookedTransformerModel",
    "ModelFacts",
    "NamedHook",
    "as_hooked_model",
    "encode",
    "load_model",
    "prefix_token_id",
]

__getattr__ = lazy_names(
    __name__, ("base", "sources.bundled", "tokenizers", "load", "adapt", "bridge", "hooked_transformer")
)
