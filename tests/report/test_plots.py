"""Figures as files: charts in few colours, pictures as they are."""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fcs_utils.benchmarks import scoring
from fcs_utils.report.figures import cost_growth
from fcs_utils.report.plots import drawn, use_house_style
from fcs_utils.study.measurements import kept
from fcs_utils.study.records import Store
from tests.conftest import ROOT


@pytest.fixture
def figure() -> Figure:
    figure, axis = plt.subplots(figsize=(4, 3))
    for number in range(6):
        axis.plot(np.sin(np.linspace(0, 6 + number, 50)))
    return figure


def as_drawn(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer)


def test_a_chart_has_few_colours_and_looks_the_same(figure: Figure) -> None:
    whole = as_drawn(figure)
    few = Image.open(io.BytesIO(drawn(figure)))
    assert few.mode == "P" and few.size == whole.size
    assert few.info["dpi"] == pytest.approx(whole.info["dpi"], rel=0.01)
    assert few.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    apart = np.abs(np.asarray(few.convert("RGB"), int) - np.asarray(whole.convert("RGB"), int)).max(axis=2)
    assert apart.mean() < 0.5 and (apart > 32).mean() < 0.001
    assert drawn(figure) == drawn(figure)


def test_notes_in_the_file_stay(figure: Figure) -> None:
    assert Image.open(io.BytesIO(drawn(figure, metadata={"Source": "abc"}))).info["Source"] == "abc"


def test_pictures_keep_all_their_colours(figure: Figure) -> None:
    figure.add_axes((0, 0, 1, 1)).imshow(np.random.default_rng(0).random((40, 40, 3)))
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(drawn(figure))).convert("RGB")), np.asarray(as_drawn(figure).convert("RGB"))
    )


def test_vectors_are_no_png(figure: Figure) -> None:
    assert b"<svg" in drawn(figure, "svg", metadata={"Date": None})


def test_panels_of_cost_stand_below_one_another_and_their_legend_above_them() -> None:
    use_house_style()
    (costs, *_) = kept(Store(ROOT / "results", "quick"), "scoring")
    figure = cost_growth(scoring.cost_frame(costs), {name: one.title for name, one in scoring.PROCEDURES.items()})
    figure.canvas.draw()
    (legend,), boxes = figure.legends, [axis.get_window_extent() for axis in figure.axes]
    assert all(above.y0 > below.y1 for above, below in zip(boxes, boxes[1:], strict=False)) and len(boxes) == 4
    assert legend.get_window_extent().y0 >= boxes[0].y1
    plt.close(figure)
