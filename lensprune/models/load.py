"""`load_model`: load a hooked model from a hub id, a local folder, a GGUF file or a bundled alias."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from lensprune.errors import UserError, unknown_name
from lensprune.models.adapt import as_hooked_model, current_model
from lensprune.models.base import BosPolicy, HookedModel, ModelOrName
from lensprune.models.boot import boot_bridge
from lensprune.models.hooked_transformer import boot_hooked_transformer, require_hooked_transformer
from lensprune.models.one_at_a_time import one_at_a_time
from lensprune.models.sources.base import LoadedModel, LoadOptions
from lensprune.models.sources.bundled import BUNDLED
from lensprune.models.sources.gguf_file import load_gguf
from lensprune.models.sources.pretrained import load_folder, load_hub
from lensprune.models.sources.resolve import display_name, model_kind

__all__ = ["DTYPES", "load_model", "open_model", "parse_dtype"]

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@one_at_a_time
def load_model(
    name_or_path: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    n_devices: int | None = None,
    bos: BosPolicy = "tokenizer",
    hooked_transformer: bool = False,
    self_check: bool = True,
    revision: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> TransformerBridge:
    """Load a model and check that its hooks work.

    Args:
        name_or_path: a bundled alias (`BUNDLED`), a local folder in Hugging Face's layout, a ``.gguf`` file, or a
            hub id.
        dtype: ``float32``, ``bfloat16``, ``float16``, ``float64``, or the torch dtype.
        device: ``None`` takes the first GPU, else the CPU.
        n_devices: number of GPUs to split the layers over (only with `device` ``None``).
        bos: whether every prompt starts with a BOS token: ``tokenizer`` (as the model's own tokenizer does),
            ``always`` or ``never``.
        hooked_transformer: return a HookedTransformer (TransformerLens 3.x) instead of a TransformerBridge.
        self_check: zero one head, and check that the logits change and are restored bit for bit afterwards.
        revision: branch, tag or commit of a hub repository.
        tokenizer: replaces the model's own; required for a GGUF file with unknown tokenizer rules.

    Returns:
        A TransformerBridge in raw mode: weights and logits are Hugging Face's. `as_hooked_model` returns its adapter.
        With `hooked_transformer`, a HookedTransformer with its adapter.

    Raises:
        UserError: unknown name, option or architecture; unreadable files; weights that cannot be fetched.
        LensPruneError: the self-check failed.

    Examples:
        >>> lp.as_hooked_model(lp.load_model("toy-base", device="cpu")).facts.n_layers
        4
    """
    if hooked_transformer:
        require_hooked_transformer()
    options = LoadOptions(parse_dtype(dtype), _device(device, n_devices), revision, _n_devices(n_devices), tokenizer)
    name = display_name(name_or_path)
    loaded = _load(name_or_path, options)
    if hooked_transformer:
        return boot_hooked_transformer(loaded, name=name, bos=bos, self_check=self_check)
    return boot_bridge(
        loaded.hf_model,
        loaded.tokenizer,
        name=name,
        source=loaded.source,
        bos=bos,
        self_check=self_check,
        weights_hash=loaded.weights_hash,
    )


def open_model(
    model: ModelOrName,
    *,
    dtype: str | None = None,
    device: str | None = None,
    n_devices: int | None = None,
    bos: str | None = None,
) -> HookedModel:
    """Load a model by name, or adapt one that is already loaded.

    Raises:
        UserError: the model can't be loaded, or an option of loading is given with a loaded model.
    """
    options = {"dtype": dtype, "device": device, "n_devices": n_devices, "bos": bos}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if isinstance(model, (str, Path)):
        return as_hooked_model(load_model(model, **given))
    for name in given:
        raise UserError(f"{name} is given with a model that is already loaded: pass it to load_model instead")
    return current_model(model)


def _load(name_or_path: str | Path, options: LoadOptions) -> LoadedModel:
    path = Path(name_or_path).expanduser()
    match model_kind(name_or_path):
        case "bundled":
            return BUNDLED[str(name_or_path)].load(options)
        case "folder":
            return load_folder(path, options)
        case "gguf":
            return load_gguf(path, options)
        case "hub":
            return load_hub(str(name_or_path), options)


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The torch dtype of a name; raises `UserError` for a dtype that models can't run in."""
    if isinstance(dtype, torch.dtype):
        if dtype in DTYPES.values():
            return dtype
        raise unknown_name("dtype", str(dtype).removeprefix("torch."), DTYPES)
    if dtype not in DTYPES:
        raise unknown_name("dtype", str(dtype), DTYPES)
    return DTYPES[dtype]


def _device(device: str | torch.device | None, n_devices: int | None) -> torch.device:
    if n_devices is not None and n_devices > 1 and device is not None:
        raise UserError(
            f"device {str(device)!r} and n_devices={n_devices} are both given: leave device out to use several GPUs"
        )
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        parsed = torch.device(device)
        torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError) as error:
        choices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise UserError(f"device {str(device)!r} is not available here: choose {' or '.join(choices)}") from error
    return parsed


def _n_devices(n_devices: int | None) -> int | None:
    if n_devices is None or n_devices == 1:
        return None
    available = torch.cuda.device_count()
    if not 1 <= n_devices <= available:
        raise UserError(f"n_devices={n_devices} is not possible: this machine has {available} GPUs")
    return n_devices
