"""Weights are used only for the network that they are of; weights that were trained again are told from the recorded ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.files import read_tensors, tensors_sum, write_tensors
from fcs_utils.models import build_seeded
from fcs_utils.report.frames import runs_frame
from fcs_utils.study.networks import Bench
from fcs_utils.study.profiles import Profile, get_profile
from fcs_utils.study.records import Store, write_record
from fcs_utils.study.runs import parse_run
from fcs_utils.study.study import Study
from fcs_utils.study.weights import keep_weights, load_weights
from fcs_utils.training.optimiser import Training


def tiny() -> Profile:
    """Two seeds of one small network on few images."""
    smoke = get_profile("smoke")
    network = smoke.networks[0].model_copy(update={"training": Training(epochs=1, learning_rate=0.05, batch_size=50)})
    changes = {"name": "tiny", "dataset": "digits[:100]", "calibration": 20, "networks": (network,), "seeds": (0, 1)}
    return smoke.model_copy(update={**changes, "criteria": ("kernel_l1", "random"), "ratios": (0.5,)})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the references of the tiny profile."""
    out = tmp_path_factory.mktemp("made")
    Study(tiny(), out).run(["reference"])
    return out


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Study:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Study(tiny(), tmp_path)


@contextmanager
def no_training(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(Bench, "train_reference", lambda *_: pytest.fail("trained again"))
        yield


def places(study: Study) -> list[Path]:
    return [study.store.weights(run.identity) for run in study.runs(["reference"])]


def test_another_seeds_weights_are_set_aside_and_the_right_ones_trained_again(study: Study) -> None:
    first, second = places(study)
    right = tensors_sum(read_tensors(first)[0])
    shutil.copy(second, first)
    with pytest.warns(UserWarning, match=f"{first.name} does not hold the weights of vgg16 x0.125 seed 0; trained again .*corrupt"):
        (record, *_) = study.run(["pruned"], only=["seed=0"])
    assert tensors_sum(read_tensors(first)[0]) == right and first.with_suffix(".corrupt").read_bytes() == second.read_bytes()
    (reference, _) = study.records(["reference"])
    assert record["result"]["reference_sha256"] == reference["result"]["weights_sha256"] and "reference" not in record["provenance"]


def test_published_weights_that_are_not_the_records_give_way_to_this_machines(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published files carry no name of a run: only the record's checksum tells whose they are."""
    _, second = places(study)
    state, _ = read_tensors(second)
    published = study.store.published(second)
    write_tensors(published, {**state, "head.bias": state["head.bias"] + 1})
    with no_training(monkeypatch), pytest.warns(UserWarning, match="set aside"):
        study.bench.trained(study.runs(["reference"])[1].reference)
    assert not published.exists()
    write_tensors(published, state)  # as the record says, and needs no name
    with no_training(monkeypatch):
        Study(tiny(), study.store.root.parent).bench.trained(study.runs(["reference"])[1].reference)
    assert published.exists()


def test_without_a_record_too_weights_must_be_of_their_run(study: Study) -> None:
    first, second = places(study)
    for run in study.runs(["reference"]):
        study.store.record(run.kind, run.identity).unlink()
    shutil.copy(first, second)
    expected = tensors_sum(read_tensors(first)[0])
    with pytest.warns(UserWarning, match="does not hold the weights of vgg16 x0.125 seed 1"):
        found = study.bench.load(study.runs(["reference"])[1].reference)
    assert found.sha256 != expected and study.bench.load(study.runs(["reference"])[0].reference).sha256 == expected


WRONG: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "NaN": lambda state: {**state, "features.bn1.weight": state["features.bn1.weight"] * float("nan")},
    "whole numbers": lambda state: {**state, "features.conv1.weight": state["features.conv1.weight"].to(torch.int32)},
    "infinite": lambda state: {**state, "head.weight": state["head.weight"] / 0},
    "another shape": lambda state: {**state, "head.weight": state["head.weight"][:5].clone()},
    "a layer less": lambda state: {name: tensor for name, tensor in state.items() if name != "head.bias"},
    "a layer more": lambda state: {**state, "neck.bias": state["head.bias"].clone()},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_weights_that_no_such_network_can_have_are_set_aside(study: Study, wrong: str) -> None:
    run = study.runs(["reference"])[0]
    path = study.store.weights(run.identity)
    state, metadata = read_tensors(path)
    assert metadata == {"run": run.identity}
    write_tensors(path, WRONG[wrong](state), metadata)
    with pytest.warns(UserWarning, match=rf"{path.name}.*trained again \(set aside as {path.stem}.corrupt\)"):
        found = study.bench.load(run.reference)
    assert not found.again and tensors_sum(read_tensors(path)[0]) == tensors_sum(state)
    write_tensors(path, WRONG[wrong](state), metadata)
    with pytest.warns(UserWarning, match=rf"set aside as {path.stem}.corrupt-2"):
        Study(tiny(), study.store.root.parent).bench.load(run.reference)
    assert len(list(path.parent.glob("*.corrupt*"))) == 2


class Versioned(nn.Linear):
    """Reads no state that does not say its version, as torchvision's MNASNet."""

    _version = 3

    def _load_from_state_dict(self, state: object, prefix: str, metadata: dict[str, object], *rest: object) -> None:
        assert metadata.get("version") == 3
        super()._load_from_state_dict(state, prefix, metadata, *rest)


VERSIONED: dict[str, Callable[[int], nn.Module]] = {
    "mnasnet0_5": lambda seed: build_seeded(seed, "torchvision/mnasnet0_5", num_classes=10),
    "mnasnet1_3, grey": lambda seed: build_seeded(seed, "torchvision/mnasnet1_3", num_classes=3, in_channels=1),
    "of a user": lambda seed: nn.Sequential(nn.Flatten(), Versioned(4, 2)),
}


@pytest.mark.parametrize("make", VERSIONED.values(), ids=VERSIONED)
def test_networks_whose_state_has_a_version_are_kept_and_read(make: Callable[[int], nn.Module], tmp_path: Path) -> None:
    store, (network, other) = Store(tmp_path, "tiny"), (make(seed) for seed in (0, 1))
    reference = next(iter(tiny().networks))
    run = parse_run({"reference": {"dataset": "digits", "seed": 0, "precision": "fp32", **reference.model_dump()}})
    kept = keep_weights(store, run, network)
    assert tensors_sum(other.state_dict()) != tensors_sum(network.state_dict())
    assert load_weights(store, run, other, kept) == kept
    assert tensors_sum(other.state_dict()) == tensors_sum(network.state_dict())


def test_a_run_on_weights_that_were_trained_again_says_so_and_is_no_pair(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = study.run(["pruned"], only=["seed=0"])
    kept = {run.identity: study.record(run) for run in study.runs(["reference"])}
    record = kept[study.runs(["reference"])[0].identity]
    record["result"]["weights_sha256"] = "0" * 64  # as if it had been made on another machine
    write_record(study.store, record)
    for done in (one, other):
        study.store.record(done["kind"], done["id"]).unlink()
    places(study)[0].unlink()
    with pytest.warns(UserWarning, match="not bit-equal to the one behind the records"):
        (again,) = Study(tiny(), study.store.root.parent).run(["pruned"], only=["seed=0", "criterion=random"])
    assert again["provenance"]["reference"] == "trained again"
    with no_training(monkeypatch):  # the file says whose weights these are
        (more,) = Study(tiny(), study.store.root.parent).run(["pruned"], only=["seed=0", "criterion=kernel_l1"])
    assert more["provenance"]["reference"] == "trained again"
    assert len(runs_frame([again, more])) == 2  # with each other they are pairs
    with pytest.warns(UserWarning, match="1 of 2 runs were done on reference weights that were trained again"):
        assert list(runs_frame([one if one["id"] == more["id"] else other, again]).criterion) == ["kernel_l1"]
