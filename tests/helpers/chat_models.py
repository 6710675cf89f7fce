"""Tiny models with chat templates built like those of Qwen3, DeepSeek-R1 and Llama 3, and gpt-oss's channels."""

from __future__ import annotations

from pathlib import Path

from transformers import AddedToken, PreTrainedTokenizerFast

from tests.helpers.families import byte_tokenizer, hf_model

__all__ = ["CHAT_MODELS", "chat_tokenizer", "save_chat_folder"]

QWEN = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set answer = message.content.split('</think>')[-1].lstrip('\\n') %}
        {{- '<|im_start|>assistant\\n' + answer + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
"""Thinks unless it is told not to, by an empty block that stands in the prompt."""

DEEPSEEK = """\
{%- if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set found = namespace(system='') %}
{%- for message in messages if message['role'] == 'system' %}{% set found.system = message['content'] %}{% endfor %}
{{- bos_token }}{{ found.system }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{- '<|User|>' + message['content'] }}{% endif %}
    {%- if message['role'] == 'assistant' %}
        {{- '<|Assistant|>' + message['content'].split('</think>')[-1] + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{% endif %}"""
"""Opens the block of thinking itself, and can't be told not to."""

LLAMA = """\
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}{{ message['content'] | trim }}<|eot_id|>
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
"""Trims every message, always has a system message, dated, and knows no thinking."""

CHANNELS = """\
{%- set effort = reasoning_effort if reasoning_effort is defined else 'medium' %}
{{- '<|start|>system<|message|>Reasoning: ' + effort + '<|end|>' }}
{%- for message in messages %}
    {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{% endif %}"""
"""As gpt-oss: thinking and answer are channels, and the effort is chosen by a variable."""

_THINK = ("<think>", "</think>")
CHAT_MODELS: dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {
    "qwen": ("qwen3", QWEN, ("<|im_start|>", "<|im_end|>"), _THINK),
    "deepseek": ("qwen2", DEEPSEEK, ("<|User|>", "<|Assistant|>", "<|end|>"), _THINK),
    "llama": ("llama", LLAMA, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), ()),
    "channels": ("llama", CHANNELS, ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"), ()),
}
"""By name: architecture, chat template, special tokens, and added tokens that are not special."""


def chat_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Reads bytes, and the tokens that the template writes as one each."""
    _, template, special, plain = CHAT_MODELS[name]
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in special], special_tokens=True)
    tokenizer.add_tokens([AddedToken(token, special=False) for token in plain])
    tokenizer.chat_template = template
    return tokenizer


def save_chat_folder(name: str, folder: Path) -> Path:
    """Write model and tokenizer in Hugging Face's layout, as `load_model` reads them; context 2,048 tokens."""
    tokenizer = chat_tokenizer(name)
    hf_model(CHAT_MODELS[name][0], vocab_size=len(tokenizer), max_position_embeddings=2048).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
