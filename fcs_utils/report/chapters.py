"""The chapters: notebooks, the stages of runs that each needs, and how they are picked."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from fcs_utils.errors import refuse
from fcs_utils.study.catalogue import STAGES, Stage

PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE.parent
SOURCES = ROOT / "notebooks"
KEEPS_FIGURES = "FCS_KEEPS_FIGURES"  # set for the notebooks that a study executes; in all others figures are only shown
ALLOWS_MISSING = "FCS_ALLOWS_MISSING"  # set for notebooks that show what the records say so far, and do no run


@dataclass(frozen=True)
class Notebook:
    """A chapter: its file's stem and the stages of runs that it shows.

    measures_time: whether it wants the machine alone. images: whether it shows images of the data set, or runs networks on them.
    partly: whether it can do without the records of a whole stage.
    """

    name: str
    stages: tuple[Stage, ...]
    measures_time: bool = False
    images: bool = False
    partly: bool = False

    @property
    def source(self) -> Path:
        return SOURCES / f"{self.name}.ipynb"


NOTEBOOKS = {
    "01": Notebook("01_reference_networks", ("reference",), images=True),
    "02": Notebook("02_activation_collection", ("reference",), images=True),
    "03": Notebook("03_similarity_and_clustering", ("reference", "similarity"), images=True),
    "04": Notebook("04_pruning", ("reference", "pruned", "ablation", "headstart"), images=True),
    "05": Notebook("05_baseline_criteria", ("reference", "pruned", "tuned", "given")),
    "06": Notebook("06_tft_and_mlft", ("reference", "rates", "arms")),
    "07": Notebook("07_ablations", ("reference", "pruned", "ablation")),
    "08": Notebook("08_cost", ("reference",), measures_time=True),
    "09": Notebook("09_paper_tables", STAGES, partly=True),
    "explore": Notebook("explore", ("reference",), images=True),
}


def pick_notebooks(numbers: str | None) -> dict[str, Notebook]:
    """``"03,06"`` -> those notebooks; None -> all. Raises StudyError for an unknown number."""
    if numbers is None:
        return NOTEBOOKS
    wanted = [number.strip() for number in numbers.split(",")]
    if unknown := [number for number in wanted if number not in NOTEBOOKS]:
        raise refuse("notebooks", ",".join(unknown), ", ".join(NOTEBOOKS))
    return {number: NOTEBOOKS[number] for number in sorted(wanted)}


def with_values(parameters: str, injected: str) -> str:
    """The source of a parameters cell, one name a line, with the values of the cell that papermill injects after it."""
    given = {name: ast.get_source_segment(injected, value) or "" for name, value in assigned(injected).items()}
    lines = parameters.split("\n")
    for name, value in assigned(parameters).items():
        if name in given:
            line = lines[value.lineno - 1].encode()  # ast counts bytes
            new = line[: value.col_offset] + given[name].encode() + line[value.end_col_offset :]
            lines[value.lineno - 1] = new.decode()
    return "\n".join(lines)


def assigned(source: str) -> dict[str, ast.expr]:
    """The names that a cell assigns to, with what it assigns."""
    found: dict[str, ast.expr] = {}
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        found |= {
            target.id: value for target in targets if isinstance(target, ast.Name) and (value := getattr(node, "value", None))
        }
    return found
