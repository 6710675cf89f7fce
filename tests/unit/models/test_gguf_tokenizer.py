"""The tokenizer read from a GGUF file gives the ids of the original one that was written into it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter, TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lensprune.errors import UserError
from lensprune.models.gguf.header import read_gguf
from lensprune.models.gguf.tokenizer import gguf_tokenizer

CORPUS = (
    "The quick brown fox jumps over the lazy dog. It's 3 o'clock; we've 1234 apples, they'll have 56.\n",
    "def f(x):\n    return x + 1\n\n\tfor i in range(10): print(i)\n",
    "naïve café – 日本語 テスト ½ Ⅳ ٣ 🙂 é e\u0301\n",
    "aaa   bbb    ccc  \n\n\n  ddd the the then there other others another\n",
)
TEXTS = (
    *CORPUS,
    "",
    " ",
    "   leading and trailing   ",
    "2024-10-31 3.14159 12345678 007 x1y22z333",
    "\r\n mixed\r\n\r\nline ends \t\t ",
    "THEY'LL I'm I'M don't 'tis",
    "unseen: Ωμέγα Привет שלום 🦊👍🏽 \u200b\u00a0|",
    "<s>hello</s> world<tool>x",
)
SPECIAL = ["<unk>", "<s>", "</s>"]

# The splitting rules as the models' own tokenizer.json files state them.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


ORIGINALS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    # llama.cpp's own two patterns for this name, where Hugging Face says Digits, then ByteLevel.
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated"),
            pre_tokenizers.Split(
                Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"), behavior="isolated"
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "llama-bpe": lambda: split_by(LLAMA3),
    "qwen2": lambda: split_by(QWEN2),
}


def byte_level(pre: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = ORIGINALS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


def sentencepiece(gemma: bool) -> Tokenizer:
    mark = normalizers.Replace(" ", "\u2581")
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = mark if gemma else normalizers.Sequence([normalizers.Prepend("\u2581"), mark])
    if gemma:
        trained.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL + bytes_, show_progress=False)
    trained.train_from_iterator(CORPUS * 4, trainer)
    return trained


def write(path: Path, backend: Tokenizer, **options: Any) -> None:
    vocab = backend.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    kind = str(options["kind"])
    writer = GGUFWriter(path, str(options.get("architecture", "llama")))
    writer.add_context_length(512)
    writer.add_tokenizer_model(kind)
    if "pre" in options:
        writer.add_tokenizer_pre(str(options["pre"]))
    types = {token: TokenType.CONTROL for token in SPECIAL} | {"<tool>": TokenType.USER_DEFINED}
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.BYTE if kind == "llama" and t.startswith("<0x") else types.get(t, TokenType.NORMAL) for t in tokens]
    )
    if "scores" in options:
        writer.add_token_scores(options["scores"])
    else:
        writer.add_token_merges(options["merges"])
    for add, token in ((writer.add_unk_token_id, 0), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2)):
        add(token)
    if "add_bos" in options:
        writer.add_add_bos_token(bool(options["add_bos"]))
    writer.add_tensor("token_embd.weight", np.zeros((1, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def merges_of(backend: Tokenizer) -> list[str]:
    return [" ".join(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]


@pytest.mark.parametrize("pre", ORIGINALS)
def test_byte_level_ids_are_the_originals(pre: str, tmp_path: Path) -> None:
    original = byte_level(pre)
    write(tmp_path / "t.gguf", original, kind="gpt2", pre=pre, merges=merges_of(original), add_bos=False)
    found = gguf_tokenizer(read_gguf(tmp_path / "t.gguf"))
    for text in TEXTS:
        ids = found.encode(text)
        assert ids == original.encode(text).ids, text
        if pre != "qwen2":
            assert found.decode(ids) == text
    assert found.encode("<s>hello")[0] == 1
    assert (found.bos_token, found.eos_token, found.unk_token) == ("<s>", "</s>", "<unk>")


@pytest.mark.parametrize("gemma", [False, True], ids=["llama", "gemma3"])
def test_sentencepiece_ids_are_the_originals(gemma: bool, tmp_path: Path) -> None:
    trained = sentencepiece(gemma)
    vocab = trained.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    # A sentencepiece vocabulary is in merge order, and its scores fall along it; Gemma's scores mean nothing.
    learned = {merge.replace(" ", ""): rank for rank, merge in enumerate(merges_of(trained))}
    scores = [0.0 if gemma else -float(learned.get(token, 10_000)) for token in tokens]
    architecture = "gemma3" if gemma else "llama"
    write(tmp_path / "t.gguf", trained, kind="llama", scores=scores, architecture=architecture)
    found = gguf_tokenizer(read_gguf(tmp_path / "t.gguf"))
    # The reference ids come from the learned merges themselves, with bytes for what the vocabulary lacks.
    original = Tokenizer.from_str(trained.to_str())
    original.model = models.BPE(
        vocab=vocab,
        merges=[tuple(merge.split(" ")) for merge in merges_of(trained)],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    original.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    for text in TEXTS:
        assert found.encode(text) == [1, *original.encode(text).ids], text
        if "<s>" not in text:
            # Llama marks a space again after each special token, in the original as well, so that text gains spaces.
            assert found.decode(found.encode(text), skip_special_tokens=True) == text


def test_bos_is_added_where_the_file_says_so(tmp_path: Path) -> None:
    original = byte_level("llama-bpe")
    merges = merges_of(original)
    first = {}
    for stated in (True, False, None):
        options = {} if stated is None else {"add_bos": stated}
        write(tmp_path / "t.gguf", original, kind="gpt2", pre="llama-bpe", merges=merges, **options)
        first[stated] = gguf_tokenizer(read_gguf(tmp_path / "t.gguf")).encode("hello")[0]
    # Llama 3 adds BOS, and llama.cpp takes that for granted where a file leaves it out.
    assert (first[True] == 1, first[False] == 1, first[None] == 1) == (True, False, True)


def test_an_unknown_splitting_rule_is_refused(tmp_path: Path) -> None:
    original = byte_level("gpt-2")
    write(tmp_path / "t.gguf", original, kind="gpt2", pre="chameleon-9", merges=merges_of(original))
    with pytest.raises(UserError, match=r"rule 'chameleon-9'.*pass tokenizer="):
        gguf_tokenizer(read_gguf(tmp_path / "t.gguf"))


def test_a_tokenizer_survives_saving(tmp_path: Path) -> None:
    original = byte_level("smollm")
    write(tmp_path / "t.gguf", original, kind="gpt2", pre="smollm", merges=merges_of(original))
    found = gguf_tokenizer(read_gguf(tmp_path / "t.gguf"))
    found.save_pretrained(tmp_path / "saved")
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    assert [again.encode(text) for text in TEXTS] == [found.encode(text) for text in TEXTS]
