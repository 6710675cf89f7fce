"""Options of the chat format and of thinking: recorded, resumed, and refused where a folder holds another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

import lensprune as lp
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.models.tokenizers import encode
from lensprune.planning import counted
from lensprune.runs.folder import read_spec
from lensprune.sweeps.thinking_prefix import AFTER_END
from tests.helpers.chat_models import chat_tokenizer, save_chat_folder
from tests.helpers.sweeps import sweep

ASKED: dict[str, Any] = {"tasks": "arithmetic", "protocols": "generate", "shots": 2, "chat_template": True}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_folder("qwen", tmp_path_factory.mktemp("qwen"))


def lose_a_cell(out: Path) -> None:
    next((out / "records").glob("*L0*")).unlink()


def prompt_of(run: lp.Run) -> str:
    return str(run.records(prompts=True)["prompt"].iloc[0])


@pytest.mark.slow
def test_what_was_asked_is_recorded_and_resumed(qwen: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = {**ASKED, "thinking": "off", "fewshot_as_multiturn": True, "system": "Be brief."}
    run = sweep(qwen, out, **given)
    spec = run.spec
    assert (spec.thinking, spec.fewshot_as_multiturn, spec.system) == ("off", True, "Be brief.")
    assert spec.think_tokens == ("<think>", "</think>")
    prompt = prompt_of(run)
    assert prompt.startswith("<|im_start|>system\nBe brief.")
    assert prompt.count("<|im_start|>assistant") == 3
    assert prompt.endswith("<think>\n\n</think>\n\n")
    lose_a_cell(out)
    again = lp.resume(out, progress=False)
    assert again.n_finished == again.n_expected
    assert again.spec == read_spec(out)
    assert again.records().equals(run.records())
    page = again.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert (
        "examples are turns; system prompt: &#39;Be brief.&#39;; thinking: off, &lt;think&gt; … &lt;/think&gt;" in page
    )
    for change, message in (
        ({"thinking": "auto"}, r'thinking: "off" there, "auto" here'),
        ({"fewshot_as_multiturn": False}, "fewshot_as_multiturn: true there, false here"),
        ({"system": None}, 'the system prompt: "Be brief." there, null here'),
        ({"think_tokens": ("<|im_start|>", "<|im_end|>")}, "think_tokens"),
    ):
        with pytest.raises(UserError, match=message):
            sweep(qwen, out, **{**given, **change})


def test_template_arguments_are_part_of_the_spec(tmp_path: Path) -> None:
    folder = save_chat_folder("channels", tmp_path / "model")
    run = sweep(folder, tmp_path / "run", **ASKED, template_args={"reasoning_effort": "low"})
    assert run.spec.template_args == {"reasoning_effort": "low"}
    assert run.spec.think_tokens == ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")
    assert "Reasoning: low<|end|>" in prompt_of(run)
    with pytest.raises(UserError, match=r"chat template's arguments .*low.* there, .*high.* here"):
        sweep(folder, tmp_path / "run", **ASKED, template_args={"reasoning_effort": "high"})


@pytest.mark.slow
def test_a_budget_is_part_of_the_spec(qwen: Path, tmp_path: Path) -> None:
    run = sweep(qwen, tmp_path / "run", **ASKED, thinking_budget=5)
    assert run.spec.thinking_budget == 5
    with pytest.raises(UserError, match="thinking_budget: 5 there, 4 here"):
        sweep(qwen, tmp_path / "run", **ASKED, thinking_budget=4)
    other = sweep(qwen, **ASKED, thinking_budget=4)
    assert other.spec.conditions[0].prompts_hash != run.spec.conditions[0].prompts_hash
    with pytest.raises(
        UserError, match="thinking budget of 4096 tokens and the 1 that end it leave no room for an answer in 8 new"
    ):
        sweep(qwen, **ASKED, thinking_budget=4096)


def test_thinking_is_recorded_apart(tmp_path: Path) -> None:
    """The model writes bytes at random; its template has opened the thinking, which never ends."""
    folder = save_chat_folder("deepseek", tmp_path / "model")
    run = sweep(folder, **ASKED)
    records = run.records()
    assert (records["failure"] == "cut_off").all()
    assert (records["text"] == "").all()
    assert not records["correct"].any()
    assert (records["thinking"].str.len() > 0).all()
    assert records["n_thinking_tokens"].between(records["n_tokens"] - 1, records["n_tokens"]).all()
    lengths = run.plot_data("thinking_length")
    clean = records[records["variant"] == "clean"]["n_thinking_tokens"]
    assert lengths.loc[0, "tokens"] == pytest.approx(clean.mean())
    assert (lengths["ended"] == 0).all()
    item = run.item(0)
    assert "its tokens" in repr(item)
    # Scored options stand inside the thinking, as in lm-eval, and nothing is told apart.
    scored = sweep(folder, tasks="facts", protocols="continuation", chat_template=True).records()
    assert scored["thinking"].isna().all()
    assert scored["n_thinking_tokens"].isna().all()


def test_both_executors_tell_thinking_apart_alike(qwen: Path) -> None:
    marks = ("<|im_start|>", "a")
    fast, slow = (sweep(qwen, **ASKED, think_tokens=marks, executor=name) for name in ("forked", "hooked"))
    columns = ["variant", "item_id", "text", "thinking", "n_thinking_tokens", "n_tokens", "failure"]
    assert fast.records()[columns].equals(slow.records()[columns])
    # Some of what is written at random has the end marker.
    assert set(fast.records()["n_thinking_tokens"] > 0) == {True, False} or fast.records()["text"].any()


@pytest.mark.slow
def test_samples_think_within_a_budget_alike_in_both_executors(tmp_path: Path) -> None:
    """Sampling, a forced end, stop strings and a limit on new tokens, together."""
    folder, out = save_chat_folder("deepseek", tmp_path / "model"), tmp_path / "run"
    asked: dict[str, Any] = {
        **ASKED,
        "think_tokens": ("<think>", "t"),
        "thinking_budget": 8,
        "max_new_tokens": 16,
        "until": [")", "p"],
        "temperature": 0.7,
        "samples": 2,
        "seed": 3,
    }
    run = sweep(folder, out, **asked)
    records = run.records()
    columns = [name for name in records.columns if name != "metrics"]
    slow = sweep(folder, **asked, executor="hooked", batch_tokens=60).records()
    assert slow[columns].equals(records[columns])
    assert records["item_id"].tolist() == [str(item) for _ in range(4) for item in (0, 0, 1, 1, 2, 2)]
    assert records["sample"].tolist() == [0, 1] * 12
    assert records["thinking"].iloc[0] != records["thinking"].iloc[1]
    # The end is forced after 8 tokens, markers among them, unless a sample writes it before.
    lengths = records["n_thinking_tokens"]
    assert lengths.max() == 8
    assert lengths.min() < 7
    assert records["n_tokens"].max() == 16
    # Stop strings end answers alone.
    assert records["thinking"].str.contains(r"[)p]").any()
    assert (records["stop_reason"] == "stop_string").any()
    assert not records["text"].str.contains(r"[)p]").any()
    assert records["text"].str.len().gt(0).all()
    table = run.plot_data("thinking_length").set_index("variant")
    assert table["n"].tolist() == [3] * 4
    assert table["tokens"].to_dict() == pytest.approx(lengths.groupby(records["variant"]).mean().to_dict())
    assert table["delta"].abs().max() > 0
    # Answers are cut off too, by the limit; what ended is the thinking.
    assert (records["failure"] == "cut_off").any()
    assert (table["ended"] == 1).all()
    lose_a_cell(out)
    assert lp.resume(out, progress=False).records().equals(records)
    with pytest.raises(UserError, match="leave no room for an answer in 9 new tokens"):
        sweep(folder, **{**asked, "max_new_tokens": 9})
    with pytest.raises(UserError, match=r"temperature 0\.7 is given with a thinking prefix"):
        sweep(folder, **{**asked, "protocols": ("continuation", "generate")}, thinking_prefix="clean")


@pytest.mark.slow
def test_an_end_token_behind_the_prompt_is_left_out_or_kept(tmp_path: Path) -> None:
    folder = save_chat_folder("llama", tmp_path / "model")
    tokenizer = chat_tokenizer("llama")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    asked = {"tasks": "facts", "protocols": ("continuation", "generate")}
    mended = sweep(folder, tmp_path / "run", **asked)
    kept = sweep(folder, **asked, keep_eos=True)
    assert (mended.spec.appended, mended.spec.keep_eos) == ("<eos>", False)
    assert (kept.spec.appended, kept.spec.keep_eos) == ("<eos>", True)
    one, other = (run.records().set_index(["variant", "protocol", "item_id"])["gold_logprob"] for run in (mended, kept))
    assert (one.xs("continuation", level="protocol") != other.xs("continuation", level="protocol")).all()
    with pytest.raises(UserError, match="keep_eos: false there, true here"):
        sweep(folder, tmp_path / "run", **asked, keep_eos=True)
    plain = sweep(save_chat_folder("llama", tmp_path / "plain"), **asked, keep_eos=True)
    assert plain.spec.appended == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--template-arg", "effort"], "expected KEY=VALUE, like reasoning_effort=low, not 'effort'"),
        (["--template-arg", "a=1", "--template-arg", "a=2"], "a is given twice"),
        (["--template-arg", "a=[1]"], "template argument a is [1]: expected text, a number, true, false or null"),
        (["--template-arg", "effort=low"], "template argument 'effort' is not read by the chat template"),
        (["--thinking", "yes"], "unknown thinking 'yes'"),
        (["--think-tokens", "<thnk>", "</think>"], "think token '<thnk>' is not a token of"),
        (["--think-tokens", "<think>"], "expected 2 arguments"),
        (["--thinking", "off", "--thinking-budget", "9"], "a thinking budget is given, but thinking is off"),
        (["--thinking-budget", "99999"], "leave no room for an answer in 8 new tokens"),
        (["--primary-metric", "boxed"], "unknown primary metric of task 'arithmetic"),
    ],
)
def test_the_command_line_refuses_in_one_line(
    given: list[str], message: str, qwen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", "--model", str(qwen), "--task", "arithmetic", "--protocol", "generate", "--chat-template"]
    assert main([*command, "--limit", "2", "--device", "cpu", "--flops", "1e9", *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_primary_metric_decides_and_is_named(qwen: Path, tmp_path: Path) -> None:
    usual = sweep(qwen, **{**ASKED, "chat_template": False})
    chosen = sweep(qwen, tmp_path / "run", **{**ASKED, "chat_template": False}, primary_metric="equal,flexible-extract")
    assert chosen.spec.primary_metric == "equal,flexible-extract"
    one, other = usual.records(), chosen.records()
    assert [dict(m) for m in one["metrics"]] == [dict(m) for m in other["metrics"]]
    assert list(other["correct"]) == [m["equal,flexible-extract"] == 1 for m in other["metrics"]]
    assert "equal,boxed 0.000" in usual.summary()["metrics"].iloc[0]
    with pytest.raises(UserError, match="primary_metric"):
        sweep(qwen, tmp_path / "run", **{**ASKED, "chat_template": False})
    with pytest.raises(UserError, match="no answer is generated"):
        sweep(qwen, tasks="arithmetic", protocols="default", primary_metric="equal,boxed")


@pytest.mark.slow
def test_options_are_read_after_the_clean_models_thinking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, out = save_chat_folder("deepseek", tmp_path / "model"), tmp_path / "run"
    asked: dict[str, Any] = {
        "tasks": "facts",
        "protocols": ("continuation", "generate"),
        "chat_template": True,
        "thinking_budget": 9,
    }
    plain = sweep(folder, **asked)
    assert "so the options are read inside it" in caplog.text
    caplog.clear()
    run = sweep(folder, out, **asked, thinking_prefix="clean")
    assert not caplog.text
    assert run.spec.thinking_prefix == "clean"
    one, other = (r.records("clean", protocol="continuation", prompts=True) for r in (plain, run))
    model = lp.load_model(folder, device="cpu")
    for before, after in zip(one.to_dict("records"), other.to_dict("records"), strict=True):
        prefix = after["prompt"].removeprefix(before["prompt"])
        assert after["prompt"].startswith(before["prompt"])
        assert prefix.endswith("</think>")
        assert prefix.count("</think>") == 1
        # Nine bytes at random, which are decoded together.
        thought = prefix.removesuffix("</think>")
        assert 1 <= len(thought) <= 9
        assert after["gold_logprob"] != before["gold_logprob"]
        [row] = scored_by_hand(model, after["prompt"], after["options"])
        assert after["option_logprobs"] == pytest.approx(row, abs=1e-4)
    # Every variant reads the same prompts, and generated answers have none.
    assert len(set(run.records(protocol="continuation", prompts=True)["prompt"])) == len(one)
    texts = [r.records(protocol="generate", prompts=True)["prompt"].tolist() for r in (plain, run)]
    assert texts[0] == texts[1]

    # A resumed run goes on with the thinking that it has.
    next((out / "records").glob("*L0*")).unlink()
    monkeypatch.setattr("lensprune.sweeps.thinking_prefix._generated", None)
    again = lp.resume(out, progress=False)
    assert again.records().equals(run.records())
    monkeypatch.undo()
    with pytest.raises(UserError, match="thinking_budget: 9 there, 8 here"):
        sweep(folder, out, **{**asked, "thinking_budget": 8}, thinking_prefix="clean")
    prefix: dict[str, Any] = {"chat_template": True, "thinking_budget": 9, "thinking_prefix": "clean"}
    planned = lp.plan(str(folder), "facts", "continuation", limit=3, shots=0, device="cpu", flops=1e9, **prefix)
    less = lp.plan(str(folder), "facts", "continuation", limit=3, shots=0, device="cpu", flops=1e9, chat_template=True)
    monkeypatch.setattr(counted, "thinking_requests", lambda *_: ())
    read = lp.plan(str(folder), "facts", "continuation", limit=3, shots=0, device="cpu", flops=1e9, **prefix)
    assert read.conditions[0].unshared.tokens > less.conditions[0].unshared.tokens
    # The clean model reads each prompt once, and writes nine tokens, the end marker and white space after it.
    lengths = [len(encode(lp.as_hooked_model(model), prompt)) for prompt in one["prompt"]]
    steps = 9 + 1 + AFTER_END - 1
    assert planned.conditions[0].unshared.tokens - read.conditions[0].unshared.tokens == sum(lengths) + 3 * steps
    assert planned.conditions[0].shared.passes == steps


def scored_by_hand(model: Any, prompt: str, options: list[str]) -> list[list[float]]:
    """Summed log-probabilities of each option after the prompt."""
    import torch

    tokenizer, found = model.tokenizer, []
    start = len(tokenizer.encode(prompt.rstrip(), add_special_tokens=False))
    for option in options:
        ids = torch.tensor([tokenizer.encode(prompt + option, add_special_tokens=False)])
        with torch.inference_mode():
            logprobs = model(ids).double().log_softmax(-1)[0]
        found.append(sum(float(logprobs[i - 1, ids[0, i]]) for i in range(start, ids.shape[1])))
    return [found]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"protocols": "generate"}, "no options are scored"),
        ({"executor": "ray"}, "generated in one process"),
        ({"thinking_budget": 2010}, "3 of 3 prompts of task 'facts' with 2010 tokens of thinking exceed the context"),
        ({"tasks": "arithmetic", "chat_template": False}, "has no known think tokens"),
    ],
)
def test_a_thinking_prefix_that_can_not_be_is_refused(asked: dict[str, Any], message: str, qwen: Path) -> None:
    given = {"tasks": "facts", "protocols": "continuation", "chat_template": True, "thinking_budget": 9, **asked}
    with pytest.raises(UserError, match=message):
        sweep(qwen, **given, thinking_prefix="clean")


@pytest.mark.parametrize("option", [{"thinking_budget": 9}, {"think_tokens": ("<think>", "</think>")}])
def test_thinking_is_refused_where_nothing_is_generated(option: dict[str, Any], qwen: Path) -> None:
    name = f"--{next(iter(option)).replace('_', '-')}"
    with pytest.raises(UserError, match=f"{name} is given, but nothing is generated"):
        sweep(qwen, tasks="facts", protocols="continuation", chat_template=True, **option)


def test_a_model_that_does_not_think_reads_the_options_after_the_prompt(
    qwen: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"tasks": "facts", "protocols": "continuation", "chat_template": True}
    run = sweep(qwen, **asked, thinking="on", thinking_budget=5, thinking_prefix="clean")
    assert "the clean model thinks in 0 of 3 items" in caplog.text
    plain = sweep(qwen, **asked)
    assert run.records()["gold_logprob"].equals(plain.records()["gold_logprob"])


def test_a_thinking_prefix_follows_the_generation_config(tmp_path: Path) -> None:
    """A penalty changes what the clean model thinks, unless the config is ignored; the spec says which it was."""
    folder = save_chat_folder("deepseek", tmp_path / "model")
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.9}', encoding="utf-8")
    asked: dict[str, Any] = {"tasks": "facts", "protocols": "continuation", "chat_template": True}
    asked |= {"thinking_budget": 9, "thinking_prefix": "clean"}
    penalised, free = sweep(folder, **asked), sweep(folder, **asked, generation_config="none")
    assert penalised.spec.decoding["repetition_penalty"] == 1.9
    assert "repetition_penalty" not in free.spec.decoding
    assert prompt_of(penalised) != prompt_of(free)
