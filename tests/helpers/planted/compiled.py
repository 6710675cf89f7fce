"""Models that tracr compiled from RASP programs, with idle parts added: what a method should find is known.

`compile_rasp.py` wrote the weights and what was compiled. tracr's transformers have no norms, so here, as in
`tests.helpers.planted.models`, a large constant and mirrored coordinates make LayerNorm the identity.

tracr gives a layer no more heads than the program needs, and then a method could hardly be wrong. So every layer gets
idle heads, up to `N_HEADS`, and idle MLP units: their weights are random, they read everything, tokens and each other
included, and write into `IDLE` directions that no compiled part and no output reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from lensprune.models import as_hooked_model, load_model
from lensprune.models.base import HookedModel
from tests.helpers.planted.blueprint import SCALE, SPECIAL
from tests.helpers.planted.models import word_tokenizer
from tests.helpers.tiny_models import scratch

__all__ = ["PROGRAMS", "CompiledProgram", "compiled", "program"]

PROGRAMS = ("induction", "pair", "count", "peers")
N_HEADS = 4
IDLE = 6
_IDLE_UNITS = 8
_LOGIT_GAIN = 10.0
_CONSTANT = frozenset({"bos", "indices", "one"})
"""Variables that are the same for every input of one length: no pair of prompts can show who reads them."""


@dataclass(frozen=True)
class CompiledProgram:
    """A program, its weights, and its circuit."""

    name: str
    facts: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Words of the inputs, then those outputs that are no input."""
        words = self.facts["words"]
        return (*SPECIAL, *words, *(word for word in self.facts["outputs"] if word not in words))

    @property
    def n_layers(self) -> int:
        return sum(key.endswith(".query") for key in self.weights)

    @property
    def nodes(self) -> frozenset[str]:
        """Heads and MLPs that compute something."""
        return frozenset(self.facts["nodes"])

    def edges(self) -> frozenset[tuple[str, str]]:
        """(writer, reader) wherever a reader reads a variable that the writer writes earlier and that depends on the
        input."""
        found = set()
        writes = {"embed": set(self.facts["embed_writes"]) - _CONSTANT}
        for layer in range(self.n_layers):
            heads = sorted(node for node in self.nodes if node.startswith(f"L{layer}.H"))
            for together in (heads, sorted(self.nodes & {f"L{layer}.mlp"})):
                for name in together:
                    for reader, variables in self._inputs(name).items():
                        found |= {(writer, reader) for writer, written in writes.items() if written & variables}
                writes |= {name: set(self.facts["nodes"][name]["writes"]) for name in together}
        output = self.facts["residual"][next(iter(self.facts["outputs"].values()))].partition(":")[0]
        return frozenset(found | {(writer, "logits") for writer, written in writes.items() if output in written})

    def _inputs(self, name: str) -> dict[str, set[str]]:
        node = self.facts["nodes"][name]
        if name.endswith("mlp"):
            return {name: set(node["reads"])}
        return {f"{name}.{slot}": set(node[slot]) for slot in "qkv"}


@cache
def program(name: str) -> CompiledProgram:
    """One of `PROGRAMS` as it was compiled."""
    folder = Path(__file__).parent / "compiled"
    facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return CompiledProgram(name, facts, load_file(folder / f"{name}.safetensors"))


@cache
def compiled(name: str, softness: float = 1.0) -> HookedModel:
    """The model of a program, its attention scores divided by `softness` (tracr's saturate every softmax)."""
    own = program(name)
    folder = scratch(f"compiled-{name}")
    with torch.no_grad():
        _gpt2(own, softness).eval().save_pretrained(folder)
    word_tokenizer(own.vocabulary).save_pretrained(folder)
    return as_hooked_model(load_model(folder, device="cpu", bos="always"))


def _gpt2(own: CompiledProgram, softness: float) -> transformers.GPT2LMHeadModel:
    real = len(own.facts["residual"])
    # Behind tracr's directions: the idle ones, and the constant.
    width = -(-(real + IDLE + 1) // N_HEADS) * N_HEADS
    constant = real + IDLE
    d_model, d_head = 2 * width, 2 * width // N_HEADS
    size = own.weights["0.query"].shape[-1]
    if size > d_head:
        raise AssertionError(f"{size} dimensions of a compiled head do not fit into {d_head}")
    units = own.weights["0.mlp_in"].shape[1]
    config = transformers.GPT2Config(
        vocab_size=len(own.vocabulary),
        n_embd=d_model,
        n_layer=own.n_layers,
        n_head=N_HEADS,
        n_positions=own.facts["length"] + 1,
        n_inner=units + _IDLE_UNITS,
        activation_function="relu",
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.zero_()
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def wide(matrix: torch.Tensor) -> torch.Tensor:
        """[rows, tracr's directions or all up to the constant] → [rows, width]."""
        return torch.nn.functional.pad(matrix, (0, width - matrix.shape[1]))

    def read(matrix: torch.Tensor) -> torch.Tensor:
        padded = wide(matrix.T).T / 2
        return torch.cat([padded, -padded])

    def write(matrix: torch.Tensor) -> torch.Tensor:
        padded = wide(matrix)
        return torch.cat([padded, -padded], dim=1)

    def idle_write(rows: int) -> torch.Tensor:
        return torch.cat([torch.zeros(rows, real), 0.05 * random(rows, IDLE)], dim=1)

    identity = SCALE / width**0.5
    for layer, block in enumerate(model.transformer.h):
        weights = {key.split(".")[1]: value for key, value in own.weights.items() if key.startswith(f"{layer}.")}
        block.ln_1.weight.fill_(identity)
        block.ln_2.weight.fill_(identity)
        taken = {int(node.split(".H")[1]) for node in own.nodes if node.startswith(f"L{layer}.H")}
        for head in range(N_HEADS):
            if head in taken:
                query, key, value = (weights[name][head] for name in ("query", "key", "value"))
                query, output = query * d_head**0.5 / softness, weights["output"][head]
            else:
                query, key, value = (random(real + IDLE, size) for _ in range(3))
                output = idle_write(size)
            columns = slice(head * d_head, head * d_head + size)
            for place, matrix in enumerate((query, key, value)):
                start = place * d_model
                block.attn.c_attn.weight[:, start + columns.start : start + columns.stop] = read(matrix)
            block.attn.c_proj.weight[columns] = write(output)
        block.mlp.c_fc.weight[:, :units] = read(weights["mlp_in"])
        block.mlp.c_proj.weight[:units] = write(weights["mlp_out"])
        block.mlp.c_fc.weight[:, units:] = read(random(real + IDLE, _IDLE_UNITS))
        block.mlp.c_proj.weight[units:] = write(idle_write(_IDLE_UNITS))
    model.transformer.ln_f.weight.fill_(identity)
    embedding = torch.zeros(len(own.vocabulary), width)
    embedding[:, constant] = SCALE
    for row, word in enumerate(("<bos>", *own.facts["words"])):
        embedding[own.vocabulary.index(word), :real] = own.weights["embed"][row]
    model.transformer.wte.weight.copy_(write(embedding))
    model.transformer.wpe.weight.copy_(write(own.weights["position"]))
    unembedding = torch.zeros(real, len(own.vocabulary))
    for word, direction in own.facts["outputs"].items():
        unembedding[direction, own.vocabulary.index(word)] = _LOGIT_GAIN
    model.lm_head.weight.copy_(read(unembedding).T)
    return model
