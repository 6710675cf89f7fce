"""Every prompt, continuation, option list and answer equals lm-eval's, string for string."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from lensprune.tasks import GenerationFormat, LoadedTask, ProtocolName, load_task, prompt_strings, registry
from lensprune.tasks.mmlu import SUBJECTS

lm_eval = pytest.importorskip("lm_eval")
from tests.helpers.lm_eval_tasks import build_task  # noqa: E402

pytestmark = pytest.mark.data_dir

LIMIT = 15


@dataclass(frozen=True)
class Case:
    ours: str
    protocol: ProtocolName
    theirs: str
    shots: int

    def __str__(self) -> str:
        return f"{self.theirs}-{self.shots}"


def _cases() -> list[Case]:
    cases = [
        Case(ours, protocol, ours, shots)
        for ours, protocol in (
            ("arc_challenge", "continuation"),
            ("arc_easy", "continuation"),
            ("boolq", "continuation"),
            ("commonsense_qa", "default"),
            ("hellaswag", "continuation"),
            ("mathqa", "continuation"),
            ("openbookqa", "continuation"),
            ("winogrande", "continuation"),
        )
        for shots in (0, 3)
    ]
    cases += [Case("gsm8k", "generate", "gsm8k", shots) for shots in (0, 5)]
    cases += [Case("gsm8k_cot", "generate", "gsm8k_cot", shots) for shots in (0, 8)]
    for subject in ("abstract_algebra", "high_school_us_history", "moral_scenarios"):
        for protocol, suffix in (("default", ""), ("continuation", "_continuation"), ("generate", "_generative")):
            cases += [
                Case(f"mmlu[subject={subject}]", protocol, f"mmlu_{subject}{suffix}", shots)  # type: ignore[arg-type]
                for shots in (0, 5)
            ]
    return cases


def _gold_of_theirs(task, doc) -> int:
    """lm-eval's index of the right option, as its `process_results` finds it."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    return task.doc_to_choice(doc).index(gold) if isinstance(gold, str) else gold


def _assert_equal(loaded: LoadedTask, protocol: ProtocolName, theirs) -> None:
    fmt = loaded.task.formats[protocol]
    by_doc: dict[int, list] = {}
    for instance in theirs.instances:
        by_doc.setdefault(instance.doc_id, []).append(instance)
    assert len(by_doc) == len(loaded.items) > 0
    for item, (_, instances) in zip(loaded.items, sorted(by_doc.items()), strict=True):
        ours = prompt_strings(fmt, item)
        doc = instances[0].doc
        if isinstance(fmt, GenerationFormat):
            ((context, continuation),) = ours
            assert (context, continuation) == (instances[0].args[0], "")
            assert fmt.target(item.doc) == theirs.doc_to_target(doc)
            assert list(fmt.until) == instances[0].args[1]["until"]
        else:
            assert list(ours) == [instance.args for instance in sorted(instances, key=lambda one: one.idx)]
            assert list(fmt.choices(item.doc)) == theirs.doc_to_choice(doc)
            assert fmt.gold(item.doc) == _gold_of_theirs(theirs, doc)
            assert set(fmt.metrics) == set(theirs._metric_fn_list)


@pytest.mark.parametrize("case", _cases(), ids=str)
def test_prompts_equal_lm_evals(case: Case, data_dir: Path, tmp_path: Path) -> None:
    loaded = load_task(case.ours, data_dir=data_dir, limit=LIMIT, items="first", shots=case.shots)
    name = loaded.task.lm_eval[case.protocol].format(cluster=loaded.items[0].cluster)
    assert name == case.theirs
    _assert_equal(loaded, case.protocol, build_task(name, data_dir, tmp_path, case.shots, LIMIT))


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k_cot"])
def test_default_shots_are_lm_evals(name: str, data_dir: Path, tmp_path: Path) -> None:
    loaded = load_task(name, data_dir=data_dir, limit=3, items="first")
    theirs = build_task(name, data_dir, tmp_path, None, 3)
    assert loaded.shots == theirs.config.num_fewshot
    _assert_equal(loaded, "generate", theirs)


@pytest.mark.parametrize("protocol", ["default", "continuation", "generate"])
def test_all_subjects_of_mmlu_are_limited_one_by_one(
    protocol: ProtocolName, data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    loaded = load_task("mmlu", data_dir=data_dir, limit=2, items="first")
    assert [item.cluster for item in loaded.items] == [subject for subject in SUBJECTS for _ in range(2)]
    theirs = []
    for subject in SUBJECTS:
        name = loaded.task.lm_eval[protocol].format(cluster=subject)
        task = build_task(name, data_dir, tmp_path_factory.mktemp(subject), 5, 2)
        theirs += [instance.args[0] for instance in task.instances if instance.idx == 0]
    assert [prompt_strings(loaded.task.formats[protocol], item)[0][0] for item in loaded.items] == theirs


def test_seed_changes_the_examples_as_lm_evals_seed_does(data_dir: Path, tmp_path: Path) -> None:
    loaded = load_task("gsm8k", data_dir=data_dir, limit=4, items="first", seed=7)
    theirs = build_task("gsm8k", data_dir, tmp_path, 5, 4)
    fmt = loaded.task.formats["generate"]
    ours = [prompt_strings(fmt, item)[0][0] for item in loaded.items]
    assert ours != [instance.args[0] for instance in theirs.instances]
    theirs.set_fewshot_seed(seed=1234 + 7)
    theirs.build_all_requests(limit=4)
    assert ours == [instance.args[0] for instance in theirs.instances]


@pytest.mark.parametrize(
    ("file", "name", "folder", "protocol", "shots"),
    [
        ("arc/arc_easy.yaml", "arc_easy", "arc_easy", "continuation", 3),
        ("commonsense_qa/default.yaml", "commonsense_qa", "commonsense_qa", "default", 3),
        ("super_glue/boolq/default.yaml", "boolq", "boolq", "continuation", 3),
        ("openbookqa/openbookqa.yaml", "openbookqa", "openbookqa", "continuation", 3),
        ("gsm8k/gsm8k.yaml", "gsm8k", "gsm8k", "generate", 5),
        ("gsm8k/gsm8k-cot.yaml", "gsm8k_cot", "gsm8k", "generate", 8),
    ],
)
def test_lm_evals_own_files_are_read_as_it_reads_them(
    file: str,
    name: str,
    folder: str,
    protocol: ProtocolName,
    shots: int,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "_builders", {})
    path = tmp_path / "their.yaml"
    theirs = Path(lm_eval.__file__).parent / "tasks" / file
    path.write_text(f"{theirs.read_text()}\nfolder: {folder}\n")
    loaded = load_task(str(path), data_dir=data_dir, limit=LIMIT, items="first", shots=shots)
    assert loaded.task.name == name
    _assert_equal(loaded, protocol, build_task(name, data_dir, tmp_path, shots, LIMIT))
