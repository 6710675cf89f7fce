"""A run folder: whole cells or none, one writer, one spec."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from lensprune.ablation.variants import CLEAN
from lensprune.errors import UserError
from lensprune.output import files
from lensprune.runs import store
from lensprune.runs.folder import check_out_folder, read_spec
from lensprune.runs.records import CellKey
from lensprune.runs.store import RunStore
from tests.helpers.made_cells import skip, spec, table

RIGHT = [True, True, False, True]
KEY = CellKey("clean", "t", "default")


def test_cells_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = table(skip(0), RIGHT)
    with RunStore.writing(tmp_path / "run", spec()) as run:
        run.write(CellKey("L0.skip", "t", "default"), written)
    again = RunStore.open(tmp_path / "run")
    assert again.finished() == {CellKey("L0.skip", "t", "default")}
    assert again.read(CellKey("L0.skip", "t", "default")).equals(written)
    assert again.read(CellKey("L0.skip", "t", "default"), ["correct"]).column_names == ["correct"]


def test_a_cell_is_stored_once(tmp_path: Path) -> None:
    with RunStore.writing(tmp_path / "run", spec()) as run:
        run.write(KEY, table(CLEAN, RIGHT))
        with pytest.raises(ValueError, match="stored already"):
            run.write(KEY, table(CLEAN, RIGHT))


def test_equal_cells_make_equal_files(tmp_path: Path) -> None:
    names = []
    for folder in ("a", "b"):
        with RunStore.writing(tmp_path / folder, spec()) as run:
            run.write(KEY, table(CLEAN, RIGHT))
        names.append({p.name: p.read_bytes() for p in (tmp_path / folder / "records").iterdir()})
    assert names[0] == names[1]


def test_leftovers_of_a_killed_process_are_ignored_and_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunStore.writing(folder, spec()) as run:
        run.write(KEY, table(CLEAN, RIGHT))
    torn = folder / "records" / f"{files.TEMPORARY_PREFIX}123-t.default.L0_skip.parquet"
    torn.write_bytes(b"PAR1 torn")
    assert RunStore.open(folder).finished() == {KEY}
    with RunStore.writing(folder, spec()) as run:
        assert run.finished() == {KEY}
        assert run.set_aside == []
    assert not torn.exists()


def _write_until_killed(folder: str, after: int) -> None:
    replace = os.replace
    calls = 0

    def dying(source: object, target: object) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            os._exit(9)
        replace(source, target)  # type: ignore[arg-type]

    os.replace = dying  # type: ignore[assignment]
    with RunStore.writing(folder, spec()) as run:
        for key in run.expected():
            if key not in run.finished():
                run.write(key, table(CLEAN if key.variant == "clean" else skip(int(key.variant[1])), RIGHT))


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_death_before_a_rename_loses_that_cell_only(tmp_path: Path, after: int) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=_write_until_killed, args=(str(tmp_path / "run"), after)
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    with RunStore.writing(tmp_path / "run", spec()) as run:
        assert len(run.finished()) == max(0, after - 1)  # the first rename is spec.json's
        assert run.set_aside == []
    assert not list((tmp_path / "run").rglob(f"{files.TEMPORARY_PREFIX}*"))


def test_a_damaged_cell_is_set_aside_and_counts_as_missing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunStore.writing(folder, spec()) as run:
        run.write(KEY, table(CLEAN, RIGHT))
    (path,) = (folder / "records").iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"damaged .*lensprune resume"):
        RunStore.open(folder)
    assert not RunStore.is_complete(folder)
    with RunStore.writing(folder, spec()) as run:
        assert run.finished() == set()
        assert run.set_aside == [path.name]
        run.write(KEY, table(CLEAN, RIGHT))
    assert [p.name for p in (folder / "damaged").iterdir()] == [f"0-{path.name}"]
    assert RunStore.open(folder).finished() == {KEY}


def test_a_truncated_cell_is_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunStore.writing(folder, spec()) as run:
        run.write(KEY, table(CLEAN, RIGHT))
    (path,) = (folder / "records").iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    with RunStore.writing(folder, spec()) as run:
        assert run.finished() == set()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"weights_hash": "x" * 64}, "the model's weights"),
        ({"protocols": ("generate",)}, "protocols"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"seed": 3}, "seed"),
        ({"versions": {"torch": "0"}}, "versions"),
    ],
)
def test_another_run_is_never_overwritten(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    folder = tmp_path / "run"
    with RunStore.writing(folder, spec()) as run:
        run.write(KEY, table(CLEAN, RIGHT))
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=named), RunStore.writing(folder, spec(**changes)):
        pytest.fail("opened")
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with (
        RunStore.writing(tmp_path / "run", spec()),
        pytest.raises(UserError, match="another process"),
        RunStore.writing(tmp_path / "run", spec()),
    ):
        pytest.fail("opened twice")
    with RunStore.writing(tmp_path / "run", spec()):
        assert read_spec(tmp_path / "run") == spec()


def test_disk_full_is_one_line_and_nothing_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"

    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunStore.writing(folder, spec()) as run:
        run.write(KEY, table(CLEAN, RIGHT))
        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"the disk is full; 1 of 3 cells are stored, .*lensprune resume"):
            run.write(CellKey("L0.skip", "t", "default"), table(skip(0), RIGHT))
    monkeypatch.undo()
    assert RunStore.open(folder).finished() == {KEY}
    assert len(list((folder / "records").iterdir())) == 1


def test_folders_that_are_no_runs_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        check_out_folder(tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        check_out_folder(tmp_path / "full")
    (tmp_path / "empty").mkdir()
    assert check_out_folder(tmp_path / "empty") is None
    assert check_out_folder(tmp_path / "new" / "deep") is None
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="contains no run"):
        read_spec(tmp_path / "empty")
    with pytest.raises(UserError, match="is not a run folder"):
        read_spec(tmp_path / "none")


@pytest.mark.parametrize(
    "name", ["../../escape", "a/b", "a" * 300, "nul\0byte", "ünï code", "-rf", ".hidden", "a:b", ""]
)
def test_any_variant_name_stays_inside_the_folder(tmp_path: Path, name: str) -> None:
    variant = skip(0)
    odd = type(variant)(name, variant.ablations)
    key = CellKey(name, "../task[a=1,b=2]", "default")
    its_spec = spec((CLEAN, odd), tasks=(key.task,))
    with RunStore.writing(tmp_path / "run", its_spec) as run:
        run.write(key, table(odd, RIGHT, task=key.task))
    assert {p.name for p in tmp_path.iterdir()} == {"run"}
    (path,) = (tmp_path / "run" / "records").iterdir()
    assert len(path.name) < 200
    assert RunStore.open(tmp_path / "run").finished() == {key}


def test_names_that_look_alike_are_different_cells(tmp_path: Path) -> None:
    variants = [type(skip(0))(name, skip(0).ablations) for name in ("a b", "a_b", "A_B")]
    with RunStore.writing(tmp_path / "run", spec((CLEAN, *variants))) as run:
        for v in variants:
            run.write(CellKey(v.name, "t", "default"), table(v, RIGHT))
    assert len({p.name.lower() for p in (tmp_path / "run" / "records").iterdir()}) == 3


def test_lone_surrogates_are_stored_as_escapes(tmp_path: Path) -> None:
    from lensprune.runs.records import cell_table
    from tests.helpers.made_cells import outcome, requests

    cell = cell_table(KEY, CLEAN, [outcome(0, True, text="bad \ud800 text")], requests(1), [0.25])
    with RunStore.writing(tmp_path / "run", spec()) as run:
        run.write(KEY, cell)
    assert RunStore.open(tmp_path / "run").read(KEY, ["text"]).column("text").to_pylist() == ["bad \\ud800 text"]


def test_the_store_module_writes_nothing_when_it_refuses() -> None:
    with TemporaryDirectory() as place:
        # Pytest's own folders are closed to everybody else, so they would be refused whatever this one's mode is.
        Path(place).chmod(0o755)
        target = Path(place) / "readonly"
        target.mkdir()
        target.chmod(0o555)
        before = os.getresuid()
        if os.geteuid() == 0:
            # Root may write everywhere, so ask as somebody else, with a way back.
            os.setresuid(65534, 65534, 0)
        try:
            with pytest.raises(UserError, match="no permission"):
                store.check_out_folder(target / "run")
        finally:
            os.setresuid(*before)
        assert list(target.iterdir()) == []


def test_the_nearest_run_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "first"
    with RunStore.writing(folder, spec()) as store:
        assert store.stored() == 0
    with pytest.raises(UserError, match=rf"did you mean {folder}\?"):
        read_spec(tmp_path / "firs")
    with pytest.raises(UserError, match="its folders first contain runs"):
        read_spec(tmp_path)
