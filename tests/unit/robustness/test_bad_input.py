"""Whatever is typed or lies in a file: a result, or one clear line and exit code 2; never a traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lensprune import cli
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.protocols import build_requests
from lensprune.tasks.loading import load_task
from tests.helpers.tiny_models import tiny

CASES = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
FEW = settings(CASES, max_examples=40)

ODD_TEXT = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "",
            " ",
            "-",
            "--",
            "0",
            "-1",
            "1e9",
            "NaN",
            "∞",
            "٣",
            "../..",
            "/",
            ".",
            "~",
            "\x00",
            "\x1b[2J",
            "\ud800",
            "9" * 400,
        ]
    ),
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(["default", "generate", "layers", "heads", "skip", "mean", "0-1", "forked", "float16", "facts"]),
)
OPTIONS = (
    "--task", "--protocol", "--limit", "--shots", "--seed", "--data-dir", "--over", "--layers", "--heads", "--ablation",
    "--reference", "--mean-mode", "--dtype", "--device", "--bos", "--executor", "--batch-tokens", "--n-devices",
)  # fmt: skip


def is_much_work(option: str, value: str) -> bool:
    """A made task gives as many items and examples as are asked for: such numbers are not mistaken, only slow."""
    return option in ("--limit", "--shots") and value.isdecimal() and 1000 < int(value) <= 10**6


def run(arguments: list[str]) -> tuple[int, str, str]:
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main(arguments)
    return code, out.getvalue(), err.getvalue()


def assert_clear(code: int, err: str) -> None:
    assert code in (0, 2), err
    if code == 2:
        [line] = err.strip("\n").split("\n")[-1:]
        assert line.startswith("lensprune: error: ")
        assert line.isprintable()
        assert len(line) < 800
        assert "Traceback" not in err


@contextmanager
def empty_place() -> Any:
    """A working folder in which a refused command may leave nothing."""
    before = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


@pytest.fixture(scope="module")
def folder(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LENSPRUNE_OFFLINE", "1")
    monkeypatch.setenv("LENSPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
@CASES
@given(options=st.lists(st.tuples(st.sampled_from(OPTIONS), ODD_TEXT), min_size=1, max_size=3))
def test_options(options: list[tuple[str, str]], folder: Path, count_cases: Callable[[], None]) -> None:
    assume(not any(is_much_work(*option) for option in options))
    count_cases()
    arguments = ["plan", "--model", str(folder), "--flops", "1e11", "--bandwidth", "1e10"]
    given_options = {option for option, _ in options}
    for option, value in {"--task": "arithmetic", "--limit": "1", "--shots": "1"}.items():
        if option not in given_options:
            arguments += [option, value]
    with empty_place() as place:
        # With an equals sign: a value that begins with a hyphen is then a value.
        code, _, err = run(arguments + [f"{option}={value}" for option, value in options])
        assert_clear(code, err)
        assert list(place.iterdir()) == []


@pytest.mark.slow
@CASES
@given(words=st.lists(ODD_TEXT, max_size=4))
def test_words(words: list[str], count_cases: Callable[[], None]) -> None:
    count_cases()
    with empty_place() as place:
        code, _, err = run(words)
        assert_clear(code, err)
        assert list(place.iterdir()) == []


@FEW
@given(name=ODD_TEXT)
def test_model_names(name: str, count_cases: Callable[[], None]) -> None:
    count_cases()
    with empty_place():
        code, _, err = run(["plan", f"--model={name}", "--task", "facts", "--limit", "1"])
        assert_clear(code, err)
        assert code == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
GOOD_ROW = {
    "id": "x-1",
    "question_stem": "Grass is",
    "choices": {"text": ["green", "blue"], "label": ["A", "B"]},
    "answerKey": "A",
    "fact1": "Grass is a green plant.",
    "subject": "plants",
}


def read_rows(model: HookedModel, task: str, folder: str, text: str, limit: int | None = None) -> str | None:
    """Load a task's rows from `text` and build every request; the message, if it was refused."""
    with TemporaryDirectory() as place:
        target = Path(place) / folder
        target.mkdir()
        for split in ("test", "train"):
            (target / f"{split}.jsonl").write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            loaded = load_task(task, data_dir=Path(place), limit=limit, shots=0)
            for protocol in ("default", "continuation", "generate"):
                build_requests(model, loaded, protocol)  # type: ignore[arg-type]
        except UserError as error:
            return str(error)
    return None


@CASES
@given(
    column=st.sampled_from([*GOOD_ROW, "choices.text", "choices.label"]),
    value=st.one_of(JSON, ODD_TEXT, st.just("🙂" * 90)),
    absent=st.booleans(),
)
def test_rows_with_a_wrong_column(column: str, value: Any, absent: bool, count_cases: Callable[[], None]) -> None:
    count_cases()
    row: dict[str, Any] = json.loads(json.dumps(GOOD_ROW))
    holder, key = (row["choices"], column.removeprefix("choices.")) if "." in column else (row, column)
    if absent:
        del holder[key]
    else:
        holder[key] = value
    other = {**GOOD_ROW, "id": "x-2"}
    text = "\n".join(json.dumps(r) for r in (row, other))
    message = read_rows(tiny("llama"), "facts", "facts", text)
    assert message is None or "facts" in message


@CASES
@given(
    text=st.one_of(
        st.text(max_size=60), JSON.map(json.dumps), st.sampled_from(["[" * 3000, "{" * 3000, '{"a":' * 3000])
    )
)
def test_files_that_are_no_rows(text: str, count_cases: Callable[[], None]) -> None:
    count_cases()
    message = read_rows(tiny("llama"), "facts", "facts", text)
    assert message is not None
    assert "facts" in message


@FEW
@given(
    question=st.one_of(
        st.text(max_size=40), st.sampled_from(["", " ", "\n\n", "<eos>", "<bos><eos><pad>", "x" * 5000])
    ),
    answer=st.one_of(st.text(max_size=20), st.just("#### 4"), st.just("y" * 3000), JSON),
)
def test_prompts_of_gsm8k(question: str, answer: Any, count_cases: Callable[[], None]) -> None:
    count_cases()
    text = json.dumps({"question": question, "answer": answer})
    message = read_rows(tiny("llama"), "gsm8k", "gsm8k", text)
    assert message is None or "gsm8k" in message


@pytest.mark.slow
def test_a_megabyte_in_a_row_is_cut_to_the_context() -> None:
    big = {**GOOD_ROW, "question_stem": "word " * 200_000}
    text = json.dumps(big) + "\n" + json.dumps({**GOOD_ROW, "id": "x-2"})
    assert read_rows(tiny("llama"), "facts", "facts", text) is None


def test_the_same_id_twice_is_refused() -> None:
    message = read_rows(tiny("llama"), "facts", "facts", "\n".join([json.dumps(GOOD_ROW)] * 2))
    assert message is not None
    assert "x-1" in message


@pytest.fixture(scope="module")
def spec_text(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("spec") / "run"
    options = ["--task", "arithmetic", "--limit", "1", "--shots", "0", "--layers", "1", "--device", "cpu"]
    code, _, err = run(["sweep", "--model", str(folder), *options, "--out", str(out)])
    assert code == 0, err
    return (out / "spec.json").read_text()


@pytest.mark.slow
@CASES
@given(data=st.data())
def test_spec_files(data: st.DataObject, spec_text: str, count_cases: Callable[[], None]) -> None:
    count_cases()
    spec = json.loads(spec_text)
    kind = data.draw(st.sampled_from(["value", "cut", "bytes", "remove"]))
    if kind == "value":
        spec[data.draw(st.sampled_from(sorted(spec)))] = data.draw(JSON)
        text = json.dumps(spec)
    elif kind == "remove":
        del spec[data.draw(st.sampled_from(sorted(spec)))]
        text = json.dumps(spec)
    elif kind == "cut":
        text = spec_text[: data.draw(st.integers(0, len(spec_text) - 3))]
    else:
        text = data.draw(st.text(max_size=50))
    if text.strip() == spec_text.strip() or json_equal(text, spec_text):
        return
    with empty_place() as place:
        (place / "run").mkdir()
        (place / "run" / "spec.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        code, _, err = run(["resume", "run"])
        assert_clear(code, err)
        # Leaving out what has a default, or renaming the model, is still the same run.
        if code == 2:
            assert [path.name for path in (place / "run").iterdir() if path.name != ".lock"] == ["spec.json"]
        else:
            assert kind in ("value", "remove")


def json_equal(text: str, other: str) -> bool:
    try:
        return bool(json.loads(text) == json.loads(other))
    except ValueError:
        return False
