"""Networks are tried in processes of their own, and whatever becomes of these is a row."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from fcs_utils.benchmarks.isolated import Stopped, measure_limited
from fcs_utils.benchmarks.network_tables import OUTPUTS, page, reasons, terminal_table
from fcs_utils.benchmarks.networks import (
    TOOLS,
    NetworkJob,
    Outcome,
    ProcessLimits,
    prune_known,
    read_rows,
    try_networks,
)
from fcs_utils.benchmarks.zoo import ZOO, build_known, chosen, output_layers
from fcs_utils.cli import main
from fcs_utils.errors import StudyError
from tests.conftest import GUARD, ROOT

WHOLE = "tests.benchmarks.hostile:all_outputs"
MEMORY = 12 * 2**30
HERE = Outcome(outcome="exact", left=0.5, layers=2, shrunk=2, seconds=1234.5, passes=678.0)
MORE = Outcome(
    outcome="exact",
    left=0.6,
    layers=9,
    shrunk=3,
    reasons={
        "read by the grouped convolution ...": {"layers": 5, "first": "one.two", "macs": 0.25},
        "its channels are the network's outputs": {"layers": 1, "first": "head", "macs": 0.125},
    },
)
ENDLESS = Outcome(outcome="stopped", why="no end in 300 s")


def test_a_success_and_a_refusal_are_rows_that_are_kept_and_not_measured_again(tmp_path: Path, monkeypatch: Any) -> None:
    kept = tmp_path / "rows.json"
    rows = dict(try_networks(["lenet", WHOLE], ProcessLimits(), kept))
    good, refused = (rows[name]["here"] for name in ("lenet", WHOLE))
    assert good.success and (good.shrunk, good.layers) == (4, 5) and (good.passes or 0) > 0
    # Of 6 and 16 maps, of 28 x 28 and 10 x 10 pixels, 3 and 8 stay, and of 120 and 84 features half.
    dense = 3 * 6 * 25 * 784 + 6 * 16 * 25 * 100 + 400 * 120 + 120 * 84 + 84 * 10
    assert good.left == pytest.approx((3 * 3 * 25 * 784 + 3 * 8 * 25 * 100 + 200 * 60 + 60 * 42 + 42 * 10) / dense)
    assert refused.outcome == "refused" and not refused.success and (refused.shrunk, refused.layers) == (0, 1)
    assert refused.why == f"nothing to prune: 0: {OUTPUTS}" and (
        refused.reasons[OUTPUTS].layers,
        refused.reasons[OUTPUTS].macs,
    ) == (1, 1)
    other = rows[WHOLE]["torch-pruning"]  # has not been told which layer writes the outputs, and cuts it
    assert (other.outcome, other.why, other.shrunk) == ("wrong", "its outputs have other shapes", 1)
    monkeypatch.setattr("fcs_utils.benchmarks.networks.measure_limited", lambda *_: pytest.fail("measured again"))
    assert dict(try_networks([WHOLE, "lenet"], ProcessLimits(), kept)) == rows == read_rows(kept)
    (line,) = [line for line in page({"lenet": rows["lenet"]}, ProcessLimits()).splitlines() if line.startswith("| lenet ")]
    assert line in (ROOT / "docs/networks.md").read_text().splitlines()


@pytest.mark.parametrize(
    ("build", "seconds", "why"),
    [("hangs", 3, "no end in 3 s"), ("aborts", 300, "ended by SIGABRT"), ("leaves", 300, "exit status 0")],
)
def test_a_process_that_gives_no_result_is_a_row(build: str, seconds: float, why: str) -> None:
    ((name, row),) = try_networks([f"tests.benchmarks.hostile:{build}"], ProcessLimits(seconds=seconds))
    assert all(row[tool].outcome == "stopped" and row[tool].why.endswith(why) for tool in TOOLS)
    shown = page({name: row}, ProcessLimits()).splitlines()
    assert any(line.startswith(f"| {name} |") and line.count("no end" if build == "hangs" else why) == 2 for line in shown)


def test_an_interrupt_ends_the_process_that_is_measured() -> None:
    command = [sys.executable, "-m", "fcs_utils", "networks", "--only", "tests.benchmarks.hostile:hangs"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    family: list[psutil.Process] = []
    while process.poll() is None and not family:
        time.sleep(0.05)
        family = [child for child in psutil.Process(process.pid).children() if "prune_known" in child.cmdline()]
    process.terminate()
    said = process.communicate(timeout=GUARD)[1]
    assert process.returncode == 143 and said.startswith("interrupted: networks that are done are kept"), said
    assert family and not psutil.wait_procs(family, timeout=GUARD)[1]


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no such limit")
def test_memory_has_a_limit() -> None:
    with pytest.raises(Stopped, match="memory|alloc"):
        measure_limited(prune_known, NetworkJob(network="tests.benchmarks.hostile:greedy", tool="here"), 300, MEMORY)


def test_the_page_says_who_succeeds_why_others_fail_and_no_times() -> None:
    rows = {"one": {"here": HERE, "torch-pruning": MORE}, "two": {"here": MORE, "torch-pruning": ENDLESS}}
    text = page(rows, ProcessLimits(seconds=77))
    assert text.startswith("# Which") and "Of 2 networks, this package prunes 1 exactly and to at most half" in text
    assert "| one | your own | 2 of 2 | 50.0 % | exact | yes | 60.0 % | exact |" in text
    assert "| two | your own | 3 of 9 | 60.0 % | exact | no |  | no end |" in text
    assert "<summary>two: 60.0 % left</summary>\n\n- 5 layers, 25.0 % of the MACs: read by the grouped convolution ..." in text
    assert "<summary>one" not in text and "77 seconds" in text and "1234" not in text and "678" not in text
    assert reasons(rows).to_dict("records") == [
        {"reason": "read by the grouped convolution ...", "networks": 1, "layers": 5, "mean share of their MACs": "25.0 %"}
    ]
    assert terminal_table(rows)["in forward passes"].tolist() == ["678", ""]


@pytest.mark.parametrize(
    ("found", "success"),
    [(HERE, True), (MORE, False), (ENDLESS, False), (HERE.model_copy(update={"outcome": "wrong"}), False)],
)
def test_a_success_is_exact_and_leaves_half_at_most(found: Outcome, success: bool) -> None:
    assert found.success is success


def test_names_may_be_short_or_ones_own_and_others_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(chosen(["resnet50", "mymodule:build"])[0]) == ["torchvision/resnet50", "mymodule:build"]
    with pytest.raises(StudyError, match=r"only='resnet51' is not allowed.*did you mean .*resnet"):
        chosen(["resnet51"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    names, left_out = chosen()
    assert left_out and [*names, *left_out].sort() == [*ZOO].sort() and all(name.startswith("timm:") for name in left_out)


def test_no_vector_of_a_network_is_zero_or_one_throughout() -> None:
    network, images = build_known("c2f_detector")
    again, _ = build_known("c2f_detector")
    assert all(one.equal(other) for one, other in zip(network.parameters(), again.parameters(), strict=True))
    assert all(tensor.std() > 0 for tensor in network.state_dict().values() if tensor.numel() > 1)
    assert not network.training and images.shape == (1, 3, 64, 64)
    assert [layer.weight.shape[0] for layer in output_layers("c2f_detector", network) if hasattr(layer, "weight")] == [12, 12]


@pytest.mark.parametrize("content", ["[]", '{"lenet": {"here": {"outcome": "good"}}}', '{"lenet": 3}', "{"])
def test_rows_of_others_are_refused_in_one_line(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.json").write_text(content)
    assert main(["networks", "--only", "lenet", "--rows", str(tmp_path / "rows.json")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "rows.json" in said and said.count("\n") == 1


def test_the_command_prints_each_network_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"here": HERE.model_dump(), "torch-pruning": ENDLESS.model_dump()}
    monkeypatch.setattr("fcs_utils.benchmarks.networks.measure_limited", lambda _, job, *__: found[job.tool])
    assert main(["networks", "--only", "lenet", "squeezenet1_1", "--out", str(tmp_path / "page.md"), "--seconds", "9"]) == 0
    said = capsys.readouterr().out
    assert "lenet" in said and "squeezenet1_1" in said and "1234.5" in said and "678" in said
    assert "takes longer than 9 seconds" in " ".join((tmp_path / "page.md").read_text().split())
