"""Compile RASP programs to transformer weights with ``tracr-pypi`` 1.0.0.

Run it as ``python tests/helpers/planted/compile_rasp.py``.

tracr (Lindner et al. 2023, arXiv 2301.05062) needs jax, so it lives in an environment of its own and what it gives is
kept in ``compiled/``: a safetensors file of weights and a JSON file of what was compiled for every program. Only tracr,
numpy and safetensors are imported here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tracr.compiler import compiling
from tracr.rasp import rasp

FOLDER = Path(__file__).parent / "compiled"
BOS = "compiler_bos"
PAD = "compiler_pad"


def shifted(by: int) -> rasp.SOp:
    """The token `by` positions earlier."""
    return rasp.Aggregate(
        rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == query - by), rasp.tokens
    ).named(f"shifted_{by}")


def equal(keys: rasp.SOp, queries: rasp.SOp) -> rasp.Selector:
    """Where what stands at a key is what stands at the query."""
    return rasp.Select(keys, queries, rasp.Comparison.EQ)


def induction() -> rasp.SOp:
    """The token behind the earlier occurrences of this one."""
    return rasp.Aggregate(equal(shifted(1), rasp.tokens), rasp.tokens).named("next")


def count() -> rasp.SOp:
    """How often this token occurred so far."""
    return rasp.SelectorWidth(equal(rasp.tokens, rasp.tokens)).named("count")


def peers() -> rasp.SOp:
    """At how many positions so far the token had occurred as often as this one has here."""
    times = count()
    return rasp.SelectorWidth(equal(times, times)).named("peers")


def pair() -> rasp.SOp:
    """Whether the tokens one and two back are the same."""
    return rasp.SequenceMap(lambda x, y: "same" if x == y else "other", shifted(1), shifted(2)).named("pair")


PROGRAMS = {
    "induction": (induction, "abcdef", 6),
    "count": (count, "abcd", 6),
    "peers": (peers, "abc", 6),
    "pair": (pair, "abcd", 5),
}


def variable(label: str) -> str:
    """The variable that a direction of the residual stream holds; BOS is one of its own, for no input changes it."""
    name, _, value = label.partition(":")
    if name == "tokens" and value in (BOS, PAD):
        return "bos"
    # tracr numbers what it makes: the number says nothing.
    return re.sub(r"_\d+(_selector_width_attn_output)?$", r"\1", name) if name not in ("tokens", "indices") else name


def compiled(make: Any, vocabulary: str, length: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    program = make()
    model = compiling.compile_rasp_to_model(
        program, vocab=set(vocabulary), max_seq_len=length, causal=True, compiler_bos=BOS, compiler_pad=PAD
    )
    labels, config = model.residual_labels, model.model_config
    params = {name: {k: np.asarray(v) for k, v in own.items()} for name, own in model.params.items()}
    heads, size = config.num_heads, config.key_size
    encoder = model.input_encoder.encoding_map
    weights = {
        "embed": np.stack([params["token_embed"]["embeddings"][encoder[word]] for word in (BOS, *vocabulary)]),
        "position": params["pos_embed"]["embeddings"],
    }
    nodes: dict[str, dict[str, list[str]]] = {}

    def variables(used: np.ndarray) -> list[str]:
        return sorted({variable(label) for label, own in zip(labels, used, strict=True) if own})

    for layer in range(config.num_layers):
        block = {key: params[f"transformer/layer_{layer}/attn/{key}"]["w"] for key in ("query", "key", "value")}
        split = {key: own.reshape(len(labels), heads, size).transpose(1, 0, 2) for key, own in block.items()}
        # tracr divides scores by √key_size.
        split["query"] = split["query"] / np.sqrt(size)
        split["output"] = params[f"transformer/layer_{layer}/attn/linear"]["w"].reshape(heads, size, len(labels))
        weights |= {f"{layer}.{key}": own for key, own in split.items()}
        for head in range(heads):
            if split["output"][head].any():
                # Of a product, what reads is what a later factor takes up: tracr writes keys that no query meets.
                score = split["query"][head] @ split["key"][head].T
                moved = split["value"][head] @ split["output"][head]
                nodes[f"L{layer}.H{head}"] = {
                    "q": variables(score.any(axis=1)),
                    "k": variables(score.any(axis=0)),
                    "v": variables(moved.any(axis=1)),
                    "writes": variables(moved.any(axis=0)),
                }
        first = params[f"transformer/layer_{layer}/mlp/linear_1"]["w"]
        second = params[f"transformer/layer_{layer}/mlp/linear_2"]["w"]
        weights |= {f"{layer}.mlp_in": first, f"{layer}.mlp_out": second}
        if second.any():
            nodes[f"L{layer}.mlp"] = {
                "reads": variables(first.any(axis=1)),
                "writes": variables(second.any(axis=0)),
            }
    outputs = [label for label in labels if label.startswith(f"{program.label}:")]
    for own in weights.values():
        assert np.isfinite(own).all()
    facts = {
        "program": " ".join((make.__doc__ or "").split()),
        "source": "tracr-pypi 1.0.0, compile_rasp_to_model(causal=True)",
        "words": list(vocabulary),
        "length": length,
        "residual": [":".join([variable(label), *label.split(":")[1:]]) for label in labels],
        "outputs": {label.partition(":")[2]: labels.index(label) for label in outputs},
        "nodes": nodes,
        "embed_writes": variables(weights["embed"].any(axis=0) | weights["position"].any(axis=0)),
    }
    return weights, facts


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, (make, vocabulary, length) in PROGRAMS.items():
        weights, facts = compiled(make, vocabulary, length)
        tensors = {key: np.ascontiguousarray(own, dtype=np.float32) for key, own in weights.items()}
        save_file(tensors, FOLDER / f"{name}.safetensors")
        (FOLDER / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        print(name, facts["nodes"])


if __name__ == "__main__":
    main()
