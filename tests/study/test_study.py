"""The smoke study from end to end: records, pages, refusals, determinism of a run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import papermill
import pytest

from fcs_utils.errors import OutOfTime
from fcs_utils.report.chapters import NOTEBOOKS
from fcs_utils.report.pages import shared_parts
from fcs_utils.study.grid import grid
from fcs_utils.study.guards import Deadline
from fcs_utils.study.profiles import get_profile
from fcs_utils.study.sections import Ablations
from fcs_utils.study.study import Study
from tests.conftest import command_here, study_command


def test_every_notebook_has_its_page_and_nothing_asks_the_network(smoke: Path) -> None:
    root = smoke / "smoke" / "work"
    pages = [root / "index.html", *(root / "pages" / f"{n.name}.html" for n in NOTEBOOKS.values())]
    for page in pages:
        html = page.read_text()
        assert not re.search(r'(?:src|href)="https?:', html)
        for target in re.findall(r'(?:src|href)="([^"#:]+)"', html):
            assert (page.parent / target).exists(), (page, target)
    assert json.loads((root / "claims.json").read_text())["verdicts"].keys() == {"C1a", "C1b", "C2", "C3", "C3 by compute"}


def test_a_second_start_does_nothing(smoke: Path) -> None:
    def files() -> dict[Path, int]:  # but for what tests of the explorer save meanwhile
        return {path: path.stat().st_mtime_ns for path in smoke.rglob("*") if path.is_file() and "explored" not in path.parts}

    before = files()
    done = study_command("study", "--profile", "smoke", "--out", str(smoke))
    assert done.returncode == 0 and "up to date" in done.stderr
    assert before == files()


def test_equal_runs_leave_equal_records_but_for_volatile(smoke: Path, tmp_path: Path) -> None:
    first, again = Study("smoke", smoke), Study("smoke", tmp_path)
    run = next(r for r in first.runs(["arms"]) if r.tuning and r.tuning.method == "mlft")
    again.ensure(run)
    for one in (run, run.parent(), run.parent().parent()):
        records = [{**study.record(one)} for study in (first, again)]  # copies: records are shared
        for record in records:
            assert record["provenance"]["threads"] == 1
            del record["volatile"]
        assert records[0] == records[1]


def test_criteria_are_compared_at_equal_macs_on_the_network_itself(smoke: Path) -> None:
    study = Study("smoke", smoke)
    by_ratio: dict[tuple[str, float], set[int]] = {}
    for record in study.records(["tuned"]):
        config = record["config"]
        key = (config["reference"]["network"], config["pruning"]["ratio"])
        by_ratio.setdefault(key, set()).add(record["result"]["cost"]["macs"])
    assert len(by_ratio) == len(study.profile.networks) * len(study.profile.ratios)
    assert all(len(macs) == 1 for macs in by_ratio.values())


def test_arms_start_from_the_same_weights_and_count_every_network(smoke: Path) -> None:
    study = Study("smoke", smoke)
    records = [r for r in study.records(["arms"]) if r["config"]["tuning"]["method"] != "scratch"]
    assert len({r["result"]["start"]["validation"] for r in records}) == 1
    by_method = {r["config"]["tuning"]["method"]: r["result"] for r in records if len(r["result"]["history"]) == 1}
    assert by_method.keys() == {"tft", "mlft", "twin", "kd"}
    compact, dense = (by_method["tft"][key]["macs"] for key in ("cost", "dense_cost"))
    shares = {
        name: result["history"][-1]["training_macs"] / by_method["tft"]["history"][-1]["training_macs"]
        for name, result in by_method.items()
    }
    # The twin has the same widths. The original costs three passes when it trains and one when it is frozen.
    assert shares == pytest.approx({"tft": 1, "twin": 2, "mlft": 1 + dense / compact, "kd": 1 + dense / compact / 3})
    # The arms' learning rates come from pilot seeds, which are in no other stage.
    assert {r["config"]["reference"]["seed"] for r in study.records(["rates"])} == {100}
    assert study.rates().keys() == {("vgg16", method) for method in by_method}


def test_scratch_gets_the_references_epochs_or_its_compute(smoke: Path) -> None:
    study = Study("smoke", smoke)
    records = {r["config"]["tuning"]["budget"]: r for r in study.records(["arms"]) if r["config"]["tuning"]["method"] == "scratch"}
    (reference,) = (r for r in study.records(["reference"]) if r["config"]["reference"]["network"] == "vgg16")
    assert len(records["epochs"]["result"]["history"]) == len(reference["result"]["history"])
    macs = [r["result"]["history"][-1]["training_macs"] for r in (records["macs"], reference)]
    one_epoch = records["macs"]["result"]["history"][0]["training_macs"]
    assert abs(macs[0] - macs[1]) <= one_epoch / 2
    assert records["epochs"]["result"]["start"]["validation"] < 40  # fresh weights, ten classes


def test_incomplete_grids_are_refused_or_list_what_is_missing(smoke: Path, tmp_path: Path) -> None:
    (tmp_path / "smoke").mkdir()
    shutil.copytree(smoke / "smoke" / "work" / "records", tmp_path / "smoke" / "work" / "records")
    shutil.copy(smoke / "smoke" / "work" / "study.json", tmp_path / "smoke" / "work")
    study = Study("smoke", tmp_path)
    gone = [next(r for r in study.runs([stage])) for stage in ("similarity", "tuned", "rates")]
    for run in gone:
        study.store.record(run.kind, run.identity).unlink()
    command = ["tables", "--profile", "smoke", "--out", str(tmp_path)]
    refused = command_here(*command)
    assert refused.returncode == 1 and refused.stderr.startswith("error: ") and gone[0].identity in refused.stderr
    allowed = command_here(*command, "--allow-missing")
    assert allowed.returncode == 0, allowed.stderr
    told = json.loads((tmp_path / "smoke" / "work" / "claims.json").read_text())
    listed = " ".join(told["missing"])
    assert all(run.identity in listed for run in gone) and "stage arms" in listed
    assert (tmp_path / "smoke" / "work" / "tables" / "not_run.csv").exists()
    assert told["verdicts"].keys() == {"C1a", "C1b", "C2"}


def test_ablations_run_on_the_networks_and_seeds_they_name() -> None:
    quick = get_profile("quick")
    some = Ablations(calibrations=(50,), headstart=1, networks=("resnet20",), seeds=2)
    every = some.model_copy(update={"networks": None, "seeds": None})

    def on(ablations: Ablations) -> set[tuple[str, int]]:
        runs = grid(quick.model_copy(update={"ablations": ablations}), "fp32")["ablation"]
        return {(run.reference.network, run.reference.seed) for run in runs}

    assert on(some) == {("resnet20", 0), ("resnet20", 1)}
    assert on(every) == {(network.network, seed) for network in quick.networks for seed in quick.seeds}


def test_further_seeds_train_references_and_arms_and_nothing_else() -> None:
    smoke = get_profile("smoke")
    more = smoke.model_copy(update={"arms": smoke.arms.model_copy(update={"further_seeds": (7,)})})
    rates = {(network, method): 0.02 for network in smoke.arms.networks for method in smoke.arms.methods}
    before, after = (grid(profile, "fp32", rates) for profile in (smoke, more))
    added = {stage: [run for run in runs if run not in before[stage]] for stage, runs in after.items()}
    assert {stage for stage, runs in added.items() if runs} == {"reference", "arms"}
    assert [(run.reference.network, run.reference.seed) for run in added["reference"]] == [("vgg16", 7)]
    assert {run.reference.seed for run in added["arms"]} == {7}
    assert {(run.tuning.method, run.tuning.training.epochs) for run in added["arms"] if run.tuning} == {
        (method, epochs) for method in smoke.arms.methods for epochs in smoke.arms.epochs
    }


def test_footers_count_the_arms_whichever_chapter_is_rendered(smoke: Path) -> None:
    study = Study("smoke", smoke)
    assert shared_parts(study)["runs"] == "{0} of {0}".format(len(Study("smoke", smoke).runs()))


def test_missing_records_are_refused_by_name(tmp_path: Path) -> None:
    done = command_here("publish", "--profile", "smoke", "--out", str(tmp_path))
    assert done.returncode == 1 and "have no record" in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("leyer", "x"),
        pytest.param("layer", "features.conv99", marks=pytest.mark.slow),
        pytest.param("seed", 7, marks=pytest.mark.slow),
    ],
)
def test_bad_notebook_parameters_fail_with_their_name(smoke: Path, tmp_path: Path, name: str, value: object) -> None:
    parameters = {"profile": "smoke", "out": str(smoke), name: value}
    with pytest.raises(papermill.PapermillExecutionError, match=name):
        papermill.execute_notebook(
            str(NOTEBOOKS["02"].source), str(tmp_path / "out.ipynb"), parameters, kernel_name="python3", progress_bar=False
        )


def test_time_that_is_up_within_an_epoch_ends_the_run_at_the_next_batch(tmp_path: Path) -> None:
    class Countdown(Deadline):
        """Time for the check before a run, and for three batches."""

        checks = 0

        def check(self, needed: float = 0.0) -> None:
            self.checks += 1
            if self.checks > 4:
                raise OutOfTime("the time budget is used up")

    study = Study("smoke", tmp_path)
    reference, tuned = study.runs(["reference"])[0], study.runs(["tuned"])[0]
    for run in (reference, tuned):
        if parent := run.parent():
            study.bench.deadline = Deadline()
            study.ensure(parent)
        study.bench.deadline = Countdown()
        with pytest.raises(OutOfTime, match="used up, within epoch 1 of vgg16 x0.125 seed 0.*; 0 of its epochs are saved"):
            study.ensure(run)
        assert study.bench.deadline.checks == 5
        assert study.record(run) is None


def test_passes_that_a_machine_lacks_are_refused_before_results_are_set_aside(tmp_path: Path) -> None:
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / "mine.txt").write_text("kept")
    done = command_here("run", "--profile", "smoke", "--out", str(tmp_path), "--fresh", "--passes", "graphs", "--device", "cpu")
    assert done.returncode == 1 and "passes='graphs' is not allowed" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["smoke"] and (tmp_path / "smoke" / "mine.txt").exists()
