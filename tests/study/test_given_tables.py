"""Given networks in tables, figures and the estimate: alone, and beside networks that are trained here."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcs_utils.report.figures import training_curves
from fcs_utils.report.frames import Report, make_report
from fcs_utils.report.plots import by_epoch
from fcs_utils.study.catalogue import STAGES, Stage
from fcs_utils.study.estimate import estimate
from fcs_utils.study.records import pack
from fcs_utils.study.sections import Given, Network
from tests.study.given import SCHEDULE, profile, small


@pytest.mark.usefixtures("never_trained")
def test_tables_figures_and_estimate_of_a_profile_of_given_networks_alone(given_data: Path, tmp_path: Path) -> None:
    study = small(profile(), tmp_path, given_data)
    assert estimate(study, lambda network: 1e9).set_index("stage").loc["reference", "runs"] == 1
    study.run()
    report = make_report(study)
    tables = report.tables()
    assert tables["references"].network.tolist() == ["ResNet-20 x0.25 (given)"]
    assert tables["criteria"].criterion.tolist() == ["random", "kernel_l1", "fcs"] and not report.missing and "arms" not in tables
    references = report.references
    assert references.epochs.tolist() == [0] and not len(by_epoch(references))
    for draw in report.figures().values():
        draw()
    assert pack(study.store)


def test_given_networks_stand_in_the_tables_beside_those_trained_here_and_do_not_decide(given_data: Path, tmp_path: Path) -> None:
    trained, names = Network(network="resnet32", width=0.125, training=SCHEDULE), ("kernel_l1", "fcs")
    given = Given(networks=profile().networks, criteria=names, ratio=0.5, epochs=2)
    changes = {"networks": (trained,), "ratios": (0.5,), "criteria": names, "given": given}
    study = small(profile().model_copy(update=changes), tmp_path, given_data)
    stages: tuple[Stage, ...] = ("reference", "similarity", "pruned", "tuned", "given")
    found = {stage: study.run([stage]) for stage in stages}
    report = Report({stage: found.get(stage, []) for stage in STAGES}, 10)
    both = ["ResNet-32 x0.125", "ResNet-20 x0.25 (given)"]
    assert [*report.references.epochs] == [1, 0] and len(by_epoch(report.references)) == 1
    assert [axis.get_title(loc="left") for axis in training_curves(report.references).axes] == both[:1]  # the other has no curve
    tables = report.tables()
    assert tables["similarity"].network.unique().tolist() == tables["criteria"].network.unique().tolist() == both
    rows = tables["criteria"].query("criterion == 'fcs'").to_dict("records")
    assert [(row["epochs"], row["n"], row["replicate"]) for row in rows] == [(1, 1, "trained seed"), (2, 1, "network")]
    assert not any("" in (row["pruned (%)"], row["recalibrated (%)"]) for row in rows)
    c2 = report.ledger[report.ledger.claim == "C2"]
    assert [(row.decisive, row.role) for row in c2.itertuples() if row.theirs == "kernel_l1"] == [(True, ""), (False, "given")]
