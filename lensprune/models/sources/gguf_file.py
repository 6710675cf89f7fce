"""A model in a GGUF file, dequantised on the fly."""

from __future__ import annotations

from pathlib import Path

from lensprune.errors import UserError, first_line
from lensprune.models.gguf.config import gguf_config
from lensprune.models.gguf.header import read_gguf
from lensprune.models.gguf.tokenizer import gguf_tokenizer
from lensprune.models.gguf.weights import gguf_model
from lensprune.models.sources.architectures import check_architecture
from lensprune.models.sources.base import LoadedModel, LoadOptions
from lensprune.models.sources.pretrained import move, placement

__all__ = ["load_gguf"]


def load_gguf(path: Path, options: LoadOptions) -> LoadedModel:
    """Load weights and tokenizer of a ``.gguf`` file.

    Raises:
        UserError: the file is damaged, or has unsupported contents.
    """
    file = read_gguf(path)
    config = gguf_config(file)
    check_architecture(config, path.name)
    try:
        tokenizer = options.tokenizer or gguf_tokenizer(file)
        model = gguf_model(file, config, options.dtype, placement(options))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"GGUF file {path.name} cannot be loaded: {first_line(error)}") from error
    return LoadedModel(move(model, options), tokenizer, f"gguf:{path.name}")
