"""What fit refuses before anything is trained, without a trace in the networks; and one step of torchvision's networks."""

from __future__ import annotations

import copy
import threading
import warnings
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._device import set_device
from torchvision.models.regnet import BlockParams

from fcs_utils.errors import StudyError
from fcs_utils.files import tensors_sum
from fcs_utils.models import build_model
from fcs_utils.training import loop, losses
from fcs_utils.training.arms import ARMS
from fcs_utils.training.fitting import check_networks
from fcs_utils.training.loop import Callbacks, fit
from fcs_utils.training.optimiser import Training
from fcs_utils.training.passes import Execution

ONCE = Training(epochs=1, learning_rate=0.01)
IMAGES, LABELS = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])


def small(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes))


class Auxiliary(nn.Module):
    """As torchvision's GoogLeNet: a tuple in training, logits in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, images: Tensor) -> Any:
        logits = self.body(images)
        return (logits, logits) if self.training else logits


def shared() -> list[nn.Module]:
    one, other = small(), small()
    other[0].weight = one[0].weight
    return [one, other]


NETWORKS = {
    "too few": (lambda: [small()], "networks=1 is not allowed; allowed: 2 for arm mlft"),
    "too many": (lambda: [small(), small(), small()], "networks=3"),
    "other classes": (lambda: [small(), small(5)], "of 3 and 5 classes"),
    "one network twice": (lambda: [small()] * 2, "share parameters"),
    "a shared weight": (shared, "share parameters"),
    "frozen": (lambda: [small().requires_grad_(False), small().requires_grad_(False)], "require a gradient"),
    "without parameters": (lambda: [small(), nn.Flatten()], "each needs parameters"),
    "a tuple in training": (lambda: [small(), Auxiliary()], "logits='tuple'"),
    "other images": (lambda: [small(), nn.Sequential(nn.Conv2d(5, 4, 3), nn.Flatten())], "does not run on images"),
    "maps as logits": (lambda: [small(), nn.Conv2d(3, 3, 3)], "logits='(4, 3, 6, 6)'"),
}


def test_networks_on_two_devices_are_refused() -> None:
    with pytest.raises(StudyError, match="networks='on cpu, meta' is not allowed; allowed: networks on one device"):
        check_networks([small(), small().to("meta")], ARMS["mlft"])


BATCHES = {
    "none": ([], "gave no batch"),
    "nothing": (None, "batches(seed, 1)=None"),
    "images alone": ([IMAGES], "(images, labels)"),
    "three parts": ([(IMAGES, LABELS, LABELS)], "['Tensor', 'Tensor', 'Tensor']"),
    "arrays": ([(IMAGES.numpy(), LABELS.numpy())], "['ndarray', 'ndarray']"),
    "a list of numbers": ([(IMAGES, [0, 1, 2, 1])], "['Tensor', 'list']"),
    "bytes": ([(IMAGES.byte(), LABELS)], "images torch.uint8"),
    "labels of another kind": ([(IMAGES, LABELS.float())], "labels torch.float32 (4,)"),
    "fewer labels": ([(IMAGES, LABELS[:3])], "labels torch.int64 (3,)"),
    "no images": ([(IMAGES[:0], LABELS[:0])], "images torch.float32 (0, 3, 8, 8)"),
    "a label too high": ([(IMAGES, LABELS + 1)], "labels='1 to 3' is not allowed; allowed: 0 to 2"),
    "a label below 0": ([(IMAGES, LABELS - 1)], "labels='-1 to 1'"),
    "doubles": ([(IMAGES.double(), LABELS)], "does not run on images torch.float64"),
    "too small": ([(IMAGES[..., :4], LABELS)], "does not run on images"),
}


def refused(networks: list[nn.Module], batches: Any, arm: str = "mlft") -> str:
    before = [tensors_sum(network.state_dict()) for network in networks]
    modes = [module.training for network in networks for module in network.modules()]
    with pytest.raises(StudyError) as caught:
        fit(networks, ONCE, lambda seed, epoch: batches, arm)
    assert [tensors_sum(network.state_dict()) for network in networks] == before
    assert [module.training for network in networks for module in network.modules()] == modes
    return str(caught.value)


@pytest.mark.parametrize(("make", "said"), NETWORKS.values(), ids=NETWORKS)
def test_networks_that_cannot_be_trained_together_are_refused_before(make: Any, said: str) -> None:
    assert said in refused([network.eval() for network in make()], [(IMAGES, LABELS)])


@pytest.mark.parametrize(("batches", "said"), BATCHES.values(), ids=BATCHES)
def test_batches_of_another_kind_are_refused_before(batches: Any, said: str) -> None:
    assert said in refused([small()], batches, "tft")
    assert said in refused([small(), small()], batches)


def test_a_later_batch_of_another_kind_is_named() -> None:
    for odd, said in (((IMAGES, LABELS.float()), "batch 2 of epoch 1"), ((IMAGES, LABELS + 1), "labels='1 to 3'")):
        with pytest.raises(StudyError, match=said):
            fit([small()], ONCE, lambda seed, epoch, odd=odd: [(IMAGES, LABELS), odd])
    with pytest.raises(StudyError, match="precision='fp8' is not allowed; allowed: fp32, bf16"):
        Execution(precision="fp8")  # type: ignore[arg-type]


def test_labels_on_a_gpu_are_compared_with_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = small(), small()
    other.load_state_dict(one.state_dict())
    fit([one], ONCE, lambda seed, epoch: [(IMAGES, LABELS)] * 2)
    for module in (losses, loop):
        monkeypatch.setattr(module, "on_the_host", lambda labels: False)
    fit([other], ONCE, lambda seed, epoch: [(IMAGES, LABELS)] * 2)
    assert tensors_sum(one.state_dict()) == tensors_sum(other.state_dict())
    for odd, said in ((LABELS + 1, "labels='1 to 3'"), (LABELS - 1, "labels='-1 to 1'")):
        assert f"{said} is not allowed; allowed: 0 to 2" in refused([small()], [(IMAGES, odd)], "tft")  # nothing was trained
        assert said in refused([small(), small()], [(IMAGES, odd)])
        for wrong in (1, 2):  # a batch that is not the first is named when its epoch ends
            twice = Training(epochs=2, learning_rate=0.01)
            with pytest.raises(StudyError, match=f"labels of epoch {wrong} must be 0 to 2"):
                fit(
                    [small()], twice, lambda s, epoch, k=wrong, odd=odd: [(IMAGES, LABELS), (IMAGES, odd if epoch == k else LABELS)]
                )


def test_trying_the_first_batch_changes_no_bit_of_the_training() -> None:
    one = small()
    other = copy.deepcopy(one)
    fit([one], ONCE, lambda seed, epoch: [(IMAGES, LABELS)])
    other.train()
    sgd = torch.optim.SGD(other.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True)
    torch.optim.lr_scheduler.OneCycleLR(sgd, 0.01, total_steps=2, cycle_momentum=False)
    nn.functional.cross_entropy(other(IMAGES), LABELS).backward()
    sgd.step()
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], msg=name)
    assert one[1].num_batches_tracked == 1


# -- every network that build_model knows --------------------------------------------------------------------------------

SIZES = {"inception_v3": 96, "alexnet": 80, "vit_h_14": 224, "squeezenet1_0": 64, "squeezenet1_1": 64}


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_network_gives_logits_in_training_and_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # On device meta only shapes are worked out, so that networks of 600 million weights take a second. RegNet works out its widths
    # by tensors, whose numbers it needs.
    widths = set_device("cpu")(BlockParams.from_init_params)
    monkeypatch.setattr(BlockParams, "from_init_params", widths)
    size = SIZES.get(name, 224 if name.startswith(("vit", "maxvit", "swin")) else 64)
    with torch.device("meta"):
        network = build_model(f"torchvision/{name}", num_classes=7).train()
        logits = network(torch.zeros(2, 3, size, size))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("googlenet", 32), ("inception_v3", 80), ("mnasnet0_5", 32), ("alexnet", 64)])
def test_a_step_of_torchvisions_networks(name: str, size: int) -> None:
    network = build_model(f"torchvision/{name}", num_classes=3)
    history = fit([network], ONCE, lambda seed, epoch: [(torch.randn(2, 3, size, size), LABELS[:2])])
    assert history[0].loss > 0


def test_a_frozen_peer_is_tried_and_asked_in_eval_mode() -> None:
    teacher = Auxiliary()
    (epoch,) = fit([small(), teacher], ONCE, lambda seed, epoch: [(IMAGES, LABELS)], "kd")
    assert epoch.loss > 0 and not teacher.training


def test_the_callers_autocast_does_not_reach_into_a_training() -> None:
    torch.manual_seed(0)
    networks = [small() for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    for network, inside in zip(networks, (False, True), strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            fit([network], ONCE, lambda seed, epoch: [(IMAGES, LABELS)])
    assert tensors_sum(networks[0].state_dict()) == tensors_sum(networks[1].state_dict())


def test_trainings_in_two_threads_are_said_to_share_chance() -> None:
    started, done, said = threading.Event(), threading.Event(), list[str]()

    def wait(_networks: object) -> dict[str, float]:
        started.set()
        done.wait(60)
        return {}

    other = threading.Thread(target=lambda: fit([small()], ONCE, lambda *_: [(IMAGES, LABELS)], callbacks=Callbacks(evaluate=wait)))
    other.start()
    started.wait(60)
    with pytest.warns(UserWarning, match="another thread trains, too") as caught:
        fit([small()], ONCE, lambda seed, epoch: [(IMAGES, LABELS)])
    said += [warning.filename for warning in caught]
    done.set()
    other.join()
    assert said == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit([small()], ONCE, lambda seed, epoch: [(IMAGES, LABELS)])


class Viewed(nn.Module):
    """Lays its maps out as rows with ``view``, which is possible in contiguous memory alone; in training only, or always."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.conv, self.head, self.always = nn.Conv2d(3, 4, 3), nn.Linear(144, 3), always

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.head(maps.view(len(maps), -1) if self.always or self.training else maps.flatten(1))


@pytest.mark.parametrize("always", [True, False])
@pytest.mark.parametrize("arm", ["tft", "mlft", "kd"])
def test_networks_that_need_contiguous_maps_are_trained(always: bool, arm: str) -> None:
    torch.manual_seed(0)
    networks = [Viewed(always).eval(), Viewed(always).eval()][: ARMS[arm].networks]
    history = fit(networks, Training(epochs=2, learning_rate=0.05), lambda seed, epoch: [(IMAGES, LABELS)], arm)
    assert history[1].loss < history[0].loss and networks[0].conv.weight.is_contiguous()


def test_other_networks_are_trained_in_channels_last() -> None:
    network = small()
    fit([network], ONCE, lambda seed, epoch: [(IMAGES, LABELS)])
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_later_batch_on_which_a_network_does_not_run_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    batches = [(IMAGES, LABELS), (IMAGES[:1], LABELS[:1])]  # one number a channel has no variance
    with pytest.raises(StudyError, match=r"does not run on images torch.float32 \(1, 3, 8, 8\) .*Expected more than 1 value"):
        fit([network], ONCE, lambda seed, epoch: batches)
    rows = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(1))
    rows[3].register_forward_hook(lambda module, given, found: found if len(found) == 4 else found[..., None])
    with pytest.raises(StudyError, match=r"logits='\(3, 3, 1\)' is not allowed; allowed: a tensor \(B, K\)"):
        fit([rows], ONCE, lambda seed, epoch: [(IMAGES, LABELS), (IMAGES[:3], LABELS[:3])])
    with pytest.raises(StudyError, match=r"labels='3 to 5' is not allowed; allowed: 0 to 2, the classes of the logits$"):
        fit([small()], ONCE, lambda seed, epoch: [(IMAGES[:3], torch.tensor([3, 4, 5]))])
