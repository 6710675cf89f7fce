"""Train the thinking toy: continue from the distilled toy on chats with the steps between think markers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lensprune.models.cache import hash_file
from lensprune.toys.beginning import new_model
from lensprune.toys.chats import ChatSource
from lensprune.toys.recipe import Recipe
from lensprune.toys.tokenizer import make_tokenizer
from lensprune.toys.training import answers_right, batches, train

__all__ = ["THINKER", "beginning", "build_thinker"]

THINKER = "toy-thinker"

_ROWS = 4
"""Stage number, which gives each stage its own rows for a seed; the trio's are 1 to 3."""
_EVALUATION_SEED = 901


def build_thinker(recipe: Recipe, distilled: Path, out: Path, *, log: Callable[[str], None] = print) -> str:
    """Train the thinker from a distilled toy, and write it to ``out/toy-thinker`` in Hugging Face's layout, in float16.

    Args:
        distilled: folder of the initial model, as written by `build`; its tokenizer lacks the chat template's tokens,
            whose embeddings start at random.

    Returns:
        sha256 of its weights file.
    """
    torch.use_deterministic_algorithms(True)
    tokenizer = make_tokenizer(thinking=True)
    model = beginning(recipe, tokenizer, distilled)
    seed = _ROWS + 10 * recipe.seed
    stream = batches(
        tokenizer,
        ChatSource(seed, tokenizer).mixed,
        steps=recipe.thinker_steps,
        batch_tokens=recipe.batch_tokens,
        most=recipe.n_ctx,
        seed=seed,
    )
    train(
        model,
        stream,
        steps=recipe.thinker_steps,
        learning_rate=recipe.learning_rate * 0.5,
        log=log,
        name="thinker",
        check=lambda: answers_right(model, tokenizer, ChatSource(_EVALUATION_SEED, tokenizer), texts=50),
    )
    folder = out / THINKER
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    digest = hash_file(folder / "model.safetensors")
    log(f"{THINKER}: {sum(p.numel() for p in model.parameters())} parameters, sha256 {digest}")
    return digest


@torch.no_grad()
def beginning(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, distilled: Path) -> LlamaForCausalLM:
    """A new model with the distilled model's weights; embeddings of the additional tokens are new."""
    model = new_model(recipe, tokenizer)
    known = {name: weight.float() for name, weight in load_file(distilled / "model.safetensors").items()}
    embeddings = known.pop("model.embed_tokens.weight")
    model.model.embed_tokens.weight[: len(embeddings)] = embeddings
    for name, weight in known.items():
        model.get_parameter(name).copy_(weight)
    return model
