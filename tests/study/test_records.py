"""Published records: one line a run, read back exactly, damage found line by line, a machine's own records beside them."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcs_utils.errors import StudyError
from fcs_utils.files import read_checksummed, write_atomic
from fcs_utils.study.packed import _pack, _unpack_plan
from fcs_utils.study.records import Store, pack, read_packed, read_record, write_record
from fcs_utils.study.runs import Pruning, Reference, Run
from fcs_utils.training.optimiser import Training
from tests.conftest import ROOT

REFERENCE = Reference(dataset="digits", network="vgg16", seed=0, training=Training(epochs=1, learning_rate=0.05), precision="fp32")
RUNS = [Run(reference=REFERENCE, pruning=Pruning(criterion="fcs", ratio=ratio)) for ratio in (0.3, 0.5, 0.7)]
A, B, C = sorted(RUNS, key=lambda run: run.identity)


def record(run: Run, kept: list[int]) -> dict[str, Any]:
    plan = {"kept": {"conv2": kept, "conv1": [0]}, "channels": {"conv2": 64, "conv1": 4}, "input_shape": [1, 32, 32], "ratio": 0.5}
    plan["ranking"] = "network"  # so layers may keep any numbers
    cost = {"params": 3, "macs": 2, "bytes": 12}
    return {
        "schema": 3,
        "id": run.identity,
        "kind": run.kind,
        "config": run.model_dump(mode="json"),
        "result": {
            "plan": plan,
            "cost": cost,
            "dense_cost": cost,
            "before_recalibration": {"test": 9.5},
            "before_tuning": {"validation": 90.5, "test": 91.25},
            "reference_sha256": "f0",
            "dataset_fingerprint": "f1",
        },
        "provenance": {"device_type": "cpu", "device": "cpu", "threads": 1, "torch": "2"},
        "volatile": {"seconds": 1.5, "date": "today", "commit": "none"},
    }


@pytest.fixture
def packed(tmp_path: Path) -> Store:
    """A folder with three published records and none of its own."""
    store = Store(tmp_path, "smoke")
    for run, kept in ((C, [0, 1, 2, 5]), (A, [3]), (B, list(range(64)))):
        write_record(store, record(run, kept))
    write_atomic(store.packed(), pack(store))
    for path in store.all_records():
        path.rename(tmp_path / path.name)
    return store


def test_kept_channels_are_written_as_ranges_worked_by_hand() -> None:
    assert _pack([0, 1, 2, 5, 7, 8]) == "0-2 5 7-8" and _unpack_plan("0-2 5 7-8") == [0, 1, 2, 5, 7, 8]


@given(st.sets(st.integers(0, 2000)))
def test_every_list_of_channels_comes_back(channels: set[int]) -> None:
    assert _unpack_plan(_pack(sorted(channels))) == sorted(channels)


def test_records_come_back_exactly_and_lie_sorted_one_a_line(packed: Store, tmp_path: Path) -> None:
    lines = packed.packed().read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [run.identity for run in (A, B, C)]
    for run in (A, B, C):
        loose = read_checksummed(tmp_path / f"pruned-{run.identity}.json")
        assert json.dumps(read_record(packed, run)) == json.dumps(loose)  # the order of layers too
    assert read_record(packed, Run(reference=REFERENCE)) is None
    assert pack(packed) == packed.packed().read_bytes()


def test_a_damaged_line_is_named_and_nothing_else_is_lost(packed: Store) -> None:
    first, second, third = packed.packed().read_bytes().splitlines(keepends=True)
    damages = [
        second.replace(b"91.25", b"91.35"),
        second[:100] + b"\n",
        second.replace(b'"id":"' + B.identity.encode() + b'"', b'"id":7'),
        second.replace(b"0-63", b"0-63000000"),
        b"[]\n",
        second.replace(b"0-63", b"x"),
        second.replace(b'"kept":{', b'"held":{'),
        b"\xff\n",
    ]
    for damaged in damages:
        assert damaged != second
        packed.packed().write_bytes(first + damaged + third)
        with pytest.warns(UserWarning, match="line 2 of .*records.jsonl.*this run is done again, the other lines count"):
            assert read_record(packed, B) is None
        assert read_record(packed, A) and read_record(packed, C)


def test_the_file_is_read_once_and_again_when_it_changes(packed: Store) -> None:
    assert read_packed(packed) is read_packed(packed)
    lines = packed.packed().read_bytes().splitlines(keepends=True)
    packed.packed().write_bytes(lines[0])
    assert set(read_packed(packed)) == {A.identity}
    os.utime(packed.packed(), (1, 1))
    assert set(read_packed(packed)) == {A.identity}


def test_a_record_of_this_machine_that_differs_is_reported_and_not_published(packed: Store) -> None:
    write_record(packed, record(A, [3]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_record(packed, A)
    write_record(packed, record(A, [4]))
    with pytest.warns(
        UserWarning, match=f"pruned-{A.identity}.json has another result than .*records.jsonl; the published one is used"
    ):
        found = read_record(packed, A)
    assert found and found["result"]["plan"]["kept"]["conv2"] == [3]
    with pytest.raises(StudyError, match=f"pruned-{A.identity}.json has another result than the published record"):
        pack(packed)


@pytest.mark.parametrize("profile", ["quick", "cifar"])
def test_what_is_published_is_whole(profile: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a damaged line would be one
        found = read_packed(Store(ROOT / "results", profile))
    assert list(found) == sorted(found) and len(found) > 200


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_published_run_with_two_results_has_none(tmp_path: Path, order: tuple[int, int]) -> None:
    lines = []
    for kept in ([0, 1], [0, 2]):
        store = Store(tmp_path / str(kept), "quick")
        write_record(store, record(A, kept))
        write_record(store, record(B, [3]))
        lines.append(pack(store))
    store = Store(tmp_path, "quick")
    write_atomic(store.packed(), lines[order[0]] + lines[order[1]])
    with pytest.warns(UserWarning, match=f"two records of run {A.identity} with other results; this run is done again"):
        assert list(read_packed(store)) == [B.identity]
