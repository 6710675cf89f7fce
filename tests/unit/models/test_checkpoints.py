"""Checkpoints whose weights and configuration disagree, and multimodal ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources.transformers import helpers
from transformers import PreTrainedModel

from lensprune.engine.scoring import eos_token_ids
from lensprune.errors import UserError
from lensprune.models import as_hooked_model, load_model
from lensprune.models.model_config import load_model_config
from lensprune.models.no_install import nothing_installed
from tests.helpers.families import byte_tokenizer, save_folder
from tests.helpers.tolerances import assert_tensors_agree

Weights = dict[str, torch.Tensor]
UP = "model.layers.1.mlp.up_proj.weight"


def change_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: {k: v for k, v in w.items() if k != UP}, f"lacks 1 tensor .*: {UP}; .* random"),
        (lambda w: {f"prefix.{k}": v for k, v in w.items()}, "lacks 30 tensors .*: lm_head.weight, .*, …"),
        (lambda w: {**w, UP: torch.zeros(3, 3)}, rf"1 tensor of another shape .*: {UP} \[3, 3\] instead of \[48, 32\]"),
        (lambda w: {**w, "model.layers.1.mlp.up_proj.bias": torch.zeros(48)}, "holds 1 tensor .*up_proj.bias; "),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[Weights], Weights], expected: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_folder("llama", tmp_path / "model")
    change_weights(folder, change)
    with pytest.raises(UserError, match=expected) as caught:
        load_model(folder, device="cpu")
    assert "\n" not in str(caught.value)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(("layers", "expected"), [(4, "lacks 9 tensors .*model.layers.3"), (2, "holds 9 .*layers.2")])
def test_another_number_of_layers_is_refused(layers: int, expected: str, tmp_path: Path) -> None:
    folder = save_folder("llama", tmp_path / "model")
    change_json(folder / "config.json", num_hidden_layers=layers)
    with pytest.raises(UserError, match=expected):
        load_model(folder, device="cpu")


def test_what_may_be_absent_or_left_over(tmp_path: Path) -> None:
    """Rotary buffers and causal masks of old files, and a tied head."""
    plain = as_hooked_model(load_model(save_folder("llama", tmp_path / "plain"), device="cpu")).facts
    folder = save_folder("llama", tmp_path / "model")
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "model.layers.0.attn.bias": torch.ones(2)}
    change_weights(folder, lambda w: {**w, **more})
    assert as_hooked_model(load_model(folder, device="cpu")).facts.weights_hash == plain.weights_hash

    tied = save_folder("llama", tmp_path / "tied")
    change_json(tied / "config.json", tie_word_embeddings=True)
    change_weights(tied, lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"})
    model = load_model(tied, device="cpu")
    assert torch.equal(model.original_model.lm_head.weight, model.original_model.model.embed_tokens.weight)


def test_a_tied_embedding_beside_another_head_is_refused(tmp_path: Path) -> None:
    folder = save_folder("llama", tmp_path / "model")
    change_json(folder / "config.json", tie_word_embeddings=True)
    with pytest.raises(UserError, match=r"states tie_word_embeddings, .* head that differs .*set tie_word_embeddings"):
        load_model(folder, device="cpu")
    change_weights(folder, lambda w: {**w, "lm_head.weight": w["model.embed_tokens.weight"].clone()})
    load_model(folder, device="cpu")


def test_a_generation_config_names_eos_over_a_stale_configuration(tmp_path: Path) -> None:
    folder = save_folder("llama", tmp_path / "model")
    change_json(folder / "config.json", eos_token_id=77)
    change_json(folder / "generation_config.json", eos_token_id=[88, 99])
    model = as_hooked_model(load_model(folder, device="cpu"))
    assert eos_token_ids(model) == {2, 88, 99}
    (folder / "generation_config.json").unlink()
    assert eos_token_ids(as_hooked_model(load_model(folder, device="cpu"))) == {2, 77}


_TEXT: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def _gemma3() -> PreTrainedModel:
    config = transformers.Gemma3Config(
        text_config={**_TEXT, "sliding_window": 8}, vision_config=_VISION, mm_tokens_per_image=4
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _mistral3() -> PreTrainedModel:
    config = transformers.Mistral3Config(
        text_config={"model_type": "mistral", **_TEXT},
        vision_config={"model_type": "pixtral", "head_dim": 16, **_VISION},
    )
    return transformers.Mistral3ForConditionalGeneration(config)


def _llava() -> PreTrainedModel:
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **_TEXT}, vision_config={"model_type": "clip_vision_model", **_VISION}
    )
    return transformers.LlavaForConditionalGeneration(config)


def _llama4() -> PreTrainedModel:
    sizes = {"projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32}
    config = transformers.Llama4Config(
        text_config={**_TEXT, "intermediate_size_mlp": 48, "num_local_experts": 2}, vision_config={**_VISION, **sizes}
    )
    return transformers.Llama4ForConditionalGeneration(config)


_GEMMA4: dict[str, Any] = {
    **_TEXT,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "global_head_dim": 8,
    "num_global_key_value_heads": 2,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
}


def _gemma4(**text: Any) -> PreTrainedModel:
    vision = {**_VISION, "num_key_value_heads": 2, "head_dim": 16}
    config = transformers.Gemma4Config(text_config={**_GEMMA4, **text}, vision_config=vision, audio_config=None)
    return transformers.Gemma4ForConditionalGeneration(config)


def _gemma4_shared_cache() -> PreTrainedModel:
    """As Gemma 4 E2B and E4B: embeddings for each layer, and upper layers that read keys of lower ones."""
    types = ["sliding_attention", "full_attention"] * 2
    own = {"num_hidden_layers": 4, "layer_types": types, "num_kv_shared_layers": 2}
    return _gemma4(**own, hidden_size_per_layer_input=8, vocab_size_per_layer_input=260)


def _gemma4_unified() -> PreTrainedModel:
    config = transformers.Gemma4UnifiedConfig(text_config=_GEMMA4)
    return transformers.Gemma4UnifiedForConditionalGeneration(config)


_QWEN3_5_VISION = {"hidden_size": 32, "intermediate_size": 32, "depth": 1, "num_heads": 2, "out_hidden_size": 32}


def _qwen3_5(first: str = "full_attention") -> PreTrainedModel:
    linear = {f"linear_{name}": size for name, size in (("num_key_heads", 2), ("num_value_heads", 2))}
    linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    config = transformers.Qwen3_5Config(
        text_config={**_TEXT, "layer_types": [first, "full_attention"], **linear}, vision_config=_QWEN3_5_VISION
    )
    return transformers.Qwen3_5ForConditionalGeneration(config)


def _qwen3_5_hybrid() -> PreTrainedModel:
    """As all that are published: most layers have linear attention."""
    return _qwen3_5("linear_attention")


def save_multimodal(build: Callable[[], PreTrainedModel], folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    model = build().eval()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


@pytest.mark.parametrize("build", [_gemma3, _gemma4, _mistral3, _llava, _llama4, _qwen3_5])
def test_the_text_part_of_a_multimodal_checkpoint(
    build: Callable[[], PreTrainedModel], tmp_path: Path, installers: Path
) -> None:
    folder = tmp_path / "model"
    whole = save_multimodal(build, folder)
    model = load_model(folder, device="cpu")
    ids = torch.arange(10, 22)[None]
    with torch.no_grad():
        hidden = whole.model.language_model(input_ids=ids) if hasattr(whole, "model") else None
        expected = whole.lm_head(hidden[0]) if hidden is not None else whole.language_model(input_ids=ids).logits
        found = as_hooked_model(model).forward(ids, torch.ones_like(ids), torch.arange(12)[None])
    assert float(expected.std()) > 0.01
    assert_tensors_agree(found, expected, torch.float32)
    assert load_model_config(folder).facts.architecture == as_hooked_model(model).facts.architecture
    # A text part that is not whole is refused as any other.
    change_weights(folder, lambda w: {k: v for k, v in w.items() if not k.endswith("layers.1.mlp.down_proj.weight")})
    if build is not _llama4:
        with pytest.raises(UserError, match=r"lacks 1 tensor .*model\.layers\.1\.mlp\.down_proj\.weight"):
            load_model(folder, device="cpu")
    assert not installers.exists()


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (_gemma4_shared_cache, "Gemma4ForCausalLM .* cannot wrap or run it"),
        (_gemma4_unified, "Gemma4UnifiedForCausalLM .*text part of .*TransformerLens has no adapter"),
        (_qwen3_5_hybrid, r"Qwen3_5ForCausalLM .* it lacks blocks\.0\.hook_attn_out, blocks\.0\.attn\.hook_z"),
    ],
)
def test_a_text_part_that_cannot_be_hooked_is_refused(
    build: Callable[[], PreTrainedModel], reason: str, tmp_path: Path, installers: Path
) -> None:
    save_multimodal(build, tmp_path / "model")
    with pytest.raises(UserError, match=f"architecture {reason}") as caught:
        load_model(tmp_path / "model", device="cpu")
    assert "\n" not in str(caught.value)
    assert not installers.exists()


def test_a_multimodal_checkpoint_without_an_adapter_for_its_text_is_refused(tmp_path: Path) -> None:
    transformers.Gemma3nConfig().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"Gemma3nForCausalLM .*text part of gemma3n.*has no adapter"):
        load_model(tmp_path, device="cpu")


@pytest.fixture
def installers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fake installers first on the path, which leave a file where they run; returns that file."""
    folder, witness = tmp_path / "bin", tmp_path / "installed"
    folder.mkdir()
    for name in ("uv", "pip", "pip3", "conda"):
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "{witness}"\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    subprocess.run(["uv", "pip", "install", "it"], check=True)
    assert witness.read_text() == "uv pip install it\n"
    witness.unlink()
    return witness


def _by_spawn() -> None:
    os.waitpid(os.posix_spawnp("uv", ["uv", "pip", "install", "torchvision"], os.environ), 0)


def _by_module() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "pip"]:
        del sys.modules[name]
    __import__("pip")


ATTEMPTS: dict[str, Callable[[], Any]] = {
    "uv": lambda: subprocess.check_call(["uv", "pip", "install", "torchvision", "-q"]),
    "path": lambda: subprocess.run(["/usr/bin/env", "pip3", "install", "torchvision"], check=True),
    "module": lambda: subprocess.check_call([sys.executable, "-m", "pip", "install", "torchvision", "--help"]),
    "shell": lambda: subprocess.run("cd . && pip install torchvision", shell=True, check=True),
    "system": lambda: os.system("conda install torchvision"),
    "spawn": _by_spawn,
    "import": _by_module,
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_an_adapter_that_installs_cannot(
    attempt: str, installers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted in TransformerLens's booting, which every adapter goes through."""
    boot = TransformerBridge.boot_transformers

    def planted(*args: Any, **kwargs: Any) -> Any:
        ATTEMPTS[attempt]()
        return boot(*args, **kwargs)

    folder = save_folder("llama", tmp_path / "model")
    monkeypatch.setattr(TransformerBridge, "boot_transformers", staticmethod(planted))
    with pytest.raises(UserError, match=r"tried to install software .*nothing is installed"):
        load_model(folder, device="cpu")
    assert not installers.exists()


def test_transformer_lens_cannot_install_torchvision(installers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with nothing_installed():
        assert helpers._ensure_torchvision() is False
        # Other programs start as ever.
        assert subprocess.run(["true"], check=False).returncode == 0
    assert not installers.exists()
    assert helpers._ensure_torchvision() is True
    assert installers.read_text() == "uv pip install torchvision -q\n"
