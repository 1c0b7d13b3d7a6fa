"""Identities are stable, configurations strict, records atomic."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fcs_utils.benchmarks.scoring import Scoring
from fcs_utils.benchmarks.speed import Speed
from fcs_utils.config import Config
from fcs_utils.errors import StudyError
from fcs_utils.files import write_atomic, write_json
from fcs_utils.study.profiles import Profile, get_profile
from fcs_utils.study.runs import Pruning, Reference, Run, Tuning, describe, parse_run
from fcs_utils.study.selection import parse_only
from fcs_utils.training.optimiser import Training

REFERENCE = Reference(
    dataset="digits", network="vgg16", width=0.25, seed=0, training=Training(epochs=10, learning_rate=0.05), precision="fp32"
)
RUN = Run(reference=REFERENCE)
PRUNED = RUN.model_copy(update={"pruning": Pruning(criterion="fcs", ratio=0.5)})
TUNED = PRUNED.model_copy(update={"tuning": Tuning(method="mlft", training=Training(epochs=2, learning_rate=0.01))})


def test_golden_identities() -> None:
    # If this fails, a released default changed: raise SCHEMA, or published records are silently orphaned.
    assert [run.identity for run in (RUN, PRUNED, TUNED)] == ["795c608dee8e08ee", "e810e4c0bf04a5a8", "ec468e6362a0c76f"]


def test_defaults_that_no_identity_shows() -> None:
    tuning = TUNED.tuning
    assert tuning is not None and (tuning.temperature, tuning.strength, tuning.updates) == (1.0, 1.0, "simultaneous")
    assert (tuning.training.batch_size, tuning.training.momentum, tuning.training.weight_decay) == (128, 0.9, 5e-4)


def test_a_default_spelled_out_is_the_same_run() -> None:
    spelled = parse_run(json.loads(json.dumps(TUNED.model_dump(mode="json"))))
    assert spelled == TUNED and spelled.identity == TUNED.identity


def test_parents() -> None:
    assert TUNED.parent() == PRUNED and PRUNED.parent() == RUN and RUN.parent() is None
    assert [run.kind for run in (RUN, PRUNED, TUNED)] == ["reference", "pruned", "tuned"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("reference", "seed"), -1),
        (("reference", "width"), 0),
        (("reference", "precision"), "fp8"),
        (("reference", "colour"), "red"),
        (("reference", "training", "epochs"), 0),
        (("reference", "training", "learning_rate"), float("nan")),
        (("pruning", "ratio"), 1.5),
        (("pruning", "ratio"), 0),
        (("tuning", "method"), "magic"),
        (("tuning", "temperature"), 0),
        (("tuning", "updates"), "alternating"),
        (("tuning", "peer_learning_rate"), 0),
        (("pruning", "macs"), 1.0),
        (("pruning", "compensate"), "glue"),
        (("pruning", "calibration_seed"), -1),
        (("pruning", "calibration_seed"), 2**32),
        (("reference", "seed"), 2**40),
        (("reference", "seed"), True),
        (("reference", "width"), 8.5),
        (("tuning", "training", "epochs"), 2.0),
    ],
)
def test_bad_values_are_named(path: tuple[str, ...], value: object) -> None:
    data = TUNED.model_dump(mode="json")
    inner = data
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    with pytest.raises(StudyError, match=".".join(path)):
        parse_run(data)


CONFIGURATIONS: dict[str, Callable[[], Config]] = {
    "epochs=0": lambda: Training(epochs=0, learning_rate=0.1),
    "epochs=True": lambda: Training(epochs=True, learning_rate=0.1),
    "epochs is missing": lambda: Training(learning_rate=0.1),
    "learning_rate=nan": lambda: Training(epochs=1, learning_rate=float("nan")),
    "momentun=0.9": lambda: Training(epochs=1, learning_rate=0.1, momentun=0.9),
    "batch_size=Tensor torch.float32 (3, 3)": lambda: Training(epochs=1, learning_rate=0.1, batch_size=torch.zeros(3, 3)),
    "seed=4294967296": lambda: Reference(**{**dict(REFERENCE), "seed": 2**32}),
    "training.epochs=-1": lambda: Reference(**{**dict(REFERENCE), "training": {"epochs": -1, "learning_rate": 0.1}}),
    "ratio=1.5": lambda: Pruning(criterion="fcs", ratio=1.5),
    "the whole={'criterion': 'fcs'}": lambda: Pruning(criterion="fcs"),
    "method='magic'": lambda: Tuning(method="magic", training=REFERENCE.training),
    "images=0": lambda: Speed(images=0),
    "widths.1=9": lambda: Scoring(widths=(0.5, 9)),
    "seeds.1=-1": lambda: Profile(**{**dict(get_profile("smoke")), "seeds": (0, -1)}),
    "arms.pilot_seeds.0=4294967296": lambda: Profile(
        **{**dict(get_profile("smoke")), "arms": {**dict(get_profile("smoke").arms), "pilot_seeds": (2**32,)}}
    ),
}


@pytest.mark.parametrize(("said", "make"), CONFIGURATIONS.items(), ids=CONFIGURATIONS)
def test_configurations_name_the_parameter_in_one_line(said: str, make: Callable[[], Config]) -> None:
    with pytest.raises(StudyError) as caught:
        make()
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value) and len(str(caught.value)) < 300, caught.value


def test_whole_numbers_of_numpy_make_the_same_run() -> None:
    training = Training(epochs=np.int64(10), learning_rate=0.05)
    same = Run(reference=Reference(**{**dict(REFERENCE), "seed": np.uint8(0), "training": training}))
    assert same == RUN and same.identity == RUN.identity and type(same.reference.seed) is type(training.epochs) is int
    largest = Reference(**{**dict(REFERENCE), "seed": np.uint64(2**32 - 1)})
    assert largest.seed == 2**32 - 1


def test_nonsense_combinations() -> None:
    with pytest.raises(StudyError, match="tuning needs pruning"):
        parse_run({**TUNED.model_dump(mode="json"), "pruning": None})


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("tft", {"temperature": 2.0}),
        ("scratch", {"strength": 0.5}),
        ("kd", {"updates": "sequential"}),
        ("kd", {"peer_learning_rate": 0.1}),
        ("mlft", {"twin_criterion": "random"}),
        ("tft", {"budget": "macs"}),
    ],
)
def test_options_belong_to_their_method(method: str, option: dict[str, object]) -> None:
    tuning = {**TUNED.model_dump(mode="json")["tuning"], "temperature": 1.0, "strength": 1.0, "method": method}
    assert parse_run({**TUNED.model_dump(mode="json"), "tuning": tuning}).kind == "tuned"
    with pytest.raises(StudyError, match=f"{next(iter(option))} belongs to method"):
        parse_run({**TUNED.model_dump(mode="json"), "tuning": {**tuning, **option}})


CHIP = {"criterion": "chip", "rates": "[0.]+[0.15]*2+[0.4]*27", "rates_as": "chip", "scope": "all"}


def test_rates_are_a_goal_of_a_run_however_they_are_written() -> None:
    written = PRUNED.model_dump(mode="json")
    assert not {"rates", "rates_as", "rounding"} & written["pruning"].keys()  # records without rates stay as they were
    run = parse_run({**written, "pruning": CHIP})
    spelled = parse_run({**written, "pruning": {**CHIP, "rates": [0] + [0.15] * 2 + [0.4] * 27}})
    again = parse_run(json.loads(json.dumps(run.model_dump(mode="json"))))
    assert run == spelled == again and run.identity == spelled.identity == again.identity
    assert run.pruning and run.pruning.ratio is None and len(run.pruning.rates or ()) == 30
    assert describe(run) == "vgg16 x0.25 seed 0, chip rates 0*1 0.15*2 0.4*27 as chip"
    named = Pruning(criterion="fcs", rates={"b": 0.5, "a": 0}, rounding="chip")
    assert named.goal == "rates of 2 layers" and PRUNED.model_copy(update={"pruning": named}).identity != run.identity
    other = {**CHIP, "rates": "[0.]+[0.15]*2+[0.4]*26+[0.5]"}
    assert parse_run({**written, "pruning": other}).identity != run.identity
    assert [run.pruning.goal for run in (PRUNED, PRUNED.model_copy(update={"pruning": Pruning(criterion="fcs", macs=0.5)}))] == [
        "ratio 0.5",
        "MACs 0.5",
    ]
    assert parse_only(["rates_as=chip"]).pick({"pruned": [PRUNED, run]}) == [run]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": "[0.15"}, r"pruning.rates='\[0.15' is not allowed: a text such as"),
        ({"rates": [0.5, 1]}, "pruning.rates=.*; 2 has 1"),
        ({"rates_as": "chop"}, "pruning.rates_as='chop'"),
        ({"rounding": "up"}, "pruning.rounding='up'"),
        ({"ratio": 0.5}, "give one of ratio, macs and rates"),
        ({"rates": None, "ratio": 0.5}, "rates_as='chip' is not allowed; allowed: None"),
    ],
)
def test_bad_rates_of_a_run_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        parse_run({**PRUNED.model_dump(mode="json"), "pruning": {**CHIP, **change}})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("goal", [{"ratio": 0.5, "macs": 0.5}, {"ratio": None, "macs": None}])
def test_a_plan_has_one_goal(goal: dict[str, float | None]) -> None:
    pruning = {**PRUNED.model_dump(mode="json")["pruning"], **goal}
    with pytest.raises(StudyError, match="one of ratio, macs and rates"):
        parse_run({**PRUNED.model_dump(mode="json"), "pruning": pruning})


def test_a_refused_write_keeps_the_old_file(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    write_atomic(blocked, b"old")
    with pytest.raises(StudyError, match="cannot write"):
        write_atomic(blocked / "below", b"new")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(blocked, {"x": float("nan")})
    assert blocked.read_bytes() == b"old" and list(tmp_path.iterdir()) == [blocked]
