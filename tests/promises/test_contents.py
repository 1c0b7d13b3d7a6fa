"""Records, settings and measurements with wrong content are named and set aside: no traceback, none is taken without a word."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fcs_utils.benchmarks import scoring as cost
from fcs_utils.errors import StudyError
from fcs_utils.files import read_checksummed, tensors_sum, write_atomic, write_checksummed
from fcs_utils.study import measurements
from fcs_utils.study.contents import check_record
from fcs_utils.study.packed import to_lines
from fcs_utils.study.records import Settings, Store, pack, read_packed, read_record, write_record
from fcs_utils.study.runs import Reference, Run, parse_run
from tests.conftest import ROOT

PUBLISHED = read_packed(Store(ROOT / "results", "quick"))
BY_KIND = {record["kind"]: record for record in PUBLISHED.values()}


def put(value: dict[str, Any], path: str, new: Any) -> dict[str, Any]:
    """A copy with one field replaced, or taken away where the new value is ``...``."""
    changed = copy.deepcopy(value)
    inner: Any = changed
    *way, last = path.split(".")
    for part in way:
        inner = inner[int(part) if part.isdigit() else part]
    if new is ...:
        del inner[last]
    else:
        inner[int(last) if last.isdigit() else last] = new
    return changed


RECORDS: list[tuple[str, str, Any]] = [
    ("reference", "schema", 4),
    ("reference", "schema", None),
    ("reference", "config", None),
    ("reference", "config", {}),
    ("reference", "config.reference.training.epochs", -1),
    ("reference", "config.reference.seed", 7),
    ("reference", "kind", "tuned"),
    ("reference", "kind", "unheard of"),
    ("reference", "result", []),
    ("reference", "result.weights_sha256", None),
    ("reference", "result.cost.macs", -5),
    ("reference", "result.cost.params", "many"),
    ("reference", "result.history", []),
    ("reference", "result.history.1.epoch", 1),
    ("reference", "result.best_validation_epoch", 11),
    ("tuned", "result.history.0.epoch", 2),
    ("tuned", "result.cost.macs", 10**12),
    ("pruned", "result.cost.params", 10**12),
    ("reference", "result.history.0.validation", "high"),
    ("reference", "result.history.0.training_macs", -1),
    ("reference", "result.test", 100.5),
    ("reference", "result.test", True),
    ("reference", "provenance", "here"),
    ("reference", "provenance.threads", 0),
    ("reference", "volatile.epoch_seconds", "fast"),
    ("similarity", "result.shares", [1, 2]),
    ("similarity", "result.shares.trained", {"features.conv1": 0.5}),
    ("pruned", "result.plan", None),
    ("pruned", "result.plan", {"kept": {}}),
    ("pruned", "result.before_tuning.validation", ...),
    ("pruned", "result.plan.ratio", 0.9),
    ("tuned", "result.validation", 1.0),
    ("tuned", "result.start", None),
    ("tuned", "result.reference_sha256", ...),
    ("tuned", "config.tuning.method", "magic"),
    ("tuned", "config.pruning", None),
]


def test_a_checksum_of_weights_knows_names_kinds_and_shapes() -> None:
    weights = {"a": torch.arange(6.0), "b": torch.zeros(2)}
    known = tensors_sum(weights)
    assert tensors_sum({"b": weights["b"], "a": weights["a"].clone()}) == known
    for name, other in {
        "another shape": {**weights, "a": weights["a"].reshape(2, 3)},
        "another kind of number": {**weights, "b": torch.zeros(2, dtype=torch.int32)},
        "another name": {"a": weights["a"], "c": weights["b"]},
        "one less": {"a": weights["a"]},
    }.items():
        assert tensors_sum(other) != known, name


@pytest.mark.parametrize(("kind", "path", "new"), RECORDS)
def test_a_wrong_record_is_named_and_its_run_is_open(tmp_path: Path, kind: str, path: str, new: Any) -> None:
    right = BY_KIND[kind]
    run, wrong = Run.model_validate(right["config"]), put(right, path, new)
    store = Store(tmp_path, "quick")
    file = store.record(kind, run.identity)
    write_checksummed(file, right)
    assert read_record(store, run) == read_checksummed(file)
    write_checksummed(file, wrong)
    with pytest.raises(StudyError, match=file.name):
        pack(store)
    with pytest.warns(UserWarning, match=rf"{file.name}.* \(set aside as {file.stem}.corrupt\)"):
        assert read_record(store, run) is None
    assert not file.exists() and file.with_suffix(".corrupt").exists()


def test_a_plan_that_keeps_another_number_of_channels_than_its_ratio_leaves_is_refused(tmp_path: Path) -> None:
    right = BY_KIND["pruned"]
    store, plan = Store(tmp_path, "quick"), right["result"]["plan"]
    layer, kept = next((name, kept) for name, kept in plan["kept"].items() if len(kept) > 1)
    write_checksummed(store.record("pruned", right["id"]), put(right, "result.plan.kept", {**plan["kept"], layer: kept[1:]}))
    said = f"its plan keeps {len(kept) - 1} channels of {layer}; ratio {plan['ratio']} leaves {len(kept)}"
    with pytest.warns(UserWarning, match=re.escape(said)):
        assert read_record(store, Run.model_validate(right["config"])) is None


def test_plans_with_rates_or_with_one_threshold_follow_other_rules() -> None:
    right = BY_KIND["pruned"]
    plan, pruning = right["result"]["plan"], right["config"]["pruning"]
    layer, kept = next((name, kept) for name, kept in plan["kept"].items() if len(kept) > 1)
    other = {**plan, "kept": {**plan["kept"], layer: kept[1:]}}
    check_record(put(right, "result.plan", {**other, "ratio": 0.4, "ranking": "network"}), "here")  # the threshold decides
    # One layer loses more than the others: with rates of its own that is as it should be.
    rates = {name: 1 - len(stays) / plan["channels"][name] for name, stays in other["kept"].items()}
    run = parse_run({**right["config"], "pruning": {**pruning, "ratio": None, "rates": rates}})
    record = {**right, "config": run.model_dump(mode="json"), "id": run.identity}
    check_record(put(record, "result.plan", {**other, "ratio": None, "rates": rates}), "here")
    with pytest.raises(StudyError, match=f"here: its plan keeps {len(kept)} channels of {layer}"):
        check_record(put(record, "result.plan", {**plan, "ratio": None, "rates": rates}), "here")
    with pytest.raises(StudyError, match="here: not a pruning plan: the plan is damaged: it must have either a ratio or rates"):
        check_record(put(record, "result.plan", {**other, "ratio": None}), "here")


@pytest.mark.parametrize(("kind", "path", "new"), [RECORDS[0], RECORDS[2], RECORDS[10], RECORDS[12], RECORDS[23], RECORDS[26]])
def test_a_wrong_line_of_the_published_records_is_named_and_left_out(tmp_path: Path, kind: str, path: str, new: Any) -> None:
    right = BY_KIND[kind]
    run, store = Run.model_validate(right["config"]), Store(tmp_path, "quick")
    sealed = tmp_path / "sealed.json"
    write_checksummed(sealed, put(right, path, new))
    others = {name: record for name, record in list(PUBLISHED.items())[:3] if name != run.identity}
    line = json.dumps(read_checksummed(sealed))
    write_atomic(store.packed(), to_lines(others) + (line + "\n").encode())
    with pytest.warns(UserWarning, match="records.jsonl.*this run is done again"):
        assert read_record(store, run) is None
    assert all(read_record(store, Run.model_validate(record["config"])) for record in others.values())


SETTINGS = {"precision": "bf16", "profile": "quick", "dataset": "digits", "validation_images": 297}


@pytest.mark.parametrize(
    ("field", "new"),
    [
        ("precision", "fp8"),
        ("precision", ["bf16"]),
        ("precision", ...),
        ("profile", "cifar"),
        ("profile", None),
        ("validation_images", -3),
        ("validation_images", "297"),
        ("validation_images", 0),
        ("dataset", 5),
    ],
)
def test_wrong_settings_are_set_aside(tmp_path: Path, field: str, new: Any) -> None:
    store = Store(tmp_path, "quick")

    def settings() -> Settings:
        return Settings(store, "fp32", torch.device("cpu"), lambda: pytest.fail("needed the data"))

    write_checksummed(store.settings(), SETTINGS)
    assert settings().precision == "bf16" and settings().validation_images == 297
    for path in (store.settings(), store.published(store.settings())):
        write_checksummed(path, put(SETTINGS, field, new))
        with pytest.warns(UserWarning, match=r"study.json.*set aside as study.corrupt"):
            assert settings().precision == "fp32"


def test_the_precision_of_records_counts_where_settings_are_wrong_and_wrong_records_do_not(tmp_path: Path) -> None:
    store, right = Store(tmp_path, "quick"), BY_KIND["reference"]
    config = put(right["config"], "reference.precision", "bf16")
    run = Run.model_validate(config)
    write_record(store, {**right, "id": "0" * 16, "config": None})
    write_record(store, {**right, "id": run.identity, "config": config})
    assert Settings(store, "fp32", torch.device("cpu"), lambda: pytest.fail("data")).precision == "bf16"


MEASURED = read_checksummed(ROOT / "results" / "quick" / "measurements.json")


@pytest.mark.parametrize(
    ("path", "new"),
    [
        ("scoring", [1]),
        ("scoring", "fast"),
        ("scoring.rows", None),
        ("scoring.rows.0.seconds", "1.5"),
        ("scoring.machine.threads", -2),
        ("speed", {"measured": {}}),
        ("speed.measured.0", 7),
        ("speed.measured.0.machine", None),
        ("speed.measured.0.rows.0.images_per_second", -1.0),
        ("latency.rows.0.macs", [1, 2]),
        ("latency.rows.0.milliseconds.pytorch dense 1", "slow"),
        ("latency.runs", 3),
    ],
)
def test_wrong_measurements_are_set_aside_and_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, new: Any
) -> None:
    store = Store(tmp_path, "quick")
    write_checksummed(store.measurements(), MEASURED)
    assert measurements.kept(store, "latency") == [MEASURED["latency"]]
    write_checksummed(store.measurements(), put(MEASURED, path, new))
    for module in (measurements, cost):
        monkeypatch.setattr(module, "scoring_jobs", lambda *_: [])
    with pytest.warns(UserWarning, match=r"measurements.json.*set aside as measurements.corrupt"):
        measurements.scoring_costs(store, cost.Scoring(), "cpu")
    assert read_checksummed(store.measurements())["scoring"]["rows"] == []


def test_settings_of_one_data_set_are_not_taken_for_anothers(tmp_path: Path) -> None:
    store = Store(tmp_path, "quick:digits[:500]")
    write_checksummed(store.settings(), SETTINGS)
    with pytest.warns(UserWarning, match=r"is of profile quick, not of quick:digits\[:500\]"):
        Settings(store, "fp32", torch.device("cpu"), lambda: pytest.fail("data"))


def test_a_record_with_a_reference_of_another_seed_is_another_runs(tmp_path: Path) -> None:
    first, second = [record for record in PUBLISHED.values() if record["kind"] == "reference"][:2]
    store = Store(tmp_path, "quick")
    run = Run(reference=Reference.model_validate(first["config"]["reference"]))
    write_checksummed(store.record("reference", first["id"]), {**second, "id": first["id"]})
    with pytest.warns(UserWarning, match="is the record of another run"):
        assert read_record(store, run) is None
