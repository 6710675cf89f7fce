"""Pairs that can't exchange weights are refused by their first difference."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lensprune.errors import UserError
from lensprune.models import as_hooked_model, load_model
from lensprune.replacement import COMPONENTS, Part, model_pair
from lensprune.replacement.pair import weight_change
from lensprune.replacement.parts import enumerate_parts
from lensprune.replacement.variants import Replacement, enumerate_replacements
from tests.helpers.families import byte_tokenizer, hf_model
from tests.helpers.model_pairs import fresh, tiny_pair
from tests.helpers.tiny_models import tiny
from tests.helpers.tolerances import assert_tensors_agree


def with_tokenizer(folder: Path, change: Any) -> Any:
    hf_model("llama", 1).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return as_hooked_model(load_model(folder, self_check=False))


def respelled(folder: Path, old: str, new: str) -> Any:
    with_tokenizer(folder, lambda tokenizer: None)
    for path in folder.glob("*token*.json"):
        path.write_text(path.read_text(encoding="utf-8").replace(json.dumps(old)[1:-1], new), encoding="utf-8")
    return as_hooked_model(load_model(folder, self_check=False))


def test_renamed_special_tokens_are_named_and_pass_on_request(tmp_path: Path) -> None:
    base, other = tiny("llama"), respelled(tmp_path / "special", "<bos>", "<begin>")
    assert other.tokenizer.bos_token == "<begin>"
    bos = base.tokenizer.bos_token_id
    named = rf"{bos} \('<bos>' in base, '<begin>' in distilled\)"
    with pytest.raises(UserError, match=rf"spell special tokens differently: {named}; .*--renamed-tokens"):
        model_pair(base, other)
    pair = model_pair(base, other, renamed_tokens=True)
    assert any(re.search(named, note) for note in pair.notes)
    assert base.tokenizer.encode("a b") == other.tokenizer.encode("a b")


def test_a_renamed_ordinary_token_is_refused_all_the_same(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"token .* is 'a' in base, 'b' in distilled"):
        model_pair(tiny("llama"), with_swapped_letters(tmp_path / "ordinary"), renamed_tokens=True)


def with_swapped_letters(folder: Path) -> Any:
    with_tokenizer(folder, lambda tokenizer: None)
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    vocab = data["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(data), encoding="utf-8")
    return as_hooked_model(load_model(folder, self_check=False))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"intermediate_size": 64}, r"model.layers.0.mlp.gate_proj.weight is \[48, 32\] in base, \[64, 32\]"),
        ({"num_hidden_layers": 4}, r"model.layers.3.self_attn.q_proj.weight is none in base, \[32, 32\]"),
        ({"rms_norm_eps": 1e-3}, "rms_norm_eps is 1e-06 in base, 0.001 in distilled"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_parameters"),
    ],
)
def test_other_shapes_and_settings(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_pair(tiny("llama"), fresh("llama", 1, **overrides))


def test_other_architecture_and_other_policy() -> None:
    with pytest.raises(UserError, match="differ in architecture: LlamaForCausalLM and Qwen2ForCausalLM"):
        model_pair(tiny("llama"), tiny("qwen2"))
    other = as_hooked_model(fresh("llama", 1), bos="always")
    with pytest.raises(UserError, match="differ in bos_policy"):
        model_pair(tiny("llama"), other)


def test_one_model_is_no_pair() -> None:
    with pytest.raises(UserError, match="load it twice"):
        model_pair(tiny("llama"), tiny("llama"))


def test_first_different_token_is_named(tmp_path: Path) -> None:
    def add(tokenizer: transformers.PreTrainedTokenizerFast) -> None:
        tokenizer.add_tokens(["<think>"])

    with pytest.raises(UserError, match="token 260 is None in base, '<think>' in distilled"):
        model_pair(tiny("llama"), with_tokenizer(tmp_path / "more", add))


def test_same_tokens_under_other_rules(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    def prefix_space(tokenizer: transformers.PreTrainedTokenizerFast) -> None:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)

    with pytest.raises(UserError, match="another pre tokenizer"):
        model_pair(tiny("llama"), with_tokenizer(tmp_path / "rules", prefix_space))


def test_a_model_of_another_kind_is_refused() -> None:
    class WithoutTwin:
        def __init__(self, model: Any) -> None:
            self._model = model

        def __getattr__(self, name: str) -> Any:
            return getattr(self._model, name)

    with pytest.raises(UserError, match="rather than booting it yourself"):
        model_pair(WithoutTwin(tiny("llama")), tiny("llama"))  # type: ignore[arg-type]


def test_an_exchange_that_misses_the_hooked_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-NeoX's bridge holds copies of q, k and v; if they were forgotten the self-check must notice."""
    import lensprune.replacement.pair as pair_module
    from lensprune.replacement.tensors import twin_tensors

    monkeypatch.setattr(pair_module, "part_tensors", twin_tensors)
    with pytest.raises(UserError, match="does not reach"):
        model_pair(fresh("gpt_neox", 0), fresh("gpt_neox", 1))
    model_pair(fresh("llama", 0), fresh("llama", 1))


def test_what_is_stated_of_a_pair() -> None:
    notes = tiny_pair("llama").notes
    assert [note.split(":")[0] for note in notes] == ["embed", "unembed", "norms"]
    assert all("different" in note for note in notes)
    tied = tiny_pair("gpt2")
    assert tied.tied
    assert any("tied" in note for note in tied.notes)
    twins = model_pair(fresh("llama", 0), fresh("llama", 0))
    assert twins.notes[0] == "both models have the same weights, so no replacement changes anything"
    assert all(note.endswith("identical") for note in twins.notes[1:])


def test_weight_change_is_the_frobenius_norm() -> None:
    pair = tiny_pair("llama")
    raw: tuple[Any, Any] = (pair.base.raw_model, pair.distilled.raw_model)
    a, b = (model.get_submodule("model.layers.1.self_attn.o_proj").weight.detach() for model in raw)
    change = weight_change(pair, [Part("attention_output", 1)])
    assert_tensors_agree(change.absolute, (b - a).norm(), torch.float32)
    assert_tensors_agree(change.relative, (b - a).norm() / a.norm(), torch.float32)
    both = weight_change(pair, [Part("attention_output", 1), Part("attention_output", 1), Part("attention", 1)])
    assert both.absolute == pytest.approx(weight_change(pair, [Part("attention", 1)]).absolute)


def test_parts_and_their_names() -> None:
    facts = tiny("llama").facts
    assert [p.label for p in enumerate_parts(facts, "attention_output")] == [
        "L0.attention_output",
        "L1.attention_output",
        "L2.attention_output",
    ]
    assert [p.label for p in enumerate_parts(facts, "head", [2], [1, 3])] == ["L2.H1", "L2.H3"]
    assert [p.label for p in enumerate_parts(facts, "norms")][-1] == "final.norms"
    assert [p.label for p in enumerate_parts(facts, "layer", [0])] == ["L0"]
    assert [p.label for c in ("embed", "unembed") for p in enumerate_parts(facts, c)] == ["embed", "unembed"]
    assert len(COMPONENTS) == 8
    for arguments, message in (
        (("attention-output",), "did you mean attention_output"),
        (("mlp", [3]), "layers 0 to 2"),
        (("embed", [0]), "has none"),
        (("mlp", None, [0]), "use component head"),
        (("head", None, [4]), "heads 0 to 3"),
    ):
        with pytest.raises(UserError, match=message):
            enumerate_parts(facts, *arguments)


def test_swaps_and_their_names() -> None:
    parts = [Part("mlp", layer) for layer in range(3)]

    def names(**options: Any) -> list[str]:
        return [replacement.name for replacement in enumerate_replacements(parts, **options)]

    assert names() == [n for i in range(3) for n in (f"base+L{i}.mlp", f"distilled-L{i}.mlp")]
    forward = {"direction": "forward"}
    assert names(mode="cumulative", **forward) == ["base+L0.mlp", "base+L0.mlp..L1.mlp", "base+L0.mlp..L2.mlp"]
    assert names(mode="cumulative", start="top", **forward)[:2] == ["base+L2.mlp", "base+L1.mlp..L2.mlp"]
    assert names(mode="range", direction="backward") == ["distilled-L0.mlp..L2.mlp"]
    assert names(mode="range", alpha=0.5, **forward) == ["base+L0.mlp..L2.mlp@0.5"]
    single = Replacement("distilled", (Part("head", 1, 2),))
    assert (single.component, single.layer, single.head, single.ablation) == ("head", 1, 2, "from_base")
    for options, message in (
        ({"mode": "singel"}, "did you mean single"),
        ({"direction": "forwards"}, "did you mean forward"),
        ({"start": "botom"}, "did you mean bottom"),
        ({"alpha": 1.5}, "expected 0 to 1"),
        ({"alpha": float("nan")}, "expected 0 to 1"),
    ):
        with pytest.raises(UserError, match=message):
            names(**options)
