"""How pages and figures look: on white and on dark pages, on a phone and at a desk."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from fcs_utils.report import channels
from fcs_utils.report.ablation_figures import merge_panels
from fcs_utils.report.arm_figures import fine_tuning_curves, taught
from fcs_utils.report.figures import accuracy_against_macs, near_duplicates_by_layer
from fcs_utils.report.frames import make_report
from fcs_utils.report.pages import HERE, figures, to_html, unbroken
from fcs_utils.report.plots import ON_ANY_PAPER, drawn, use_house_style
from fcs_utils.study.grid import titled
from fcs_utils.study.study import Study
from tests.conftest import ROOT
from tests.report.browsing import needs_chromium

DARK = (0x14, 0x18, 0x1D)  # of style.css
BINS = torch.tensor([0, 0, 1, 1])


@pytest.fixture(autouse=True)
def house_style() -> None:
    use_house_style()


def luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance of a colour in 0..1, as WCAG 2.2 defines it."""
    parts = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def pictures(layer: str = "conv1") -> dict[str, Figure]:
    """Each figure of maps, of four channels and eight images."""
    torch.manual_seed(0)
    images, maps = torch.randint(256, (8, 8, 8, 3), dtype=torch.uint8), torch.rand(8, 4, 8, 8)
    norms, similarity = torch.rand(4), torch.rand(4, 4)
    return {
        "gallery": channels.map_gallery(images[0], maps[0], norms, layer),
        "strongest": channels.strongest_images(images, torch.rand(8, 4), [0, 2]),
        "similarity": channels.similarity_by_bin(similarity, BINS, norms, layer),
        "pairs": channels.channel_pairs(images[:3], maps[:3], [("most", 0, 1, 0.9), ("least", 2, 3, 0.1)]),
        "twin": channels.dropped_beside_kept(images[0], maps[0], 0, 1, 0.9),
    }


def test_maps_come_without_paper_and_with_words_for_white_and_dark_pages() -> None:
    for paper in ((1.0, 1.0, 1.0), tuple(value / 255 for value in DARK)):
        assert contrast(to_rgb(ON_ANY_PAPER), paper) > 4
    for name, figure in pictures().items():
        content = Image.open(io.BytesIO(drawn(figure)))
        assert content.mode == "RGBA" and content.getpixel((0, 0))[3] == 0, name
        words = [text for text in figure.findobj(Text) if text.get_text()]
        assert words and {text.get_color() for text in words} == {ON_ANY_PAPER}, name
        plt.close(figure)


@needs_chromium
def test_a_dark_page_shows_figures_on_its_own_paper_and_maps_in_their_own_colours(browser: Any) -> None:
    chart, _ = plt.subplots(figsize=(1, 1))
    square, axis = plt.subplots(figsize=(1, 1), facecolor="none")
    axis.set(position=(0.25, 0.25, 0.5, 0.5), xticks=[], yticks=[])
    axis.imshow([[[1.0, 0.2, 0.0]]])
    shown = [base64.b64encode(drawn(figure)).decode() for figure in (chart, square)]
    page = browser.new_page(color_scheme="dark")
    page.set_content(
        f"<style>{(HERE / 'style.css').read_text()}</style><main><figure><img src='data:image/png;base64,{shown[0]}'></figure>"
        f"<figure class='picture'><img src='data:image/png;base64,{shown[1]}'></figure></main>"
    )
    corners, middles = [], []
    for image in page.locator("img").all():
        seen = Image.open(io.BytesIO(image.screenshot())).convert("RGB")
        corners.append(seen.getpixel((2, 2)))
        middles.append(seen.getpixel((seen.width // 2, seen.height // 2)))
    assert corners == [DARK, DARK] and middles[1] == (255, 51, 0)
    page.close()


def test_a_number_and_its_percent_sign_stay_together() -> None:
    assert to_html("is 1.5 % (95 % interval), `7 % 3`") == "<p>is 1.5\xa0% (95\xa0% interval), <code>7 % 3</code></p>\n"
    assert unbroken("at 5 % or 100 %") == "at 5\xa0% or 100\xa0%"


def test_merged_surgery_has_its_criteria_in_one_order_at_each_ratio() -> None:
    rows = [
        {"network": "n", "ratio": ratio, "criterion": name, "compensate": how, "recalibrated": True, "test": 50.0, "seed": 0}
        for ratio, names in ((0.3, ("kernel_l1", "fcs")), (0.5, ("fcs", "kernel_l1")))
        for name in names
        for how in ("none", "merge")
    ]
    figure = merge_panels(pd.DataFrame(rows).assign(macs=lambda runs: 1 - runs.ratio, dense_macs=1))
    (axis,) = figure.axes
    names = [label.get_text().partition(",")[0] for label in axis.get_yticklabels()]
    assert names == ["kernel L1 norm", "FCS"] * 2
    plt.close(figure)


def assert_no_word_is_cut(figure: Figure, name: str) -> None:
    figure.canvas.draw()
    ticks = {label for axis in figure.axes for label in axis.get_xticklabels()}  # some are beyond the axis, and not drawn
    ticks |= {label for axis in figure.axes if not axis.axison for label in axis.get_yticklabels()}
    for text in figure.findobj(Text):
        if text not in ticks and text.get_text():
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1, (name, text.get_text())
    plt.close(figure)


def test_no_word_of_a_layers_figures_is_cut() -> None:
    layer, norms = "efficientnet_b0 x0.25 blocks.2.1.conv_dw, fcs order=norm redundancy=greedy", torch.rand(4)
    others = {
        "bins": channels.bins_over_norms(norms, BINS, layer),
        "null": channels.best_against_null({"trained": np.random.default_rng(0).random(9)}, {"trained": 0.5}),
        "goes": channels.who_goes(norms, torch.rand(4), BINS, [0, 2], layer, "mean similarity to its bin"),
        "kept": channels.kept_by_bin({"blocks.2.1.conv_dw": [0, 2]}, {"blocks.2.1.conv_dw": BINS}),
        "spread": channels.norm_profile({"blocks.2.1.conv_dw": norms, "blocks.2.1.conv_pwl": norms}),
    }
    for name, figure in {**pictures(layer), **others}.items():
        assert_no_word_is_cut(figure, name)


@pytest.mark.slow
def test_no_word_of_a_figure_is_cut(tmp_path: Path) -> None:
    """All figures of the published records of quick."""
    (tmp_path / "quick").mkdir()
    for name in ("records.jsonl", "study.json", "measurements.json"):
        shutil.copy(ROOT / "results" / "quick" / name, tmp_path / "quick")
    report = make_report(Study("quick", tmp_path))
    ready = report.figures()
    assert {"claims", "merge_panels", "accuracy_against_macs"} <= {*ready} <= {*figures.FIGURES}
    for name, make in ready.items():
        assert_no_word_is_cut(make(), name)


def test_figures_name_criteria_in_words() -> None:
    assert [
        titled(name) for name in ("kernel_l1", "fcs bins=8", "fcs order=norm redundancy=greedy", "tp_group_norm", "of mine")
    ] == [
        "kernel L1 norm",
        "FCS (8 bins)",
        "FCS (lowest norms first, greedy)",
        "Torch-Pruning's group L2 norm",
        "of mine",
    ]


def test_titles_that_are_no_names_have_an_article_inside_a_sentence() -> None:
    names = ("kernel_l1", "feature_norm", "bn_scale", "fcs bins=8", "tp_group_norm", "tp_bn_scale", "random", "of mine")
    assert [titled(name, article=True) for name in names] == [
        "the kernel L1 norm",
        "the layer-wise feature norm",
        "the BatchNorm scale",
        "FCS (8 bins)",
        "Torch-Pruning's group L2 norm",
        "Torch-Pruning's BatchNorm scale",
        "random channels",
        "of mine",
    ]


def against_base(given: bool) -> list[str]:
    """The titles of the panels where two networks, given or trained here, were pruned by two criteria."""
    rows = [
        {"network": network, "ratio": 0.3, "criterion": name, "test": 50.0 + seed, "seed": seed, "given": given, "weights": given}
        for network in "ab"
        for name in ("fcs", "kernel_l1")
        for seed in range(1 if given else 2)
    ]
    figure = accuracy_against_macs(pd.DataFrame(rows).assign(macs=0.5, dense_macs=1))
    titles = [axis.get_legend().get_title().get_text() for axis in figure.axes]
    plt.close(figure)
    return titles


def test_given_networks_share_a_panel() -> None:
    assert against_base(given=True) == ["2 given networks"] and against_base(given=False) == ["a", "b"]


def test_where_networks_are_trained_here_the_given_ones_are_left_to_the_table() -> None:
    rows = [
        {"network": network, "given": network == "b", "state": "trained", "layer": "conv1", "near_duplicates": 50.0}
        for network in "ab"
    ]
    for part, titles in ((rows, ["a"]), (rows[1:], ["b"])):
        figure = near_duplicates_by_layer(pd.DataFrame(part))
        assert [axis.get_legend().get_title().get_text() for axis in figure.axes] == titles
        plt.close(figure)


def test_peers_are_drawn_at_the_longest_schedule_of_all_arms_that_have_one() -> None:
    def runs(method: str, *epochs: int) -> pd.DataFrame:
        peer = [None if method == "tft" else {"x": 1}] * len(epochs)
        return pd.DataFrame({"method": method, "epochs": epochs, "peer": peer, "seed": 0})

    arms = pd.concat([runs("tft", 4, 16), runs("mlft", 4, 8, 12), runs("kd", 8, 16)])
    assert taught(arms)[["method", "epochs"]].to_numpy().tolist() == [["mlft", 8], ["kd", 8]]
    assert taught(pd.concat([runs("mlft", 4), runs("kd", 8)])).epochs.tolist() == [8]
    assert taught(runs("tft", 4)).empty
    less = taught(pd.concat([runs("mlft", 8), runs("mlft", 8).assign(seed=1), runs("kd", 8).assign(seed=1)]))
    assert less[["method", "seed"]].to_numpy().tolist() == [["mlft", 1], ["kd", 1]]  # the same peers


def test_the_legend_of_the_curves_names_every_arm() -> None:
    histories = {epochs: [{"epoch": e, "validation": 50.0 + e} for e in range(1, epochs + 1)] for epochs in (2, 4)}
    rows = [
        {"network": "n", "seed": 0, "method": method, "epochs": epochs, "validation": 50.0, "history": histories[epochs]}
        for method, epochs in (("tft", 2), ("tft", 4), ("mlft", 2), ("kd", 4))
    ]
    figure = fine_tuning_curves(pd.DataFrame(rows))
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {"MLFT", "KD"}
    plt.close(figure)


def test_a_criterion_that_lacks_a_ratio_stands_last_whatever_its_mean() -> None:
    tops = {("kernel_l1", 0.3): 90, ("kernel_l1", 0.5): 80, ("fcs", 0.3): 89, ("fcs", 0.5): 79, ("chip", 0.3): 99}
    rows = [
        {"network": "n", "ratio": ratio, "criterion": name, "test": top + seed, "seed": seed, "given": False}
        for (name, ratio), top in tops.items()
        for seed in range(2)
    ]
    figure = accuracy_against_macs(pd.DataFrame(rows).assign(macs=0.5, dense_macs=1))
    (axis,) = figure.axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["FCS", "CHIP"]
    plt.close(figure)
