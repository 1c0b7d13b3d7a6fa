"""A reference whose weights are given is measured and never trained, and every stage normalises images as its weights ask for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fcs_utils.data.dataset import Dataset, Split
from fcs_utils.errors import StudyError
from fcs_utils.files import read_checksummed, tensors_sum, write_checksummed
from fcs_utils.models import RESNET_BLOCKS, build_seeded
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import recalibrate
from fcs_utils.report.exploration import Choice, Exploration
from fcs_utils.report.figures import training_curves
from fcs_utils.report.frames import Report, make_report, runs_frame
from fcs_utils.report.plots import by_epoch
from fcs_utils.study.catalogue import STAGES, Stage
from fcs_utils.study.estimate import estimate
from fcs_utils.study.networks import Bench
from fcs_utils.study.profiles import Profile, get_profile
from fcs_utils.study.records import pack, read_record
from fcs_utils.study.runs import Pruning, Reference, Run, Similarity, Tuning, describe, parse_run
from fcs_utils.study.schedule import expected_macs
from fcs_utils.study.sections import Given, Network
from fcs_utils.study.study import Study
from fcs_utils.training.optimiser import Training
from tests.conftest import warm

MEAN, STD = 0.3, 0.6
SCHEDULE = Training(epochs=1, learning_rate=0.02, batch_size=50)
FILE = "mine.safetensors"


def profile(**network: Any) -> Profile:
    """One given network on few images; its arms would need one that is trained here."""
    smoke = get_profile("smoke")
    given = Network(**{"network": "resnet20", "width": 0.25, "weights": FILE, "mean": (MEAN,), "std": (STD,), **network})
    small = smoke.ablations.model_copy(update={"bins": (), "calibrations": (), "draws": 1, "binning_seeds": 0})
    changes = {"name": "given", "dataset": "digits[:100]", "calibration": 20, "networks": (given,), "tuning": SCHEDULE}
    arms = smoke.arms.model_copy(update={"networks": ()})
    return smoke.model_copy(update={**changes, "ablations": small, "arms": arms, "criteria": ("random", "kernel_l1", "fcs")})


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """ResNets of one block a stage: what is tested here does not depend on their depth."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("resnet20", "resnet32"):
            patch.setitem(RESNET_BLOCKS, name, 1)
        yield


@pytest.fixture(scope="module")
def network(short: None, digits: Dataset) -> nn.Module:
    """A network that tells images apart where they are normalised as it asks for."""
    network = warm(build_seeded(5, "resnet20", num_classes=10, width=0.25, in_channels=1), size=8, channels=1)
    recalibrate(network, by_hand(digits.train.images[:200, 8:24, 8:24]))
    network.head.weight.data *= 10
    return network


@pytest.fixture
def data(network: nn.Module, tmp_path: Path) -> Path:
    """A data folder with the weights of one small network."""
    folder = tmp_path / "data"
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / FILE)
    return folder


@pytest.fixture(autouse=True)
def never_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "train_reference", lambda *_: pytest.fail("trained"))


def by_hand(images: Tensor) -> Tensor:
    """uint8 (N, H, W, 1) -> (N, 1, H, W), in 0..1, less the mean, over the standard deviation."""
    return ((images / 255 - MEAN) / STD).permute(0, 3, 1, 2)


def of_every_kind(reference: Reference) -> list[Run]:
    cuts = [
        Pruning(criterion="taylor", ratio=0.5, calibration=20, compensate="merge"),
        Pruning(criterion="fcs", ratio=0.5, calibration=30, calibration_seed=7, scope="all"),
        Pruning(criterion="hrank", macs=0.6, calibration=20, recalibrate=False),
    ]
    arms = [Tuning(method=method, training=SCHEDULE) for method in ("tft", "mlft", "kd", "twin", "scratch")]
    return [
        Run(reference=reference),
        Run(reference=reference, similarity=Similarity(calibration=20)),
        *(Run(reference=reference, pruning=cut) for cut in cuts),
        *(Run(reference=reference, pruning=cuts[1], tuning=arm) for arm in arms),
    ]


def results(study: Study, runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [study.ensure(run)["result"] for run in runs]


def small(profile: Profile, out: Path, data: Path, mean: float | None = None) -> Study:
    """A study of few images, 16 pixels wide. mean: what its data set believes to be its own mean, 0..255."""
    study = Study(profile, out, data)
    own = study.bench.dataset
    parts = {
        name: Split(part.images[:60, 8:24, 8:24], part.labels[:60])
        for name, part in (("train", own.train), ("validation", own.validation), ("test", own.test))
    }
    believed = own.mean if mean is None else torch.full_like(own.mean, mean)
    study.bench.__dict__["dataset"] = replace(own, **parts, mean=believed)
    return study


def test_no_stage_normalises_by_the_data_sets_own_mean(data: Path, tmp_path: Path) -> None:
    """What the data set's own mean is changes no result, bit for bit, of any kind of run, and nothing in the explorer."""
    plain, other = small(profile(), tmp_path / "plain", data), small(profile(), tmp_path / "other", data, mean=1000.0)
    (reference,) = (run.reference for run in plain.runs(["reference"]))
    runs = of_every_kind(reference)
    known = results(plain, runs)
    assert known == results(other, runs)
    here, there = (Exploration(study, "resnet20", 0) for study in (plain, other))
    choice = Choice(here.first, "taylor")
    assert here.images.equal(there.images) and here.dense_accuracy == there.dense_accuracy
    assert here.whole(choice) == there.whole(choice) and here.layer(choice).equals(there.layer(choice))
    assert "mean, std = (0.3,), (0.6,)" in here.loading_code(tmp_path)
    third = small(profile(mean=(0.9,)), tmp_path / "third", data)  # what the weights ask for does change results
    runs = of_every_kind(third.runs(["reference"])[0].reference)[1:3]
    assert all(one != another for one, another in zip(results(third, runs), known[1:3], strict=True))


def test_stages_agree_with_networks_and_images_made_by_hand(network: nn.Module, data: Path, tmp_path: Path) -> None:
    study = small(profile(), tmp_path, data)
    (run,) = study.runs(["reference"])
    dataset, bench = study.bench.dataset, study.bench
    result = study.ensure(run)["result"]
    for part in (dataset.validation, dataset.test):
        with torch.no_grad():
            right = (network(by_hand(part.images)).argmax(1) == part.labels).float().mean().item()
            other = network(dataset.normalise(part.images)).argmax(1)
        assert 100 * (other == part.labels).float().mean().item() != pytest.approx(100 * right, abs=1)
        assert result["validation" if part is dataset.validation else "test"] == pytest.approx(100 * right, abs=1e-4)
    images = by_hand(dataset.calibration(20, 0).images)
    torch.testing.assert_close(bench.calibration_images(run.reference, 20), images)
    known, found = collect_statistics(network, images, scope="inner"), bench.statistics(run.reference, 20)
    for layer, statistics in known.items():
        torch.testing.assert_close(found[layer].l1, statistics.l1, rtol=1e-4, atol=1e-5)
    batches = bench.data(run.reference).batches(50)(0, 1)
    own = dataset.batches(50)(0, 1)
    for (ours, labels), (theirs, same) in zip(batches, own, strict=True):
        raw = theirs.permute(0, 2, 3, 1) * dataset.std + dataset.mean
        torch.testing.assert_close(ours, by_hand(raw), rtol=1e-4, atol=1e-4)
        assert labels.equal(same)


def test_a_given_reference_is_measured_and_what_it_may_have_seen_is_said(data: Path, tmp_path: Path) -> None:
    study = Study(profile(), tmp_path, data)
    (record,) = study.run(["reference"])
    result = record["result"]
    assert result["weights_sha256"] == tensors_sum(load_file(data / FILE)) == record["config"]["reference"]["weights_sha256"]
    assert result["history"] == [] and result["seen"] == ["train", "validation"] and "best_validation_epoch" not in result
    assert "training" not in record["config"]["reference"] and result["cost"]["params"] == 4934
    (run,) = study.runs(["reference"])
    assert describe(run) == "resnet20 x0.25 with mine.safetensors seed 0" and parse_run(record["config"]) == run
    images = len(study.bench.dataset.validation) + 2 * len(study.bench.dataset.test)
    assert expected_macs(study.bench, [run])[run.identity] == images * result["cost"]["macs"]


def test_tables_figures_and_estimate_of_a_profile_of_given_networks_alone(data: Path, tmp_path: Path) -> None:
    study = small(profile(), tmp_path, data)
    assert estimate(study, lambda network: 1e9).set_index("stage").loc["reference", "runs"] == 1
    study.run()
    report = make_report(study)
    tables = report.tables()
    assert tables["references"].network.tolist() == ["ResNet-20 x0.25 (given)"]
    assert tables["criteria"].criterion.tolist() == ["random", "kernel_l1", "fcs"] and not report.missing and "arms" not in tables
    references = report.references
    assert references.epochs.tolist() == [0] and not len(by_epoch(references))
    (axis,) = training_curves(references).axes
    assert axis.get_legend_handles_labels()[1] == ["given, not trained here"]
    for draw in report.figures().values():
        draw()
    assert pack(study.store)


def test_an_edited_file_is_another_run_and_a_known_checksum_needs_no_file(data: Path, tmp_path: Path) -> None:
    before = Study(profile(), tmp_path, data).runs(["reference"])[0]
    again = Study(profile(weights_sha256=before.reference.weights_sha256), tmp_path, tmp_path / "no data")
    assert again.runs(["reference"]) == [before]
    state = load_file(data / FILE)
    save_file({**state, "head.bias": state["head.bias"] + 1}, data / FILE)
    after = Study(profile(), tmp_path, data).runs(["reference"])[0]
    assert after.identity != before.identity
    with pytest.raises(StudyError, match=f"{FILE} has not the weights of this run: .*{before.reference.weights_sha256}"):
        Study(profile(weights_sha256=before.reference.weights_sha256), tmp_path, data).run(["reference"])
    with pytest.raises(StudyError, match=rf"'{FILE}' not found. Looked in: {tmp_path}/elsewhere/{FILE}"):
        Study(profile(), tmp_path, tmp_path / "elsewhere")


def test_what_does_not_fit_is_refused_before_any_work(data: Path, tmp_path: Path) -> None:
    for changed, said in (
        ({"network": "resnet44"}, "mine.safetensors has other layers than the network: stage1.1"),
        (
            {"width": 0.5},
            r"mine.safetensors: conv.weight is torch.float32 \(4, 1, 3, 3\); torch.float32 \(8, 1, 3, 3\) and finite is needed",
        ),
        ({"mean": (0.1, 0.2), "std": (0.5, 0.5)}, r"mean=\[.*\] is not allowed; allowed: 1 numbers: digits\[:100\]"),
    ):
        with pytest.raises(StudyError, match=said):
            Study(profile(**changed), tmp_path / "out", data).run(["pruned"])
    assert not (tmp_path / "out").exists()
    public = profile(network="resnet56", width=1.0, weights="pretrained:resnet56", mean=None, std=None)
    with pytest.raises(StudyError, match=r"mean=\[.*\] is not allowed; allowed: 1 numbers"):  # of images with one channel
        Study(public, tmp_path / "out", data).run(["reference"])


@pytest.mark.parametrize(
    ("field", "new"),
    [("history", [{"epoch": 1}]), ("seen", ["test"]), ("seen", ...), ("test", 101.0), ("weights_sha256", None), ("cost", {})],
)
def test_a_wrong_record_of_a_given_reference_is_named(data: Path, tmp_path: Path, field: str, new: Any) -> None:
    study = small(profile(), tmp_path, data)
    (record,), (run,) = study.run(["reference"]), study.runs(["reference"])
    path = study.store.record("reference", run.identity)
    wrong = read_checksummed(path)
    wrong["result"].pop(field)
    if new is not ...:
        wrong["result"][field] = new
    write_checksummed(path, wrong)
    with pytest.warns(UserWarning, match=rf"{re.escape(path.name)}: result.*{field}.*set aside"):
        assert read_record(study.store, run) is None
    assert runs_frame([record]).epochs.tolist() == [0]


def test_given_networks_stand_in_the_tables_beside_those_trained_here_and_do_not_decide(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    trained, names = Network(network="resnet32", width=0.125, training=SCHEDULE), ("kernel_l1", "fcs")
    given = Given(networks=profile().networks, criteria=names, ratio=0.5, epochs=2)
    changes = {"networks": (trained,), "ratios": (0.5,), "criteria": names, "given": given}
    study = small(profile().model_copy(update=changes), tmp_path, data)
    stages: tuple[Stage, ...] = ("reference", "similarity", "pruned", "tuned", "given")
    found = {stage: study.run([stage]) for stage in stages}
    report = Report({stage: found.get(stage, []) for stage in STAGES}, 10)
    both = ["ResNet-32 x0.125", "ResNet-20 x0.25 (given)"]
    assert [*report.references.epochs] == [1, 0] and len(by_epoch(report.references)) == 1
    assert [axis.get_title(loc="left") for axis in training_curves(report.references).axes] == both
    tables = report.tables()
    assert tables["similarity"].network.unique().tolist() == tables["criteria"].network.unique().tolist() == both
    rows = tables["criteria"].query("criterion == 'fcs'").to_dict("records")
    assert [(row["epochs"], row["n"], row["replicate"]) for row in rows] == [(1, 1, "trained seed"), (2, 1, "tuning seed")]
    assert not any("" in (row["pruned (%)"], row["recalibrated (%)"]) for row in rows)
    c2 = report.ledger[report.ledger.claim == "C2"]
    assert [(row.decisive, row.role) for row in c2.itertuples() if row.theirs == "kernel_l1"] == [(True, ""), (False, "given")]
