"""The tokenizer that a GGUF file describes.

A GGUF file holds vocabulary, merges or scores, token types and a name for the text splitting (``tokenizer.ggml.pre``).
Splitting rules are those of the original tokenizers; a name without a rule here is refused, because a wrong split gives
plausible but wrong ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lensprune.errors import UserError
from lensprune.models.gguf.header import GgufFile

__all__ = ["PRE_TOKENIZERS", "gguf_tokenizer"]

_CONTROL, _USER_DEFINED = 3, 4
_METASPACE = "\u2581"

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _gpt2,
    "smollm": _smollm,
    "llama-bpe": lambda: _split_by(_LLAMA3_SPLIT),
    "llama3": lambda: _split_by(_LLAMA3_SPLIT),
    "llama-v3": lambda: _split_by(_LLAMA3_SPLIT),
    "qwen2": lambda: _split_by(_QWEN2_SPLIT),
    "deepseek-r1-qwen": lambda: _split_by(_QWEN2_SPLIT),
}
"""Text splitting before byte-level merges, by ``tokenizer.ggml.pre``."""

_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_NFC = ("qwen2", "deepseek-r1-qwen")


def gguf_tokenizer(file: GgufFile) -> PreTrainedTokenizerFast:
    """Build the tokenizer.

    Raises:
        UserError: the file holds no tokenizer, or one whose rules are not known here.
    """
    tokens = _metadata(file, "tokens")
    if not isinstance(tokens, list) or not tokens:
        raise UserError(f"GGUF file {file.path.name} contains no tokenizer: pass tokenizer= with the original one")
    kind = _metadata(file, "model")
    if kind == "gpt2":
        backend, add_bos = _byte_level(file, tokens)
    elif kind == "llama":
        gemma = file.architecture.startswith("gemma")
        backend, add_bos = _sentencepiece(file, tokens, gemma=gemma), True
    else:
        raise UserError(
            f"GGUF file {file.path.name} has a tokenizer of kind {kind!r}, but only gpt2 and llama are supported: "
            "pass tokenizer= with the original one"
        )
    _add_special_tokens(file, backend, tokens)
    add_bos = bool(_metadata(file, "add_bos_token", add_bos))
    special = _special_tokens(file, tokens)
    if add_bos and "bos_token" in special:
        bos, bos_id = special["bos_token"], tokens.index(special["bos_token"])
        template = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, bos_id)]
        )
        backend.post_processor = (
            processors.Sequence([processors.ByteLevel(trim_offsets=False), template]) if kind == "gpt2" else template
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=file.metadata.get("tokenizer.chat_template"),
        model_max_length=int(file.get("context_length") or 10**30),
        clean_up_tokenization_spaces=False,
        padding_side="left",
        **special,
    )


def _byte_level(file: GgufFile, tokens: list[str]) -> tuple[Tokenizer, bool]:
    pre = _metadata(file, "pre", "")
    if pre not in PRE_TOKENIZERS:
        raise UserError(
            f"GGUF file {file.path.name} splits text by the rule {pre!r}, but the supported rules are "
            f"{', '.join(PRE_TOKENIZERS)}: pass tokenizer= with the original one"
        )
    merges = [_merge(file, merge) for merge in _metadata(file, "merges", [])]
    model = models.BPE(vocab=_vocab(file, tokens), merges=merges, ignore_merges=pre in _LLAMA3)
    backend = Tokenizer(model)
    if pre in _NFC:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = PRE_TOKENIZERS[pre]()
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend, pre in _LLAMA3


def _sentencepiece(file: GgufFile, tokens: list[str], *, gemma: bool) -> Tokenizer:
    if gemma:
        # llama.cpp spells runs of spaces as spaces; the vocabulary means the mark for a space.
        tokens[:] = [_METASPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    vocab = _vocab(file, tokens)
    stated = _metadata(file, "merges")
    if stated:
        merges = [_merge(file, merge) for merge in stated]
    else:
        scores = _metadata(file, "scores")
        if not isinstance(scores, list) or len(scores) != len(tokens):
            raise UserError(f"GGUF file {file.path.name} has neither merges nor a score for each token")
        # Gemma's scores do not follow its merge order; the order of its vocabulary does.
        order = [-float(index) for index in range(len(tokens))] if gemma else [float(score) for score in scores]
        ranks = dict(zip(tokens, order, strict=True))
        merges = _merges_from_scores(vocab, ranks)
    unknown = _metadata(file, "unknown_token_id", 0)
    backend = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True)
    )
    to_mark = normalizers.Replace(" ", _METASPACE)
    steps: list[Any] = [decoders.Replace(_METASPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if _metadata(file, "add_space_prefix", not gemma):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_METASPACE), to_mark])
        steps.append(decoders.Strip(content=" ", left=1))
    else:
        backend.normalizer = to_mark
    if gemma:
        backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges_from_scores(vocab: dict[str, int], ranks: dict[str, float]) -> list[tuple[str, str]]:
    """Every split of a token into two tokens, best-ranked token first (the rule of Hugging Face's own conversion)."""
    ranked: list[tuple[float, tuple[str, str]]] = []
    for token, rank in ranks.items():
        splits = [
            (token[:cut], token[cut:]) for cut in range(1, len(token)) if token[:cut] in vocab and token[cut:] in vocab
        ]
        ranked.extend((rank, split) for split in sorted(splits, key=lambda s: (vocab[s[0]], vocab[s[1]])))
    ranked.sort(key=lambda entry: (entry[0], len(entry[1][0]), len(entry[1][1])), reverse=True)
    return [split for _, split in ranked]


def _add_special_tokens(file: GgufFile, backend: Tokenizer, tokens: list[str]) -> None:
    types = _metadata(file, "token_type", [])
    marked = list(zip(tokens, types, strict=False))
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, kind in marked if kind == _CONTROL]
    )
    # In a sentencepiece vocabulary user-defined symbols are matched after spaces were marked, elsewhere before.
    after = _metadata(file, "model") == "llama"
    backend.add_tokens([AddedToken(token, normalized=after) for token, kind in marked if kind == _USER_DEFINED])


def _special_tokens(file: GgufFile, tokens: list[str]) -> dict[str, str]:
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {}
    for role, key in names.items():
        index = _metadata(file, f"{key}_token_id")
        if index is None:
            continue
        if not 0 <= index < len(tokens):
            raise UserError(
                f"GGUF file {file.path.name}: {key}_token_id {index} is outside the vocabulary of {len(tokens)}"
            )
        special[role] = tokens[index]
    return special


def _vocab(file: GgufFile, tokens: list[str]) -> dict[str, int]:
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise UserError(f"GGUF file {file.path.name}: two tokens of the vocabulary are spelled alike")
    return vocab


def _merge(file: GgufFile, text: str) -> tuple[str, str]:
    left, space, right = text.partition(" ")
    if not space:
        raise UserError(f"GGUF file {file.path.name}: merge {text!r} is not two tokens")
    return left, right


def _metadata(file: GgufFile, key: str, default: Any = None) -> Any:
    return file.metadata.get(f"tokenizer.ggml.{key}", default)
