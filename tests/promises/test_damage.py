"""Files that are cut short, overwritten or have a flipped bit are detected, named, set aside and made again."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fcs_utils.benchmarks import scoring as cost
from fcs_utils.benchmarks import speed
from fcs_utils.errors import StudyError
from fcs_utils.files import read_checksummed, read_tensors, write_atomic, write_checksummed
from fcs_utils.study import measurements
from fcs_utils.study.study import Study
from tests.conftest import FEW
from tests.promises.same import assert_same_records


def flip(content: bytes, chance: random.Random) -> bytes:
    """The content with one bit flipped that matters: 1E-05 for 1e-05, or a digit beyond a double's precision, is no damage."""
    while True:
        changed = bytearray(content)
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        try:
            if json.loads(changed) == json.loads(content):
                continue
        except ValueError:  # no JSON any more, or never was
            pass
        return bytes(changed)


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": lambda content, chance: content[: len(content) // 2],
    "empty": lambda content, chance: b"",
    "foreign": lambda content, chance: b'{"id": "somebody else\'s"}',
    "zeros": lambda content, chance: bytes(len(content)),
    "a bit flipped": flip,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    Study(FEW, out).run(["similarity"], only=["network=resnet20"])
    return out


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["record", "weights", "settings"])
def test_damaged_files_are_named_set_aside_and_made_again(made: Path, tmp_path: Path, kind: str, damage: str) -> None:
    study = Study(FEW, tmp_path)
    (run,) = [run for run in study.runs(["similarity"]) if run.reference.network == "resnet20"]
    paths = {
        "record": study.store.record(run.kind, run.identity),
        "weights": study.store.weights(run.parent().identity),
        "settings": study.store.settings(),
    }
    for path in {*paths.values(), study.store.record("reference", run.parent().identity)}:
        write_atomic(path, (made / path.relative_to(tmp_path)).read_bytes())
    path, content = paths[kind], paths[kind].read_bytes()
    damaged = DAMAGES[damage](content, random.Random(f"{kind} {damage}"))
    assert damaged != content
    path.write_bytes(damaged)
    if kind == "weights":
        study.store.record(run.kind, run.identity).unlink()  # or nobody would look at them
    with pytest.warns(UserWarning, match=f"{path.name}.*set aside as {path.stem}.corrupt"):
        again = Study(FEW, tmp_path)
        again.run(["similarity"], only=["network=resnet20"])
    assert path.with_suffix(".corrupt").read_bytes() == damaged
    assert again.precision == "fp32"
    assert (read_tensors if path.suffix == ".safetensors" else read_checksummed)(path)
    assert_same_records(made, tmp_path)


MEASUREMENTS: dict[str, Callable[[Study], object]] = {
    "scoring": lambda study: measurements.scoring_costs(study.store, study.profile.scoring, "cpu"),
    "speed": lambda study: measurements.speeds(study.store, study.profile.speed, "cpu"),
    "latency": measurements.deployment,
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_damaged_measurements_are_taken_again(smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in (measurements, cost):
        monkeypatch.setattr(module, "scoring_jobs", lambda *_: [])
    for module in (measurements, speed):
        monkeypatch.setattr(module, "speed_jobs", lambda *_: [])
    monkeypatch.setattr(measurements, "latencies", lambda *_: {})
    shutil.copytree(smoke / "smoke" / "work" / "weights", tmp_path / "smoke" / "work" / "weights")
    study = Study("smoke", tmp_path)
    MEASUREMENTS[name](study)
    path = study.store.measurements()
    first = path.read_bytes()
    path.write_bytes(first.replace(b'"date": "20', b'"date": "19'))
    with pytest.warns(UserWarning, match="measurements.json does not match its checksum.*set aside as measurements.corrupt"):
        MEASUREMENTS[name](study)
    assert b'"date": "20' in path.read_bytes()


def test_every_flipped_bit_of_a_record_is_found(tmp_path: Path) -> None:
    """Of those that change what is read: a blank between fields is no data."""
    path, chance = tmp_path / "record.json", random.Random(0)
    value = {"id": "a", "result": {"accuracy": 91.25, "kept": [0, 2, 5], "name": "fcs"}, "volatile": {"seconds": 1.5}}
    write_checksummed(path, value)
    content, found = path.read_bytes(), 0
    for _ in range(400):
        path.write_bytes(flip(content, chance))
        try:
            read = read_checksummed(path)
        except StudyError as error:
            assert path.name in str(error)
            found += 1
        else:
            assert read == json.loads(content)
    assert found > 300
