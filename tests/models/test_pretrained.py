"""Public weights come from checked files only, fit our networks exactly, and score what was published."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fcs_utils.data.dataset import Dataset, load_dataset
from fcs_utils.errors import StudyError
from fcs_utils.models import build_seeded
from fcs_utils.pretrained import DIGITS, LAYERS, PUBLIC_MEAN, PUBLIC_STD, load_pretrained, read_given
from fcs_utils.training.evaluate import accuracy
from tests.conftest import warm

NAME = "resnet20"
PUBLISHED = {"resnet20": 91.73, "resnet32": 92.63, "resnet44": 93.10, "resnet56": 93.39}  # percent, by their author
DATA = Path(os.environ.get("FCS_DATA", "nowhere"))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return warm(build_seeded(3, NAME, num_classes=10), size=8, images=8)


def theirs(network: nn.Module) -> dict[str, Tensor]:
    """A state as the public files have it: other names, and no counters of BatchNorm."""
    names = {ours: name for name, ours in LAYERS.items()}
    state = {}
    for name, tensor in network.state_dict().items():
        first, _, rest = name.partition(".")
        if not name.endswith("num_batches_tracked"):
            state[f"module.{names[first]}.{rest}"] = tensor.clone()
    return state


def put(folder: Path, value: object, monkeypatch: pytest.MonkeyPatch, content: bytes | None = None) -> Path:
    """A file that stands for the public one of ResNet-20: the digits in its name are its own."""
    if content is None:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        content = buffer.getvalue()
    monkeypatch.setitem(DIGITS, NAME, hashlib.sha256(content).hexdigest()[:8])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}-{DIGITS[NAME]}.th"
    path.write_bytes(content)
    return path


@pytest.fixture(autouse=True)
def no_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(url: str, *_: object, **__: object) -> None:
        raise URLError(f"no route to {url}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)


@pytest.mark.parametrize("place", ["pretrained", "."])
def test_a_public_network_is_ours_by_other_names(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    put(tmp_path / place, {"best_prec1": 91.8, "state_dict": theirs(network)}, monkeypatch)
    found, mean, std = load_pretrained(NAME, tmp_path)
    images = torch.randn(4, 3, 16, 16)
    assert found(images).equal(network(images)) and not found.training
    assert (mean, std) == (PUBLIC_MEAN, PUBLIC_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_option_a_is_the_shortcut_of_the_public_networks(network: nn.Module) -> None:
    """Theirs takes every second pixel and puts a quarter of the new width as zeros on either side."""
    block, x = network.stage2[0], torch.rand(2, 16, 8, 8)
    shortcut = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 32 // 4, 32 // 4))
    residual = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    assert block(x).equal((residual + shortcut).relu())


def test_what_is_missing_is_downloaded_once_from_its_address(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "server", {"state_dict": theirs(network)}, monkeypatch)
    asked = []

    def fetch(url: str, target: str, hash_prefix: str, progress: bool) -> None:
        asked.append((url, hash_prefix))
        Path(target).write_bytes(path.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    for _ in range(2):
        load_pretrained(NAME, tmp_path / "data")
    address = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"
    assert asked == [(f"{address}/{path.name}", DIGITS[NAME])] and (tmp_path / "data" / "pretrained" / path.name).exists()


def test_a_missing_file_is_named_with_its_places_and_its_address(tmp_path: Path) -> None:
    file = "resnet44-014dd654.th"
    with pytest.raises(StudyError) as refused:
        load_pretrained("resnet44", tmp_path)
    said = str(refused.value)
    assert all(str(place) in said for place in (tmp_path / "pretrained" / file, tmp_path / file)) and "URLError" in said
    assert f"https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/{file}" in said and "\n" not in said
    (tmp_path / "pretrained" / file).mkdir(parents=True)
    with pytest.raises(StudyError, match="is not a regular file"):
        load_pretrained("resnet44", tmp_path)


@pytest.mark.parametrize("name", ["resnet110", "resnet-20", "vgg16", "../resnet20"])
def test_unknown_names_are_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(StudyError, match="allowed: resnet20, resnet32, resnet44, resnet56"):
        load_pretrained(name, tmp_path)


@pytest.mark.parametrize("harm", [lambda content: content[:-7], lambda content: content[:90] + b"\1" + content[91:], lambda _: b""])
def test_a_file_whose_digits_are_others_is_never_opened(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[bytes], bytes]
) -> None:
    path = put(tmp_path, {"state_dict": theirs(network)}, monkeypatch)
    path.write_bytes(harm(path.read_bytes()))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(StudyError, match=rf"{path} is damaged or another file: .* not {DIGITS[NAME]}; remove it"):
        load_pretrained(NAME, tmp_path)


class Harmful:
    """What runs when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


def test_code_in_a_file_is_not_run_even_where_the_digits_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "ran"
    put(tmp_path, {"state_dict": Harmful(trace)}, monkeypatch)
    with pytest.raises(StudyError, match="is no checkpoint of resnet20"):
        load_pretrained(NAME, tmp_path)
    put(tmp_path, None, monkeypatch, pickle.dumps(Harmful(trace), protocol=2))
    with pytest.raises(StudyError, match="is no checkpoint of resnet20"):
        load_pretrained(NAME, tmp_path)
    assert not trace.exists()


WRONG: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "is no checkpoint": lambda state: {"weights": state},
    "'list' object has no attribute": lambda state: {"state_dict": [*state.values()]},
    "other layers than the network: stage4.0": lambda state: {"state_dict": {**state, "module.stage4.0": torch.zeros(1)}},
    "other layers than the network: head.bias": lambda state: {
        "state_dict": {name: t for name, t in state.items() if name != "module.linear.bias"}
    },
    r"stage2.1.conv1.weight is torch.float32 \(32, 32, 1, 1\)": lambda state: {
        "state_dict": {**state, "module.layer2.1.conv1.weight": torch.zeros(32, 32, 1, 1)}
    },
    "bn.bias is torch.float32.*finite is needed": lambda state: {
        "state_dict": {**state, "module.bn1.bias": torch.full((16,), torch.nan)}
    },
}


@pytest.mark.parametrize("said", WRONG)
def test_weights_that_do_not_fit_are_named(network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    put(tmp_path, WRONG[said](theirs(network)), monkeypatch)
    with pytest.raises(StudyError, match=said):
        load_pretrained(NAME, tmp_path)


def test_a_file_of_ones_own_is_plain_safetensors(network: nn.Module, tmp_path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, tmp_path / "mine.safetensors")
    for name in ("mine.safetensors", str(tmp_path / "mine.safetensors")):
        assert all(tensor.equal(state[key]) for key, tensor in read_given(name, tmp_path).items())
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "mine.safetensors").read_bytes()[:-3])
    (tmp_path / "text.safetensors").write_text("weights")
    for name in ("cut", "text"):
        with pytest.raises(StudyError, match=f"{name}.safetensors is not a whole safetensors file"):
            read_given(f"{name}.safetensors", tmp_path)
    with pytest.raises(StudyError, match=rf"'none.safetensors' not found. Looked in: {tmp_path}/none.safetensors. Put the file"):
        read_given("none.safetensors", tmp_path)


@pytest.fixture(scope="module")
def cifar10() -> Dataset:
    if not [*DATA.glob("cifar10.*"), *DATA.glob("cifar10"), *DATA.glob("cifar-10-batches-py")]:
        pytest.skip(f"no CIFAR-10 in FCS_DATA ({DATA})")
    return load_dataset("cifar10", DATA)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_public_networks_score_what_was_published(name: str, cifar10: Dataset) -> None:
    file = f"{name}-{DIGITS[name]}.th"
    if not any(place.exists() for place in (DATA / "pretrained" / file, DATA / file)):
        pytest.skip(f"no {file} in FCS_DATA ({DATA})")
    network, mean, std = load_pretrained(name, DATA)
    data = replace(cifar10, mean=255 * torch.tensor(mean), std=255 * torch.tensor(std))
    assert round(accuracy(network.to(memory_format=torch.channels_last), data, data.test), 2) == PUBLISHED[name]
