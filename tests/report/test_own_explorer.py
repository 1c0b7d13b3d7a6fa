"""The explorer on a network and pictures of the user's own: every answer is that of the library called by hand."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fcs_utils.data.pictures import load_pictures
from fcs_utils.errors import StudyError
from fcs_utils.models import build_model, build_seeded, count_macs
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import load_compact, session
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune, recalibrate
from fcs_utils.report import exploration as answers
from fcs_utils.report.controls import OwnForm, own_network
from fcs_utils.report.exploration import Choice, Exploration
from fcs_utils.report.explorer import Explorer
from fcs_utils.report.subject import Subjects, Tell, in_silence, own_source, study_subject
from fcs_utils.study.study import Study
from tests.conftest import FEW
from tests.users_folder import make_users_folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder: a module, a file of weights, and photographs of three classes."""
    monkeypatch.chdir(tmp_path)
    make_users_folder(tmp_path, "ownexplored")
    yield tmp_path
    sys.modules.pop("ownexplored", None)


@pytest.fixture
def source(here: Path) -> Subjects:
    return own_source(own_network("ownexplored:build", "my.safetensors", "photos", 16), lambda name: here / f"{name}.safetensors")


def opened(source: Subjects) -> Exploration:
    return Exploration(source.choose("photos", "", 0, ""))


def dense() -> nn.Module:
    network = build_model("ownexplored:build", num_classes=3)
    network.load_state_dict(load_file("my.safetensors"))
    return network.eval()


def right(network: nn.Module) -> float:
    """Top-1 in percent on the nine validation pictures, without the explorer."""
    images, labels = next(iter(load_pictures("photos", size=16).in_order(9)))
    with torch.no_grad():
        return 100 * (network(images).argmax(1) == labels).double().mean().item()


def test_score_plan_and_accuracy_are_those_of_the_library_called_by_hand(source: Subjects) -> None:
    explored, network = opened(source), dense()
    images, labels = load_pictures("photos", size=16).calibration(36, 0)
    statistics = collect_statistics(network, images)
    for criterion in ("fcs", "taylor"):
        choice = Choice("1.0", criterion, ratio=0.5)
        scores = importance(criterion, model=network, statistics=statistics, images=images, labels=labels)
        frame, whole = explored.layer(choice), explored.whole(choice)
        assert frame.score.tolist() == pytest.approx(scores["1.0"].tolist())
        plan = make_plan(network, images, scores, ratio=0.5)
        assert whole.plan.kept == plan.kept and plan.kept["1.0"] == frame.index[frame.stays].tolist()
        compact = prune(network, plan)
        cut = right(compact)
        recalibrate(compact, images)
        assert whole.plain == pytest.approx((cut, right(compact))) and whole.cost.macs == count_macs(compact, images)
    assert explored.subject.judged == 9 and explored.dense_accuracy == pytest.approx(right(network))
    assert not {"hrank", "chip"} & {*explored.subject.criteria} and "taylor" in explored.subject.criteria
    pixels, maps = explored.maps("1.0", 5)
    assert pixels.dtype == torch.uint8 and pixels.shape == (16, 16, 3) and maps.shape[0] == 24
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (explored.subject.mean, explored.subject.std))
    torch.testing.assert_close((pixels.permute(2, 0, 1) / 255 - mean) / std, images[5], rtol=0, atol=0.01)


def test_all_that_the_explorer_does_works_on_it(source: Subjects, here: Path) -> None:
    explored = opened(source)
    explorer = Explorer(source, explored, Choice("", ratio=0.5))
    assert "top-1, 9 images" in explorer.numbers.value and explorer.controls["layer"].value == explored.first
    explorer.controls["goal"].value = "macs"
    assert explorer.choice.goal == ("macs", 0.5) and abs((explored.whole(explorer.choice).plan.macs_left or 0) - 0.5) < 0.1
    explorer.controls["against"].value = "kernel_l1"
    assert "go by both" in explorer.versus.value and "top-1 of 9 images" in explorer.versus.value
    explorer.trace.click()
    assert bytes(explorer.curve.value).startswith(b"\x89PNG") and explorer.curve.layout.display == ""

    async def tuned() -> None:
        explorer.tuning.start.click()
        assert explorer.tuning.task is not None
        await explorer.tuning.task

    asyncio.run(tuned())
    assert len(explorer.tuning.lines["tft"]) == 3 and "on 9 images" in explorer.tuning.said.value
    explorer.onnx.value = True
    explorer.save.click()
    (file,) = here.glob("ownexplored-build-my-photos-seed0-fcs-*.safetensors")
    compact = load_compact(file, dense()).eval()
    plan = PruningPlan.from_data(json.loads(file.with_suffix(".plan.json").read_text()))
    assert plan == explored.whole(explorer.choice).plan and "num_classes=3)" in explorer.said.value
    served = session(file.with_suffix(".onnx")).run(None, {"images": explored.images[:2].numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(served), compact(explored.images[:2]), rtol=1e-4, atol=1e-4)
    before = explored.images
    explorer.controls["seed"].value = 1  # other calibration pictures
    assert explorer.here.subject.place.seed == 1 and not explorer.here.images.equal(before)


def test_layers_of_other_kinds_and_criteria_that_cannot_score_them(here: Path) -> None:
    network = build_seeded(1, "tests.report.other_kinds:Build", num_classes=3)
    save_file(network.state_dict(), here / "other.safetensors")
    source = own_source(
        own_network("tests.report.other_kinds:Build", "other.safetensors", "photos", 16), lambda name: here / f"{name}.safetensors"
    )
    explored = opened(source)
    explorer = Explorer(source, explored, Choice("first", ratio=0.5))
    layers = ("first", "groups", "squeeze", "wide", "last", "hidden")
    assert explorer.controls["layer"].options == layers and "taylor" in explored.criteria
    assert "bn_scale" not in explorer.controls["criterion"].options and [*explored.left_out] == ["bn_scale"]
    assert "criterion &#x27;bn_scale&#x27; needs a BatchNorm" in explorer.left_out.value
    with pytest.raises(StudyError, match="needs a BatchNorm"):
        explored.layer(Choice("first", "bn_scale"))
    for layer in layers:
        explorer.controls["layer"].value = layer
        for criterion in ("fcs", "kernel_l1", "taylor"):
            choice = replace(explorer.choice, criterion=criterion)
            frame, plan = explored.layer(choice), explored.whole(choice).plan
            assert frame.index[frame.stays].tolist() == plan.kept[layer]
            assert len(frame) == network.get_submodule(layer).weight.shape[0] == 2 * len(plan.kept[layer])
        assert explorer.said.value == "" and all(
            bytes(picture.value).startswith(b"\x89PNG") for picture in explorer.pictures.values()
        )
    assert not any(shown.value for shown in explorer.errors.children)
    explorer.save.click()
    (file,) = here.glob("*Build-other-photos-seed0-*.safetensors")
    compact = load_compact(file, network.eval()).eval()
    assert compact(explored.images).shape == (36, 3) and compact.hidden.weight.shape == (5, 6)


def test_a_goal_in_latency_is_measured(source: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that counts MACs."""
    monkeypatch.setattr(answers, "stopwatch", lambda dense, example, runtime, **_: lambda net: count_macs(net, example) / 1e5)
    explorer = Explorer(source, opened(source), Choice(""))
    controls = explorer.controls
    assert [controls[name].layout.display for name in ("ratio", "macs", "latency")] == ["", "none", "none"]
    controls["latency"].value, controls["goal"].value = "0.6", "latency"
    plan = explorer.here.whole(explorer.choice).plan
    assert [controls[name].layout.display for name in ("ratio", "macs", "latency")] == ["none", "none", ""]
    assert plan.latency == 0.6 and plan.latency_left == pytest.approx(plan.macs_left) and abs(plan.latency_left - 0.6) < 0.06
    assert f"{plan.latency_left:.1%} of the unpruned, measured here; 60.0% was the goal" in explorer.numbers.value
    milliseconds = explorer.here.dense_cost.macs / 1e5
    controls["latency"].value = f"{0.6 * milliseconds:.3f}ms"
    again = explorer.here.whole(explorer.choice).plan
    assert again.kept == plan.kept and f"{again.latency_left:.3g} ms, measured here" in explorer.numbers.value
    kept = explorer.numbers.value
    for wrong in ("fast", "0.0001", ""):
        controls["latency"].value = wrong
        assert "latency=" in explorer.said.value and "is not allowed" in explorer.said.value and explorer.numbers.value == kept


def test_it_is_opened_from_the_explorer_of_a_study_and_back(here: Path, tmp_path: Path) -> None:
    study = Study(FEW, tmp_path / "out")

    def one(dataset: str, network: str, seed: int, layer: str = "", tell: Tell = in_silence) -> object:
        return study_subject(study, network, seed, layer, tell)

    home = Subjects([FEW.dataset], {"vgg16": "VGG-16"}, [0], study.store.explored, one)
    explorer = Explorer(home, Exploration(study_subject(study, "vgg16", 0)), Choice(""))
    form, controls, numbers = explorer.own, explorer.controls, explorer.numbers.value
    form.model.value, form.weights.value, form.images.value, form.size.value = "ownexplored:build", "none", "photos", 16
    form.open.click()
    assert "none&#x27; not found" in explorer.said.value and explorer.here.network == "vgg16" == controls["network"].value
    assert explorer.numbers.value == numbers and form.back.layout.display == "none"
    form.weights.value = "my.safetensors"
    form.open.click()
    assert explorer.said.value == "" and explorer.here.network == "ownexplored:build" == controls["network"].value
    assert controls["layer"].options == ("0.0", "1.0") and "9 images" in explorer.numbers.value and form.back.layout.display == ""
    assert f"{explorer.here.whole(explorer.choice).cost.macs:,}" in explorer.numbers.value
    explorer.save.click()
    assert [*tmp_path.glob(f"out/{FEW.name}/work/explored/ownexplored-build-my-photos-seed0-fcs-pooled-4-0.1.safetensors")]
    form.back.click()
    assert explorer.here.network == "vgg16" == controls["network"].value and explorer.numbers.value == numbers


def test_files_and_folders_beside_the_notebook_are_offered_and_others_are_typed(here: Path) -> None:
    for name in ("table.csv", "notes.txt", ".hidden/a", "__pycache__/b", "other/c.safetensors"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("")
    form = OwnForm()
    fold = form.widget()
    assert form.weights.options == form.images.options == ()
    fold.selected_index = 0
    assert (form.weights.options, form.images.options) == (("my.safetensors",), ("other", "photos", "table.csv"))
    (here / "newer.safetensors").write_text("")
    fold.selected_index = None
    fold.selected_index = 0
    assert form.weights.options == ("my.safetensors", "newer.safetensors")
    form.weights.value, form.images.value = "/elsewhere/theirs.safetensors", "/elsewhere/pictures"  # not among the offers
    assert (form.weights.value, form.images.value) == ("/elsewhere/theirs.safetensors", "/elsewhere/pictures")


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "no model": ({"model": ""}, "model='' is not allowed; allowed: a string that is not empty"),
    "a module": ({"model": "nonet:build"}, "network 'nonet:build' cannot be imported"),
    "no weights": ({"model": "torchvision/resnet18", "weights": ""}, "weights of torchvision/resnet18 are needed"),
    "weights": ({"weights": "none.safetensors"}, "none.safetensors' not found"),
    "a folder": ({"images": "nowhere"}, "images 'nowhere' not found; give a folder or CSV file"),
    "classes": ({"model": "ownexplored:two_outputs", "weights": ""}, r"whose output is \(2, 7\)"),
    "a size": ({"size": 4}, "size=4 is not allowed"),
    "a seed": ({"seed": -1}, "seed=-1 is not allowed"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_in_one_line_before_a_picture_is_read(
    change: dict[str, object], message: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcs_utils.data.pictures.decode", lambda *_: pytest.fail("a picture was read"))
    wanted = {"model": "ownexplored:build", "weights": "my.safetensors", "images": "photos", "size": 16, **change}
    with pytest.raises(StudyError, match=message) as caught:
        own_source(own_network(**wanted), lambda name: here / name)
    assert "\n" not in str(caught.value)


def test_other_layers_and_networks_are_refused(source: Subjects) -> None:
    for network, layer, message in (("vgg16", "", "network='vgg16'"), ("", "9.0", "layer='9.0' is not allowed; allowed: 0.0, 1.0")):
        with pytest.raises(StudyError, match=message):
            source.choose("photos", network, 0, layer)
    with pytest.raises(StudyError, match="criterion='chip' is not allowed"):
        opened(source).layer(Choice("1.0", "chip"))
