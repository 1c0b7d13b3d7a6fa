"""Many records: each is checked once, whichever process does it, and a changed one is never taken for one that was checked."""

from __future__ import annotations

import gc
import os
import shutil
import warnings
from collections import Counter
from pathlib import Path

import pytest

from fcs_utils.errors import StudyError
from fcs_utils.files import read_checksummed, write_checksummed
from fcs_utils.study import packed, records, right, runs
from fcs_utils.study.records import Store, read_packed, read_record, write_record
from fcs_utils.study.runs import Run
from fcs_utils.study.study import Study
from fcs_utils.unchanged import keeping_all, while_unchanged
from tests.conftest import ROOT
from tests.study.test_records import A, B, C, record
from tests.study.test_runs import TUNED


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for what is found right, and a process that has found nothing yet."""
    monkeypatch.setenv("FCS_CACHE", str(tmp_path / "cache"))
    another_process(monkeypatch)
    return tmp_path / "cache"


def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, empty in (("_right", {}), ("_lists_read", set()), ("_unsaid", set())):
        monkeypatch.setattr(right, name, empty)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a record was parsed, its checksum computed and its content checked."""
    counts: Counter[str] = Counter()
    for module, name in (
        (packed, "parse_json"),
        (packed, "check_checksum"),
        (records, "check_record"),
        (records, "check_checksum"),
    ):

        def counted(*arguments: object, real: object = getattr(module, name), name: str = name) -> object:
            counts[name] += 1
            return real(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(module, name, counted)
    return counts


def copied(folder: Path) -> Path:
    """The published study of digits, in a place where this process has not read it."""
    for name in ("records.jsonl", "study.json"):
        (folder / "quick").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "results" / "quick" / name, folder / "quick" / name)
    return folder


def test_an_identity_is_hashed_once_and_follows_the_content(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    monkeypatch.setattr(runs, "canonical_json", lambda value, real=runs.canonical_json: hashed.append(value) or real(value))
    runs._identity.cache_clear()
    assert TUNED.pruning is not None
    run = TUNED.model_copy(update={"pruning": TUNED.pruning.model_copy(update={"options": {"bins": 2}})})
    assert [run.identity for _ in range(5)] == [Run.model_validate(run.model_dump()).identity] * 5 and len(hashed) == 1
    other = run.model_copy(update={"tuning": None})
    assert other.identity != run.identity
    before = run.identity
    assert run.pruning is not None
    run.pruning.options["bins"] = 8
    assert run.identity != before and len(hashed) == 3


def test_a_study_parses_and_checks_each_record_once(tmp_path: Path, done: Counter[str]) -> None:
    study = Study("quick", copied(tmp_path))
    found = study.found()
    different = {one["id"] for stage in found.values() for one in stage}
    assert len(different) > 1000 and not study.missing()
    lines = len(study.store.packed().read_bytes().splitlines())
    assert done == {"parse_json": lines, "check_checksum": lines, "check_record": len(different)}
    assert study.found() == found and Study("quick", tmp_path).found() == found and study.records(["tuned"])
    assert done == {"parse_json": lines, "check_checksum": lines, "check_record": len(different)}


def test_loose_records_are_parsed_and_checked_once_and_again_when_they_change(tmp_path: Path, done: Counter[str]) -> None:
    store = Store(tmp_path, "smoke")
    for run in (A, B):
        write_record(store, record(run, [3]))
    first = read_record(store, A)
    assert read_record(store, A) is first and read_record(store, B) and done["check_record"] == 2
    write_record(store, record(A, [4]))
    assert read_record(store, A) != first and done["check_record"] == 3
    store.record(A.kind, A.identity).unlink()
    assert read_record(store, A) is None


def test_other_processes_check_nothing_again(
    tmp_path: Path, done: Counter[str], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    found = Study("quick", copied(tmp_path / "one")).found()
    assert [path.name for path in cache.iterdir()] == ["right-records.json"]
    done.clear()
    another_process(monkeypatch)
    assert Study("quick", copied(tmp_path / "two")).found() == found
    asked = {one["id"] for stage in found.values() for one in stage}
    left = len(read_packed(Store(tmp_path / "two", "quick"))) - len(asked)  # lines of runs that are no part of the study
    assert not done["check_record"] and done["check_checksum"] == left
    another_process(monkeypatch)
    monkeypatch.setattr(right, "_code", lambda: "of another version")
    assert Study("quick", copied(tmp_path / "three")).found() == found
    assert done["check_record"] > 1000 and done["check_checksum"] > 1000


def test_a_changed_record_is_never_taken_for_a_checked_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study("quick", copied(tmp_path))
    (run, *_), store = study.runs(["tuned"]), study.store
    study.found()
    state, content = store.packed().stat(), store.packed().read_bytes()
    (line,) = [line for line in content.splitlines() if run.identity.encode() in line[:60]]
    edited = content.replace(line, line.replace(b'"validation":9', b'"validation":8'))
    assert len(edited) == len(content) and edited != content
    with store.packed().open("r+b") as file:  # the same file, of the same size and time
        file.write(edited)
    os.utime(store.packed(), ns=(state.st_atime_ns, state.st_mtime_ns))
    shutil.copytree(tmp_path / "quick", tmp_path / "again" / "quick")
    for folder in (tmp_path, tmp_path / "again"):
        with pytest.warns(UserWarning, match="does not match its checksum: it was changed or damaged; this run is done again"):
            assert read_record(Store(folder, "quick"), run) is None
        assert len(read_packed(Store(folder, "quick"))) == len(content.splitlines()) - 1
        another_process(monkeypatch)


def test_a_right_text_in_a_wrong_place_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path, "smoke")
    write_record(store, record(A, [3]))
    assert read_record(store, A)
    shutil.copy(store.record(A.kind, A.identity), store.record(B.kind, B.identity))
    with pytest.warns(UserWarning, match="is the record of another run; it is made again .set aside as"):
        assert read_record(store, B) is None
    assert read_record(store, C) is None and read_record(store, A)


@pytest.mark.parametrize("right_of", [5, None, {"a": 1}, ["a", 5]])
def test_a_wrong_list_of_right_records_is_set_aside(tmp_path: Path, cache: Path, done: Counter[str], right_of: object) -> None:
    write_checksummed(cache / "right-records.json", {"code": right._code(), "right": right_of})
    with pytest.warns(UserWarning, match="right-records.json lists no checksums.*set aside as right-records.corrupt"):
        Study("quick", copied(tmp_path)).found()
    assert done["check_record"] > 1000 and read_checksummed(cache / "right-records.json")


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCS_CACHE", "/dev/null/none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Study("quick", copied(tmp_path)).found()["tuned"]


def test_what_is_made_of_a_file_is_kept_while_its_content_is_the_same(tmp_path: Path) -> None:
    made: list[bytes] = []
    path = tmp_path / "file"

    @while_unchanged
    def make(path: Path, content: bytes) -> list[bytes]:
        if content == b"bad":
            raise StudyError("bad")
        made.append(content)
        return [content]

    with pytest.raises(StudyError, match="cannot read .*: No such file"):
        make(path)
    path.write_bytes(b"one")
    state = path.stat()
    assert make(path) is make(path) and made == [b"one"]
    path.write_bytes(b"two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert make(path) == [b"two"]
    os.utime(path, (5, 5))
    path.rename(tmp_path / "other")
    shutil.copy(tmp_path / "other", path)
    assert make(path) == [b"two"] and made == [b"one", b"two"]
    path.write_bytes(b"bad")
    for _ in range(2):
        with pytest.raises(StudyError, match="bad"):
            make(path)


def test_the_collector_goes_on_as_before() -> None:
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), keeping_all():
        with keeping_all():
            assert not gc.isenabled()
        assert not gc.isenabled()
        1 / 0  # noqa: B018
    assert gc.isenabled()
