"""A user's own lm-eval tasks through the adapter, against lm-eval's own model over the same weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lensprune.ablation.components import Layer
from lensprune.ablation.variants import CLEAN, Ablation, Variant
from lensprune.adapters.lm_eval import LmEvalOptions, _load, run_lm_eval_tasks
from lensprune.engine.hooked import HookedExecutor
from lensprune.errors import UserError
from lensprune.models import BridgeModel, as_hooked_model, load_model

TASKS = ("toy_choice", "toy_text", "toy_perplexity")
VARIANTS = (CLEAN, Variant("L1.skip", (Ablation(Layer(1), "skip"),)))
ROWS = [
    {"q": f"What is {a} plus {b}?", "options": [str(a + b), str(a * b + 1), "none"], "gold": 0, "a": str(a + b)}
    for a, b in ((1, 2), (3, 4), (2, 2), (5, 1), (4, 4), (6, 3))
]
CONFIGS: dict[str, dict[str, Any]] = {
    "toy_choice": {
        "output_type": "multiple_choice",
        "fewshot_split": "test",
        "num_fewshot": 1,
        "doc_to_text": "Q: {{q}}\nA:",
        "doc_to_choice": "options",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "brier_score"}],
    },
    "toy_text": {
        "output_type": "generate_until",
        "doc_to_text": "Q: {{q}}\nA:",
        "doc_to_target": "a",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}, {"metric": "chrf"}],
    },
    "toy_perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{q}}" + " word" * 120,
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = {"data_files": {"test": str(rows)}, "cache_dir": str(folder / "cache")}
    for name, config in CONFIGS.items():
        whole = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test", **config}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole))
    return folder


@pytest.fixture(scope="module")
def model(family_folder) -> BridgeModel:
    return as_hooked_model(load_model(family_folder("llama"), device="cpu"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out") / "run"


@pytest.fixture(scope="module")
def ours(model: BridgeModel, tasks: Path, out: Path) -> dict[str, dict[str, Any]]:
    options = LmEvalOptions(limit=5, include_path=tasks, out=out)
    counts: list[int] = []
    done: list[int] = []
    results = run_lm_eval_tasks(
        model,
        list(TASKS),
        VARIANTS,
        HookedExecutor(model),
        options,
        progress=done.append,
        announce=counts.append,
    )
    assert counts == [sum(done)]
    return results


@pytest.fixture(scope="module")
def manager(tasks: Path) -> TaskManager:
    return TaskManager(include_path=str(tasks), include_defaults=False)


@pytest.fixture(scope="module")
def theirs(model: BridgeModel, manager: TaskManager) -> dict[str, dict[str, Any]]:
    found = {}
    raw = model.raw_model
    assert raw is not None
    for variant in VARIANTS:
        handles = []
        if not variant.is_clean:

            def skip(block: Any, args: Any, kwargs: Any, output: Any) -> Any:
                entering = args[0] if args else kwargs["hidden_states"]
                return (entering, *output[1:]) if isinstance(output, tuple) else entering

            handles.append(raw.model.layers[1].register_forward_hook(skip, with_kwargs=True))
        lm = HFLM(pretrained=raw, tokenizer=copy.deepcopy(model.tokenizer), batch_size=1, device="cpu")
        found[variant.name] = simple_evaluate(model=lm, tasks=list(TASKS), limit=5, task_manager=manager)
        for handle in handles:
            handle.remove()
    return found


@pytest.mark.parametrize("variant", [variant.name for variant in VARIANTS])
@pytest.mark.parametrize("task", TASKS)
def test_metrics_are_lm_evals(ours, theirs, variant: str, task: str) -> None:
    expected, found = theirs[variant]["results"][task], ours[variant]["results"][task]
    assert expected.keys() == found.keys()
    for metric, value in expected.items():
        wanted = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
        assert found[metric] == wanted, metric


@pytest.mark.parametrize("variant", [variant.name for variant in VARIANTS])
def test_texts_are_lm_evals(ours, theirs, variant: str) -> None:
    expected, found = ([s["resps"] for s in run[variant]["samples"]["toy_text"]] for run in (theirs, ours))
    assert expected == found


def test_the_variant_changes_the_scores(ours) -> None:
    clean, skipped = (ours[v.name]["results"]["toy_perplexity"]["word_perplexity,none"] for v in VARIANTS)
    assert abs(clean - skipped) > 1e-2 * clean


def test_official_files(ours, out: Path) -> None:
    for variant in VARIANTS:
        (results,) = (out / variant.name).rglob("results_*.json")
        content = json.loads(results.read_text())
        assert content["results"]["toy_choice"]["acc,none"] == ours[variant.name]["results"]["toy_choice"]["acc,none"]
        assert content["config"]["model"] == "lensprune"
        assert content["config"]["variant"] == variant.name
        assert content["n-samples"]["toy_choice"] == {"original": 6, "effective": 5}
        for task in TASKS:
            (samples,) = (out / variant.name).rglob(f"samples_{task}_*.jsonl")
            assert len(samples.read_text().splitlines()) == len(ours[variant.name]["samples"][task]) == 5


def run(model: BridgeModel, names: list[str], manager: TaskManager, **changes: Any) -> Any:
    variants = changes.pop("variants", VARIANTS)
    options = LmEvalOptions(**{"task_manager": manager, "limit": 1, **changes})
    return run_lm_eval_tasks(model, names, variants, HookedExecutor(model), options)


def test_unknown_task_names_the_nearest(model: BridgeModel, manager: TaskManager) -> None:
    with pytest.raises(UserError, match=r"lm-eval task 'toy_chioce': did you mean toy_choice"):
        run(model, ["toy_chioce"], manager)


def test_data_that_cannot_be_loaded_is_one_line(
    model: BridgeModel, manager: TaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(names: list[str]) -> None:
        raise ConnectionError("Couldn't reach the hub\nand more")

    for name in ("LENSPRUNE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(manager, "load", away)
    with pytest.raises(UserError, match=r"cannot load toy_choice \(Couldn't reach the hub\): check the network"):
        run(model, ["toy_choice"], manager)


def test_an_output_folder_in_use_is_refused(model: BridgeModel, manager: TaskManager, ours, out: Path) -> None:
    with pytest.raises(UserError, match="is not empty"):
        run(model, ["toy_choice"], manager, out=out)


def test_variants_of_one_name_are_refused(model: BridgeModel, manager: TaskManager) -> None:
    with pytest.raises(UserError, match="two variants share a name: clean"):
        run(model, ["toy_choice"], manager, variants=[CLEAN, CLEAN])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"do_sample": True, "temperature": 1.0}, "'do_sample' is true"),
        ({"num_beams": 4}, "'num_beams' is 4"),
    ],
)
def test_what_is_not_greedy_is_refused(
    model: BridgeModel, manager: TaskManager, tasks: Path, tmp_path: Path, setting: dict[str, Any], message: str
) -> None:
    config = yaml.safe_load((tasks / "toy_text.yaml").read_text())
    config["task"] = "toy_other"
    config["generation_kwargs"].update(setting)
    path = tmp_path / "toy_other.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=f"'toy_other', document 0.*{message}"):
        run(model, [str(path)], manager)


def test_offline_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub.constants

    seen = []

    class Manager:
        all_tasks = ("far_away",)

        def load(self, names: list[str]) -> None:
            seen.append((datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE))
            raise ConnectionError("no cache")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in ("LENSPRUNE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="check the network"):
        _load(Manager(), ["far_away"])
    monkeypatch.setenv("LENSPRUNE_OFFLINE", "1")
    with pytest.raises(UserError, match="LENSPRUNE_OFFLINE or HF_HUB_OFFLINE is set"):
        _load(Manager(), ["far_away"])
    assert seen == [(False, False), (True, True)]
    assert (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE) == (False, False)
