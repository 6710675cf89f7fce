"""A model's configuration and tokenizer: what is known before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lensprune.errors import UserError
from lensprune.models.base import BosPolicy, ModelFacts
from lensprune.models.facts import Origin, model_facts
from lensprune.models.gguf.config import gguf_config
from lensprune.models.gguf.header import read_gguf
from lensprune.models.gguf.tokenizer import gguf_tokenizer
from lensprune.models.one_at_a_time import one_at_a_time
from lensprune.models.sources.architectures import check_architecture
from lensprune.models.sources.bundled import BUNDLED
from lensprune.models.sources.pretrained import read_config_and_tokenizer
from lensprune.models.sources.resolve import display_name, model_kind
from lensprune.models.tokenizers import check_bos_policy
from lensprune.offline import is_offline

__all__ = ["ModelConfig", "load_model_config"]


@dataclass(frozen=True)
class ModelConfig:
    """The facts and tokenizer of a model (without weight hashes), and its modules on the meta device.

    `skeleton` has every parameter's shape, but allocates no memory.
    """

    facts: ModelFacts
    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    skeleton: PreTrainedModel


@one_at_a_time
def load_model_config(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    bos: BosPolicy = "tokenizer",
    revision: str | None = None,
) -> ModelConfig:
    """Read the configuration and tokenizer of anything that `load_model` accepts.

    Raises:
        UserError: unknown name, no configuration or tokenizer that can be read, an architecture that is not
            supported, or a BOS policy that the tokenizer can't follow.
    """
    config, tokenizer = _read(name_or_path, revision)
    check_bos_policy(bos, tokenizer)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=dtype)
    config = skeleton.config
    text = getattr(config, "text_config", None) or config
    facts = model_facts(
        Origin(display_name(name_or_path), "configuration", type(skeleton).__name__, ""),
        SimpleNamespace(
            n_layers=text.num_hidden_layers,
            n_heads=text.num_attention_heads,
            n_key_value_heads=getattr(text, "num_key_value_heads", None),
            d_head=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            d_model=text.hidden_size,
            d_vocab=text.vocab_size,
        ),
        config,
        tokenizer,
        dtype=dtype,
        device=device,
        bos=bos,
    )
    return ModelConfig(facts, tokenizer, config, skeleton)


def _read(name_or_path: str | Path, revision: str | None) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    match model_kind(name_or_path):
        case "bundled":
            return read_config_and_tokenizer(str(BUNDLED[name].folder()), name, local=True)
        case "folder":
            if not (path / "config.json").is_file():
                raise UserError(
                    f"model folder {name} has no config.json: expected Hugging Face's layout, or a path to a .gguf file"
                )
            if not any((path / file).is_file() for file in _TOKENIZER_FILES):
                raise UserError(
                    f"model folder {name} has no tokenizer, which is needed to count tokens: expected "
                    f"{' or '.join(_TOKENIZER_FILES)}"
                )
            return read_config_and_tokenizer(str(path), name, local=True)
        case "gguf":
            file = read_gguf(path)
            config = gguf_config(file)
            check_architecture(config, path.name)
            return config, gguf_tokenizer(file)
        case "hub":
            return read_config_and_tokenizer(name, name, local=is_offline(), revision=revision)


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
