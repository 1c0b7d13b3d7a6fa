"""A criterion from outside: a module that a study names, part of the identity of the runs that it decides."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fcs_utils.errors import StudyError
from fcs_utils.study import runs, sections
from fcs_utils.study.grid import grid
from fcs_utils.study.profiles import get_profile, import_plugins
from fcs_utils.study.runs import Run
from fcs_utils.training import arms
from tests.conftest import ROOT

MODULE = """
from fcs_utils.pruning.criteria import criterion

@criterion("mine", reads="statistics", reading="the map's L1 norm, backwards")
def mine(statistics):
    return {sign}statistics.l1
"""
SCRIPT = """
import json, sys
from fcs_utils import Study
from fcs_utils.study.profiles import get_profile

if __name__ == "__main__":
    changes = {"dataset": "digits[:128]", "criteria": ("kernel_l1", "mine"), "plugins": ("mycriteria",)}
    profile = get_profile("smoke").model_copy(update=changes)
    study = Study(profile, sys.argv[1])
    only = ["network=vgg16", "criterion=mine", "criterion=kernel_l1", "ratio=0.5"]
    records = study.run(["pruned"], workers=2, only=only)
    print(json.dumps(records))
"""


def run_script(folder: Path, script: str = SCRIPT) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    command = [sys.executable, "script.py", "out"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_workers_do_a_criterion_from_outside_and_editing_it_makes_other_runs(tmp_path: Path) -> None:
    found = []
    for sign, script in (("-", SCRIPT), ("1 * ", SCRIPT.replace("workers=2", "workers=1"))):  # with workers and without
        (tmp_path / "mycriteria.py").write_text(MODULE.format(sign=sign))
        done = run_script(tmp_path, script)
        assert done.returncode == 0, done.stderr
        found.append({record["config"]["pruning"]["criterion"]: record for record in json.loads(done.stdout)})
    before, after = found
    assert before["kernel_l1"] == after["kernel_l1"] and "source" not in before["kernel_l1"]["config"]["pruning"]
    assert before["mine"]["id"] != after["mine"]["id"]
    assert before["mine"]["result"]["plan"] != after["mine"]["result"]["plan"]  # each by its own function
    edited = before["mine"]["config"]
    edited["pruning"]["source"] = after["mine"]["config"]["pruning"]["source"]
    assert Run.model_validate(edited).identity == after["mine"]["id"]  # the source is all that tells them apart


def test_a_module_that_is_edited_under_a_running_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mycriteria.py").write_text(MODULE.format(sign="-"))
    edit = f"    from pathlib import Path\n    Path('mycriteria.py').write_text({MODULE.format(sign='1 * ')!r})\n    only ="
    done = run_script(tmp_path, SCRIPT.replace("    only =", edit))
    assert done.returncode == 1 and "its module was edited; start again" in done.stderr, done.stderr
    assert "1 run failed, the others have their records" in done.stderr


ARM = """
from fcs_utils.training.arms import Arm, register_arm
from fcs_utils.training.losses import cross_entropy

register_arm(Arm("own", "own arm", loss=lambda: cross_entropy))
"""


def test_an_arm_from_outside_is_part_of_its_runs_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(arms, "ARMS", dict(arms.ARMS))
    for module in (runs, sections):
        monkeypatch.setattr(module, "ARMS", arms.ARMS)
    smoke, found = get_profile("smoke"), []
    for edit in ("", "# edited"):
        (tmp_path / "own_arm.py").write_text(ARM + edit)
        sys.modules.pop("own_arm", None)
        import_plugins(["own_arm"])
        methods = {"arms": smoke.arms.model_copy(update={"methods": ("tft", "own")})}
        stages = grid(smoke.model_copy(update=methods), "fp32", {("vgg16", "tft"): 0.02, ("vgg16", "own"): 0.02})
        found.append({run.tuning.method: run for run in stages["rates"]})
    before, after = found
    assert before["tft"] == after["tft"] and before["tft"].tuning.source is None
    assert before["own"].tuning.source == hashlib.sha256(ARM.encode()).hexdigest()
    assert before["own"].identity != after["own"].identity


def test_an_arm_that_a_script_registers_is_refused_by_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(arms.ARMS, "scripted", arms.Arm("scripted", "scripted", module="__main__"))
    with pytest.raises(StudyError, match="arm 'scripted' is registered in __main__, .* a study needs a module"):
        arms.code_of_arm("scripted")


@pytest.mark.parametrize(
    ("code", "message"),
    [("", "No module named 'broken_plugin'"), ("1 / 0", "ZeroDivisionError"), (MODULE.replace("mine", "fcs"), "not taken")],
)
def test_a_plugin_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    if code:
        (tmp_path / "broken_plugin.py").write_text(code.format(sign=""))
    with pytest.raises(StudyError, match=message):
        import_plugins(["broken_plugin"])


def test_a_plugin_is_found_in_the_current_folder_by_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_us.py").write_text("")
    monkeypatch.chdir(tmp_path)
    paths = [path for path in sys.path if path not in ("", str(tmp_path))]  # those of fcs-mlft, which pip installs
    monkeypatch.setattr(sys, "path", list(paths))
    import_plugins(["beside_us"])
    assert "beside_us" in sys.modules and sys.path == paths
