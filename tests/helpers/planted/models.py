"""Blueprints as Hugging Face models of two shapes, and as models loaded from a folder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lensprune.models import as_hooked_model, load_model
from lensprune.models.base import HookedModel
from tests.helpers.planted.blueprint import BOS, SCALE, SPECIAL, Blueprint
from tests.helpers.planted.weights import (
    D_HEAD,
    POSITION_GAIN,
    Layout,
    head_weights,
    offset_angle,
    rotary_frequencies,
)
from tests.helpers.tiny_models import scratch

__all__ = ["SHAPES", "build", "loaded", "word_tokenizer"]

SHAPES = ("llama", "gpt2")
N_POSITIONS = 56
_ROPE_THETA = 1e30
_POSITION_PAIRS = 8


def word_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word between blanks; no token is added by itself."""
    numbered = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(numbered, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token=BOS, eos_token="<eos>", pad_token="<pad>"
    )


def build(blueprint: Blueprint, shape: str) -> PreTrainedModel:
    """The model of `shape` ``llama`` (rotary, grouped queries, RMSNorm) or ``gpt2`` (learned positions, LayerNorm)."""
    with torch.no_grad():
        return (_llama if shape == "llama" else _gpt2)(blueprint).eval()


def loaded(blueprint: Blueprint, shape: str) -> HookedModel:
    """`build`, written to a folder and read by `load_model`, with a BOS in front of every prompt."""
    folder = scratch(f"planted-{shape}")
    build(blueprint, shape).save_pretrained(folder)
    word_tokenizer(blueprint.vocabulary).save_pretrained(folder)
    return as_hooked_model(load_model(folder, device="cpu", bos="always"))


def _llama(blueprint: Blueprint) -> PreTrainedModel:
    """Two query heads share a key/value head, so a group may hold one planted head; its neighbour only reads the rest.

    The first rotary pairs turn fast and carry positions. The others turn by less than 1e-7 a position, so they carry
    content.
    """
    half = D_HEAD // 2
    content = (*range(_POSITION_PAIRS, half), *range(half + _POSITION_PAIRS, D_HEAD))
    layout = Layout.of(blueprint, content)
    config = transformers.LlamaConfig(
        vocab_size=len(blueprint.vocabulary),
        hidden_size=layout.width,
        intermediate_size=8,
        num_hidden_layers=blueprint.n_layers,
        num_attention_heads=blueprint.n_heads,
        num_key_value_heads=blueprint.n_heads // 2,
        head_dim=D_HEAD,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_THETA},
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.zero_()
    identity = SCALE / layout.width**0.5
    frequencies = rotary_frequencies(_ROPE_THETA)[:_POSITION_PAIRS]
    for layer, block in enumerate(model.model.layers):
        block.input_layernorm.weight.fill_(identity)
        block.post_attention_layernorm.weight.fill_(identity)
        attention = block.self_attn
        for head in range(blueprint.n_heads):
            planted = blueprint.heads.get((layer, head))
            own = head_weights(layout, planted)
            if planted is not None and planted.offset is not None:
                for pair, frequency in enumerate(frequencies):
                    real, imaginary = offset_angle(planted.offset, frequency)
                    own.query[0, pair] = POSITION_GAIN / SCALE
                    own.key[0, pair] = real / SCALE
                    own.key[0, pair + half] = imaginary / SCALE
            rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
            attention.q_proj.weight[rows] = own.query.T * D_HEAD**0.5
            attention.o_proj.weight[:, rows] = own.output.T
            group = head // 2
            rows = slice(group * D_HEAD, (group + 1) * D_HEAD)
            if planted is not None or (layer, head ^ 1) not in blueprint.heads:
                attention.k_proj.weight[rows] = own.key.T
                attention.v_proj.weight[rows] = own.value.T
    model.model.norm.weight.fill_(identity)
    model.model.embed_tokens.weight[:, layout.row("constant")] = SCALE
    model.model.embed_tokens.weight[:, list(layout.rows("token"))] = torch.eye(len(blueprint.vocabulary))
    model.lm_head.weight[:, list(layout.rows("out"))] = blueprint.logit_gain * torch.eye(len(blueprint.vocabulary))
    return model


def _gpt2(blueprint: Blueprint) -> PreTrainedModel:
    """Every coordinate has a mirror of opposite sign, so that LayerNorm's mean is zero; positions are one-hot."""
    layout = Layout.of(blueprint, tuple(range(D_HEAD)), {"position": N_POSITIONS})
    width = max(layout.width, blueprint.n_heads * D_HEAD // 2)
    d_model = -(-2 * width // (blueprint.n_heads * 2)) * blueprint.n_heads * 2
    width = d_model // 2
    d_head = d_model // blueprint.n_heads
    config = transformers.GPT2Config(
        vocab_size=len(blueprint.vocabulary),
        n_embd=d_model,
        n_layer=blueprint.n_layers,
        n_head=blueprint.n_heads,
        n_positions=N_POSITIONS,
        n_inner=8,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.zero_()

    def read(matrix: torch.Tensor) -> torch.Tensor:
        mirrored = torch.zeros(d_model, matrix.shape[1])
        mirrored[: layout.width], mirrored[width : width + layout.width] = matrix / 2, -matrix / 2
        return mirrored

    def write(matrix: torch.Tensor) -> torch.Tensor:
        mirrored = torch.zeros(matrix.shape[0], d_model)
        mirrored[:, : layout.width], mirrored[:, width : width + layout.width] = matrix, -matrix
        return mirrored

    # Of 2·width coordinates two hold ±SCALE, so the standard deviation is SCALE / √width.
    identity = SCALE / width**0.5
    vocabulary = len(blueprint.vocabulary)
    position = layout.starts["position"]
    for layer, block in enumerate(model.transformer.h):
        block.ln_1.weight.fill_(identity)
        block.ln_2.weight.fill_(identity)
        for head in range(blueprint.n_heads):
            planted = blueprint.heads.get((layer, head))
            own = head_weights(layout, planted)
            if planted is not None and planted.offset is not None:
                # The rest keeps dimension 0; positions take one dimension each behind it.
                for place in range(N_POSITIONS):
                    own.query[position + place, 1 + place] = POSITION_GAIN
                    if place + planted.offset < N_POSITIONS:
                        own.key[position + place, 1 + place + planted.offset] = 1.0
            columns = slice(head * d_head, head * d_head + D_HEAD)
            query, key, value = (slice(i * d_model + columns.start, i * d_model + columns.stop) for i in range(3))
            block.attn.c_attn.weight[:, query] = read(own.query) * d_head**0.5
            block.attn.c_attn.weight[:, key] = read(own.key)
            block.attn.c_attn.weight[:, value] = read(own.value)
            block.attn.c_proj.weight[columns] = write(own.output)
    model.transformer.ln_f.weight.fill_(identity)
    embedding = torch.zeros(vocabulary, layout.width)
    embedding[:, layout.row("constant")] = SCALE
    embedding[:, list(layout.rows("token"))] = torch.eye(vocabulary)
    model.transformer.wte.weight.copy_(write(embedding))
    places = torch.zeros(N_POSITIONS, layout.width)
    places[:, position : position + N_POSITIONS] = torch.eye(N_POSITIONS)
    model.transformer.wpe.weight.copy_(write(places))
    unembedding = torch.zeros(layout.width, vocabulary)
    unembedding[list(layout.rows("out"))] = blueprint.logit_gain * torch.eye(vocabulary)
    model.lm_head.weight.copy_(read(unembedding).T)
    return model
