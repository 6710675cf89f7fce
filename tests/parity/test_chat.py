"""Prompts in the chat format equal those that lm-eval builds with ``--apply_chat_template``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lensprune.models import as_hooked_model
from lensprune.protocols import GenerateRequest, build_requests
from lensprune.tasks import ProtocolName, load_task

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.models.huggingface import HFLM  # noqa: E402

from tests.helpers import lm_eval_tasks  # noqa: E402

LIMIT = 4


@pytest.mark.data_dir
@pytest.mark.parametrize(
    ("ours", "protocol", "theirs", "shots"),
    [
        ("openbookqa", "continuation", "openbookqa", 0),
        ("arc_easy", "continuation", "arc_easy", 2),
        ("commonsense_qa", "default", "commonsense_qa", 1),
        ("mmlu[subject=anatomy]", "default", "mmlu_anatomy", 2),
        ("mmlu[subject=anatomy]", "generate", "mmlu_anatomy_generative", 0),
        ("gsm8k", "generate", "gsm8k", 2),
        ("gsm8k_cot", "generate", "gsm8k_cot", 8),
    ],
)
def test_chat_prompts(
    ours: str, protocol: ProtocolName, theirs: str, shots: int, smollm2: Any, data_dir: Path, tmp_path: Path
) -> None:
    model = as_hooked_model(smollm2)
    task = lm_eval_tasks.build_task(theirs, data_dir, tmp_path, shots, LIMIT)
    # lm-eval's own template function needs the tokenizer alone, and the arguments that it takes by default.
    lm = object.__new__(HFLM)
    lm.tokenizer, lm.chat_template_args = model.tokenizer, {}
    # The requests without a template have moved the generator of examples on.
    task.set_fewshot_seed(seed=lm_eval_tasks.FEWSHOT_SEED)
    task.build_all_requests(
        limit=LIMIT,
        apply_chat_template=True,
        fewshot_as_multiturn=False,
        chat_template=lm.apply_chat_template,
        tokenizer_name="smollm2",
    )
    expected: dict[int, list[tuple[str, Any]]] = {}
    for instance in task.instances:
        expected.setdefault(instance.doc_id, []).append(instance.args)
    loaded = load_task(ours, data_dir=data_dir, limit=LIMIT, items="first", shots=shots)
    loaded = replace(loaded, items=loaded.items[:LIMIT])
    asked = build_requests(model, loaded, protocol, chat_template=True)
    assert len(asked) == len(expected) == LIMIT
    for index, item in enumerate(asked):
        for prompt, request, (context, rest) in zip(item.prompts, item.requests, expected[index], strict=True):
            assert "<|im_start|>assistant" in prompt.context
            assert prompt.context == context
            if not isinstance(request, GenerateRequest):
                assert prompt.continuation == rest
