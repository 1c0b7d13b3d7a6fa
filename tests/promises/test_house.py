"""The house keeps its order: a face that costs nothing, one home for every name, short functions and files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import fcs_utils
from tests.conftest import ROOT

MODULES = sorted((ROOT / "fcs_utils").rglob("*.py"))
NAMES = {module: ast.parse(module.read_text()).body for module in MODULES}


def defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
    names = [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]
    return [name for name in names if not name.startswith("__")]


def test_every_name_has_one_home() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for module, body in NAMES.items():
        for name in (name for statement in body for name in defined(statement)):
            homes[name].append(module.relative_to(ROOT).as_posix())
    assert not {name: where for name, where in homes.items() if len(where) > 1}


def test_files_and_functions_stay_short() -> None:
    files = [*MODULES, *(ROOT / "tests").rglob("*.py")]
    long_files = {module.name: lines for module in files if (lines := len(module.read_text().splitlines())) > 260}
    functions = [(module.name, node) for module, body in NAMES.items() for top in body for node in ast.walk(top)]
    long_functions = {
        f"{name}: {node.name}": length
        for name, node in functions
        if isinstance(node, ast.FunctionDef) and (length := (node.end_lineno or 0) - node.lineno + 1) >= 60
    }
    assert not long_files and not long_functions


def test_the_face_offers_what_its_description_names() -> None:
    assert all(callable(getattr(fcs_utils, name)) and f"``{name}``" in fcs_utils.__doc__ for name in fcs_utils.__all__)
    assert set(fcs_utils.__all__) <= set(dir(fcs_utils))
    assert not {module.stem for module in MODULES} & set(fcs_utils.__all__)  # a module would hide the function


def test_importing_the_face_imports_nothing_else() -> None:
    code = "import sys, fcs_utils; print('torch' in sys.modules or any(name.startswith('fcs_utils.') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_name_that_the_face_lacks_is_an_attribute_error() -> None:
    assert not hasattr(fcs_utils, "prune_everything")


def test_notebooks_name_only_what_they_import() -> None:
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "F",
        *map(str, Path(ROOT, "notebooks").glob("*.ipynb")),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
