"""The set-up files agree, notebooks are clean sources, the command line refuses nonsense."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from PIL import Image

from fcs_utils import cli as options
from fcs_utils.report.chapters import HEADLINE, NOTEBOOKS
from fcs_utils.report.frames import make_report
from fcs_utils.report.readme import ledger_digest
from fcs_utils.study import grid, profiles
from fcs_utils.study.study import Study
from tests.conftest import ROOT, study_command


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def test_environment_lock_and_project_agree() -> None:
    from packaging.requirements import Requirement

    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    lock = {canonical(name): version for name, version in (line.split("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    needs = {canonical(need.name): need for need in map(Requirement, wanted)}
    assert all(need.specifier.contains(lock[name]) for name, need in needs.items())
    assert needs["torch"].specifier.contains("2.6.0") and not needs["torch"].specifier.contains("2.5.1")
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    assert {canonical(line.split("==")[0]): line.split("==")[1] for line in conda} == {name: lock[name] for name in needs}


def test_the_command_line_names_the_real_tables() -> None:
    assert tuple(profiles.PROFILES) == options.PROFILES and grid.STAGES == options.STAGES


@pytest.mark.parametrize("notebook", NOTEBOOKS.values(), ids=lambda n: n.name)
def test_source_notebooks_are_clean(notebook) -> None:
    content = nbformat.read(notebook.source, as_version=4)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert max(len(cell.source.splitlines()) for cell in code) <= 20
    (parameters,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert all(re.fullmatch(r"\w+: \w+ = .+  # .+", line) for line in parameters.source.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "--profile", "quik"], "quik"),
        (["study", "--profile", "paper:"], "'paper:' is not allowed"),
        (["run", "--profile", "quick:../x"], "'quick:../x' is not allowed"),
        (["run", "--profile", "smoke:nowhere", "--out", "results-nowhere"], "dataset='nowhere'"),
        (["study", "--workers", "0", "--parse-only"], "'0' is not allowed"),
        (["study", "--notebooks", "3"], "notebooks='3'"),
        (["study", "--notebook", "03"], "--notebook"),
        (["study", "--data", "/nowhere"], "data='/nowhere'"),
        (["study", "--out", "README.md"], "out='README.md'"),
        (["run", "--stages", "prunned"], "prunned"),
        (["run", "--device", "tpu"], "tpu"),
        (["runn"], "runn"),
    ],
)
def test_wrong_input_is_one_clear_line(arguments: list[str], message: str) -> None:
    done = study_command(*arguments)
    assert done.returncode in (1, 2) and message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("tool", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join)
def test_style_and_types(tool: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_rooms_import_downwards_only() -> None:
    done = subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-logo"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_readme_is_fresh() -> None:
    done = subprocess.run([sys.executable, "-m", "cogapp", "--check", "README.md"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, "README.md is stale; renew it with: python -m cogapp -r README.md"
    study = Study(HEADLINE, ROOT / "results")
    with Image.open(study.store.published(study.store.figure("readme"))) as picture:
        assert picture.info["Source"] == ledger_digest(make_report(study)), "its figure is stale; renew it with: publish"
