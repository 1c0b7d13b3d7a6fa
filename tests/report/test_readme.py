"""What pages and READMEs say of the published records."""

from __future__ import annotations

import json
import re
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from fcs_utils.report.figures import FIGURES
from fcs_utils.report.frames import Report
from fcs_utils.report.readme import found
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


def test_a_claim_that_only_given_networks_speak_of_has_no_verdict() -> None:
    rows = [("C1a", True, "supported"), ("C1a", False, "undecided"), ("C1b", False, "supported"), ("C2", True, "undecided")]
    report: Any = SimpleNamespace(ledger=pd.DataFrame(rows, columns=["claim", "decisive", "verdict"]))
    first, second, third = found(report, dict.fromkeys(("C1a", "C1b", "C2"), "So it is.")).splitlines()
    assert first == "- **Redundancy (C1a): supported.** So it is." and third.endswith("reading): undecided.** So it is.")
    assert "own question): no verdict yet, for no network trained here has been compared.** So it is." in second
