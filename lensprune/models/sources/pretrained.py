"""Hugging Face's own layout: a local folder or a repository on the hub. Safetensors only, never remote code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lensprune.errors import UserError, first_line
from lensprune.models.no_install import nothing_installed
from lensprune.models.sizes import check_sizes
from lensprune.models.sources.architectures import TEXT_PART_KEYS, text_config
from lensprune.models.sources.base import LoadedModel, LoadOptions
from lensprune.models.sources.loading_report import check_loading, quiet_report
from lensprune.offline import is_offline

__all__ = ["load_folder", "load_hub", "move", "placement", "read_config_and_tokenizer"]


def load_folder(folder: Path, options: LoadOptions, *, name: str | None = None) -> LoadedModel:
    """Load a local folder with ``config.json``, ``*.safetensors`` and tokenizer files.

    Raises:
        UserError: a file is missing or cannot be read, or the architecture is not supported.
    """
    name = name or str(folder)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"model folder {name} has no config.json: expected Hugging Face's layout, or a path to a .gguf file"
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"model folder {name} has no *.safetensors weights: other weight formats are not read, for safety"
        )
    return _load(str(folder), options, name, source=f"folder:{folder.name}", local=True)


def load_hub(repo: str, options: LoadOptions) -> LoadedModel:
    """Load a repository of the Hugging Face hub, from its local cache when offline.

    Raises:
        UserError: the repository does not exist, is gated, cannot be reached, or is not supported.
    """
    revision = f"@{options.revision}" if options.revision else ""
    return _load(repo, options, repo, source=f"hub:{repo}{revision}", local=is_offline())


def move(model: PreTrainedModel, options: LoadOptions) -> PreTrainedModel:
    """Move `model` to its single device; a model over several GPUs was placed while it was read."""
    if options.n_devices is None:
        torch.nn.Module.to(model, options.device)
    return model


def _load(path: str, options: LoadOptions, name: str, *, source: str, local: bool) -> LoadedModel:
    shared: dict[str, Any] = {
        "local_files_only": local,
        "revision": options.revision or "main",
        "trust_remote_code": False,
    }
    with _readable(name, local, options.revision):
        stated = AutoConfig.from_pretrained(path, **shared)
        config = text_config(stated, name)
        if Path(path).is_dir():
            _check_files(Path(path), config, name)
        multimodal = config is not stated
        with quiet_report(), nothing_installed():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=options.dtype,
                use_safetensors=True,
                attn_implementation="eager",
                key_mapping=TEXT_PART_KEYS if multimodal else None,
                output_loading_info=True,
                # Refused by name below.
                ignore_mismatched_sizes=True,
                **placement(options),
                **shared,
            )
        model, info = loaded
        check_loading(model, info, name, text_part=multimodal)
        tokenizer = options.tokenizer or AutoTokenizer.from_pretrained(path, **shared)
    return LoadedModel(move(model.eval(), options), tokenizer, source)


def _check_files(folder: Path, config: PretrainedConfig, name: str) -> None:
    n_tensors = n_bytes = 0
    for path in folder.glob("*.safetensors"):
        n_bytes += path.stat().st_size
        with safe_open(path, framework="pt") as file:
            n_tensors += len(file.keys())
    text = config.get_text_config()
    keys = ("num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size", "num_attention_heads")
    check_sizes({key: getattr(text, key, None) for key in keys}, n_tensors, n_bytes, name)


def read_config_and_tokenizer(
    path: str, name: str, *, local: bool, revision: str | None = None
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer of a folder or hub repository, without its weights.

    Raises:
        UserError: one of them cannot be read, or the architecture is not supported.
    """
    shared: dict[str, Any] = {
        "local_files_only": local,
        "revision": revision or "main",
        "trust_remote_code": False,
    }
    with _readable(name, local, revision):
        config = text_config(AutoConfig.from_pretrained(path, **shared), name)
    with _readable(f"{name} (its tokenizer)", local, revision):
        tokenizer = AutoTokenizer.from_pretrained(path, **shared)
    return config, tokenizer


@contextmanager
def _readable(name: str, local: bool, revision: str | None) -> Iterator[None]:
    """Turn errors while reading files into ones that a user can act on."""
    try:
        yield
    except UserError:
        raise
    except GatedRepoError as error:
        raise UserError(
            f"model {name!r} is gated: accept its terms on the hub and log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"model {name!r} has no revision {revision!r}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"model {name!r} does not exist on the Hugging Face hub, or needs a login") from error
    except (OSError, HfHubHTTPError) as error:
        raise UserError(_unreadable(name, local, error)) from error
    except Exception as error:
        # A damaged file can fail anywhere in four libraries: whatever they raise, the remedy is another file.
        raise UserError(f"model {name!r} cannot be loaded: {first_line(error)}") from error


def placement(options: LoadOptions) -> dict[str, Any]:
    """Arguments of `from_pretrained` that spread a model over several GPUs; none for a single device."""
    if options.n_devices is None:
        return {}
    budget = {i: torch.cuda.mem_get_info(i)[0] for i in range(options.n_devices)}
    return {"device_map": "balanced", "max_memory": budget}


def _unreadable(name: str, local: bool, error: Exception) -> str:
    if Path(name).is_dir():
        return f"model folder {name} cannot be read: {first_line(error)}"
    if local:
        return (
            f"model {name!r} is not in the local Hugging Face cache, and LENSPRUNE_OFFLINE or HF_HUB_OFFLINE forbids "
            "the network: load it once online, or give a local folder"
        )
    return (
        f"model {name!r} cannot be fetched from the Hugging Face hub ({first_line(error)}): check the name and the "
        "connection, or give a local folder or .gguf file"
    )
