"""Damaged model files: an error of one line in a moment; no other exception, no hang, no memory as the file states."""

from __future__ import annotations

import json
import resource
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lensprune.errors import UserError
from lensprune.models.gguf.header import read_gguf
from lensprune.models.sources.base import LoadOptions
from lensprune.models.sources.gguf_file import load_gguf
from lensprune.models.sources.pretrained import load_folder
from tests.helpers.gguf_files import write_gguf

FUZZ = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), database=None)
FEWER = settings(FUZZ, max_examples=80)
OPTIONS = LoadOptions(torch.float32, torch.device("cpu"), None, None, None)
MAX_SECONDS = 30.0
"""For one file; a second on an idle core."""
MAX_BYTES = 400 * 2**20
ABSURD = (0, 1, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes, int], bytes]:
    """A change to a file whose first so many bytes are its header."""
    kind = draw(st.sampled_from(["bytes", "number", "cut", "insert", "delete", "repeat", "swap"]))
    where = draw(st.floats(0, 1, exclude_max=True))
    other = draw(st.floats(0, 1, exclude_max=True))
    payload = draw(st.binary(min_size=1, max_size=8))
    number = draw(st.sampled_from(ABSURD))
    wide = draw(st.booleans())
    in_header = draw(st.integers(0, 9)) > 0

    def change(data: bytes, header: int) -> bytes:
        size = header if in_header else len(data)
        at, to = int(where * size), int(other * size)
        if kind == "bytes":
            return data[:at] + payload + data[at + len(payload) :]
        if kind == "number":
            packed = struct.pack("<Q", number) if wide else struct.pack("<I", number % 2**32)
            return data[:at] + packed + data[at + len(packed) :]
        if kind == "cut":
            return data[:at]
        if kind == "insert":
            return data[:at] + payload + data[at:]
        if kind == "delete":
            return data[:at] + data[at + len(payload) :]
        if kind == "repeat":
            return data[:to] + data[min(at, to) : max(at, to)] + data[to:]
        low, high = sorted((at, to))
        return data[:low] + data[high : high + 16] + data[low + 16 :]

    return change


class Watch:
    """Counts cases, and fails where one takes too long, or all of them too much memory."""

    def __init__(self) -> None:
        self.cases = 0
        self.refused = 0
        self.slowest = 0.0
        self._before = _peak()

    def case(self, work: Callable[[], object]) -> None:
        self.cases += 1
        began, message = time.perf_counter(), ""
        try:
            work()
        except UserError as error:
            message = str(error)
            self.refused += 1
        assert "\n" not in message
        self.slowest = max(self.slowest, time.perf_counter() - began)
        assert self.slowest < MAX_SECONDS
        assert self.grown < MAX_BYTES

    @property
    def grown(self) -> int:
        return _peak() - self._before


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture
def watch(record_property: Callable[[str, object], None]) -> Iterator[Watch]:
    watched = Watch()
    yield watched
    assert watched.refused > watched.cases // 4
    record_property("tried", watched.cases)
    record_property("refused", watched.refused)
    record_property("slowest_seconds", round(watched.slowest, 2))
    record_property("grown_megabytes", round(watched.grown / 1e6))


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, "llama", GGMLQuantizationType.Q8_0)
    first = min(tensor.start for tensor in read_gguf(path).tensors.values())
    load_gguf(path, OPTIONS)
    return path.read_bytes(), first


def test_gguf_files(gguf: tuple[bytes, int], watch: Watch) -> None:
    data, header = gguf

    @FUZZ
    @given(change=mutations())
    def run(change: Callable[[bytes, int], bytes]) -> None:
        with TemporaryDirectory() as place:
            path = Path(place) / "changed.gguf"
            path.write_bytes(change(data, header))
            watch.case(lambda: load_gguf(path, OPTIONS))

    run()


def test_gguf_metadata(gguf: tuple[bytes, int], watch: Watch) -> None:
    """Each number of the metadata replaced by an absurd one, with the file otherwise sound."""
    data, _ = gguf
    keys = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv")
    keys += ("attention.key_length", "context_length", "attention.layer_norm_rms_epsilon", "rope.freq_base")
    with TemporaryDirectory() as place:
        path = Path(place) / "changed.gguf"
        for key in keys:
            name = f"llama.{key}".encode()
            at = data.index(name) + len(name) + 4
            for number in (0, 1, 3, 2**20, 2**31 - 1, 2**31, 2**32 - 1):
                path.write_bytes(data[:at] + struct.pack("<I", number) + data[at + 4 :])
                watch.case(lambda: load_gguf(path, OPTIONS))


@pytest.fixture(scope="module")
def whole_folder(family_folder: Callable[[str], Path]) -> Path:
    folder = family_folder("llama")
    load_folder(folder, OPTIONS)
    return folder


def test_safetensors_files(whole_folder: Path, watch: Watch) -> None:
    data = (whole_folder / "model.safetensors").read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]

    @FUZZ
    @given(change=mutations())
    def run(change: Callable[[bytes, int], bytes]) -> None:
        with TemporaryDirectory() as place:
            folder = Path(place) / "model"
            shutil.copytree(whole_folder, folder)
            (folder / "model.safetensors").write_bytes(change(data, header))
            watch.case(lambda: load_folder(folder, OPTIONS))

    run()


JSON = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([*ABSURD, -1, 3]),
    st.floats(),
    st.text(max_size=8),
    st.just([]),
    st.just({}),
)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_json_files_of_a_model(whole_folder: Path, watch: Watch, name: str) -> None:
    text = (whole_folder / name).read_text()
    parsed: dict[str, Any] = json.loads(text)

    @FEWER
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            changed = {**parsed, data.draw(st.sampled_from(sorted(parsed))): data.draw(JSON)}
            content = json.dumps(changed).encode()
        else:
            content = data.draw(mutations())(text.encode(), len(text))
        with TemporaryDirectory() as place:
            folder = Path(place) / "model"
            shutil.copytree(whole_folder, folder)
            (folder / name).write_bytes(content)
            watch.case(lambda: load_folder(folder, OPTIONS))

    run()
