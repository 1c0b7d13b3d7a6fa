"""The explorer without a browser: what it shows is what the criteria, plans and surgery say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.models import build_model, count_macs
from fcs_utils.pruning.criteria import scoring
from fcs_utils.pruning.export import load_compact
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.report.exploration import Choice, Exploration
from fcs_utils.report.explorer import WIDGET, Explorer
from fcs_utils.report.subject import Subject, Subjects, Tell, in_silence, study_source, study_subject
from fcs_utils.study.study import Study
from tests.conftest import FEW


@pytest.fixture(scope="module")
def study(smoke: Path) -> Study:
    return Study("smoke", smoke)


@pytest.fixture(scope="module")
def here(study: Study) -> Exploration:
    return Exploration(study_subject(study, "vgg16", 0))


@pytest.fixture(scope="module")
def source(smoke: Path) -> Subjects:
    return study_source("smoke", smoke, "")


CHOICE = Choice("features.conv2", bins=3, ratio=0.5)


def right(network: nn.Module, study: Study) -> float:
    """Top-1 in percent on the first 128 validation images, without the explorer."""
    data = study.bench.dataset
    with torch.no_grad():
        answers = network(data.normalise(data.validation.images[:128])).argmax(1)
    return 100 * (answers == data.validation.labels[:128]).double().mean().item()


def rows(table: str) -> list[list[str]]:
    """The cells of an HTML table, its head first."""
    return [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in table.split("<tr")[1:]]


@pytest.mark.parametrize("criterion", scoring())
def test_a_layer_shows_the_networks_plan_and_each_dropped_channels_most_similar_one(here: Exploration, criterion: str) -> None:
    choice = replace(CHOICE, criterion=criterion)
    frame, whole = here.layer(choice), here.whole(choice)
    assert whole.plan.kept["features.conv2"] == frame.index[frame.stays].tolist()
    similarity = here.statistics["features.conv2"].similarity()
    for gone, row in frame[~frame.stays].iterrows():
        rivals = frame.index[frame.stays & (frame.bin == row.bin)].tolist() or frame.index[frame.stays].tolist()
        assert row["most similar kept"] in rivals and row["its bin"] == frame.bin[row["most similar kept"]]
        assert row.cosine == similarity[gone, row["most similar kept"]] == similarity[gone, rivals].max()


def test_accuracies_are_those_of_the_study_on_the_same_images(here: Exploration, study: Study) -> None:
    run = next(
        r
        for r in study.runs(["pruned"])
        if (r.reference.network, r.reference.seed) == ("vgg16", 0) and r.pruning.criterion == "fcs" and r.pruning.ratio == 0.5
    )
    whole = here.whole(Choice("features.conv2", ratio=0.5))
    record = study.record(run)["result"]
    assert whole.plan.kept == record["plan"]["kept"] and whole.cost.macs == record["cost"]["macs"]
    assert whole.cost.params == record["cost"]["params"]
    # The explorer judges on a part of the validation split.
    assert abs(whole.plain[1] - record["before_tuning"]["validation"]) < 12


def test_a_saved_network_loads_without_the_study(here: Exploration, study: Study) -> None:
    for merge in (False, True):
        path = here.save(CHOICE, merge)
        dense = build_model("vgg16", num_classes=10, width=0.125, in_channels=1)
        compact = load_compact(path, dense).eval()
        assert count_macs(compact, here.images[:1]) == here.whole(CHOICE).cost.macs
        whole = here.whole(CHOICE)
        want = (whole.merged if merge else whole.plain)[1]
        assert right(compact, study) == want
        names: dict[str, object] = {}
        exec(here.loading_code(path), names)  # noqa: S102 - our own code
        assert names["compact"].state_dict().keys() == compact.state_dict().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "conv99"}, "layer='conv99'"),
        ({"criterion": "l3"}, "criterion='l3'"),
        ({"reading": "median"}, "reading='median'"),
        ({"bins": 0}, "bins=0"),
        ({"ratio": 1.0}, "ratio=1.0"),
    ],
)
def test_bad_choices_are_refused(here: Exploration, change: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        here.layer(replace(CHOICE, **change))


def test_bad_networks_seeds_and_images_are_refused(here: Exploration, study: Study) -> None:
    for network, seed, message in (("vgg19", 0, "network='vgg19'"), ("vgg16", 7, "seed=7")):
        with pytest.raises(StudyError, match=message):
            study_subject(study, network, seed)
    with pytest.raises(StudyError, match="image=128 is not allowed; allowed: 0 to 127"):
        here.maps(CHOICE.layer, 128)


def test_controls_redraw_what_depends_on_them_and_nothing_else(here: Exploration, source: Subjects) -> None:
    explorer = Explorer(source, here, CHOICE)
    assert here.subject.title == "VGG-16 x0.125"  # as on the pages
    controls = explorer.controls

    def pictures() -> list[bytes]:
        return [bytes(image.value) for image in (explorer.similarity, explorer.norms, explorer.pair)]

    before = pictures()
    assert all(picture.startswith(b"\x89PNG") for picture in before)
    controls["image"].value = 3
    after = pictures()
    assert after[:2] == before[:2] and after[2] != before[2]
    controls["dropped"].index = 1
    chosen, norms = controls["dropped"].label, pictures()[1]
    controls["ratio"].value = 0.75
    assert pictures()[0] == before[0] and pictures()[1] != norms and explorer.choice.ratio == 0.75
    assert controls["dropped"].label == chosen  # still dropped, still looked at
    controls["criterion"].value = "kernel_l1"
    assert controls["reading"].disabled and controls["bins"].disabled
    numbers = explorer.numbers.value
    controls["network"].value = "resnet20"
    assert controls["layer"].value == explorer.here.first == explorer.choice.layer
    assert explorer.numbers.value != numbers
    controls["network"].value = "vgg16"
    explorer.save.click()
    assert "load_compact" in explorer.said.value


def test_the_score_that_decided_stands_beside_each_channel_and_orders_the_table(here: Exploration, source: Subjects) -> None:
    frame = here.layer(replace(CHOICE, criterion="kernel_l1"))
    weight = dict(here.dense.named_modules())["features.conv2"].weight
    assert frame.score.tolist() == pytest.approx(weight.detach().abs().sum((1, 2, 3)).tolist())
    assert frame.score[~frame.stays].max() <= frame.score[frame.stays].min()
    explorer = Explorer(source, here, replace(CHOICE, criterion="kernel_l1"))
    head, *shown = rows(explorer.why.value)
    assert head[:2] == ["channel", "score"] and len(shown) == (~frame.stays).sum()
    order = frame[~frame.stays].score.sort_values(kind="stable")
    assert [(int(row[0]), float(row[1])) for row in shown] == [(n, pytest.approx(s, abs=6e-4)) for n, s in order.items()]


def test_two_criteria_side_by_side(here: Exploration, source: Subjects) -> None:
    explorer = Explorer(source, here, CHOICE)
    assert explorer.versus.value == ""
    explorer.controls["against"].value = "kernel_l1"
    mine, theirs = (here.layer(replace(CHOICE, criterion=name)) for name in ("fcs", "kernel_l1"))
    gone, others = ({*frame.index[~frame.stays]} for frame in (mine, theirs))
    parts = here.both(CHOICE, "kernel_l1")
    assert parts == {"both": sorted(gone & others), "fcs": sorted(gone - others), "kernel_l1": sorted(others - gone)}
    assert len(parts["both"]) + len(parts["fcs"]) == len(gone) > 0
    head, *tops = rows(explorer.versus.value)
    want = [here.whole(replace(CHOICE, criterion=name)).plain[1] for name in ("fcs", "kernel_l1")]
    assert head[2] == "BatchNorm recalibrated" and [row[2] for row in tops] == [f"{one:.1f} %" for one in want]
    explorer.controls["criterion"].value = "kernel_l1"
    assert explorer.versus.value == ""  # with itself there is nothing to compare


def test_accuracy_over_ratios_is_that_of_each_ratio_and_tells_how_far_it_is(here: Exploration, source: Subjects) -> None:
    told: list[str] = []
    found = here.over_ratios(CHOICE, told.append)
    row = found[found.ratio == 0.3].iloc[0]
    whole = here.whole(replace(CHOICE, ratio=0.3))
    assert (row.plain, row.merged) == (whole.plain[1], whole.merged[1])
    assert len(told) == len(found) == 9 and told[2] == "fcs: 3 of 9 ratios"
    assert found["MACs left (%)"].is_monotonic_decreasing
    explorer = Explorer(source, here, CHOICE)
    assert not bytes(explorer.curve.value)
    explorer.trace.click()
    assert bytes(explorer.curve.value).startswith(b"\x89PNG")


def test_a_busy_sign_stands_there_while_it_works_and_not_after(here: Exploration, source: Subjects) -> None:
    explorer, seen = Explorer(source, here, CHOICE), list[str]()
    explorer.busy.observe(lambda change: seen.append(change["new"]), "value")
    explorer.controls["ratio"].value = 0.7
    assert seen and "working" in seen[0] and explorer.busy.value == ""
    explorer._answer(here.layer, replace(CHOICE, layer="conv99"))
    assert explorer.busy.value == "" and "conv99" in explorer.said.value


def test_saving_writes_the_plan_and_onnx_beside_the_weights(here: Exploration, source: Subjects) -> None:
    path = here.save(CHOICE, merge=False)
    plan = PruningPlan.from_data(json.loads(path.with_suffix(".plan.json").read_text()))
    assert plan == here.whole(CHOICE).plan
    explorer = Explorer(source, here, CHOICE)
    explorer.onnx.value = True
    explorer.save.click()
    onnx = path.with_suffix(".onnx")
    assert str(onnx) in explorer.said.value and onnx.stat().st_size > 1000


def test_another_data_set_opens_its_own_reference(here: Exploration, study: Study, smoke: Path, tmp_path: Path) -> None:
    small = Study(FEW, tmp_path)

    def one(dataset: str, network: str, seed: int, layer: str = "", tell: Tell = in_silence) -> Subject:
        return study_subject(study if dataset == "digits" else small, network, seed, layer, tell)

    explorer = Explorer(Subjects(["digits", FEW.dataset], {"vgg16": "VGG-16"}, [0], study.store.explored, one), here, CHOICE)
    assert explorer.controls["dataset"].layout.display == "" and explorer.controls["seed"].layout.display == "none"
    explorer.controls["dataset"].value = FEW.dataset
    alone = Exploration(study_subject(small, "vgg16", 0))
    tops = rows(explorer.numbers.value)[4:]
    assert tops[0][1] == f"{alone.dense_accuracy:.1f} %"
    assert tops[1][1:] == [f"{top:.1f} %" for top in alone.whole(CHOICE).plain]
    assert explorer.controls["layer"].value == CHOICE.layer and explorer.here.subject.place.dataset == FEW.dataset
    for name, found in (("paper", ["cifar10", "cifar100"]), ("paper:cifar100", ["cifar100", "cifar10"])):
        assert study_source(name, tmp_path, "").datasets == found


@pytest.mark.slow
@pytest.mark.parametrize("network", ["vgg16", "resnet20"])
def test_every_layer_can_be_looked_at(here: Exploration, source: Subjects, network: str) -> None:
    explorer = Explorer(source, here, CHOICE)
    explorer.controls["network"].value = network
    for layer in explorer.here.layers:  # the last one, too, whose maps come flattened
        explorer.controls["layer"].value = layer
        assert explorer.choice.layer == layer and len(explorer.here.layer(explorer.choice)) > 1
        assert explorer.controls["dropped"].value is None or bytes(explorer.pair.value).startswith(b"\x89PNG")


def test_a_small_layer_where_nothing_goes_says_so_instead_of_failing(here: Exploration, source: Subjects) -> None:
    explorer = Explorer(source, here, CHOICE)
    explorer.controls["ratio"].value = 0.05  # of 8 channels: rounds to none
    assert explorer.controls["dropped"].value is None and not bytes(explorer.pair.value)
    explorer.controls["ratio"].value = 0.5
    assert explorer.controls["dropped"].index == 0 and bytes(explorer.pair.value)


def test_what_knows_no_widgets_gets_a_still_view(here: Exploration, source: Subjects) -> None:
    bundle = Explorer(source, here, CHOICE)._repr_mimebundle_()
    assert WIDGET in bundle
    still = bundle["text/html"]
    assert still.count('class="picture"') == 2  # the matrix and the pair of maps; the bars may change their colours in the dark
    assert still.count("<img alt=") == 3 and "of the unpruned" in still and "<script" not in still


def test_the_executed_copy_holds_no_widgets(smoke: Path) -> None:
    executed = (smoke / "smoke" / "work" / "notebooks" / "explore.ipynb").read_text()
    assert "widget-view" not in executed and "data:image/png" in executed
    assert (smoke / "smoke" / "work" / "pages" / "explore.html").read_text().count("<img") == 3
