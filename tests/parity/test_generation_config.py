"""Greedy decoding under a model's generation config, token for token as lm-eval's own loop decodes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers import GenerationConfig

from lensprune.ablation.variants import CLEAN
from lensprune.engine import make_executor
from lensprune.models import as_hooked_model, load_model
from lensprune.models.base import HookedModel
from lensprune.protocols import GenerateRequest
from tests.helpers.chat_models import save_chat_folder

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

NEW_TOKENS = 20
QUESTIONS = ("2 + 2?", "Who wrote it, and why?", "aaaa aaaa aaaa")
PENALTIES: dict[str, Any] = {"repetition_penalty": 1.7, "no_repeat_ngram_size": 3}


def theirs(lm: HFLM, prompts: list[str]) -> list[tuple[list[int], str]]:
    """New tokens and text of each prompt, from `HFLM.generate_until`."""
    written: list[list[int]] = []
    own = lm._model_generate

    def kept(context: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        out = own(context, **kwargs)
        [row] = out[:, context.shape[1] :].tolist()
        written.append(row)
        return out

    answers = []
    with patch.object(lm, "_model_generate", kept):
        for prompt in prompts:
            args = (prompt, {"until": [], "max_gen_toks": NEW_TOKENS, "do_sample": False})
            answers += lm.generate_until([Instance("generate_until", {}, args, 0)], disable_tqdm=True)
    return list(zip(written, answers, strict=True))


def ours(model: HookedModel, prompts: list[str], executor: str) -> list[tuple[list[int], str]]:
    encoded = [model.tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    requests = [GenerateRequest(tuple(ids), (), NEW_TOKENS, item=str(i)) for i, ids in enumerate(encoded)]
    [answered] = make_executor(executor, model).run(requests, [CLEAN])
    return [(list(response.token_ids), response.text) for response in answered.responses]  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen", "deepseek", "llama"])
def test_penalties_and_several_end_tokens(name: str, tmp_path: Path) -> None:
    place = save_chat_folder(name, tmp_path / "model")
    model = as_hooked_model(load_model(place, device="cpu"))
    lm = HFLM(pretrained=str(place), device="cpu", batch_size=1, max_length=2048)
    prompts = [lm.apply_chat_template([{"role": "user", "content": question}]) for question in QUESTIONS]
    plain = lm.model.generation_config.to_diff_dict()
    seen = []

    def compared(**settings: Any) -> list[list[int]]:
        lm.model.generation_config = GenerationConfig(**{**plain, **settings})
        model.module.original_model.generation_config = GenerationConfig(**{**plain, **settings})  # type: ignore[union-attr]
        expected = theirs(lm, prompts)
        for executor in ("hooked", "forked"):
            assert ours(model, prompts, executor) == expected
        seen.append([ids for ids, _ in expected])
        return seen[-1]

    free = compared()
    assert {len(ids) for ids in free} == {NEW_TOKENS}
    # Two end tokens: what the first text writes third and the second one sixth.
    ends = [free[0][2], free[1][5]]
    ended = compared(eos_token_id=ends)
    assert all(min(free[0].index(ends[0]), 2) < len(ids) <= NEW_TOKENS for ids in ended[:1])
    assert sum(len(ids) < NEW_TOKENS for ids in ended) >= 2
    penalised = compared(**PENALTIES)
    both = compared(**PENALTIES, eos_token_id=[penalised[0][4], penalised[1][7]], suppress_tokens=[free[2][0]])
    assert len(both[0]) < NEW_TOKENS
    late = compared(eos_token_id=ends, min_new_tokens=9)
    assert all(len(ids) >= 9 for ids in late)
    # What the config says of the length goes before lm-eval's own number, and is not applied here.
    lm.model.generation_config = GenerationConfig(**{**plain, "max_new_tokens": 4})
    assert [ids for ids, _ in theirs(lm, prompts)] == [ids[:4] for ids in free]
    # Each of these settings changes the texts.
    assert len({json.dumps(texts) for texts in seen}) == len(seen) == 5
