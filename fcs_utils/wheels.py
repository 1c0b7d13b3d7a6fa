"""A folder of wheels for a machine without internet that already has torch, torchvision, numpy, pandas and scikit-learn."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path

from fcs_utils.errors import StudyError, refuse
from fcs_utils.provenance import COMMIT, commit

PRESENT = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "scipy")  # scikit-learn brings scipy
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def missing_packages() -> dict[str, str]:
    """What the runs need beside ``PRESENT``, by name, in the versions that are installed here.

    Also what ``PRESENT`` may have brought along, such as typing-extensions: perhaps in a version too old for the others.
    """
    found: dict[str, str] = {}
    todo = ["fcs-mlft"]
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found or name in PRESENT:
            continue
        package = distribution(name)
        found[name] = package.version
        # Extras and other systems' needs carry a marker; those of this system are installed already where they matter.
        todo += [match[0] for need in package.requires or [] if ";" not in need and (match := re.match(r"[\w.-]+", need))]
    del found["fcs-mlft"]
    return found


def gather(folder: Path, python: str) -> list[Path]:
    """Download wheels for Linux on x86-64 and build this study's own; returns them.

    python: version of the other machine, such as '3.12'. Raises StudyError when pip fails.
    """
    if not re.fullmatch(r"3\.\d+", python) or int(python[2:]) < 11:
        raise refuse("python", python, "3.11 or newer, such as 3.12")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    # The newest that has a wheel, but none newer than what was tested here; exactly that where another one asks for it.
    missing = missing_packages()
    needs = [need for name in missing for need in distribution(name).requires or []]
    exact = {name for name in missing if any(re.match(rf"{name.replace('-', '[-_.]')}\s*==", need) for need in needs)}
    packages = [f"{name}{'==' if name in exact else '<='}{version}" for name, version in missing.items()]
    with tempfile.TemporaryDirectory() as copy:  # building leaves files in its folder
        for part in ("fcs_utils", "pyproject.toml", "README.md", "LICENSE"):
            source = Path(__file__).parents[1] / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, Path(copy) / part)
        (Path(copy) / "fcs_utils" / COMMIT.name).write_text(commit())  # records made there name what they were made with
        for command in (
            ["download", "--no-deps", "--only-binary=:all:", "--python-version", python, *platforms, "-d", str(folder), *packages],
            ["wheel", "--no-deps", "-w", str(folder), copy],
        ):
            done = subprocess.run([*pip, *command], capture_output=True, text=True)  # noqa: S603
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
                raise StudyError(f"pip failed: {(errors or done.stderr.splitlines() or ['no message'])[0]}")
    return sorted(folder.glob("*.whl"))
