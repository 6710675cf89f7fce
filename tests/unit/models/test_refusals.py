"""What cannot be loaded is refused in one line that names the value and a way out."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import transformers
from gguf import GGUFWriter

from lensprune.errors import UserError
from lensprune.models import load_model
from tests.helpers.families import byte_tokenizer, save_folder


def refused(name: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        load_model(name, **{"device": "cpu", **options})
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A well-formed header with one tensor; not a whole model."""
    path = tmp_path / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_unknown_alias_names_the_nearest() -> None:
    message = refused("smolm2-135m")
    assert "'smolm2-135m'" in message
    assert "did you mean smollm2-135m?" in message


@pytest.mark.parametrize("suffix", ["", ".gguf"])
def test_a_path_that_does_not_exist(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"absent{suffix}"
    assert f"{str(path)!r} does not exist" in refused(path)


@pytest.mark.parametrize("name", ["", "   "])
def test_a_blank_name_is_not_the_current_folder(
    name: str, family_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(family_folder("llama"))
    assert "is empty" in refused(name)


def test_a_file_that_is_not_gguf_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"GGUF")
    assert "is not a .gguf file" in refused(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(64), b"FUGG" + bytes(64)])
def test_wrong_magic_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert "model.gguf is not a GGUF file: it does not start with the bytes GGUF" in refused(path)


def test_an_empty_gguf(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.write_bytes(b"")
    assert "empty.gguf cannot be read" in refused(path)


def test_an_unknown_gguf_version(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 77, 0, 0) + bytes(64))
    assert "has version 77" in refused(path)


@pytest.mark.parametrize(
    "body",
    [
        struct.pack("<QQ", 2**60, 0),
        struct.pack("<QQ", 0, 2**60),
        struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**62),
        struct.pack("<QQ", 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 4, 2**61),
        struct.pack("<QQ", 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 8, 2**61),
    ],
    ids=["tensors", "values", "key length", "array of numbers", "array of strings"],
)
def test_absurd_sizes_are_refused_at_once(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + body + bytes(64))
    started = time.perf_counter()
    message = refused(path)
    assert time.perf_counter() - started < 5
    assert "damaged or cut short" in message
    assert "cannot fit" in message


def test_a_gguf_cut_anywhere_is_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    whole = tiny_gguf.read_bytes()
    for size in (5, 12, 24, 40, len(whole) // 4, len(whole) // 2, len(whole) - 33):
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[:size])
        message = refused(path)
        assert "cut short" in message, (size, message)


def test_a_gguf_of_an_unsupported_architecture(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer = GGUFWriter(path, "qwen4")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = refused(path)
    assert "'qwen4'" in message
    assert "nearest: qwen" in message


def test_a_gguf_that_lacks_a_key(tiny_gguf: Path) -> None:
    assert "lacks the metadata key llama.embedding_length" in refused(tiny_gguf)


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    assert "has no config.json" in refused(tmp_path)


def test_a_folder_without_safetensors(tmp_path: Path) -> None:
    folder = save_folder("llama", tmp_path / "llama")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "has no *.safetensors weights" in refused(folder)


def test_an_unsupported_architecture_is_named(tmp_path: Path) -> None:
    config = transformers.BioGptConfig(
        vocab_size=260, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    message = refused(tmp_path)
    assert "architecture BioGptForCausalLM" in message
    assert "not supported" in message


def test_a_model_that_is_not_causal_is_named(tmp_path: Path) -> None:
    transformers.T5Config(vocab_size=260, d_model=16, d_ff=16, num_layers=1, num_heads=2).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    message = refused(tmp_path)
    assert "t5" in message
    assert "not a causal language model" in message


def test_offline_with_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSPRUNE_OFFLINE", "1")
    monkeypatch.setenv("LENSPRUNE_CACHE", str(tmp_path))
    message = refused("smollm2-135m")
    assert "LENSPRUNE_OFFLINE or HF_HUB_OFFLINE forbids fetching it" in message
    assert str(tmp_path) in message
    assert list(tmp_path.iterdir()) == []


def test_offline_hub_id_that_was_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSPRUNE_OFFLINE", "1")
    assert "not in the local Hugging Face cache" in refused("lensprune-tests/never-fetched")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dtype": "float23"}, "did you mean float32"),
        ({"device": "gpu7"}, "'gpu7' is not available here: choose cpu"),
        ({"device": "cpu", "n_devices": 2}, "leave device out"),
        ({"device": None, "n_devices": 99}, "n_devices=99 is not possible"),
        ({"bos": "allways"}, "did you mean always"),
    ],
)
def test_an_option_out_of_range(tmp_path: Path, options: dict[str, object], expected: str) -> None:
    assert expected in refused(save_folder("llama", tmp_path / "llama"), **options)


@pytest.mark.skipif(version("transformer-lens").startswith("3."), reason="this TransformerLens has the class")
def test_hooked_transformer_without_the_class(tmp_path: Path) -> None:
    message = refused(save_folder("llama", tmp_path / "llama"), hooked_transformer=True)
    assert "HookedTransformer" in message
    assert "TransformerLens" in message
