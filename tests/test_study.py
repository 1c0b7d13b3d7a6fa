"""The smoke study from end to end: records, pages, refusals, determinism of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import papermill
import pytest

from fcs_utils.publish import NOTEBOOKS
from fcs_utils.study import Study
from tests.conftest import study_command


def test_every_notebook_has_its_page_and_nothing_asks_the_network(smoke: Path) -> None:
    root = smoke / "smoke"
    pages = [root / "index.html", *(root / "pages" / f"{n.name}.html" for n in NOTEBOOKS.values())]
    for page in pages:
        html = page.read_text()
        assert not re.search(r'(?:src|href)="https?:', html)
        for target in re.findall(r'(?:src|href)="([^"#:]+)"', html):
            assert (page.parent / target).exists(), (page, target)
    assert json.loads((root / "claims.json").read_text())["verdicts"].keys() == {"C1", "C2", "C3", "C3 by compute"}


def test_a_second_start_does_nothing(smoke: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in smoke.rglob("*") if path.is_file()}
    done = study_command("study", "--profile", "smoke", "--out", str(smoke))
    assert done.returncode == 0 and "up to date" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in smoke.rglob("*") if path.is_file()}


def test_equal_runs_leave_equal_records_but_for_volatile(smoke: Path, tmp_path: Path) -> None:
    first, again = Study("smoke", smoke), Study("smoke", tmp_path)
    run = next(r for r in again.runs(["arms"]) if r.tuning and r.tuning.method == "mlft")
    again.ensure(run)
    for one in (run, run.parent(), run.parent().parent()):
        records = [study.record(one) for study in (first, again)]
        for record in records:
            del record["volatile"]
        assert records[0] == records[1]


def test_criteria_are_compared_at_equal_macs_on_the_network_itself(smoke: Path) -> None:
    study = Study("smoke", smoke)
    by_ratio: dict[tuple[str, float], set[int]] = {}
    for record in study.records(["tuned"]):
        config = record["config"]
        key = (config["reference"]["network"], config["pruning"]["ratio"])
        by_ratio.setdefault(key, set()).add(record["result"]["cost"]["macs"])
    assert len(by_ratio) == 4 and all(len(macs) == 1 for macs in by_ratio.values())


def test_missing_records_are_refused_by_name(tmp_path: Path) -> None:
    done = study_command("readme", "--profile", "smoke", "--out", str(tmp_path), "--check")
    assert done.returncode == 1 and "have no record" in done.stderr


@pytest.mark.parametrize(("name", "value"), [("leyer", "x"), ("layer", "features.conv99"), ("seed", 7)])
def test_bad_notebook_parameters_fail_with_their_name(smoke: Path, tmp_path: Path, name: str, value: object) -> None:
    parameters = {"profile": "smoke", "out": str(smoke), name: value}
    with pytest.raises(papermill.PapermillExecutionError, match=name):
        papermill.execute_notebook(
            str(NOTEBOOKS["02"].source), str(tmp_path / "out.ipynb"), parameters, kernel_name="python3", progress_bar=False
        )
