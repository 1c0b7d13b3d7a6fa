"""Networks with several inputs: scored, planned, proved, pruned, recalibrated, saved and exported like those on images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.benchmarks.exactness import inexactness
from fcs_utils.errors import StudyError
from fcs_utils.inputs import Inputs, call, first_of, noise_like, parts_of, split_batches
from fcs_utils.models import count_macs
from fcs_utils.pruning.by_hand import plan_by_hand
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import export_onnx, has_onnx, load_compact, save_compact, session
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.pruners import pruner_plan
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune, recalibrate
from fcs_utils.running import tensors_in
from fcs_utils.study.rounds import prune_in_rounds
from tests.pruning.axes import settled
from tests.pruning.several import CLASSES, COUNT, GREY, IMAGES, LABELS, MASKS, NETWORKS, TOKENS, Branches, Conditional, Masked


def made(kind: str) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    build, images, *_ = NETWORKS[kind]
    return settled(build(), images), images


def planned(net: nn.Module, images: Inputs, **options: Any) -> PruningPlan:
    statistics = collect_statistics(net, images)
    scores = importance("kernel_l1", model=net, statistics=statistics)
    return make_plan(net, images, scores, **{"ratio": 0.5, "scope": "all", **options})


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_surgery_is_exact_by_every_criterion(kind: str, tmp_path: Path) -> None:
    net, images = made(kind)
    drawn, shrinking = NETWORKS[kind][2:]
    statistics = collect_statistics(net, images, extras=("apoz", "chip"), batch_size=COUNT)
    again = collect_statistics(net, images, batch_size=3)
    for name, known in statistics.items():
        torch.testing.assert_close(again[name].gram, known.gram, rtol=1e-5, atol=1e-5)
    plain = ("kernel_l1", "fpgm", "random", "fcs", "fcs_linear", "feature_norm", "apoz", "chip")
    for criterion in plain if "mask" in kind else (*plain, "taylor"):
        scores = importance(criterion, model=net, statistics=statistics, images=images, labels=LABELS)
        plan = make_plan(net, images, scores, ratio=0.5, scope="all")
        assert plan.kept.keys() == shrinking
        compact = prune(net, plan, example=None if drawn else images)
        assert inexactness(net, compact, images) is None
    assert plan.macs_left == pytest.approx(count_macs(compact, images) / count_macs(net, images))
    recalibrate(compact, images, batch_size=4)
    save_compact(tmp_path / "compact.safetensors", compact, plan)
    loaded = load_compact(tmp_path / "compact.safetensors", NETWORKS[kind][0](), example=images).eval()
    pairs = zip(tensors_in(call(loaded, images)), tensors_in(call(compact, images)), strict=True)
    assert all(one.equal(other) for one, other in pairs)


@torch.no_grad()
def test_dropped_channels_of_a_masked_map_are_zeros_for_the_reader() -> None:
    net, images = made("image and mask")
    plan = plan_by_hand(net, images, {"first.0": [1, 2, 5]})
    gone = torch.tensor([0, 3, 4])
    with net.second[0].register_forward_pre_hook(lambda _m, seen: (seen[0].index_fill(1, gone, 0),)):
        want = net(*images)
    got = prune(net, plan)(*images)
    torch.testing.assert_close(got, want)
    assert got.keys() == {"pooled", "maps"} and (net(*images)["maps"] - want["maps"]).norm() > 1e-2 * want["maps"].norm()


@torch.no_grad()
def test_statistics_by_hand() -> None:
    net = Masked().eval()
    net.first, net.second = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 3, 1)
    net.last = nn.Conv2d(3, 1, 1)
    net.first.weight.copy_(torch.tensor([1.0, -2.0]).view(2, 1, 1, 1))
    image, mask = torch.tensor([[[[1.0, 2.0]]], [[[3.0, 4.0]]]]), torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]]])
    known = collect_statistics(net, (image, mask), layers=["first"], batch_size=1)["first"]
    # Behind the mask, 1 is left of the first image and 4 of the second; the second channel is twice as large, and negative.
    assert known.gram.tolist() == [[17.0, -34.0], [-34.0, 68.0]] and known.l1.tolist() == [2.5, 5.0] and known.count == 4


def test_a_plan_holds_the_shapes_of_all_inputs() -> None:
    net, images = made("image and class")
    plan = planned(net, images)
    text = plan.model_dump_json()
    assert '"inputs":[{"name":null,"shape":[3,8,8],"dtype":"float32"},{"name":null,"shape":[],"dtype":"int64"}]' in text
    assert PruningPlan.from_json(text) == plan and plan.input_shape == (3, 8, 8)
    named = planned(*made("two branches by name"))
    assert [str(one) for one in named.inputs] == ["grey float32 (N, 1, 8, 8)", "colour float32 (N, 3, 8, 8)"]
    alone = nn.Sequential(*Branches().left, nn.Conv2d(6, 2, 1)).eval()
    assert "inputs" not in make_plan(alone, IMAGES, {"0": torch.arange(6.0)}, ratio=0.5).model_dump()


def test_whole_numbers_are_never_drawn() -> None:
    drawn = noise_like({"image": IMAGES, "label": CLASSES[:3], "mask": MASKS.bool()}, 5, torch.Generator().manual_seed(0), 0.5)
    assert drawn["image"].shape == (5, 3, 4, 4) and drawn["label"].tolist() == [0, 1, 2, 0, 1]
    assert drawn["mask"].equal(MASKS.bool()[:5])
    net, images = made("image and class")
    plan = planned(net, images)
    for missing in (lambda: prune(net, plan), lambda: plan.images()):
        with pytest.raises(StudyError, match=r"^the network reads a tensor int64 \(N\), which cannot be drawn.*: pass example="):
            missing()
    statistics = collect_statistics(net, images)
    assert prune(net, plan, compensate="merge", statistics=statistics, example=images).first[0].out_channels == 3


class Timed(Conditional):
    """As ``Conditional``, but years after 2000 say which row of the table is read."""

    def forward(self, image: Tensor, years: Tensor) -> Tensor:
        return super().forward(image, years.long() - 2000)


@torch.no_grad()
def test_where_random_numbers_are_no_input_the_example_is_enough() -> None:
    inputs = {"image": IMAGES, "years": CLASSES + 2000.0}
    net = settled(Timed(), inputs)
    plan = planned(net, inputs)
    gone = torch.tensor([channel for channel in range(6) if channel not in plan.kept["first.0"]])
    with net.second[0].register_forward_pre_hook(lambda _m, seen: (seen[0].index_fill(1, gone, 0),)):
        # The second convolution's own dropped channels are read by the head.
        lost = torch.tensor([channel for channel in range(8) if channel not in plan.kept["second.0"]])
        with net.head.register_forward_pre_hook(lambda _m, seen: (seen[0].index_fill(1, lost, 0),)):
            want = net(**inputs)
    torch.testing.assert_close(prune(net, plan, example=inputs)(**inputs), want)
    assert plan.kept.keys() == {"first.0", "second.0", "scale"}
    with pytest.raises(StudyError, match="^the network does not run on images .*: IndexError: index out of range"):
        prune(net, plan)


def test_a_layer_that_only_some_inputs_let_cut_is_left_whole() -> None:
    class Rolled(Masked):
        def forward(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
            maps = self.first(image)
            return {"maps": self.last(self.second((maps.roll(1, 1) if mask.min() < 0 else maps) * mask))}

    net = settled(Rolled(), (IMAGES, MASKS))
    plan = planned(net, (IMAGES, MASKS))  # random masks are below 0
    assert plan.kept.keys() == {"second.0"} and "first.0" in plan.skipped
    known = planned(net, (IMAGES, MASKS.bool()))  # truths are not drawn
    assert known.kept.keys() == {"first.0", "second.0"}


def test_an_input_pins_the_channels_that_it_is_added_to_and_one_that_is_spread_does_not() -> None:
    class Added(Branches):
        def forward(self, colour: Tensor, grey: Tensor) -> Tensor:
            return self.head(self.both(torch.cat([self.left(colour) + grey, self.right(grey[:, :1])], 1)).mean((2, 3)))

    net = settled(Added(), (IMAGES, IMAGES.repeat(1, 2, 1, 1)))
    plan = planned(net, (IMAGES, IMAGES.repeat(1, 2, 1, 1)))
    assert plan.skipped["left.0"] == "shares a residual sum with the images, whose channels stay" and "right.0" in plan.kept
    spread = planned(net, (IMAGES, GREY))
    assert "left.0" in spread.kept and inexactness(net, prune(net, spread), (IMAGES, GREY)) is None


def test_batches_by_hand() -> None:
    rows = {"image": torch.arange(7.0).view(7, 1, 1), "label": torch.arange(7)}
    full, even = [[len(one["label"]) for one in split_batches(rows, 3, even)] for even in (False, True)]
    assert full == [3, 3, 1] and even == [3, 2, 2]
    for batches in (split_batches(rows, 3), split_batches(rows, 3, even=True)):
        assert torch.cat([one["label"] for one in batches]).equal(rows["label"])
    assert [tuple(one.shape) for one in parts_of(first_of((IMAGES, CLASSES), 2, 9))] == [(1, 3, 8, 8), (1,)]


def test_batch_norm_learns_from_all_inputs() -> None:
    net, images = made("two branches")
    recalibrate(net, images, batch_size=5)
    seen = net.right[0](GREY)
    torch.testing.assert_close(net.right[1].running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_pruning_in_rounds_and_the_pruners_of_the_library_take_several_inputs() -> None:
    net, images = made("image and class")
    found = prune_in_rounds(
        net, images, lambda one: importance("kernel_l1", model=one), lambda one, number: None, macs=0.5, rounds=2
    )
    assert len(found.plans) == 2 and count_macs(found.network, images) < 0.6 * count_macs(net, images)
    for kind in ("two branches", "two branches by name"):
        net, images = made(kind)
        plan = pruner_plan("tp_group_taylor", model=net, images=images, labels=LABELS, macs=0.5)
        assert inexactness(net, prune(net, plan), images) is None


@pytest.mark.skipif(not has_onnx(), reason="needs the extra deploy")
@pytest.mark.parametrize("kind", NETWORKS)
def test_onnx_files_have_the_names_of_the_arguments(kind: str, tmp_path: Path) -> None:
    net, images = made(kind)
    compact = prune(net, planned(net, images), example=images)
    runtime = session(export_onnx(compact, tmp_path / "compact.onnx", images))
    names = {
        "two": ["colour", "grey"],
        "image and mask": ["image", "mask"],
        "image and class": ["image", "label"],
        "tokens": ["tokens"],
    }
    assert [one.name for one in runtime.get_inputs()] == next(found for start, found in names.items() if kind.startswith(start))
    assert [one.name for one in runtime.get_outputs()] == (["pooled", "maps"] if "mask" in kind else ["logits"])


BOTH, OTHER = (IMAGES, GREY), {"colour": IMAGES, "grey": GREY}
ONE = {"kept": {"left.0": [1]}, "channels": {"left.0": 6}, "input_shape": (3, 8, 8), "ratio": 0.5}


def plan_with(images: Any) -> Any:
    return lambda net: make_plan(net, images, {}, ratio=0.5)


def prune_with(example: Any) -> Any:
    return lambda net: prune(net, planned(net, BOTH), example=example)


def scored_by_maps(_net: nn.Module) -> Any:
    return importance("taylor", model=settled(Masked(), (IMAGES, MASKS)), images=(IMAGES, MASKS), labels=LABELS)


REFUSED: list[tuple[str, Any, str]] = [
    ("one of two", lambda net: collect_statistics(net, IMAGES), "does not run on images torch.float32 (1, 3, 8, 8) on cpu"),
    ("other rows", lambda net: collect_statistics(net, (IMAGES, GREY[:3])), "allowed: real tensors of equally many rows"),
    ("nothing", lambda net: collect_statistics(net, ()), "images=() is not allowed; allowed: a tensor; a tuple or list of several"),
    ("lists inside", lambda net: recalibrate(net, ([IMAGES], GREY)), "allowed: a tensor; a tuple or list of several"),
    ("a number", lambda net: recalibrate(net, (IMAGES, 3)), "allowed: a tensor; a tuple or list of several"),
    ("names that are none", plan_with({0: IMAGES}), "or a dict of them by its arguments' names"),
    ("unknown names", plan_with({"a": IMAGES, "b": GREY}), "unexpected keyword argument 'a'"),
    ("NaN in the second", plan_with((IMAGES, GREY / 0)), "allowed: images without NaN and infinity"),
    ("whole numbers alone", plan_with(TOKENS), "example=Tensor torch.int64 (10, 16) is not allowed"),
    ("labels of others", lambda net: importance("taylor", model=net, images=BOTH, labels=LABELS[:2]), "(10,), one label an image"),
    ("a dict of maps", scored_by_maps, "the network returns a dict"),
    ("one of two to prune", prune_with(IMAGES), "example=Tensor torch.float32 (10, 3, 8, 8)"),
    ("the other way round", prune_with((GREY, IMAGES)), "allowed: inputs as those of the plan"),
    ("by name", prune_with(OTHER), "a tensor float32 (N, 1, 8, 8)"),
    ("several for images", lambda net: prune(net, PruningPlan.from_data(ONE), example=BOTH), "allowed: images (N, 3, ...)"),
    (
        "another first shape",
        lambda net: PruningPlan.from_data({**ONE, "inputs": [{"shape": [1, 8, 8], "dtype": "float32"}]}),
        "input_shape must be that of the first of its inputs",
    ),
]


@pytest.mark.parametrize(("use", "said"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_does_not_fit_is_refused_in_one_line(use: Any, said: str) -> None:
    net, _ = made("two branches")
    with pytest.raises(StudyError) as caught:
        use(net)
    assert said in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600
