"""The runs of a profile's further sections: given networks, points, the recipe, ablations of everything; titles of criteria."""

from __future__ import annotations

from fcs_utils.study.grid import grid, titled
from fcs_utils.study.runs import Pruning, Reference, Run, Similarity
from fcs_utils.study.sections import Given, Network, Point, Recipe
from tests.study.test_grid import BOTH, PROFILE, RATES, pruned, reference, tuned

GIVEN = Network(network="resnet56", weights="pretrained:resnet56")


def given(seed: int) -> Reference:
    return Reference(**dict(GIVEN), dataset="digits", seed=seed, precision="bf16")


def test_given_networks_run_on_the_first_seed_before_and_after_tuning_and_points_on_their_own() -> None:
    point = Point(
        network=GIVEN, rates="[0.]+[0.15]*2", rates_as="chip", scope="all", criteria=("chip", "fcs"), seeds=(3, 4), epochs=6
    )
    section = Given(networks=(GIVEN,), criteria=("fcs bins=2", "random"), ratio=0.25, epochs=5)
    plain, found = grid(PROFILE, "bf16"), grid(PROFILE.model_copy(update={"given": section, "points": (point,)}), "bf16")
    assert found["reference"] == [*plain["reference"], *(Run(reference=given(seed)) for seed in (0, 3, 4))]
    assert found["similarity"] == [*plain["similarity"], Run(reference=given(0), similarity=Similarity(calibration=40))]
    cut = [pruned(given(0), "fcs", 0.25, options={"bins": 2}), pruned(given(0), "random", 0.25)]
    assert found["given"] == [*cut, *(tuned(run, "tft", epochs=5) for run in cut)]
    rates = {"rates": (0.0, 0.15, 0.15), "rates_as": "chip", "rounding": None, "scope": "all", "calibration": 40}
    at = [Run(reference=given(seed), pruning=Pruning(criterion=c, ratio=None, **rates)) for seed in (3, 4) for c in ("chip", "fcs")]
    assert found["points"] == [tuned(run, "tft", epochs=6) for run in at]
    others = {stage: runs for stage, runs in found.items() if stage not in ("reference", "similarity", "given", "points")}
    assert others == {stage: runs for stage, runs in plain.items() if stage in others} and not plain["given"] + plain["points"]


def test_the_recipe_combines_criteria_surgery_and_arms_beside_its_default_by_tft() -> None:
    recipe = Recipe(criteria=("fcs_linear", "fcs"), default="kernel_l1", ratio=0.25, epochs={"mlft": 3, "tft": 8})
    found = grid(PROFILE.model_copy(update={"recipe": recipe}), "bf16", RATES)
    want: list[Run] = []
    for seed in (0, 1):
        one = reference("vgg16", seed)
        want.append(tuned(pruned(one, "kernel_l1", 0.25), "tft", epochs=8, learning_rate=0.01))
        for criterion in ("fcs_linear", "fcs"):
            for how in ("none", "merge"):
                cut = pruned(one, criterion, 0.25, compensate=how)
                want.append(tuned(cut, "mlft", epochs=3, learning_rate=0.05))
                want.append(tuned(cut, "tft", epochs=8, learning_rate=0.01))
    assert found["recipe"] == want and grid(PROFILE, "bf16", RATES)["recipe"] == []


def test_longer_arms_have_the_rates_of_the_others_and_the_seeds_that_confirm() -> None:
    profile = PROFILE.model_copy(update={"longer_arms": {"mlft": (32,), "tft": (24, 32)}})
    found, plain = grid(profile, "bf16", RATES), grid(PROFILE, "bf16", RATES)
    planned = [("mlft", 32, 0.05), ("tft", 24, 0.01), ("tft", 32, 0.01)]
    cut = [pruned(reference("vgg16", seed), "kernel_l1", 0.4) for seed in (0, 1)]
    assert found["longer_arms"] == [
        tuned(run, method, epochs=epochs, learning_rate=rate) for run in cut for method, epochs, rate in planned
    ]
    assert {**found, "longer_arms": []} == plain and "longer_arms" not in grid(profile, "bf16")
    assert PROFILE.after_rates == ["arms"] and profile.after_rates == ["arms", "longer_arms"]


def test_ablations_and_training_from_scratch_run_everywhere_unless_they_are_told() -> None:
    one = grid(PROFILE, "bf16", RATES)
    everywhere = PROFILE.ablations.model_copy(update={"networks": None, "seeds": None})
    arms = PROFILE.arms.model_copy(update={"scratch_seeds": None})
    found = grid(PROFILE.model_copy(update={"ablations": everywhere, "arms": arms}), "bf16", RATES)
    count = len(one["ablation"])
    assert found["ablation"][:count] == one["ablation"] and len(found["ablation"]) == 4 * count
    assert [run.reference for run in found["ablation"][::count]] == BOTH
    assert [run.reference.seed for run in found["arms"] if run.tuning and run.tuning.method == "scratch"] == [0, 0, 1, 1]
    assert all(run.tuning and run.tuning.training == run.reference.training for run in found["arms"][-4:])
    few = grid(PROFILE.model_copy(update={"ablations": everywhere.model_copy(update={"seeds": 1})}), "bf16")
    assert [run.reference.seed for run in few["ablation"][::count]] == [0, 0]


def test_criteria_have_titles_and_other_texts_stay_as_they_are() -> None:
    assert [titled(text) for text in ("kernel_l1", "fcs bins=8", "f", "of mine=1 two")] == [
        *("kernel L1 norm", "FCS (8 bins)", "f", "of mine=1 two"),
    ]
