"""Identities are stable, configurations strict, records atomic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fcs_utils.errors import StudyError
from fcs_utils.files import write_atomic, write_json
from fcs_utils.study.runs import Pruning, Reference, Run, Tuning, parse_run
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


@pytest.mark.parametrize("goal", [{"ratio": 0.5, "macs": 0.5}, {"ratio": None, "macs": None}])
def test_a_plan_has_one_goal(goal: dict[str, float | None]) -> None:
    pruning = {**PRUNED.model_dump(mode="json")["pruning"], **goal}
    with pytest.raises(StudyError, match="either ratio or macs"):
        parse_run({**PRUNED.model_dump(mode="json"), "pruning": pruning})


def test_a_refused_write_keeps_the_old_file(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    write_atomic(blocked, b"old")
    with pytest.raises(StudyError, match="cannot write"):
        write_atomic(blocked / "below", b"new")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(blocked, {"x": float("nan")})
    assert blocked.read_bytes() == b"old" and list(tmp_path.iterdir()) == [blocked]
