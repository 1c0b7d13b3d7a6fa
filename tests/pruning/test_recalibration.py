"""Recalibration: the images' own statistics from whatever state, and after a refusal everything as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.surgery import recalibrate


def state(model: nn.Module) -> list[Any]:
    """All that a call could change: tensors, modes, momenta and hooks."""
    tensors = [*model.state_dict().values()]
    return [tensor.clone() for tensor in tensors] + [
        (module.training, getattr(module, "momentum", None), len(module._forward_hooks)) for module in model.modules()
    ]


def same(before: list[Any], after: list[Any]) -> bool:
    return all(
        torch.equal(one, other) if isinstance(one, Tensor) else one == other for one, other in zip(before, after, strict=True)
    )


def used(norm: nn.Module, steps: int = 100) -> nn.Module:
    """As after some training: statistics far from the images', and a count."""
    norm.running_mean.fill_(50.0)
    norm.running_var.fill_(9.0)
    norm.num_batches_tracked.fill_(steps)
    return norm


@torch.no_grad()
def test_a_used_batchnorm_gets_the_images_own_mean_and_variance() -> None:
    # Two channels: 0, 2, 4, 6 with mean 3 and variance 20/3, and 1, 1, 1, 5 with mean 2 and variance 4.
    images = torch.tensor([[0.0, 2, 4, 6], [1, 1, 1, 5]]).T.reshape(4, 2, 1, 1)
    norm = used(nn.BatchNorm2d(2))
    recalibrate(norm.eval(), images)
    torch.testing.assert_close(norm.running_mean, torch.tensor([3.0, 2.0]))
    torch.testing.assert_close(norm.running_var, torch.tensor([20 / 3, 4.0]))
    assert norm.num_batches_tracked == 1 and norm.momentum == 0.1 and not norm.training


@torch.no_grad()
def test_five_images_at_batch_four_are_split_evenly() -> None:
    # Batches (0, 0, 3) and (3, 6): means 1 and 4.5, on average 2.75. Batches (0, 0, 3, 3) and (6) would give 3.75.
    images = torch.tensor([0.0, 0, 3, 3, 6]).reshape(5, 1, 1, 1).expand(5, 1, 1, 2)
    norm = used(nn.BatchNorm2d(1))
    recalibrate(norm, images, batch_size=4)
    assert norm.running_mean.item() == pytest.approx(2.75) and norm.num_batches_tracked == 2
    for batch_size, count in ((5, 1), (2, 3), (1000, 1)):
        recalibrate(norm, images, batch_size=batch_size)
        assert norm.num_batches_tracked == count


@pytest.mark.parametrize(
    ("norm", "lay"),
    [
        (nn.BatchNorm1d(3), lambda x: x.flatten(2)),
        (nn.BatchNorm3d(3), lambda x: x[:, :, None]),
        (nn.SyncBatchNorm(3), lambda x: x),
        (nn.BatchNorm2d(3, momentum=None, affine=False), lambda x: x),
    ],
    ids=["1d", "3d", "sync", "momentum None"],
)
@torch.no_grad()
def test_every_batchnorm_that_keeps_statistics_is_estimated(norm: nn.Module, lay: Callable[[Tensor], Tensor]) -> None:
    class Laid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = used(copy.deepcopy(norm))

        def forward(self, images: Tensor) -> Tensor:
            return self.norm(lay(images))

    model, images = Laid(), 3 + 2 * torch.randn(20, 3, 4, 4)
    recalibrate(model, images)
    torch.testing.assert_close(model.norm.running_mean, images.mean((0, 2, 3)))
    torch.testing.assert_close(model.norm.running_var, images.var((0, 2, 3)))
    assert model.norm.momentum == norm.momentum and model.norm.training


class Branching(nn.Module):
    """A head that only training uses, and a BatchNorm without running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm, self.side = used(nn.BatchNorm2d(4)), used(nn.BatchNorm2d(4), 7)
        self.plain = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.side(maps) if self.training else self.plain(self.norm(maps))


def test_what_the_images_do_not_reach_keeps_its_statistics() -> None:
    model = Branching().train()
    recalibrate(model, torch.randn(8, 3, 6, 6))
    assert model.side.num_batches_tracked == 7 and (model.side.running_mean == 50).all()
    assert model.norm.num_batches_tracked == 1 and (model.norm.running_mean != 50).all() and model.training


def test_a_network_that_views_its_maps_runs_in_contiguous_memory() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = used(nn.BatchNorm2d(3)), nn.Linear(48, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.norm(images).view(len(images), -1))

    model, images = Viewing(), torch.randn(6, 3, 4, 4)
    recalibrate(model, images, batch_size=2)
    torch.testing.assert_close(model.norm.running_mean, images.mean((0, 2, 3)))


class Falling(nn.Module):
    """Fails at the second batch in which its BatchNorm trains, after the statistics have changed."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.norm, self.error, self.seen = used(nn.BatchNorm2d(3, momentum=0.3)), error, 0

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(images)
        self.seen += self.norm.training
        if self.seen == 2:
            raise self.error
        return maps


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("out of luck"), StudyError),
        (KeyError("gone"), StudyError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failure_in_the_midst_puts_everything_back(error: BaseException, raised: type[BaseException]) -> None:
    model = Falling(error)
    before = state(model)
    with pytest.raises(raised):
        recalibrate(model, torch.randn(6, 3, 4, 4), batch_size=3)
    assert same(before, state(model))


IMAGES = torch.randn(4, 3, 6, 6)
WRONG = {
    "empty": (IMAGES[:0], {}, "images=Tensor torch.float32 (0, 3, 6, 6)"),
    "double": (IMAGES.double(), {}, "does not run on images torch.float64"),
    "half": (IMAGES.half(), {}, "does not run on images torch.float16"),
    "bytes": (IMAGES.byte(), {}, "a float tensor"),
    "five channels": (torch.randn(4, 5, 6, 6), {}, "does not run on images torch.float32 (4, 5, 6, 6)"),
    "too small": (torch.randn(4, 3, 2, 2), {}, "does not run on images"),
    "one image without its batch": (IMAGES[0], {}, "(N, C, H, W)"),
    "NaN": (torch.where(torch.arange(6) == 3, torch.nan, IMAGES), {}, "without NaN and infinity"),
    "infinite": (IMAGES / 0, {}, "without NaN and infinity"),
    "too large to square": (IMAGES * 1e30, {}, "NaN or infinite"),
    "meta": (IMAGES.to("meta"), {}, "meta"),
    "gradient": (IMAGES.clone().requires_grad_(), {}, "without a gradient"),
    "a list": ([[1.0]], {}, "images=[[1.0]] is not allowed"),
    "batch_size 4.0": (IMAGES, {"batch_size": 4.0}, "batch_size=4.0"),
    "batch_size 0": (IMAGES, {"batch_size": 0}, "batch_size=0"),
}


@pytest.mark.parametrize(("images", "options", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("training", [True, False])
def test_wrong_images_are_refused_and_nothing_changes(images: Any, options: Any, message: str, training: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), used(nn.BatchNorm2d(4, momentum=0.25)), nn.ReLU()).train(training)
    before = state(model)
    with pytest.raises(StudyError) as caught:
        recalibrate(model, images, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert same(before, state(model))


def test_one_channel_that_is_not_finite_is_enough_to_refuse() -> None:
    norm = used(nn.BatchNorm2d(3))
    before, images = state(norm), torch.randn(4, 3, 6, 6)
    images[:, 1] *= 1e30  # whose variance is infinite, and whose mean is not
    with pytest.raises(StudyError, match="NaN or infinite"):
        recalibrate(norm, images)
    assert same(before, state(norm))


def test_an_inference_mode_around_the_call_changes_nothing() -> None:
    inside, outside = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)) for _ in range(2))
    outside.load_state_dict(inside.state_dict())
    recalibrate(outside, IMAGES)
    with torch.inference_mode():
        recalibrate(inside, IMAGES)
    assert same(state(outside), state(inside))
