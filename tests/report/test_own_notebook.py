"""Notebook 10 runs from top to bottom, on its defaults and by papermill's parameters."""

from __future__ import annotations

from pathlib import Path

import nbformat
import papermill
import pytest

from fcs_utils.data.pictures import write_digits
from fcs_utils.report.chapters import SOURCES

NOTEBOOK = SOURCES / "10_your_own_network.ipynb"


def test_it_is_a_clean_source_with_typed_parameters() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    (parameters,) = (cell for cell in cells if "parameters" in cell.metadata.get("tags", ()))
    assert all(": " in line and "  # " in line for line in parameters.source.splitlines())


def test_digits_become_a_small_folder_of_pictures(tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "digits")
    assert len([*(folder / "train").glob("*/*.png")]) == 400 and len([*(folder / "val/7").glob("*.png")]) == 10


@pytest.mark.slow
def test_every_step_runs(tmp_path: Path) -> None:
    made = tmp_path / "made"
    options = {"out": str(made), "epochs": 1, "calibration": 64, "size": 24}
    done = papermill.execute_notebook(NOTEBOOK, tmp_path / "out.ipynb", options, kernel_name="python3", progress_bar=False)
    said = str(done.cells)
    assert "Top-1 after surgery" in said and "times the speed" in said and "of the MACs are left" in said
    assert {file.name for file in made.iterdir()} == {"digits", "compact.safetensors", "compact.onnx"}


@pytest.mark.slow
def test_a_wrong_parameter_is_named(tmp_path: Path) -> None:
    with pytest.raises(papermill.PapermillExecutionError, match="notebook parameter='epoch' is not allowed"):
        papermill.execute_notebook(NOTEBOOK, tmp_path / "out.ipynb", {"epoch": 1}, kernel_name="python3", progress_bar=False)
