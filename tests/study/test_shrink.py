"""The command that makes a network of the user's smaller, from its weights and pictures to files that others can serve."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fcs_utils.benchmarks import latency
from fcs_utils.cli import main
from fcs_utils.data.pictures import load_pictures
from fcs_utils.models import build_model, count_macs
from fcs_utils.pruning.export import load_compact, session
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.pruning.surgery import prune
from fcs_utils.study import shrink
from fcs_utils.study.shrink import Shrinking, top1_on
from tests.users_folder import make_users_folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder: a module, a file of weights, and photographs of three classes."""
    monkeypatch.chdir(tmp_path)
    make_users_folder(tmp_path, "usernet")
    yield tmp_path
    sys.modules.pop("usernet", None)


COMMAND = "prune --model usernet:build --weights my.safetensors --images photos --size 16 --batch-size 8 --batches 1 2 --rounds 2"


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["tft", "kd", "mlft"])
def test_one_command_prunes_tunes_exports_and_reports(arm: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND.split(), "--macs", "0.5", "--out", "compact", "--epochs", "1", "--arm", arm]) == 0
    said, out = capsys.readouterr().out, here / "compact"
    assert "building the network runs your own code" in said and str(here / "usernet.py") in said
    assert "merge left out 1 of 2 layers: 1.0 (" in said and "measuring the latency of both, 2 rounds at batches of 1 and 2" in said
    assert "36 training pictures, 9 for validation, 3 classes, kept in memory" in said
    plan = PruningPlan.from_json((out / "plan.json").read_text())
    assert all(len(kept) % 8 == 0 for kept in plan.kept.values()) and plan.macs == 0.5
    dense = build_model("usernet:build", num_classes=3)
    compact = load_compact(out / "compact.safetensors", dense).eval()
    images = torch.randn(3, 3, 16, 16)
    served = session(out / "compact.onnx").run(None, {"images": images.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(served), compact(images), rtol=1e-4, atol=1e-4)
    report = json.loads((out / "report.json").read_text())
    assert (
        report["cost"]["compact"]["macs"] == count_macs(compact, images) == round(plan.macs_left * report["cost"]["dense"]["macs"])
    )
    assert report["top1"]["compact"] == top1_on(compact, load_pictures("photos", size=16))
    assert report["milliseconds"].keys() == {
        f"{runtime} {name} {batch}" for runtime in ("pytorch", "onnxruntime") for name in ("dense", "compact") for batch in (1, 2)
    }
    watched = report["watched"]  # all nine, so the curve and the table say the same
    assert watched == {"pictures": 9, "dense": report["top1"]["dense"], "pruned": report["top1"]["pruned"]}
    page = (out / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "times the speed" in page and "usernet:build" in page
    assert len(report["history"]) == 1 and report["asked"]["arm"] == arm


def test_without_onnx_and_without_tuning(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The goal is a latency here, by a clock that counts MACs; the layer to keep stays whole."""
    for module in (shrink, latency):
        monkeypatch.setattr(module, "has_onnx", lambda: False)
    monkeypatch.setattr(
        shrink, "stopwatch", lambda dense, example, runtime, **_: lambda network: count_macs(network, example) / 1e6
    )
    command = [*COMMAND.split(), "--latency", "0.6", "--epochs", "0", "--keep", "1.0", "--multiple", "1", "--allocation", "global"]
    assert main([*command, "--no-resident"]) == 0
    said, out = capsys.readouterr().out, here / "compact"
    assert "decoded when needed" in said and "no ONNX file: pip install" in said and "60.0% was the goal" in said
    assert {file.name for file in out.iterdir()} == {"compact.safetensors", "plan.json", "report.json", "index.html"}
    plan = PruningPlan.from_json((out / "plan.json").read_text())
    assert plan.kept.keys() == {"0.0"} and plan.latency == 0.6 and abs(plan.latency_left - 0.6) < 0.05
    dense = build_model("usernet:build", num_classes=3)
    assert prune(dense, plan)[0][0].out_channels == len(plan.kept["0.0"])


WRONG: dict[str, tuple[str, str]] = {
    "no weights": ("--model torchvision/resnet18 --images photos", "weights of torchvision/resnet18 are needed: --weights FILE"),
    "other classes": ("--model usernet:two_outputs --images photos --size 16", r"whose output is \(2, 7\).*logits \(2, 3\)"),
    "other weights": ("--model usernet:two_outputs --weights my.safetensors --images photos", "my.safetensors has other layers"),
    "no such weights": ("--model usernet:build --weights none.safetensors --images photos", "none.safetensors' not found"),
    "no pictures": ("--model usernet:build --images nowhere", "images 'nowhere' not found; give a folder or CSV file"),
    "two goals": ("--model usernet:build --images photos --macs 0.5 --latency 0.5", "give one goal"),
    "a goal": (
        "--model usernet:build --images photos --latency fast",
        "latency='fast' is not allowed: a share of the dense network's",
    ),
    "a share": ("--model usernet:build --images photos --macs 1.5", "macs=1.5 is not allowed"),
    "a layer to keep": ("--model usernet:build --images photos --size 16 --keep layer9", r"keep=\['layer9'\] is not allowed"),
    "a criterion": ("--model usernet:build --images photos --size 16 --criterion fsc", "did you mean fcs"),
    "one image": ("--model usernet:build --images photos --size 16 --calibration 1", "calibration=1 is not allowed"),
    "no number": ("--model usernet:build --images photos --mean nan 0 0", r"mean.*nan.* is not allowed; allowed: a finite number"),
    "no name": ("--model= --images photos", "model='' is not allowed; allowed: a string that is not empty"),
    "no folder": ("--model usernet:build --images=", "images='' is not allowed; allowed: a string that is not empty"),
    "a folder": ("--model usernet:build --images photos --out /proc/compact", "cannot write to /proc/compact: "),
    "no such network": ("--model torchvision/nope --images photos", "network='torchvision/nope' is not allowed"),
    "no function": ("--model mymodule --images photos", "network='mymodule' is not allowed; allowed: .*MODULE:FUNCTION"),
    "multiples": (
        "--model usernet:build --weights my.safetensors --images photos --size 16 --multiple 64",
        "macs=0.5 is not allowed; allowed: 1.000 to 1.000, which pruning 2 of 2 convolutions in multiples of 64 channels leaves",
    ),
    "a module": ("--model nonet:build --images photos", "network 'nonet:build' cannot be imported"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_written(
    arguments: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", *arguments.split()]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line) and not (here / "compact").exists()


def test_options_are_those_of_the_configuration() -> None:
    from fcs_utils.cli.parser import PRUNE

    assert {option[2:].replace("-", "_") for option in PRUNE} - {"out"} == set(Shrinking.model_fields)


def test_the_stopwatch_measures_in_turns_with_the_dense_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine becomes three times slower in the second measurement: the ratio stays, and so does the answer."""
    slow = iter((1.0, 3.0))

    def latencies(networks: dict[str, Any], example: torch.Tensor, **options: Any) -> dict[str, list[float]]:
        times = next(slow)
        return {"pytorch dense 4": [10 * times, 12 * times, 90 * times], "pytorch compact 4": [5 * times, 6 * times, 9 * times]}

    monkeypatch.setattr(latency, "latencies", latencies)
    watch = latency.stopwatch(torch.nn.Identity(), torch.zeros(1, 3, 8, 8), "pytorch", batch=4)
    assert watch(torch.nn.Identity()) == 12 * 0.5 and watch(torch.nn.Identity()) == 12 * 0.5


def test_a_tuning_that_diverges_names_the_learning_rate_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "prune --model usernet:build --images photos --size 16 --multiple 1 --epochs 1 --learning-rate 1e30"
    assert main(command.split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "learning_rate=1e+30 is not allowed; allowed: a smaller one" in line and not (here / "compact").exists()


def test_the_network_is_opened_before_pictures_are_decoded(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "photos" / "train" / "class0" / "broken.png").write_bytes(b"no picture")
    assert main(["prune", "--model", "usernet:build", "--weights", "none.safetensors", "--images", "photos", "--size", "16"]) == 1
    assert "none.safetensors' not found" in capsys.readouterr().err
    assert main(["prune", "--model", "usernet:build", "--weights", "my.safetensors", "--images", "photos", "--size", "16"]) == 1
    assert "broken.png' cannot be decoded: cannot identify image file: it is damaged" in capsys.readouterr().err
