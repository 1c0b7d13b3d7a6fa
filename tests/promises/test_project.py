"""The set-up files agree, scripts start anywhere, notebooks are clean sources, code passes its checkers."""

from __future__ import annotations

import importlib.metadata
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from PIL import Image

from fcs_utils import machine
from fcs_utils.files import write_atomic
from fcs_utils.report.chapters import NOTEBOOKS
from fcs_utils.report.frames import make_report
from fcs_utils.report.readme import ledger_digest
from fcs_utils.study import catalogue
from fcs_utils.study.catalogue import HEADLINE
from fcs_utils.study.profiles import get_profile
from fcs_utils.study.study import Study
from tests.conftest import ROOT, study_command

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def locked() -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    return {canonical(name): version for name, version in (line.split("==") for line in lines)}


def test_environment_lock_and_project_agree() -> None:
    lock, project = locked(), PYPROJECT["project"]
    wanted = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    needs = {canonical(need.name): need for need in map(Requirement, wanted)}
    assert all(need.specifier.contains(lock[name]) for name, need in needs.items())
    assert needs["torch"].specifier.contains("2.6.0") and not needs["torch"].specifier.contains("2.5.1")
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    assert {canonical(line.split("==")[0]): line.split("==")[1] for line in conda} == {name: lock[name] for name in needs}


def test_every_locked_version_installs_on_the_oldest_python() -> None:
    """Debian 12 has Python 3.11.2, and a package may ask for 3.11.5."""
    oldest, compared = "3.11.0", 0
    assert SpecifierSet(PYPROJECT["project"]["requires-python"]).contains(oldest)
    for name, version in locked().items():
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # of another platform
            continue
        if found.version.split("+")[0] == version:
            compared += 1
            assert SpecifierSet(found.metadata.get("Requires-Python", "")).contains(oldest), f"{name} {version}"
    assert compared > 50


LOGS = {
    """ERROR: Ignored the following versions that require a different python version: 4.0 Requires-Python >=3.12; \
4.1.2 Requires-Python >=3.11.5; 4.1.3 Requires-Python >=3.11.6
ERROR: Could not find a version that satisfies the requirement soupsieve==4.1.2 (from versions: 2.9, 2.10)
ERROR: No matching distribution found for soupsieve==4.1.2
""": r"No matching distribution found for soupsieve==4.1.2; it needs Python >=3.11.5, this is [\d.]+\S*",
    """ERROR: Could not find a version that satisfies the requirement torch==2.0 (from versions: none)
ERROR: No matching distribution found for torch==2.0
""": r"No matching distribution found for torch==2.0; the package index could not be reached or does not have it",
    """Collecting torch
ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device
""": r"Could not install packages due to an OSError: \[Errno 28\] No space left on device",
    "Killed": "Killed",
    "": "pip said nothing",
}


@pytest.mark.parametrize("log", LOGS)
def test_a_failed_installation_names_its_cause(log: str) -> None:
    assert re.fullmatch(LOGS[log], runpy.run_path(str(ROOT / ".ci" / "cause.py"))["cause"](log))


def test_scripts_keep_their_line_ends_and_records_are_marked_as_generated() -> None:
    paths = ["run_all.sh", "run_tests.sh", ".ci/run", ".ci/venv.sh", "results/quick/study.json", "a.safetensors"]
    command = ["git", "check-attr", "eol", "diff", "linguist-generated", "--", *paths]
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    said = set(done.stdout.splitlines())
    assert said >= {f"{path}: eol: lf" for path in paths[:4]}
    assert said >= {"results/quick/study.json: linguist-generated: set", "a.safetensors: diff: unset"}


def test_every_profile_and_stage_is_described() -> None:
    helped = study_command("run", "--help").stdout
    for name in catalogue.profile_names():
        assert get_profile(name).name == name and get_profile(name).summary in helped
    assert tuple(catalogue.ABOUT_STAGES) == catalogue.STAGES
    assert all(f"  {stage:<17}{about}\n" in helped for stage, about in catalogue.ABOUT_STAGES.items())


def test_a_profile_extends_another_but_for_what_it_says() -> None:
    one, other = (get_profile(name).model_dump() for name in ("paper", "paper-resnet110"))
    assert {key for key in one if one[key] != other[key]} == {"name", "summary", "networks", "arms", "scoring", "speed"}
    assert {key for key in one["arms"] if one["arms"][key] != other["arms"][key]} == {"networks"}


def test_pages_name_files_that_are_there() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {name for page in pages for name in re.findall(r"`((?:fcs_utils|tests|docs)/[\w./]+)`", page.read_text())}
    named = {name for name in named if "NAME" not in name}
    assert len(named) > 15 and not {name for name in named if not (ROOT / name).exists()}


PORTABLE = """
import os, sys
import fcs_utils.study.study, sklearn.datasets  # before Python is told that this is no Linux
for name in ("sched_getaffinity", "O_DIRECTORY"):
    delattr(os, name) if hasattr(os, name) else None
os.environ.pop("GLIBC_TUNABLES", None)
os.execv = lambda *_: sys.exit("started again, as only glibc needs it")
sys.platform = "darwin"
from fcs_utils.cli import console
sys.exit(console())
"""


def test_a_machine_without_affinity_and_proc_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sched_getaffinity", "O_DIRECTORY"):
        monkeypatch.delattr(os, name, raising=False)
    assert machine.pick_workers(None, torch.device("cpu")) == os.cpu_count()
    write_atomic(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(FileNotFoundError()))
        assert machine._cpu_name.__wrapped__()


@pytest.mark.slow
def test_runs_need_nothing_that_only_linux_has(tmp_path: Path) -> None:
    arguments = ["run", "--profile", "smoke", "--out", str(tmp_path), "--stages", "reference", "--only", "network=resnet20"]
    done = subprocess.run([sys.executable, "-c", PORTABLE, *arguments, "--workers", "1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "records of 1 run of profile smoke are in " in done.stdout, done.stderr


def test_the_tests_that_the_promises_name_exist() -> None:
    text = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    promises = [line.rsplit("|", 2)[1] for line in (ROOT / "docs/reliability.md").read_text().splitlines() if line.startswith("|")]
    missing, named = [], 0
    for promise in promises:
        module = ""
        for name in re.findall(r"`([^`.]+)`", promise):  # names with a dot are files
            module, name = name.split(": ") if ": " in name else (module, name)
            named += 1
            if f"def test_{name}" not in text.get(module, ""):
                missing.append(f"{module}: {name}")
    assert named > 30 and not missing


@pytest.mark.parametrize("notebook", NOTEBOOKS.values(), ids=lambda n: n.name)
def test_source_notebooks_are_clean(notebook) -> None:
    content = nbformat.read(notebook.source, as_version=4)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert max(len(cell.source.splitlines()) for cell in code) <= 20
    (parameters,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert all(re.fullmatch(r"\w+: \w+ = .+  # .+", line) for line in parameters.source.splitlines())


@pytest.mark.parametrize(
    "tool", [["ruff", "check"], ["ruff", "format", "--check"], pytest.param(["mypy"], marks=pytest.mark.slow)], ids=" ".join
)
def test_style_and_types(tool: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_rooms_import_downwards_only() -> None:
    done = subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-logo"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_readme_is_fresh() -> None:
    done = subprocess.run([sys.executable, "-m", "cogapp", "--check", "README.md"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, "README.md is stale; renew it with: python -m cogapp -r README.md"
    study = Study(HEADLINE, ROOT / "results")
    with Image.open(study.store.published(study.store.figure("readme"))) as picture:
        assert picture.info["Source"] == ledger_digest(make_report(study, allow_missing=True)), (
            "its figure is stale; renew it with: publish"
        )
