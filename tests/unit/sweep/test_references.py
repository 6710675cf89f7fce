"""Reference prompts made of few-shot examples."""

from __future__ import annotations

from lensprune.ablation import collect_reference, each_mlp
from lensprune.sweeps.references import fewshot_prompts
from lensprune.tasks import load_task
from tests.helpers.tiny_models import tiny


def test_long_prompts_are_cut_to_the_context() -> None:
    model = tiny("gpt2")
    task = load_task("facts[answer=letter]", limit=2, shots=12)
    prompts = fewshot_prompts(model, task, "default", data_dir=None, chat_template=False)
    assert {len(prompt) for prompt in prompts} == {model.facts.n_ctx}
    assert {model.tokenizer.decode(prompt[-9:-1]) for prompt in prompts} == {"Answer: "}
    site = "blocks.0.hook_mlp_out"
    reference = collect_reference(model, prompts[:2], each_mlp(model, "mean", [0]), mode="per_position")
    assert len(reference.per_position[site]) == model.facts.n_ctx
