"""Prompts of models that think, as turns and with a system prompt, and their answers: equal to lm-eval's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import processors

from lensprune.errors import UserError
from lensprune.models import as_hooked_model, load_model
from lensprune.protocols import GenerateRequest, ItemRequests, LoglikelihoodRequest, build_requests
from lensprune.protocols.requests import GenerateResponse
from lensprune.protocols.stop_strings import StopStrings
from lensprune.protocols.stopping import StopMatcher
from lensprune.tasks import ProtocolName, load_task, registry, task_names
from tests.helpers import toy_task
from tests.helpers.chat_models import chat_tokenizer, save_chat_folder
from tests.helpers.sweeps import sweep

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.models.huggingface import HFLM  # noqa: E402

from tests.helpers import lm_eval_tasks  # noqa: E402

LIMIT = 3
ENDS = ("<bos>", "<eos>")
SYSTEM = "Think first.\nThen answer."
TASKS: list[tuple[str, ProtocolName, str, int]] = [
    ("arc_easy", "continuation", "arc_easy", 2),
    ("winogrande", "continuation", "winogrande", 2),
    ("mmlu[subject=anatomy]", "default", "mmlu_anatomy", 2),
    ("mmlu[subject=anatomy]", "generate", "mmlu_anatomy_generative", 1),
    ("gsm8k", "generate", "gsm8k", 2),
    ("gsm8k_cot", "generate", "gsm8k_cot", 8),
]
SWITCHED: list[tuple[str, str, dict[str, Any]]] = [
    ("qwen", "on", {}),
    ("qwen", "off", {}),
    ("qwen", "auto", {}),
    ("deepseek", "auto", {}),
    ("deepseek", "on", {}),
    ("llama", "auto", {}),
    ("llama", "auto", {"date_string": "1 Jan 2025"}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def saved(name: str) -> Path:
        if name not in made:
            made[name] = save_chat_folder(name, tmp_path_factory.mktemp(name))
        return made[name]

    return saved


def theirs(folder: Path, thinking: str, arguments: dict[str, Any]) -> HFLM:
    """lm-eval's model with the same options."""
    given = None if thinking == "auto" else thinking == "on"
    return HFLM(
        pretrained=str(folder),
        device="cpu",
        batch_size=1,
        max_length=2048,
        enable_thinking=given,
        think_end_token="</think>",
        chat_template_args=dict(arguments),
    )


def ids_of(lm: HFLM, instance: Any) -> list[int]:
    """What lm-eval's model reads of one instance."""
    context, rest = instance.args
    if isinstance(rest, dict):
        room = lm.max_length - rest.get("max_gen_toks", lm.max_gen_toks)
        encoded, _ = lm.tok_batch_encode([context], left_truncate_len=room)
        return list(encoded[0].tolist())
    read, scored = lm._encode_pair(context, rest)
    return list((read + scored)[-(lm.max_length + 1) :])


def compare(asked: list[ItemRequests], task: Any, lm: HFLM) -> None:
    expected: dict[int, list[Any]] = {}
    for instance in task.instances:
        expected.setdefault(instance.doc_id, []).append(instance)
    assert len(asked) == len(expected) == LIMIT
    for index, item in enumerate(asked):
        for prompt, request, instance in zip(item.prompts, item.requests, expected[index], strict=True):
            context, rest = instance.args
            assert prompt.context == context
            ids = list(request.context_ids)
            if isinstance(request, LoglikelihoodRequest):
                assert prompt.continuation == rest
                ids += request.continuation_ids
            assert ids == ids_of(lm, instance)


def their_requests(task: Any, lm: HFLM, *, chat: bool, multiturn: bool, system: str | None) -> None:
    # The requests without a template have moved the generator of examples on.
    task.set_fewshot_seed(seed=lm_eval_tasks.FEWSHOT_SEED)
    task.build_all_requests(
        limit=LIMIT,
        system_instruction=system,
        apply_chat_template=chat,
        fewshot_as_multiturn=multiturn,
        chat_template=lm.apply_chat_template if chat else None,
        tokenizer_name="local",
    )


@pytest.mark.data_dir
@pytest.mark.slow
@pytest.mark.parametrize(("ours", "protocol", "name", "shots"), TASKS)
def test_prompts(
    ours: str,
    protocol: ProtocolName,
    name: str,
    shots: int,
    folder: Callable[[str], Path],
    data_dir: Path,
    tmp_path: Path,
) -> None:
    task = lm_eval_tasks.build_task(name, data_dir, tmp_path, shots, LIMIT)
    loaded = load_task(ours, data_dir=data_dir, limit=LIMIT, items="first", shots=shots)
    loaded = replace(loaded, items=loaded.items[:LIMIT])
    seen = set()
    for model_name, thinking, arguments in SWITCHED:
        model, lm = as_hooked_model(load_model(folder(model_name))), theirs(folder(model_name), thinking, arguments)
        for multiturn in (False, True):
            for system in (None, SYSTEM):
                their_requests(task, lm, chat=True, multiturn=multiturn, system=system)
                asked = build_requests(
                    model,
                    loaded,
                    protocol,
                    chat_template=True,
                    thinking=thinking,
                    template_args=arguments,
                    fewshot_as_multiturn=multiturn,
                    system=system,
                )
                compare(asked, task, lm)
                seen.add(asked[0].prompts[0].context)
    # Every one of these options changes the prompt, but for what DeepSeek's and Qwen's templates do by themselves.
    assert len(seen) == (len(SWITCHED) - 2) * 4
    their_requests(task, lm, chat=False, multiturn=False, system=SYSTEM)
    plain = build_requests(model, loaded, protocol, system=SYSTEM)
    compare(plain, task, lm)
    assert plain[0].prompts[0].context.startswith(SYSTEM)


@pytest.mark.parametrize("description", ["", "Answer {{topic}}.\n", "Answer {{topic}}."])
def test_a_description_follows_the_system_prompt(
    description: str, folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_names()
    monkeypatch.setattr(registry, "_builders", dict(registry._builders))
    rows = [{"q": f"{i} + {i}?", "a": str(2 * i), "topic": f"sum {i}"} for i in range(1, 7)]
    for split, own in (("test", rows[:LIMIT]), ("train", rows[LIMIT:])):
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in own))
    config = {
        "task": "sums_with_description",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {s: str(tmp_path / f"{s}.jsonl") for s in ("test", "train")}},
        "test_split": "test",
        "training_split": "train",
        "num_fewshot": 2,
        "output_type": "generate_until",
        "description": description,
        "doc_to_text": "{{q}}\n",
        "doc_to_target": "a",
        "target_delimiter": "",
        "fewshot_delimiter": "\n---\n",
        "generation_kwargs": {"max_gen_toks": 40, "until": ["\n\n"]},
    }
    path = tmp_path / "sums.yaml"
    path.write_text(yaml.safe_dump(config))
    [task] = lm_eval_tasks.manager().load([str(path)])["tasks"].values()
    loaded = load_task(str(path))
    model, lm = as_hooked_model(load_model(folder("qwen"))), theirs(folder("qwen"), "on", {})
    for system in ("", "Be brief.", "Be brief.\n"):
        for chat, multiturn in ((False, False), (True, False), (True, True)):
            their_requests(task, lm, chat=chat, multiturn=multiturn, system=system or None)
            wording: dict[str, Any] = {"chat_template": chat, "fewshot_as_multiturn": multiturn, "system": system}
            compare(build_requests(model, loaded, "generate", **wording), task, lm)


TEXTS = (
    "<think>one\n\ntwo</think>\n\nThe answer is 4.\n\nQ: next",
    "<think>one</think> 4<eos>",
    "never thought\n\nQ: next",
    "opened before</think>\n 4. Q: more",
    "<think>a</think>b<think>c</think>  d<think>e\n\nf",
    "</think>",
    "<think>a</think>\n\n",
)


def answered(folder: Path, ids: list[int], until: list[str]) -> GenerateResponse:
    """What is made here of a model that writes `ids`."""
    asked, _ = build_requests(
        as_hooked_model(load_model(folder)), toy_task.loaded(), "generate", chat_template=True, thinking="on"
    )
    [request] = asked.requests
    assert isinstance(request, GenerateRequest)
    tokenizer = chat_tokenizer("qwen")
    matcher = StopMatcher(StopStrings(tokenizer, until), {tokenizer.eos_token_id}, request.thinking)
    reason = next((reason for token in ids if (reason := matcher.push(token)) is not None), "length")
    return matcher.response(reason)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("as_id", [False, True])
def test_the_answer_after_thinking(
    text: str, as_id: bool, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same tokens; lm-eval's own loop would stop at a stop string inside the thinking."""
    tokenizer, lm = chat_tokenizer("qwen"), theirs(folder("qwen"), "on", {})
    ids = tokenizer.encode(text, add_special_tokens=False)
    if as_id:
        lm.think_end_token = tokenizer.convert_tokens_to_ids("</think>")

    def written(context: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.cat([context, torch.tensor([ids])], dim=1)

    monkeypatch.setattr(lm, "_model_generate", written)
    expected = their_answer(lm, ["\n\n", "Q:"], 100)
    assert answered(folder("qwen"), ids, ["\n\n", "Q:"]).text == expected
    if text != "</think>":
        assert (expected != text.split("\n\n", maxsplit=1)[0]) == ("</think>" in text)


def their_answer(lm: HFLM, until: list[str], max_new_tokens: int) -> str:
    prompt = lm.apply_chat_template([{"role": "user", "content": "2 + 2?"}])
    args = (prompt, {"until": until, "max_gen_toks": max_new_tokens, "do_sample": False})
    [answer] = lm.generate_until([lm_eval.api.instance.Instance("generate_until", {}, args, 0)], disable_tqdm=True)
    return str(answer)


@pytest.mark.parametrize(
    ("text", "theirs_reads", "ours_reads", "reason"),
    [
        # A blank line in the thinking ends the generation there.
        ("<think>one\n\ntwo</think>is two<eos>", "<think>one", "is two", "eos"),
        # The thinking takes every new token.
        ("<think>so it is four", "<think>so it is four", "", "length"),
    ],
)
def test_lm_eval_reads_unfinished_thinking_as_the_answer(
    text: str,
    theirs_reads: str,
    ours_reads: str,
    reason: str,
    folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer, lm = chat_tokenizer("qwen"), theirs(folder("qwen"), "on", {})
    ids = tokenizer.encode(text, add_special_tokens=False)
    lm_evals_own = lm._model_generate

    def told(context: torch.Tensor, **kwargs: Any) -> Any:
        def only(seen: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            chosen = torch.full_like(scores, -torch.inf)
            chosen[:, ids[seen.shape[1] - context.shape[1]]] = 0
            return chosen

        return lm_evals_own(context, logits_processor=[only], **kwargs)

    monkeypatch.setattr(lm, "_model_generate", told)
    assert their_answer(lm, ["\n\n"], len(ids)) == theirs_reads
    said = answered(folder("qwen"), ids, ["\n\n"])
    assert (said.text, said.stop_reason, said.thinking_ended) == (ours_reads, reason, reason == "eos")


def test_scored_options_are_refused_with_thinking_as_in_lm_eval(folder: Callable[[str], Path]) -> None:
    lm = theirs(folder("qwen"), "on", {})
    instance = lm_eval.api.instance.Instance("loglikelihood", {}, ("a", "b"), 0)
    with pytest.raises(ValueError, match="not compatible with loglikelihood"):
        lm.loglikelihood([instance])
    with pytest.raises(
        UserError, match="thinking on is given, but protocol continuation of task 'facts' scores options"
    ):
        sweep(folder("qwen"), tasks="facts", protocols="continuation", chat_template=True, thinking="on")


@pytest.mark.parametrize("chat", [False, True])
def test_an_end_token_that_is_kept_is_lm_evals(chat: bool, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("qwen")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in ENDS]
    )
    place = save_chat_folder("qwen", tmp_path / "model")
    tokenizer.save_pretrained(place)
    model, lm = as_hooked_model(load_model(place)), theirs(place, "auto", {})
    for protocol in ("continuation", "generate"):
        for item in build_requests(model, load_task("facts", limit=2), protocol, chat_template=chat, keep_eos=True):
            for prompt, request in zip(item.prompts, item.requests, strict=True):
                if isinstance(request, LoglikelihoodRequest):
                    expected = lm._encode_pair(prompt.context, prompt.continuation)
                    assert (list(request.context_ids), list(request.continuation_ids)) == expected
                    assert request.continuation_ids[-1] == tokenizer.eos_token_id
                else:
                    [expected] = lm.tok_batch_encode([prompt.context])[0].tolist()
                    assert list(request.context_ids) == expected
                    assert request.context_ids[-1] == tokenizer.eos_token_id
