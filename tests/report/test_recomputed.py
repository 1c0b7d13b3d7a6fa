"""Published numbers against a second computation that shares no code with the first, and what no record may contradict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fcs_utils.study.profiles import get_profile
from tests.report import recompute

PROFILES = sorted(path.parent.name for path in (recompute.ROOT / "results").glob("*/records.jsonl"))
BY_TRYING = ("length", "shortest", "longest", "effect")  # of epochs saved: as near as the tried numbers of epochs lie


def incomplete(profile: str) -> list[str]:
    """The runs of a published profile that have no record yet."""
    missing: list[str] = json.loads((recompute.ROOT / "results" / profile / "claims.json").read_text())["missing"]
    return missing


@pytest.mark.parametrize("profile", PROFILES)
def test_published_comparisons_come_out_again(profile: str) -> None:
    found = recompute.recompute(profile)
    wrong = [
        one for one in found if abs(one[2] - one[3]) > (2e-3 if one[1] in BY_TRYING and one[0].startswith("epochs that") else 1e-9)
    ]
    assert not wrong and (len(found) > 150 or incomplete(profile))
    decided = {row["comparison"] for row in recompute.read(profile)[2] if row["decisive"]}
    assert decided <= {one[0] for one in found if one[1] in ("effect", "reached")}


def test_the_second_computation_notices_one_changed_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, records, rows = recompute.read("quick")
    changed = next(r for r in records if r["kind"] == "tuned" and r["config"]["pruning"]["criterion"] == "kernel_l1")
    changed["result"]["test"] += 1
    monkeypatch.setattr(recompute, "read", lambda profile: (plan, records, rows))
    moved = {one[0] for one in recompute.recompute("quick") if abs(one[2] - one[3]) > 1e-2}
    assert any("FCS minus kernel L1 norm" in name for name in moved) and not any("near-duplicate" in name for name in moved)


@pytest.mark.parametrize("profile", PROFILES)
def test_choices_were_made_on_seeds_that_confirm_nothing(profile: str) -> None:
    known = get_profile(profile)
    confirming, pilots = {*known.seeds, *known.arms.further_seeds}, set(known.arms.pilot_seeds)
    assert not confirming & pilots
    seeds: dict[str, set[int]] = {}
    for line in (recompute.ROOT / "results" / profile / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        seeds.setdefault(record["kind"], set()).add(record["config"]["reference"]["seed"])
    of_public = {0}  # given networks, which are compared apart
    assert seeds.get("similarity", set()) <= confirming | of_public
    assert seeds.get("tuned", set()) == confirming | pilots or incomplete(profile)


def test_the_best_reading_has_the_highest_mean_on_pilot_seeds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def tuned(options: dict[str, object], seed: int, validation: float, epochs: int = 4, rate: float = 0.02) -> recompute.Row:
        cut = {"criterion": "fcs", "options": options, "ratio": 0.3}
        tuning = {"method": "tft", "training": {"epochs": epochs, "learning_rate": rate}}
        return {"config": {"pruning": cut, "tuning": tuning, "reference": {"seed": seed}}, "result": {"validation": validation}}

    plan = {"readings": {"candidates": ["fcs", "fcs bins=1"], "ratio": 0.3, "epochs": 4}, "arms": {"pilot_seeds": [100, 101]}}
    plan["tuning"] = {"learning_rate": 0.02}
    records = [tuned({}, 100, 70), tuned({}, 101, 72), tuned({"bins": 1}, 100, 80), tuned({"bins": 1}, 101, 63)]
    records += [tuned({"bins": 1}, 0, 99), tuned({"bins": 1}, 100, 99, epochs=8), tuned({}, 101, 99, rate=0.1)]
    monkeypatch.setattr(recompute, "read", lambda profile: (plan, records, []))
    assert recompute.best_reading("planted") == "fcs bins=1"  # 71.5 against 71
    records[3]["result"]["validation"] = 61
    assert recompute.best_reading("planted") == "fcs"


@pytest.mark.parametrize("profile", PROFILES)
def test_the_best_reading_is_the_one_that_validation_chose(profile: str) -> None:
    known = get_profile(profile)
    if known.best is None:
        pytest.skip("no reading was chosen")
    assert known.best == recompute.best_reading(profile)


def test_a_reading_with_options_is_compared_under_its_own_name() -> None:
    plan, records, _ = recompute.read("quick")
    for record in (changed := [r for r in records if r["kind"] == "tuned" and r["config"]["pruning"]["criterion"] == "fcs"]):
        record["config"]["pruning"]["options"] = {"redundancy": "max", "bins": 2}
        record["result"]["test"] += 1
    before = recompute.fine_tuned(*recompute.read("quick")[:2])
    tops = recompute.fine_tuned(plan, records)
    row = {"theirs": "kernel_l1", "network": "", "role": "", "decisive": True}
    literal, best = recompute.c2(before, row, "fcs"), recompute.c2(tops, row, "fcs bins=2 redundancy=max")
    assert changed and best["effect"] == pytest.approx(literal["effect"] + 1) and best["n"] == literal["n"]
