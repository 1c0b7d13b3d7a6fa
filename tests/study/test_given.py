"""A reference whose weights are given is measured and never trained, and every stage normalises images as its weights ask for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.files import read_checksummed, tensors_sum, write_checksummed
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.report.exploration import Choice, Exploration
from fcs_utils.report.frames import runs_frame
from fcs_utils.report.subject import study_subject
from fcs_utils.study.records import read_record
from fcs_utils.study.runs import Pruning, Reference, Run, Similarity, Tuning, describe, parse_run
from fcs_utils.study.schedule import expected_macs
from fcs_utils.study.study import Study
from tests.study.given import FILE, SCHEDULE, by_hand, profile, small

pytestmark = pytest.mark.usefixtures("never_trained")


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


def test_no_stage_normalises_by_the_data_sets_own_mean(given_data: Path, tmp_path: Path) -> None:
    """What the data set's own mean is changes no result, bit for bit, of any kind of run, and nothing in the explorer."""
    plain, other = small(profile(), tmp_path / "plain", given_data), small(profile(), tmp_path / "other", given_data, mean=1000.0)
    (reference,) = (run.reference for run in plain.runs(["reference"]))
    runs = of_every_kind(reference)
    known = results(plain, runs)
    assert known == results(other, runs)
    here, there = (Exploration(study_subject(study, "resnet20", 0)) for study in (plain, other))
    choice = Choice(here.first, "taylor")
    assert here.images.equal(there.images) and here.dense_accuracy == there.dense_accuracy
    assert here.whole(choice) == there.whole(choice) and here.layer(choice).equals(there.layer(choice))
    assert "mean, std = (0.3,), (0.6,)" in here.loading_code(tmp_path)
    third = small(profile(mean=(0.9,)), tmp_path / "third", given_data)  # what the weights ask for does change results
    runs = of_every_kind(third.runs(["reference"])[0].reference)[1:3]
    assert all(one != another for one, another in zip(results(third, runs), known[1:3], strict=True))


def test_stages_agree_with_networks_and_images_made_by_hand(given_network: nn.Module, given_data: Path, tmp_path: Path) -> None:
    study = small(profile(), tmp_path, given_data)
    (run,) = study.runs(["reference"])
    dataset, bench = study.bench.dataset, study.bench
    result = study.ensure(run)["result"]
    for part in (dataset.validation, dataset.test):
        with torch.no_grad():
            right = (given_network(by_hand(part.images)).argmax(1) == part.labels).float().mean().item()
            other = given_network(dataset.normalise(part.images)).argmax(1)
        assert 100 * (other == part.labels).float().mean().item() != pytest.approx(100 * right, abs=1)
        assert result["validation" if part is dataset.validation else "test"] == pytest.approx(100 * right, abs=1e-4)
    images = by_hand(dataset.calibration(20, 0).images)
    torch.testing.assert_close(bench.calibration_images(run.reference, 20), images)
    known, found = collect_statistics(given_network, images, scope="inner"), bench.statistics(run.reference, 20)
    for layer, statistics in known.items():
        torch.testing.assert_close(found[layer].l1, statistics.l1, rtol=1e-4, atol=1e-5)
    batches = bench.data(run.reference).batches(50)(0, 1)
    own = dataset.batches(50)(0, 1)
    for (ours, labels), (theirs, same) in zip(batches, own, strict=True):
        raw = theirs.permute(0, 2, 3, 1) * dataset.std + dataset.mean
        torch.testing.assert_close(ours, by_hand(raw), rtol=1e-4, atol=1e-4)
        assert labels.equal(same)


def test_a_given_reference_is_measured_and_what_it_may_have_seen_is_said(given_data: Path, tmp_path: Path) -> None:
    study = Study(profile(), tmp_path, given_data)
    (record,) = study.run(["reference"])
    result = record["result"]
    assert result["weights_sha256"] == tensors_sum(load_file(given_data / FILE)) == record["config"]["reference"]["weights_sha256"]
    assert result["history"] == [] and result["seen"] == ["train", "validation"] and "best_validation_epoch" not in result
    assert "training" not in record["config"]["reference"] and result["cost"]["params"] == 4934
    (run,) = study.runs(["reference"])
    assert describe(run) == "resnet20 x0.25 with mine.safetensors seed 0" and parse_run(record["config"]) == run
    images = len(study.bench.dataset.validation) + 2 * len(study.bench.dataset.test)
    assert expected_macs(study.bench, [run])[run.identity] == images * result["cost"]["macs"]


def test_an_edited_file_is_another_run_and_a_known_checksum_needs_no_file(given_data: Path, tmp_path: Path) -> None:
    before = Study(profile(), tmp_path, given_data).runs(["reference"])[0]
    again = Study(profile(weights_sha256=before.reference.weights_sha256), tmp_path, tmp_path / "no data")
    assert again.runs(["reference"]) == [before]
    state = load_file(given_data / FILE)
    save_file({**state, "head.bias": state["head.bias"] + 1}, given_data / FILE)
    after = Study(profile(), tmp_path, given_data).runs(["reference"])[0]
    assert after.identity != before.identity
    with pytest.raises(StudyError, match=f"{FILE} does not hold the weights of this run: .*{before.reference.weights_sha256}"):
        Study(profile(weights_sha256=before.reference.weights_sha256), tmp_path, given_data).run(["reference"])
    with pytest.raises(StudyError, match=rf"'{FILE}' not found. Looked in: {tmp_path}/elsewhere/{FILE}"):
        Study(profile(), tmp_path, tmp_path / "elsewhere")


def test_what_does_not_fit_is_refused_before_any_work(given_data: Path, tmp_path: Path) -> None:
    for changed, said in (
        ({"network": "resnet44"}, "mine.safetensors has other layers than the network: stage1.1"),
        (
            {"width": 0.5},
            r"mine.safetensors: conv.weight is torch.float32 \(4, 1, 3, 3\); torch.float32 \(8, 1, 3, 3\) and finite is needed",
        ),
        ({"mean": (0.1, 0.2), "std": (0.5, 0.5)}, r"mean=\[.*\] is not allowed; allowed: 1 numbers: digits\[:100\]"),
    ):
        with pytest.raises(StudyError, match=said):
            Study(profile(**changed), tmp_path / "out", given_data).run(["pruned"])
    assert not (tmp_path / "out").exists()
    public = profile(network="resnet56", width=1.0, weights="pretrained:resnet56", mean=None, std=None)
    with pytest.raises(StudyError, match=r"mean=\[.*\] is not allowed; allowed: 1 numbers"):  # of images with one channel
        Study(public, tmp_path / "out", given_data).run(["reference"])


@pytest.mark.parametrize(
    ("field", "new"),
    [("history", [{"epoch": 1}]), ("seen", ["test"]), ("seen", ...), ("test", 101.0), ("weights_sha256", None), ("cost", {})],
)
def test_a_wrong_record_of_a_given_reference_is_named(given_data: Path, tmp_path: Path, field: str, new: Any) -> None:
    study = small(profile(), tmp_path, given_data)
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
