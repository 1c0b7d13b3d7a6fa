"""Whatever part of a study is done, its tables, figures and sentences come, or one line says why not: never a traceback."""

from __future__ import annotations

import random
import warnings
from functools import cache, partial

import matplotlib.pyplot as plt
import pytest

from fcs_utils.errors import StudyError
from fcs_utils.report.answers import answers
from fcs_utils.report.findings import findings
from fcs_utils.report.frames import Report
from fcs_utils.report.leads import LEADS
from fcs_utils.report.registry import each
from fcs_utils.report.tables import TABLES
from fcs_utils.study.study import Study
from tests.conftest import ROOT


@cache
def opened(profile: str) -> Study:
    study = Study(profile, ROOT / "results")
    study.rates()
    return study


def part(study: Study, seed: int) -> Report:
    """A report of some records: of a share drawn by chance, of the first of them, or of some stages."""
    chance, found = random.Random(seed), study.found()
    known = sorted({record["id"] for records in found.values() for record in records})
    share = chance.choice([0.02, 0.05, 0.1, 0.3, 0.6, 0.9])
    kept = set(known[: int(share * len(known))]) if seed % 3 == 0 else {one for one in known if chance.random() < share}
    stages = {stage for stage in found if seed % 3 != 1 or chance.random() < 0.5}
    some = {stage: [one for one in records if stage in stages and one["id"] in kept] for stage, records in found.items()}
    return Report(some, study.settings.validation_images, ["the rest"], study.profile.best)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("profile", ["quick", "cifar"])
def test_any_part_of_the_records_is_reported_or_refused_in_one_line(profile: str, seed: int) -> None:
    study = opened(profile)
    try:
        report = part(study, seed)
    except StudyError as error:
        assert "\n" not in str(error)
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tables, drawn = [*report.tables()], [name for name, _ in each(report.figures(), "figure")]
    plt.close("all")
    words = [str(one.message).split() for one in told if "is left out: no pairs: seeds are" in str(one.message)]
    left_out, ready = {word[2] for word in words}, TABLES.ready(report)
    empty = {name for name in ready if name not in left_out and not len(ready[name]())}
    assert "references" in tables or len(drawn) + len(tables) > 1
    assert {*tables} | {*drawn} | empty | left_out == {*ready, *report.figures()} and not left_out & {*tables, *drawn}
    tries = {
        **{f"lead {name}": partial(say, report, study.store) for name, say in LEADS.items()},
        "findings": partial(findings, report.ledger),
        "answers": partial(answers, report),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of layouts of figures with little in them
        for name, act in tries.items():
            assert act() is not None, name
    plt.close("all")


def test_variations_without_the_literal_reading_of_their_seed_are_left_out() -> None:
    study = opened("quick")
    found = study.found()
    whole = Report(found, study.settings.validation_images).variations
    gone = whole[(whole.seed == 0) & (whole.network == whole.network.iloc[0]) & (whole.variant == "literal reading")].index
    assert len(gone)
    literal = {
        record["id"]
        for record in found["ablation"]
        if record["config"]["reference"]["seed"] == 0 and record["config"]["pruning"]["criterion"] == "fcs"
    }
    less = {stage: [one for one in records if one["id"] not in literal] for stage, records in found.items()}
    left = Report(less, study.settings.validation_images).variations
    assert {*left.seed} == {*whole.seed} - {0}
