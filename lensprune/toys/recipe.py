"""The toys' recipe: sizes, steps and seeds."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import LlamaConfig, PreTrainedTokenizerFast

__all__ = ["RECIPE", "Recipe", "model_config"]


@dataclass(frozen=True)
class Recipe:
    """Model sizes and lengths of the five training stages.

    The students share `start_steps` on data alone, where chains are answered without steps. From there the base
    continues on the same data for `base_steps`, and the distilled model on the teacher's distributions over worked
    steps for `distilled_steps`; the texts' answers are never its targets. The teacher has different initial weights and
    learns worked steps from data for `teacher_steps`. The thinker continues from the distilled model on chats for
    `thinker_steps` (`lensprune.toys.thinker`).
    """

    d_model: int = 96
    d_ff: int = 256
    n_heads: int = 4
    n_key_value_heads: int = 2
    n_layers: int = 4
    n_ctx: int = 512
    batch_tokens: int = 1536
    learning_rate: float = 0.015
    start_steps: int = 400
    teacher_steps: int = 500
    base_steps: int = 250
    distilled_steps: int = 250
    thinker_steps: int = 500
    seed: int = 0

    def scaled(self, factor: float) -> Recipe:
        """The same recipe with `factor` times the steps (at least one each)."""
        names = ("teacher_steps", "start_steps", "base_steps", "distilled_steps", "thinker_steps")
        return replace(self, **{name: max(1, round(getattr(self, name) * factor)) for name in names})


RECIPE = Recipe()


def model_config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """A Llama with grouped-query attention and tied embeddings."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_ff,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_key_value_heads,
        max_position_embeddings=recipe.n_ctx,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        initializer_range=0.02,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
