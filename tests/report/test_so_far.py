"""What the records say so far: chapters of an incomplete study, without a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from fcs_utils.errors import StudyError
from fcs_utils.report import publish
from fcs_utils.report.chapters import NOTEBOOKS
from fcs_utils.report.figures import base_of
from fcs_utils.report.notebook import RecordsOnly, open_reference
from fcs_utils.report.schedules import of_both
from fcs_utils.study.records import Store
from fcs_utils.study.study import Study
from tests.conftest import command_here


@pytest.fixture
def part(smoke: Path, tmp_path: Path) -> Store:
    """A smoke study of which a fine-tuning by the kernels' norm and every head start are missing, and nothing is rendered."""
    for name in ("records", "weights"):
        shutil.copytree(smoke / "smoke" / "work" / name, tmp_path / "smoke" / "work" / name)
    shutil.copy(smoke / "smoke" / "work" / "study.json", tmp_path / "smoke" / "work")
    study = Study("smoke", tmp_path)
    gone = [run for run in study.runs(["tuned"]) if run.pruning and run.pruning.criterion == "kernel_l1"][:1]
    other = {run.identity for stage in ("tuned", "pruned", "arms") for run in study.runs([stage])}
    for run in [*gone, *(run for run in study.runs(["headstart"]) if run.identity not in other)]:
        study.store.record(run.kind, run.identity).unlink()
    return study.store


@pytest.mark.slow
def test_chapters_show_what_there_is_and_those_without_a_record_are_left_out(
    part: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    records = {path: path.read_bytes() for path in part.all_records()}
    shown = ("04", "05", "09")
    publish.build("smoke", part.root.parent, None, ",".join(shown), 1, allow_missing=True)
    assert {path: path.read_bytes() for path in part.all_records()} == records
    assert "chapter left out: notebook 04_pruning failed: NoPairs: no pairs: seeds are [] against [0]" in capsys.readouterr().err
    assert {path.name for path in (part.work / "pages").iterdir()} == {"05_baseline_criteria.html", "09_paper_tables.html"}
    text = "".join(
        output.get("data", {}).get("text/markdown", "")
        for name in ("05_baseline_criteria", "09_paper_tables")
        for cell in nbformat.read(part.executed(name), as_version=4).cells
        for output in cell.get("outputs", [])
    )
    assert "**C2 has no verdict yet, for not all planned runs are done**" in text
    assert "planned runs have no record yet.**" in text and "Nothing of this has a record yet." in text
    publish.build("smoke", part.root.parent, None, "05,09", 1, allow_missing=True)
    assert "everything is up to date" in capsys.readouterr().err
    wanted = {number: NOTEBOOKS[number] for number in ("05", "09")}
    assert not publish._current(part, wanted) and {*publish._stale(part, wanted)} == {*wanted}


def test_the_study_behind_such_a_chapter_does_no_run(part: Store) -> None:
    study = RecordsOnly("smoke", part.root.parent)
    whole, found = study.runs(["tuned"]), study.run(["tuned"])
    missing = [run.identity for run in whole if run.identity not in {record["id"] for record in found}]
    assert len(found) == len(whole) - 1 and len(missing) == 1
    (reference,) = part.work.glob(f"records/reference-{study.runs(['reference'])[0].identity}.json")
    reference.unlink()
    with pytest.raises(StudyError, match="has no record yet, and no run is done here"):
        open_reference(study, "", 0)


def test_fresh_results_have_no_records_to_show(tmp_path: Path) -> None:
    done = command_here("study", "--profile", "smoke", "--out", str(tmp_path), "--fresh", "--allow-missing")
    assert done.returncode == 1 and "give either --allow-missing, which does no run, or --fresh" in done.stderr


def test_two_arms_are_compared_on_the_schedules_of_both() -> None:
    ours = pd.DataFrame({"network": "n", "seed": [0, 0, 1], "epochs": [4, 8, 4], "test": [1.0, 2.0, 3.0]})
    theirs = pd.DataFrame({"network": "n", "seed": [0, 0, 2], "epochs": [4, 16, 4], "test": [4.0, 5.0, 6.0]})
    first, second = of_both(ours, theirs)
    assert first.test.tolist() == [1.0] and second.test.tolist() == [4.0]
    first, second = of_both(ours, theirs.assign(network="other"))
    assert first.empty and second.empty


def test_all_seeds_stand_for_the_same_schedules() -> None:
    def arm(*runs: tuple[int, int]) -> pd.DataFrame:
        return pd.DataFrame([{"network": "n", "seed": seed, "epochs": epochs} for seed, epochs in runs])

    # Two seeds have both after 4 and after 8 epochs; after 16, one of them has.
    first, second = of_both(arm((0, 4), (1, 4), (0, 8), (1, 8), (0, 16)), arm((1, 4), (0, 4), (0, 8), (1, 8), (2, 8), (0, 16)))
    assert {*zip(first.seed, first.epochs, strict=True)} == {*zip(second.seed, second.epochs, strict=True)}
    assert {*first.epochs} == {4, 8}
    # As KD on CIFAR-10: three seeds after 8 epochs, the other two after 16.
    kd = arm((2, 8), (3, 8), (4, 8), (0, 16), (1, 16))
    tft = arm(*((seed, epochs) for seed in range(5) for epochs in (8, 16)))
    first, second = of_both(kd, tft)
    assert {*first.epochs} == {*second.epochs} == {8} and {*second.seed} == {2, 3, 4}


def runs_of(counts: dict[tuple[str, float, str], int]) -> pd.DataFrame:
    rows = [
        {"network": network, "ratio": ratio, "criterion": name, "seed": seed}
        for (network, ratio, name), seeds in counts.items()
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def test_criteria_are_shown_against_one_that_all_networks_and_ratios_have() -> None:
    whole = {("a", 0.3, "fcs"): 5, ("a", 0.3, "kernel_l1"): 5, ("a", 0.3, "random"): 5}
    assert base_of(runs_of(whole)) == "random"
    assert base_of(runs_of({**whole, ("a", 0.3, "random"): 2})) == "kernel_l1"
    given = {("b", 0.3, "fcs"): 1, ("b", 0.3, "kernel_l1"): 1}
    assert base_of(runs_of({**whole, **given})) == "kernel_l1"
    assert base_of(runs_of({("a", 0.3, "fcs"): 2, ("b", 0.3, "fcs"): 1, ("b", 0.3, "x"): 2})) == "fcs"
    assert base_of(runs_of({("a", 0.3, "y"): 2, ("b", 0.3, "x"): 2})) == "y"


def test_without_a_record_no_chapter_has_anything_to_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish.build("smoke", tmp_path, None, "01,09", 1, allow_missing=True)
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if line.startswith("chapter left out: ")] == [
        f"chapter left out: {NOTEBOOKS[number].name}: no record of any run yet" for number in ("01", "09")
    ]
    assert "Not complete" in (tmp_path / "smoke" / "work" / "index.html").read_text()
