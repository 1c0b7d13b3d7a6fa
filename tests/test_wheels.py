"""The folder of wheels for a machine without internet."""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fcs_utils import provenance, wheels
from fcs_utils.errors import StudyError
from tests.conftest import study_command


def test_wheels_are_what_the_other_machine_lacks_or_may_have_too_old() -> None:
    names = set(wheels.missing_packages())
    assert {"pydantic", "pydantic-core", "safetensors", "kmeans1d", "torch-pruning", "tqdm", "typing-extensions"} <= names
    assert not names & {"torch", "torchvision", "numpy", "pandas", "scikit-learn", "scipy", "sympy", "fcs-mlft"}
    for name in names:  # nothing that they need is left to chance
        needs = [Requirement(need) for need in distribution(name).requires or []]
        plain = {need.name.lower().replace("_", "-") for need in needs if not need.marker}
        assert plain <= names | set(wheels.PRESENT), name


def test_what_is_wrong_with_a_folder_of_wheels_is_said() -> None:
    with pytest.raises(StudyError, match="python='2.7'"):
        wheels.gather(Path("nowhere"), "2.7")
    done = study_command("wheels", "--to", "x", "--python", "3.x")
    assert done.returncode == 1 and "python='3.x' is not allowed" in done.stderr


def test_records_made_from_a_wheel_name_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = [shutil.which("git") or "git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "another project's, with an environment in it"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "provenance.py").touch()
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setattr(provenance, "COMMIT", tmp_path / "commit.txt")
    assert provenance.commit.__wrapped__() == "unknown"
    (tmp_path / "commit.txt").write_text("0123456789\n")
    assert provenance.commit.__wrapped__() == "0123456789"
