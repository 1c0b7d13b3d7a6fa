"""The stages of given networks, of published layer rates and of the recipe, counted against what a profile says."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from fcs_utils.study.grid import grid
from fcs_utils.study.profiles import Profile, get_profile
from fcs_utils.study.runs import Run

CHIP = [0.0, 0.15, 0.4]
PUBLIC = [{"network": name, "weights": f"pretrained:{name}"} for name in ("resnet20", "resnet56")]
TRAINED = {"network": "resnet20", "training": {"epochs": 1, "learning_rate": 0.1}}
SECTIONS: dict[str, Any] = {
    "given": {"networks": PUBLIC, "criteria": ["kernel_l1", "fcs bins=1"], "ratio": 0.3, "epochs": 4},
    "points": [
        {
            "network": PUBLIC[1],
            "rates": CHIP,
            "rates_as": "chip",
            "rounding": "chip",
            "scope": "all",
            "criteria": ["chip", "fcs"],
            "seeds": [0, 1],
            "epochs": 8,
        }
    ],
    "recipe": {"criteria": ["kernel_l1", "fcs"], "default": "tp_group_norm", "ratio": 0.3, "epochs": {"tft": 9, "mlft": 2}},
}
RATES = {("vgg16", method): rate for method, rate in (("tft", 0.02), ("mlft", 0.05), ("kd", 0.01), ("twin", 0.01))}


def profile(**changes: Any) -> Profile:
    fields = get_profile("quick").model_dump() | {"dataset": "cifar10"} | SECTIONS
    return Profile.model_validate(fields | {name: fields[name] | new for name, new in changes.items()})


def words(run: Run) -> tuple[object, ...]:
    cut, tuning = run.pruning, run.tuning
    assert cut
    name = " ".join([cut.criterion, *map(str, cut.options.values())])
    return run.reference.network, run.reference.seed, name, tuning and (tuning.method, tuning.training.epochs)


def test_given_networks_are_pruned_before_and_after_tuning_and_are_measured_like_the_others() -> None:
    found = grid(profile(), "fp32")
    both = [("resnet20", 0, "kernel_l1"), ("resnet20", 0, "fcs 1"), ("resnet56", 0, "kernel_l1"), ("resnet56", 0, "fcs 1")]
    assert [words(run) for run in found["given"]] == [(*one, None) for one in both] + [(*one, ("tft", 4)) for one in both]
    assert {run.pruning.ratio for run in found["given"] if run.pruning} == {0.3}
    given = [run.reference for run in found["reference"] if run.reference.weights]
    # Both are references; at the published rates the larger one has a second seed of fine-tuning.
    assert [(one.network, one.seed) for one in given] == [("resnet20", 0), ("resnet56", 0), ("resnet56", 0), ("resnet56", 1)]
    similar = [run.reference.network for run in found["similarity"] if run.reference.weights]
    assert similar == ["resnet20", "resnet56"]
    rest = {run.reference.weights for stage, runs in found.items() for run in runs if stage in ("pruned", "tuned", "rates")}
    assert rest == {None}


def test_a_point_has_the_published_rates_and_no_ratio() -> None:
    found = grid(profile(), "fp32")["points"]
    assert [words(run) for run in found] == [("resnet56", seed, name, ("tft", 8)) for seed in (0, 1) for name in ("chip", "fcs")]
    goals = {(cut.ratio, cut.rates, cut.rates_as, cut.rounding, cut.scope) for run in found if (cut := run.pruning)}
    assert goals == {(None, tuple(CHIP), "chip", "chip", "all")}


def test_the_recipe_combines_everything_and_has_the_default_once() -> None:
    found = grid(profile(), "fp32", RATES)["recipe"]
    one = [run for run in found if run.reference.seed == 2]
    combined = [
        (name, how, method, epochs, rate)
        for name in ("kernel_l1", "fcs")
        for how in ("none", "merge")
        for method, epochs, rate in (("tft", 9, 0.02), ("mlft", 2, 0.05))
    ]
    want = [("tp_group_norm", "none", "tft", 9, 0.02), *combined]
    assert [
        (cut.criterion, cut.compensate, tuning.method, tuning.training.epochs, tuning.training.learning_rate)
        for run in one
        if (cut := run.pruning) and (tuning := run.tuning)
    ] == want
    assert len(found) == 5 * len(want) and {run.reference.network for run in found} == {"vgg16"}
    assert "recipe" not in grid(profile(), "fp32") and not grid(get_profile("quick"), "fp32", RATES)["recipe"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"given": {"networks": [TRAINED]}}, "'resnet20' has no weights"),
        ({"given": {"networks": []}}, "given.networks.*at least 1"),
        ({"recipe": {"epochs": {"tft": 4, "scratch": 2}}}, "recipe.epochs: 'scratch' is none of arms.methods: tft, mlft, twin, kd"),
        ({"longer_arms": {"tft": [32], "scratch": [32]}}, "longer_arms: 'scratch' is none of arms.methods: tft, mlft, twin, kd"),
        ({"longer_arms": {"tft": []}}, "longer_arms.tft.*at least 1"),
        ({"recipe": {"compensate": ["fold"]}}, "recipe.compensate.0"),
    ],
)
def test_sections_that_make_no_sense_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        profile(**change)
    first = refused.value.errors()[0]
    assert re.search(said, f"{'.'.join(map(str, first['loc']))} {first['msg']}")
