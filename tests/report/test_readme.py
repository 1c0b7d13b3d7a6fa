"""What pages and READMEs say of the published records."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from fcs_utils.report.comparisons import await_plan, judge
from fcs_utils.report.figures import FIGURES
from fcs_utils.report.frames import Report, make_report
from fcs_utils.report.planning import claims_that_wait, found_so_far
from fcs_utils.report.readme import TOPICS, found
from fcs_utils.study.study import Study
from tests.conftest import ROOT

PROFILES = sorted(path.parent.name for path in (ROOT / "results").glob("*/records.jsonl"))


def test_the_history_counts_the_commits_of_the_published_records() -> None:
    text = (ROOT / "docs" / "history.md").read_text()
    said = {(m[1], m[2]): int(m[3].replace(",", "")) for m in re.finditer(r"^ *\| `(\w+)` \| (\S+) \| ([\d,]+) \|$", text, re.M)}
    counts = Counter(
        (profile, json.loads(line)["volatile"]["commit"])
        for profile in PROFILES
        for line in (ROOT / "results" / profile / "records.jsonl").read_text().splitlines()
    )
    assert said == counts and "no published record is marked so" in " ".join(text.split())
    assert not any("modified" in commit for _, commit in counts)


@pytest.mark.parametrize("profile", PROFILES)
def test_published_pictures_are_described_and_tables_hold_corrected_p_values(profile: str) -> None:
    text = (ROOT / "results" / profile / "README.md").read_text()
    pictures = dict(re.findall(r"!\[(.*?)\]\(figures/(\w+)\.png\)", text))
    assert all(FIGURES.about(name) == about for about, name in pictures.items())
    claims = json.loads((ROOT / "results" / profile / "claims.json").read_text())
    informs = [row for row in claims["comparisons"] if not row["decisive"]]
    assert (informs or claims["missing"]) and all(
        row["p_holm"] is None and (row["p"] is not None or row["unit"] == "% of epochs" or row["n"] == 1) for row in informs
    )
    if not claims["comparisons"]:  # hardly begun
        return
    table = (ROOT / "results" / profile / "tables" / "claims.csv").read_text().splitlines()
    assert len(table) == len(claims["comparisons"]) + 1 and not any("(<" in line or "(0." in line for line in table)


def test_every_figure_is_described_in_a_line_of_its_own() -> None:
    about = {name: FIGURES.about(name) for name in FIGURES}
    assert len(set(about.values())) == len(about) > 7 and Report.figures.__doc__
    assert all(line.endswith(".") and len(line.split()) > 5 and name not in line for name, line in about.items())


def test_a_claim_without_a_decisive_comparison_has_no_verdict() -> None:
    seeds, networks = "trained seed", "network"
    rows = [("C1a", True, "supported", seeds), ("C1a", False, "undecided", seeds), ("C1b", False, "supported", networks)]
    rows += [("C2", True, "undecided", seeds), ("C3", False, "supported", seeds), ("C3", False, "supported", networks)]
    report: Any = SimpleNamespace(ledger=pd.DataFrame(rows, columns=["claim", "decisive", "verdict", "replicate"]))
    report.tuned = report.schedules = report.unfinished = pd.DataFrame()
    first, second, third, fourth = found(report, dict.fromkeys(("C1a", "C1b", "C2", "C3"), "So it is.")).splitlines()
    assert first == "- **Redundancy (C1a): supported.** So it is." and third.endswith("reading): undecided.** So it is.")
    assert "own question): no verdict yet, for no network trained here has been compared.** So it is." in second
    assert fourth == "- **Epochs (C3): no verdict yet, for not all planned runs are done.** So it is."


def test_a_comparison_decides_once_all_planned_seeds_are_there() -> None:
    rows = [judge("C2", label, "question", differences) for label, differences in (("all", [1.0, 2.0, 3.0]), ("two", [1.0, 2.0]))]
    waiting = await_plan([*rows, judge("C2", "informs", "question", [1.0] * 4, decisive=False)], 3)
    assert [(row["label"], row["decisive"]) for row in waiting] == [("all", True), ("two", False), ("informs", False)]
    assert [row["decisive"] for row in await_plan(rows, 0)] == [True, True]


def test_part_of_a_profile_s_seeds_gives_no_verdict() -> None:
    study = Study("quick", ROOT / "results")
    report = make_report(study, allow_missing=True)
    decided = set(report.ledger.claim[report.ledger.decisive])
    some = {stage: [one for one in records if one["config"]["reference"]["seed"] < 4] for stage, records in study.found().items()}
    part = Report(some, study.settings.validation_images, planned=len(study.profile.seeds))
    assert len(decided) >= 4 and len(part.ledger) and not part.ledger.decisive.any()


def test_a_claim_waits_for_every_run_that_decides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study("quick", ROOT / "results")
    tuned, arms = study.runs(["tuned"]), study.runs(["arms"])

    def waiting(stage: str, word: str) -> set[str]:
        """What waits where the last run of a criterion, at one ratio only, or of an arm is not done."""
        runs = [run for run in {"tuned": tuned, "arms": arms}[stage] if run.pruning and run.tuning]
        last = [run for run in runs if word in (run.pruning.criterion, run.tuning.method)][-1]
        monkeypatch.setattr(study, "pending", lambda stages: [last] if stages == [stage] else [])
        return claims_that_wait(study)

    both, by_epochs = {"C2", "C2, best reading"}, {"C3", "C3 by compute"}
    assert waiting("tuned", "kernel_l1") == waiting("tuned", "feature_norm") == both and waiting("tuned", "fcs") == {"C2"}
    assert waiting("tuned", "random") == waiting("arms", "kd") == set()
    assert waiting("arms", "tft") == waiting("arms", "mlft") == by_epochs
    report = make_report(study, allow_missing=True)  # of which a run of MLFT is called not done
    verdicts = dict(
        line.removeprefix("- **").split(":** ")[0].split(": ", 1)
        for line in found(report, defaultdict(str)).splitlines()
        if line.startswith(tuple(f"- **{topic}" for topic in TOPICS.values()))
    )
    assert verdicts["Epochs (C3)"].startswith("no verdict yet, for not all planned runs are done")
    assert not report.ledger.decisive[report.ledger.claim.isin(by_epochs)].any() and "Redundancy (C1a)" in verdicts
    assert report.ledger.decisive[report.ledger.claim == "C2"].any()


def test_no_rate_is_chosen_before_all_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study("quick", ROOT / "results")
    assert found_so_far(study) == study.found() and study.found()["rates"]
    monkeypatch.setattr(study, "rates", lambda: None)
    assert found_so_far(study) == {**study.found(), "rates": []}
