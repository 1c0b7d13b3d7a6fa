"""The runs of a profile, counted and compared one by one with what the profile says."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from fcs_utils.errors import StudyError
from fcs_utils.pruning.criteria import CRITERIA, Criterion
from fcs_utils.study.grid import check_stages, grid, name_criterion, parse_criterion
from fcs_utils.study.profiles import Profile
from fcs_utils.study.runs import Pruning, Reference, Run, Similarity, Tuning
from fcs_utils.study.sections import Ablations, Arms, Further, Longer, Network, Readings
from fcs_utils.study.study import Study
from fcs_utils.training.optimiser import Training

LONG = Training(epochs=9, learning_rate=0.1, batch_size=32)
SHORT = Training(epochs=3, learning_rate=0.02, batch_size=64)
PROFILE = Profile(
    name="toy",
    summary="two networks, two seeds",
    dataset="digits",
    networks=(Network(network="vgg16", width=0.5, training=LONG), Network(network="resnet20", training=SHORT)),
    seeds=(0, 1),
    ratios=(0.3, 0.5),
    criteria=("random", "fcs"),
    calibration=40,
    tuning=SHORT,
    ablations=Ablations(
        ratio=0.6,
        bins=(2,),
        calibrations=(20, 40),
        draws=2,
        binning_seeds=1,
        merged=("fcs",),
        headstart=7,
        networks=("vgg16",),
        seeds=1,
    ),
    arms=Arms(
        networks=("vgg16",),
        criterion="kernel_l1",
        ratio=0.4,
        epochs=(1, 2),
        learning_rates=(0.01, 0.05),
        further_seeds=(5,),
        pilot_seeds=(100, 101),
        pilot_epochs=4,
        methods=("tft", "mlft"),
        scratch_seeds=1,
    ),
)
RATES = {("vgg16", "tft"): 0.01, ("vgg16", "mlft"): 0.05}


def reference(network: str, seed: int) -> Reference:
    width, training = (0.5, LONG) if network == "vgg16" else (1.0, SHORT)
    return Reference(dataset="digits", network=network, width=width, seed=seed, training=training, precision="bf16")


BOTH = [reference(network, seed) for network in ("vgg16", "resnet20") for seed in (0, 1)]


def pruned(one: Reference, criterion: str, ratio: float, **more: object) -> Run:
    return Run(reference=one, pruning=Pruning(**{"criterion": criterion, "ratio": ratio, "calibration": 40, **more}))


def tuned(run: Run, method: str, **changes: object) -> Run:
    return run.model_copy(update={"tuning": Tuning(method=method, training=SHORT.model_copy(update=changes))})


def test_every_stage_has_the_runs_that_its_profile_names() -> None:
    found = grid(PROFILE, "bf16", RATES)
    assert found["reference"] == [Run(reference=one) for one in (*BOTH, reference("vgg16", 5))]  # the further seed has arms alone
    assert found["similarity"] == [Run(reference=one, similarity=Similarity(calibration=40)) for one in BOTH]
    cut = [pruned(one, criterion, ratio) for one in BOTH for ratio in (0.3, 0.5) for criterion in ("random", "fcs")]
    assert found["pruned"] == cut and found["tuned"] == [tuned(run, "tft") for run in cut]
    # Merged or plain, the arms' criterion at the arms' ratio, on the arms' networks.
    headstart = [pruned(reference("vgg16", s), "kernel_l1", 0.4, compensate=how) for s in (0, 1) for how in ("none", "merge")]
    assert found["headstart"] == [tuned(run, "tft", epochs=7) for run in headstart]
    pilots = [
        tuned(pruned(reference("vgg16", seed), "kernel_l1", 0.4), method, epochs=4, learning_rate=rate)
        for seed in (100, 101)  # which are used for nothing else
        for method in ("tft", "mlft")
        for rate in (0.01, 0.05)
    ]
    assert found["rates"] == pilots
    arms = [
        tuned(pruned(reference("vgg16", seed), "kernel_l1", 0.4), method, epochs=epochs, learning_rate=rate)
        for seed in (0, 1, 5)
        for method, rate in (("tft", 0.01), ("mlft", 0.05))
        for epochs in (1, 2)
    ]
    scratch = [  # by the reference's schedule, on the first of the seeds
        pruned(reference("vgg16", 0), "kernel_l1", 0.4).model_copy(
            update={"tuning": Tuning(method="scratch", training=LONG, budget=budget)}
        )
        for budget in ("epochs", "macs")
    ]
    assert found["arms"] == [*arms, *scratch]


def test_the_ablations_vary_one_thing_at_a_time() -> None:
    one = reference("vgg16", 0)
    options = [
        {"reading": "per_image"},
        {"reading": "mean_map"},
        {"redundancy": "max"},
        {"redundancy": "greedy"},
        {"quota": "layer"},
        {"bins": 2},
        {"binning": "sklearn", "seed": 0},
    ]
    draws = [(40, None), (40, 1000), (40, 1001), (20, None), (20, 1000), (20, 1001)]  # the profile's number comes first, and once
    want = [
        pruned(one, "fcs", 0.6),
        *(pruned(one, "fcs", 0.6, options=changed) for changed in options),
        *(pruned(one, "fcs", 0.6, calibration=count, calibration_seed=seed) for count, seed in draws),
        *(pruned(one, "fcs", ratio, compensate=how) for ratio in (0.3, 0.5) for how in ("none", "merge")),
    ]
    assert grid(PROFILE, "bf16")["ablation"] == want


def test_arms_wait_for_their_rates_and_stages_have_names() -> None:
    assert "arms" not in grid(PROFILE, "fp32") and {run.reference.precision for run in grid(PROFILE, "fp32")["tuned"]} == {"fp32"}
    assert check_stages(None) == tuple(grid(PROFILE, "fp32", RATES)) and check_stages(["rates"]) == ("rates",)
    with pytest.raises(StudyError, match=r"stages=\['tables'\] is not allowed; allowed: reference, similarity"):
        check_stages(["rates", "tables"])


def test_epochs_by_method_give_each_arm_its_own_schedules_and_the_others_runs_stay() -> None:
    fields = PROFILE.model_dump()
    table = Profile.model_validate({**fields, "arms": {**fields["arms"], "epochs": {"tft": [1, 2, 8], "mlft": (2,)}}})
    assert table.arms.epochs == (1, 2, 8) and [table.arms.epochs_of(name) for name in ("tft", "mlft")] == [(1, 2, 8), (2,)]
    assert Profile.model_validate(table.model_dump()) == table and PROFILE.arms.epochs_of("mlft") == (1, 2)
    found, listed = (grid(one, "bf16", RATES) for one in (table, PROFILE))
    done = [(run.tuning.method, run.tuning.training.epochs) for run in found["arms"] if run.tuning and run.reference.seed == 5]
    assert done == [("tft", 1), ("tft", 2), ("tft", 8), ("mlft", 2)]
    assert {run.identity for run in listed["arms"]} & {run.identity for run in found["arms"]} == {
        run.identity for run in found["arms"] if run.tuning and run.tuning.training.epochs != 8
    }
    assert {stage: runs for stage, runs in found.items() if stage != "arms"} == {
        stage: runs for stage, runs in listed.items() if stage != "arms"
    }


def test_criteria_take_options_and_readings_run_on_pilot_seeds_alone() -> None:
    best = "fcs redundancy=greedy bins=2"
    profile = PROFILE.model_copy(
        update={
            "criteria": ("fcs", best),
            "best": best,
            "readings": Readings(candidates=("fcs", best), ratio=0.4, epochs=6),
            "longer": Longer(network="resnet20", ratio=0.3, epochs=8),
            "further": (Further(ratio=0.3, criteria=("chip", best)), Further(ratio=0.4, criteria=("fcs",))),
        }
    )
    found, options = grid(profile, "bf16", RATES), {"bins": 2, "redundancy": "greedy"}
    both: tuple[dict[str, object], ...] = ({}, options)
    assert found["pruned"] == [pruned(one, "fcs", ratio, options=own) for one in BOTH for ratio in (0.3, 0.5) for own in both]
    assert found["readings"] == [
        tuned(pruned(reference("vgg16", seed), "fcs", 0.4, options=own), "tft", epochs=6) for seed in (100, 101) for own in both
    ]
    assert found["longer"] == [
        tuned(pruned(reference("resnet20", seed), "fcs", 0.3, options=own), "tft", epochs=8) for seed in (0, 1) for own in both
    ]
    assert found["further"] == [
        *(tuned(pruned(one, name, 0.3, options=own), "tft") for one in BOTH for name, own in (("chip", {}), ("fcs", options))),
        *(tuned(pruned(one, "fcs", 0.4), "tft") for one in BOTH),
    ]
    assert {tuple(grid(PROFILE, "bf16")[stage]) for stage in ("readings", "longer", "further")} == {()}


def test_a_criterions_text_and_its_name_and_options() -> None:
    assert parse_criterion("fcs bins=1 quota=layer") == ("fcs", {"bins": 1, "quota": "layer"})
    assert parse_criterion("mine share=0.5 fast=true") == ("mine", {"share": 0.5, "fast": True})
    assert name_criterion("mine", {"share": 0.5, "fast": True, "a": "b"}) == "mine a=b fast=true share=0.5"
    assert name_criterion(*parse_criterion("fcs quota=layer bins=1")) == "fcs bins=1 quota=layer"
    assert name_criterion(*parse_criterion("kernel_l1")) == "kernel_l1"
    with pytest.raises(StudyError, match="criterion='fcs greedy' is not allowed"):
        parse_criterion("fcs greedy")
    with pytest.raises(StudyError, match="'bin'"):
        grid(PROFILE.model_copy(update={"criteria": ("fcs bin=1",)}), "bf16")


WRONG: list[tuple[dict[str, object], str]] = [
    ({"seeds": (0, 0)}, "seeds.*0 is named twice"),
    ({"seeds": ()}, "seeds.*at least 1"),
    ({"seeds": (-1,)}, "seeds.*greater than or equal to 0"),
    ({"seeds": (0, 5)}, "seed 5 is in seeds and in arms.further_seeds"),
    ({"seeds": (0, 101)}, "seed 101 is in seeds and in arms.pilot_seeds"),
    ({"ratios": (0.5, 0.3, 0.5)}, "ratios.*0.5 is named twice"),
    ({"ratios": (1.0,)}, "ratios.*above 0 and below 1"),
    ({"ratios": (float("nan"),)}, "ratios"),
    ({"criteria": ("fcs", "fcs")}, "criteria.*'fcs' is named twice"),
    ({"criteria": ()}, "criteria.*at least 1"),
    ({"calibration": 0}, "calibration.*greater than or equal to 1"),
    ({"networks": PROFILE.networks + (Network(network="vgg16", width=0.25, training=SHORT),)}, "'vgg16' is named twice"),
    ({"arms": {"networks": ("vgg19",)}}, "arms.networks: 'vgg19' is none of the profile's: vgg16, resnet20"),
    ({"arms": {"further_seeds": (101,)}}, "seed 101 is in arms.further_seeds and in arms.pilot_seeds"),
    ({"arms": {"learning_rates": ()}}, "arms.learning_rates.*at least 1"),
    ({"arms": {"epochs": (0, 2)}}, "arms.epochs.0"),
    ({"arms": {"epochs": {"tft": [1]}}}, "epochs by method: 'mlft'; the methods are tft, mlft"),
    ({"arms": {"epochs": {"tft": [1], "mlft": [2], "kd": [2]}}}, "epochs by method: 'kd'"),
    ({"arms": {"epochs": {"tft": [4, 4], "mlft": [2]}}}, "arms.schedules.tft.*4 is named twice"),
    ({"arms": {"epochs": {"tft": [4], "mlft": [0]}}}, "arms.epochs.1"),
    ({"arms": {"epochs": {"tft": 4, "mlft": [2]}}}, "arms.schedules.tft"),
    ({"best": "fcs_greedy"}, "best: 'fcs_greedy' is none of the profile's criteria: random, fcs"),
    ({"best": "fcs", "readings": {"candidates": ["random"], "epochs": 1}}, "best: 'fcs' is none of readings.candidates: random"),
    ({"longer": {"network": "vgg16", "epochs": 3}}, "longer: a network of the profile's .* and more epochs than 3"),
    ({"longer": {"network": "vgg19", "epochs": 9}}, "longer: a network of the profile's"),
    ({"arms": {"scratch_seeds": -1}}, "arms.scratch_seeds"),
    ({"ablations": {"networks": ("resnet56",)}}, "ablations.networks: 'resnet56' is none of the profile's"),
    ({"ablations": {"networks": ()}}, "ablations.networks.*at least 1"),
    ({"ablations": {"draws": -1}}, "ablations.draws"),
    ({"ablations": {"bins": (2, 0)}}, "ablations.bins.1"),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_a_profile_whose_numbers_would_count_twice_or_make_no_sense_is_refused(change: dict[str, object], said: str) -> None:
    fields = PROFILE.model_dump()
    fields |= {key: {**(fields[key] or {}), **new} if isinstance(new, dict) else new for key, new in change.items()}
    with pytest.raises(ValidationError) as refused:
        Profile.model_validate(fields)
    first = refused.value.errors()[0]
    assert re.search(said, f"{'.'.join(map(str, first['loc']))} {first['msg']}")


def test_a_study_checks_a_profile_that_was_changed_by_model_copy(tmp_path: Path) -> None:
    changed = PROFILE.model_copy(update={"seeds": (0, 1, 1)})
    with pytest.raises(StudyError, match=f"profile {PROFILE.name}: .*1 is named twice"):
        Study(changed, tmp_path)


def test_a_worker_opens_a_study_once_and_another_profile_as_another_study(tmp_path: Path) -> None:
    def sent(profile: Profile) -> Study:
        study: Study = pickle.loads(pickle.dumps(Study(profile, tmp_path)))  # noqa: S301 - as a pool sends it to its workers
        return study

    fields = {**PROFILE.model_dump(), "arms": {**PROFILE.arms.model_dump(), "epochs": {"tft": [1], "mlft": [2]}}}
    profile = Profile.model_validate(fields)
    assert sent(profile) is sent(profile) and sent(PROFILE) is not sent(profile)
    assert sent(profile).profile == profile


def test_a_criterion_that_is_entered_again_makes_other_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(statistics: object) -> object:
        return statistics

    mine.__module__ = "mycriteria"
    profile = PROFILE.model_copy(update={"criteria": ("mine",)})
    for code in ("as it was", "as it is now"):
        monkeypatch.setitem(CRITERIA, "mine", Criterion(mine, "statistics", "mine", code=code))
        runs = [run.pruning for run in grid(profile, "fp32")["pruned"]]
        assert {one.source for one in runs if one and one.criterion == "mine"} == {code}
