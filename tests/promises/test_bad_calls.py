"""Every bad value given to a function is one clear error, and the network stays as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fcs_utils.data.dataset import load_dataset
from fcs_utils.errors import StudyError
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import load_compact
from fcs_utils.pruning.fcs import assign_bins
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.statistics import collect_statistics, feature_maps
from fcs_utils.pruning.surgery import prune
from fcs_utils.report.chapters import pick_notebooks
from fcs_utils.report.notebook import check_injected, pick
from fcs_utils.study.profiles import get_profile
from fcs_utils.study.study import Study
from tests.conftest import warm


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return warm(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3)), 8
    )


IMAGES = torch.zeros(2, 3, 8, 8)
SCORES = {"0": torch.arange(6.0)}
Call = Callable[[nn.Module], Any]
PLAN = {"kept": {"0": [0, 2]}, "channels": {"0": 6}, "input_shape": (3, 8, 8), "ratio": 0.5}

TOKENS = {"input_shape": [5], "inputs": [{"name": "tokens", "shape": [5], "dtype": "int64"}]}


def bad_plan(**change: Any) -> Call:
    return lambda net: PruningPlan.from_data({**PLAN, **change})


CALLS: list[tuple[str, Call, str]] = [
    ("ratio above 1", lambda net: make_plan(net, IMAGES, SCORES, ratio=1.5), "ratio=1.5 is not allowed"),
    ("ratio 0", lambda net: make_plan(net, IMAGES, SCORES, ratio=0), "ratio=0 is not allowed"),
    ("ratio below 0", lambda net: make_plan(net, IMAGES, SCORES, ratio=-0.1), "ratio=-0.1 is not allowed"),
    ("ratio nan", lambda net: make_plan(net, IMAGES, SCORES, ratio=math.nan), "ratio=nan is not allowed"),
    ("ratio as text", lambda net: make_plan(net, IMAGES, SCORES, ratio="half"), "ratio='half' is not allowed"),  # type: ignore[arg-type]
    ("macs 1", lambda net: make_plan(net, IMAGES, SCORES, macs=1.0), "macs=1.0 is not allowed"),
    ("ratio and macs", lambda net: make_plan(net, IMAGES, SCORES, ratio=0.5, macs=0.5), "one of ratio, macs, rates and latency"),
    ("neither", lambda net: make_plan(net, IMAGES, SCORES), "one of ratio, macs, rates and latency"),
    ("scope", lambda net: make_plan(net, IMAGES, SCORES, ratio=0.5, scope="most"), "scope='most' is not allowed"),  # type: ignore[arg-type]
    ("unknown layer", lambda net: make_plan(net, IMAGES, {"9": torch.ones(6)}, ratio=0.5), "importances=['9'] is not allowed"),
    ("too few scores", lambda net: make_plan(net, IMAGES, {"0": torch.ones(5)}, ratio=0.5), "must be 6 finite numbers"),
    ("nan scores", lambda net: make_plan(net, IMAGES, {"0": torch.full((6,), math.nan)}, ratio=0.5), "must be 6 finite numbers"),
    ("images of three axes", lambda net: collect_statistics(net, IMAGES[0]), "images"),
    (
        "signals for images",
        lambda net: make_plan(net, IMAGES[:, :, 0], SCORES, ratio=0.5),
        "a float tensor (N, C, H, W) with",
    ),
    ("one input too many", lambda net: make_plan(net, (IMAGES, IMAGES), SCORES, ratio=0.5), "does not run on images torch.float32"),
    (
        "inputs of other rows",
        lambda net: collect_statistics(net, (IMAGES, IMAGES[:1])),
        "real tensors of equally many rows",
    ),
    ("an input that is none", lambda net: prune(net, PruningPlan.from_data(PLAN), example=(IMAGES, 3)), "example="),
    ("inputs for a plan of one", lambda net: prune(net, PruningPlan.from_data(PLAN), example=(IMAGES,)), "images (N, 3, ...)"),
    ("whole numbers to draw", lambda net: prune(net, PruningPlan.from_data({**PLAN, **TOKENS})), "pass example="),
    ("no images", lambda net: collect_statistics(net, IMAGES[:0]), "images"),
    ("layer", lambda net: collect_statistics(net, IMAGES, layers=["7"]), "'7'"),
    ("reading", lambda net: collect_statistics(net, IMAGES, readings=("median",)), "median"),  # type: ignore[arg-type]
    ("maps of a layer", lambda net: feature_maps(net, IMAGES, "7"), "'7'"),
    ("criterion", lambda net: importance("l3", model=net), "criterion='l3' is not allowed; allowed: random"),
    ("option", lambda net: importance("fcs", model=net, bin=3), "bin"),
    ("bins 0", lambda net: assign_bins(torch.ones(4).double(), 0), "bins=0 is not allowed"),
    ("no statistics", lambda net: importance("fcs", model=net), "statistics"),
    ("no labels", lambda net: importance("taylor", model=net, statistics={}, images=IMAGES), "labels"),
    ("compensate", lambda net: prune(net, PruningPlan.from_data(PLAN), compensate="glue"), "compensate='glue'"),  # type: ignore[arg-type]
    ("merge without statistics", lambda net: prune(net, PruningPlan.from_data(PLAN), compensate="merge"), "statistics"),
    ("another network's plan", lambda net: prune(nn.Conv2d(3, 2, 1), PruningPlan.from_data(PLAN)), "does not fit"),
    ("a shape of five numbers", bad_plan(input_shape=(1, 3, 8, 8, 8)), "input_shape must be"),
    ("inputs of other shapes", bad_plan(inputs=TOKENS["inputs"]), "input_shape must be that of the first"),
    ("kept beyond", bad_plan(kept={"0": [0, 6]}), "within 0..5"),
    ("kept below", bad_plan(kept={"0": [-1, 2]}), "within 0..5"),
    ("kept twice", bad_plan(kept={"0": [2, 2]}), "sorted, unique"),
    ("kept none", bad_plan(kept={"0": []}), "sorted, unique"),
    ("kept nothing", bad_plan(kept={}, channels={}), "one or more"),
    ("other layers", bad_plan(channels={"1": 6}), "must name the same"),
    ("plan with text", bad_plan(kept="all"), "not a pruning plan"),
    ("a stranger's field", bad_plan(run="rm -rf"), "not a pruning plan"),
    ("plan is no JSON", lambda net: PruningPlan.from_json("{"), "not a pruning plan"),
    ("file not there", lambda net: load_compact("nowhere.safetensors", net), "cannot read nowhere.safetensors"),
    ("profile", lambda net: get_profile("quik"), "profile='quik' is not allowed; allowed: cifar"),
    ("data set", lambda net: load_dataset("minst"), "dataset='minst' is not allowed; allowed: digits"),
    ("stages", lambda net: Study("smoke", "nowhere").runs(["prunned"]), "stages=['prunned'] is not allowed"),  # type: ignore[list-item]
    ("chapters", lambda net: pick_notebooks("99"), "notebooks='99' is not allowed; allowed: 01"),
    ("notebook parameter", lambda net: check_injected(["seed: int = 0", "# Parameters\nsede = 1"]), "notebook parameter='sede'"),
    ("notebook's value", lambda net: pick("layer", "conv9", ["conv1", "conv2"]), "allowed: conv1, conv2"),
    ("notebook's kind", lambda net: pick("seed", "zero", [0, 1]), "seed='zero' is not allowed"),  # type: ignore[type-var]
]


@pytest.mark.parametrize(("call", "message"), [case[1:] for case in CALLS], ids=[case[0] for case in CALLS])
def test_calls(network: nn.Module, call: Call, message: str) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(StudyError) as caught:
        call(network)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert all(tensor.equal(before[name]) for name, tensor in network.state_dict().items())
    assert not Path("nowhere").exists()
