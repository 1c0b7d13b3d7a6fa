"""A wrong parameter of a notebook is refused in one line, before anything is trained or measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import papermill
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from fcs_utils.errors import StudyError
from fcs_utils.report import notebook as entry
from fcs_utils.report.chapters import NOTEBOOKS, Notebook
from fcs_utils.study import measurements
from fcs_utils.study.networks import Bench
from fcs_utils.study.study import Study

WRONG: dict[str, list[Any]] = {
    "layer": ["conv99", "features.bn1", 3, True],
    "ratio": [0, 1.0, -0.5, float("nan"), "half", True],
    "network": ["vgg99", "VGG16", 3],
    "seed": [99, -1, 2**40, "0", 0.0, False],
    "bins": [0, -4, 2.5, "4", True],
    "macs": [1.5, -0.5, "half", True],
    "latency": ["fast", "1.5", "0ms"],
    "image": [128, -1, 0.5, "0", False],
    "criterion": ["l3", 3],
    "methods": ["mltf", 3, "mlft,"],
    "schedules": ["3", 4, "2;4"],
    "reading": ["median", 3],
    "device": ["gpu", 3],
    "profile": ["smok", 3],
    "out": [3, True],
    "data": [3],
    "epochs": [4],  # of no notebook
}


def known(notebook: Notebook) -> list[str]:
    return list(papermill.inspect_notebook(str(notebook.source)))


def run_cells(notebook: Notebook, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The cells as papermill would send them to a kernel, one after the other, until one raises."""
    cells: list[str] = []
    monkeypatch.setattr(entry, "get_ipython", lambda: SimpleNamespace(user_ns={"In": cells}))
    names: dict[str, Any] = {}
    for cell in parameterize_notebook(load_notebook_node(str(notebook.source)), parameters).cells:
        if cell.cell_type == "code":
            cells.append(cell.source)
            exec(cell.source, names)  # noqa: S102 - our own notebooks


@pytest.mark.parametrize("parameter", WRONG)
@pytest.mark.parametrize("notebook", NOTEBOOKS.values(), ids=lambda n: n.name)
def test_a_wrong_parameter_is_refused_before_any_work(
    notebook: Notebook, parameter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, work in ((Study, "run"), (Bench, "_load_or_train"), (measurements, "scoring_costs")):
        monkeypatch.setattr(owner, work, lambda *_, **__: pytest.fail("work was done"))
    taken = parameter in known(notebook)
    for value in WRONG[parameter] if taken else WRONG[parameter][:1]:
        with pytest.raises(StudyError) as caught:
            run_cells(notebook, {"profile": "smoke", "out": str(tmp_path), parameter: value}, monkeypatch)
        said = str(caught.value)
        assert said.startswith(f"{parameter}=" if taken else f"notebook parameter={parameter!r}"), (value, said)
        assert "allowed" in said and "\n" not in said and caught.value._render_traceback_() == [f"StudyError: {said}"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "wrong"), [("03", {"layer": "conv99"}), ("04", {"ratio": 1.5})])
def test_papermill_shows_one_line(number: str, wrong: dict[str, Any], tmp_path: Path) -> None:
    parameters = {"profile": "smoke", "out": str(tmp_path / "out"), **wrong}
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(
            str(NOTEBOOKS[number].source), str(tmp_path / "copy.ipynb"), parameters, kernel_name="python3", progress_bar=False
        )
    ((name, value),) = wrong.items()
    assert caught.value.ename == "StudyError" and caught.value.evalue.startswith(f"{name}={value!r} is not allowed")
    assert caught.value.traceback == [f"StudyError: {caught.value.evalue}"]
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
