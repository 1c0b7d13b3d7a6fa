"""Runs are picked by fields; what no run has is refused before any work."""

from __future__ import annotations

import pytest

from fcs_utils.errors import StudyError
from fcs_utils.study.grid import grid
from fcs_utils.study.profiles import get_profile
from fcs_utils.study.selection import parse_only

SMOKE = get_profile("smoke")
GRID = grid(SMOKE, "fp32", {("vgg16", method): 0.05 for method in SMOKE.arms.methods})


def test_a_number_is_a_fields_and_not_any_words() -> None:
    # 'seed 2' once picked runs of 2 epochs too; 'seed=0' is the reference's, not that of sklearn's binning.
    found = parse_only(["epochs=2", "stage=arms"]).pick(GRID)
    assert found and all(run.tuning and run.tuning.training.epochs == 2 for run in found)
    assert {run.reference.seed for run in parse_only(["seed=0"]).pick(GRID)} == {0}
    assert {run.reference.seed for run in parse_only(["seed=100"]).pick(GRID)} == {100}


def test_fields_are_joined_by_and_values_of_one_field_by_or() -> None:
    found = parse_only(["criterion=fcs", "criterion=random", "ratio=0.50", "kind=pruned", "stage=pruned", "network=vgg16"]).pick(
        GRID
    )
    assert [(run.pruning.criterion, run.pruning.ratio) for run in found if run.pruning] == [("random", 0.5), ("fcs", 0.5)]
    assert parse_only([]).pick(GRID) == list({run.identity: run for runs in GRID.values() for run in runs}.values())


def test_long_names_tell_a_references_epochs_from_fine_tunings() -> None:
    assert {run.kind for run in parse_only(["reference.epochs=2"]).pick(GRID)} == {"reference", "similarity", "pruned", "tuned"}
    assert {run.kind for run in parse_only(["epochs=1"]).pick(GRID)} == {"tuned"}
    assert [run.kind for run in parse_only(["similarity.calibration=128"]).pick(GRID)] == ["similarity"] * 2


def test_options_of_criteria_are_fields_with_their_defaults() -> None:
    greedy = parse_only(["redundancy=greedy", "stage=pruned"]).pick(grid(get_profile("quick"), "fp32"))
    assert {run.pruning.criterion for run in greedy if run.pruning} == {"fcs_greedy"}
    (two, *_) = parse_only(["bins=2"]).pick(GRID)
    assert two.pruning and two.pruning.options == {"bins": 2}
    assert {run.pruning.compensate for run in parse_only(["compensate=merge"]).pick(GRID) if run.pruning} == {"merge"}
    assert all(run.pruning and run.pruning.calibration_seed is None for run in parse_only(["calibration_seed=none"]).pick(GRID))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fcs"], "only='fcs' is not allowed; allowed: FIELD=VALUE"),
        (["criterion="], "FIELD=VALUE"),
        (["criterium=fcs"], "did you mean criterion"),
        (["training=1"], "only='training=1' is not allowed"),
        (["criterion=fsc"], "only='pruning.criterion=fsc' is not allowed; allowed: random, .*did you mean fcs"),
        (["seed=7"], "only='reference.seed=7' is not allowed; allowed: 0, 100"),
        (
            ["network=resnet20", "method=mlft"],
            "network=resnet20 tuning.method=mlft' is not allowed; allowed: values that one",
        ),
    ],
)
def test_what_no_run_has_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        parse_only(words).check(GRID)
