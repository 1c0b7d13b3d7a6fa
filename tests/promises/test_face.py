"""Every function that people call refuses wrong types and sizes in one line, before any work and without a trace."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import fcs_utils
from fcs_utils.errors import StudyError
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.training.losses import mutual
from fcs_utils.training.optimiser import Training

IMAGES = torch.zeros(2, 3, 8, 8)
PLAN = {"kept": {"0": [0, 2]}, "channels": {"0": 6}, "input_shape": (3, 8, 8), "ratio": 0.5}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3)).eval()


def in_inference_mode() -> Any:
    with torch.inference_mode():
        return network(), torch.zeros(2, 3, 8, 8)


BATCH = (IMAGES, torch.tensor([0, 2]))
GOOD: dict[str, dict[str, Any]] = {
    "FCSImportance": {"model": network(), "images": IMAGES},
    "Study": {"profile": "smoke", "out": "nowhere"},
    "build_model": {"name": "resnet20", "num_classes": 3},
    "collect_statistics": {"model": network(), "images": IMAGES},
    "export_onnx": {"model": network(), "path": "nowhere", "example": IMAGES},
    "fit": {"networks": [network()], "training": Training(epochs=1, learning_rate=0.1), "batches": lambda seed, epoch: [BATCH]},
    "importance": {"name": "kernel_l1", "model": network()},
    "load_compact": {"path": "nowhere", "dense": network()},
    "load_dataset": {"name": "digits"},
    "make_plan": {"model": network(), "example": IMAGES, "importances": {"0": torch.arange(6.0)}, "ratio": 0.5},
    "mutual": {},
    "plan_by_hand": {"model": network(), "example": IMAGES, "kept": {"0": [0, 2]}},
    "prune_in_rounds": {
        "model": network(),
        "example": IMAGES,
        "score": lambda net: {},
        "tune": lambda net, number: None,
        "macs": 0.5,
    },
    "prune": {"model": network(), "plan": PruningPlan.from_data(PLAN)},
    "recalibrate": {"model": network(), "images": IMAGES},
    "save_compact": {"path": "nowhere", "compact": network(), "plan": PruningPlan.from_data(PLAN)},
}
MODELS = [None, "resnet20", nn.Conv2d, network().state_dict(), network().to("meta"), nn.LazyConv2d(3, 1), in_inference_mode()[0]]
TENSORS = [None, [[0.0]], np.zeros((2, 3, 8, 8)), "images", IMAGES[0], IMAGES[:0], IMAGES.byte(), IMAGES.to("meta")]
TENSORS += [IMAGES.clone().requires_grad_(), in_inference_mode()[1], IMAGES / 0, IMAGES.to_sparse()]
TENSORS += [
    IMAGES[:, :, None],
    (),
    {},
    (IMAGES, None),
    (IMAGES, IMAGES[:1]),
    {0: IMAGES},
    [IMAGES, IMAGES / 0],
    (IMAGES[0, 0, 0, 0],),
    torch.nested.nested_tensor([IMAGES[0], IMAGES[1]]),
    IMAGES[0, 0].to_sparse_csr(),
    IMAGES.to_mkldnn(),
    FakeTensorMode().from_tensor(IMAGES),
    np.float32(0.5),
]
COUNTS = [0, -1, 4.0, True, "4", None, [4], np.int64(0), np.float64(4), np.True_, np.ones(1, int), torch.tensor(4)]
SEEDS = [-1, 2**32, 1.0, True, "0", None, np.int64(-1), np.uint64(2**32), np.True_]
PATHS = [3, None, b"x", ["x"], "", "a\0b"]
PLANS = [None, PLAN, "plan", 3]
BAD: list[tuple[str, str, list[Any]]] = [
    *((name, "model", MODELS) for name in ("collect_statistics", "importance", "make_plan", "prune", "recalibrate", "export_onnx")),
    ("FCSImportance", "model", MODELS),
    ("save_compact", "compact", MODELS),
    ("load_compact", "dense", MODELS),
    *((name, "images", TENSORS) for name in ("collect_statistics", "recalibrate", "FCSImportance")),
    *((name, "example", TENSORS) for name in ("make_plan", "export_onnx", "plan_by_hand")),
    ("prune", "example", TENSORS[1:]),
    ("load_compact", "example", [[[0.0]], "images", IMAGES[:0], (), (IMAGES, 3)]),
    ("importance", "images", TENSORS[1:]),
    ("importance", "labels", [[0, 1], np.zeros(2), torch.zeros(2), torch.zeros(2, 1).long(), torch.tensor([0, -1])]),
    ("importance", "statistics", [[1], {"0": 3}, "x", {"0": {"gram": 1}}]),
    *((name, "batch_size", [one for one in COUNTS if one is not None]) for name in ("collect_statistics", "recalibrate")),
    ("collect_statistics", "layers", ["0", [0], 3]),
    ("importance", "seed", SEEDS),
    ("fit", "seed", SEEDS),
    *((name, "path", PATHS) for name in ("save_compact", "load_compact", "export_onnx")),
    ("prune", "plan", PLANS),
    ("prune", "compensate", ["glue", None, True]),
    ("prune", "statistics", [[1], {"0": 3}]),
    ("save_compact", "plan", [*PLANS, [], [PLAN]]),
    ("make_plan", "importances", [[1.0], {"0": [0.0] * 6}, {"0": np.zeros(6)}, {0: torch.zeros(6)}, None]),
    *((name, "model", MODELS) for name in ("plan_by_hand", "prune_in_rounds")),
    ("plan_by_hand", "kept", [None, [0], {"0": 3}, {"0": [0.5]}, {"0": [True]}, {0: [0]}, {"0": []}, {"0": [6]}, {"1": [0]}]),
    ("prune_in_rounds", "score", [None, {"0": torch.ones(6)}]),
    ("prune_in_rounds", "tune", [None, 3]),
    ("prune_in_rounds", "macs", [None, 0, 1, "half", True]),
    ("prune_in_rounds", "rounds", COUNTS),
    ("make_plan", "multiple", COUNTS),
    ("make_plan", "min_channels", COUNTS),
    ("make_plan", "keep", ["0", 3, [3], ["nowhere"]]),
    (
        "make_plan",
        "ratio",
        ["half", True, [0.5], float("nan"), Fraction(1, 2), np.float32(1), np.float64("nan"), torch.ones(())],
    ),
    ("build_model", "name", [3, None, ["vgg16"]]),
    ("build_model", "num_classes", [*COUNTS, 100_001, 10**12]),
    ("build_model", "in_channels", [*COUNTS, 10_001, np.int64(10**9)]),
    ("build_model", "width", [0, -1, 8.01, 1e6, "1", True, float("inf"), float("nan"), None]),
    ("build_model", "shortcut", ["C", None, 1]),
    ("load_dataset", "name", [3, None, ["digits"]]),
    ("load_dataset", "folder", [3, ["x"]]),
    ("load_dataset", "device", [3, None]),
    ("mutual", "temperature", [0, -1, "2", True, None, float("nan"), [1.0]]),
    ("mutual", "strength", [-1, "2", True, None, float("inf")]),
    ("fit", "networks", [None, network(), [None], [nn.Linear], "x", [network().to("meta")], [network(), network()], []]),
    ("fit", "training", [None, {"epochs": 1, "learning_rate": 0.1}, 3]),
    ("fit", "batches", [None, [BATCH], 3]),
    ("fit", "arm", [None, 3, "magic"]),
    ("fit", "execution", ["bf16", None]),
    ("fit", "callbacks", [{}, None]),
    ("Study", "profile", [3, None, {"name": "smoke"}]),
    ("Study", "out", [3, None]),
    ("Study", "plugins", ["mine", 3, [3]]),
    ("Study", "device", [3, None, "gpu"]),
    ("FCSImportance", "criterion", [3, None, "l3"]),
]
CASES = [(name, parameter, value) for name, parameter, values in BAD for value in values]


def test_every_name_of_the_face_is_in_the_table() -> None:
    assert GOOD.keys() == set(fcs_utils.__all__) == {name for name, _, _ in BAD}


def snapshot(arguments: dict[str, Any]) -> list[Any]:
    models = [value for value in arguments.values() if isinstance(value, nn.Module)]
    modules = [module for model in models for module in model.modules()]
    hooks = [(module.training, len(module._forward_hooks), len(module._forward_pre_hooks)) for module in modules]
    return [*hooks, *(tensor.sum().item() for model in models for tensor in model.state_dict().values())]


@pytest.mark.parametrize(("name", "parameter"), dict.fromkeys((name, parameter) for name, parameter, _ in CASES))
def test_wrong_values_are_refused_in_one_line(name: str, parameter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = snapshot(GOOD[name])
    for value in [value for one, other, value in CASES if (one, other) == (name, parameter)]:
        with pytest.raises(StudyError) as caught:
            getattr(fcs_utils, name)(**{**GOOD[name], parameter: value})
        said = str(caught.value)
        assert said.startswith(f"{parameter}") and "allowed" in said and "\n" not in said and len(said) < 600, said
    assert snapshot(GOOD[name]) == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_whole_numbers_of_numpy_are_whole_numbers(kind: type[np.integer[Any]]) -> None:
    torch.manual_seed(1)
    images, net, other = torch.randn(5, 3, 8, 8), network(), network()
    made = fcs_utils.build_model("resnet20", num_classes=kind(3), in_channels=kind(2))
    assert made.head.out_features == 3 and type(made.conv.in_channels) is type(made.head.out_features) is int
    statistics = [fcs_utils.collect_statistics(net, images, batch_size=size) for size in (kind(2), 2)]
    assert statistics[0]["0"].l1.equal(statistics[1]["0"].l1)
    for name, options in (("random", {"seed": 3}), ("fcs", {"bins": 2}), ("fcs", {"binning": "sklearn", "seed": 1, "bins": 3})):
        ours = {option: kind(value) if isinstance(value, int) else value for option, value in options.items()}
        found = [fcs_utils.importance(name, model=net, statistics=statistics[0], **given)["0"] for given in (ours, options)]
        assert found[0].equal(found[1])
    for one, number in ((net, kind), (other, int)):
        fcs_utils.recalibrate(one, images, batch_size=number(3))
        schedule = Training(epochs=number(2), learning_rate=0.1, batch_size=number(4))
        fcs_utils.fit([one], schedule, lambda seed, epoch: [BATCH], seed=number(7))
    assert all(tensor.equal(other.state_dict()[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_fractions_of_numpy_are_fractions(kind: type[np.floating[Any]]) -> None:
    net, scores = network(), {"0": torch.arange(6.0)}
    for goal in ("ratio", "macs"):
        found = [fcs_utils.make_plan(net, IMAGES, scores, **{goal: value}) for value in (kind(0.5), 0.5)]
        assert found[0] == found[1] and found[0].model_dump_json() == found[1].model_dump_json()


def test_missing_and_unknown_arguments_are_type_errors() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'plan'"):
        fcs_utils.prune(network())
    with pytest.raises(TypeError, match="imagse"):
        fcs_utils.recalibrate(network(), IMAGES, imagse=IMAGES)


def test_inside_inference_mode_calls_give_the_same() -> None:
    images, net, scores = torch.randn(4, 3, 8, 8), network(), {"0": torch.arange(6.0)}
    with torch.inference_mode():
        inside = fcs_utils.prune(net, fcs_utils.make_plan(net, images, scores, ratio=0.5))
    outside = fcs_utils.prune(net, fcs_utils.make_plan(net, images, scores, ratio=0.5))
    assert inside(images).equal(outside(images)) and inside(images).requires_grad


LOGITS, LABELS = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("logits", "labels", "said"),
    [
        ([LOGITS], LABELS, "logits='of 1 networks'"),
        ([LOGITS] * 3, LABELS, "logits='of 3 networks'"),
        ([LOGITS, torch.zeros(4, 5)], LABELS, "of 3 and 5 classes"),
        ([LOGITS, torch.zeros(5, 3)], LABELS, "labels="),
        ([LOGITS, (LOGITS, LOGITS)], LABELS, "logits='tuple'"),
        ([LOGITS, LOGITS[0]], LABELS, "logits='(3,)'"),
        ([LOGITS, LOGITS], LABELS + 1, "labels='1 to 3' is not allowed; allowed: 0 to 2"),
        ([LOGITS, LOGITS], LABELS - 1, "labels='-1 to 1'"),
        ([LOGITS, LOGITS], LABELS.float(), "labels=Tensor torch.float32"),
        ([LOGITS, LOGITS], [0, 1, 2, 0], "labels=[0, 1, 2, 0]"),
    ],
)
def test_losses_name_what_does_not_fit(logits: Any, labels: Any, said: str) -> None:
    with pytest.raises(StudyError) as caught:
        mutual()(logits, labels)
    assert said in str(caught.value)
