"""Networks whose weights exist already: the public ResNets of CIFAR-10, and files of one's own.

The public ones are Yerlan Idelbayev's (https://github.com/akamaster/pytorch_resnet_cifar10, BSD-2-Clause): ResNet-20, 32, 44 and 56
with shortcuts of option A. They were trained on all 50,000 training images of CIFAR-10, so a validation split that is cut from
these is not unseen to them.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fcs_utils.config import checked
from fcs_utils.data.dataset import data_folder
from fcs_utils.errors import StudyError, first_line, refuse
from fcs_utils.files import LARGEST_TENSORS, read_bytes
from fcs_utils.models import build_model, load_state, network_title

PREFIX = "pretrained:"  # before the name of a public network, where else the name of a file may stand
ADDRESS = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"
DIGITS = {"resnet20": "12fca82f", "resnet32": "d509ac18", "resnet44": "014dd654", "resnet56": "4bfd9763"}  # of each file's SHA-256
PUBLIC_MEAN, PUBLIC_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of images in 0..1
LAYERS = {
    "conv1": "conv",
    "bn1": "bn",
    "layer1": "stage1",
    "layer2": "stage2",
    "layer3": "stage3",
    "linear": "head",
}  # theirs: ours


class Pretrained(NamedTuple):
    """A network in eval mode, and the mean and standard deviation a channel that its images, in 0..1, are normalised by."""

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]


@checked
def load_pretrained(name: str, folder: str | Path | None = None) -> Pretrained:
    """A public CIFAR-10 network: ``resnet20``, ``resnet32``, ``resnet44`` or ``resnet56``.

    folder: the data folder, as in ``load_dataset``. The file ``NAME-DIGITS.th`` is looked for in its subfolder ``pretrained`` and
    in itself, else downloaded into the first. It is opened only if its SHA-256 begins with the digits in its name, and no code in
    it is run.

    Raises StudyError for an unknown name, a file that is missing and cannot be downloaded, and a damaged one.

    >>> network, mean, std = load_pretrained("resnet20")  # doctest: +SKIP
    >>> images = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)  # doctest: +SKIP
    """
    state = _public(name, data_folder(folder))
    network = build_model(name, num_classes=10)
    give(network, state, PREFIX + name)
    return Pretrained(network.eval(), PUBLIC_MEAN, PUBLIC_STD)


def read_given(weights: str, folder: str | Path | None) -> dict[str, Tensor]:
    """Tensors by the names of our networks: of ``pretrained:NAME``, or of a safetensors file in the data folder.

    Raises StudyError for a file that is missing or no safetensors file, and as ``load_pretrained`` does.
    """
    place = data_folder(folder)
    if weights.startswith(PREFIX):
        return _public(weights.removeprefix(PREFIX), place)
    path = place / weights
    if not path.exists():
        raise StudyError(f"weights {weights!r} not found. Looked in: {path}. Put the file there, or give its whole path")
    try:
        return safetensors.torch.load(read_bytes(path, LARGEST_TENSORS))
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise StudyError(f"{path} is not a whole safetensors file: {first_line(error)}") from error


def give(network: nn.Module, state: Mapping[str, Tensor], where: object) -> None:
    """Put weights into a network. Raises StudyError where they are not exactly those of such a network; it is then unchanged."""
    check_state(state, network, where)
    load_state(network, state)


def check_state(state: Mapping[str, Tensor], network: nn.Module, where: object) -> None:
    """Raises StudyError for weights with other names, shapes or kinds of numbers than the network's, and for NaN."""
    wanted = network.state_dict()
    if state.keys() != wanted.keys():
        raise StudyError(f"{where} has other layers than the network: {min(state.keys() ^ wanted.keys())}")
    for name, like in wanted.items():  # in the network's order: a file's may change from one reading to the next
        tensor = state[name]
        if tensor.shape != like.shape or tensor.is_floating_point() != like.is_floating_point() or not tensor.isfinite().all():
            needed = f"{like.dtype} {tuple(like.shape)} and finite is needed"
            raise StudyError(f"{where}: {name} is {tensor.dtype} {tuple(tensor.shape)}; {needed}")


def _public(name: str, folder: Path) -> dict[str, Tensor]:
    if name not in DIGITS:
        raise refuse("pretrained", name, ", ".join(DIGITS))
    path = _found(f"{name}-{DIGITS[name]}.th", folder)
    content = read_bytes(path)
    if not (found := hashlib.sha256(content).hexdigest()).startswith(DIGITS[name]):
        again = f"remove it, and it is downloaded again from {ADDRESS}/{path.name}"
        raise StudyError(f"{path} is damaged or another file: its SHA-256 begins with {found[:8]}, not {DIGITS[name]}; {again}")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)["state_dict"]
        return _renamed(state)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise StudyError(f"{path} is no checkpoint of {name}: {first_line(error)}") from error


def _found(file: str, folder: Path) -> Path:
    """The file in the data folder, downloaded where it is not there."""
    places = [folder / "pretrained" / file, folder / file]
    if path := next((place for place in places if place.exists()), None):
        return path
    target, digits = places[0], file.rpartition("-")[2].removesuffix(".th")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(f"{ADDRESS}/{file}", str(target), hash_prefix=digits, progress=False)
    except (OSError, HTTPException, RuntimeError, ValueError) as error:
        raise StudyError(
            f"weights {file} not found. Looked in: {', '.join(map(str, places))}. The download failed "
            f"({type(error).__name__}: {first_line(error)}). Ways to get it: start again with internet access; put the file of "
            f"{ADDRESS}/{file} there; name the folder that has it with --data DIR or FCS_DATA"
        ) from error
    return target


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``module.layer1.0.conv1.weight`` -> ``stage1.0.conv1.weight``; BatchNorm gets the counter that older files lack."""
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        first, dot, rest = name.removeprefix("module.").partition(".")
        renamed = LAYERS.get(first, first) + dot + rest
        ours[renamed] = tensor.detach()
        if renamed.endswith(".running_mean"):
            ours.setdefault(renamed.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return ours


def network_label(reference: Mapping[str, Any]) -> str:
    """'VGG-16', or 'VGG-16 x0.25' where the width is not one; 'ResNet-56 (public)' where the weights were given."""
    weights = reference.get("weights")
    given = "" if weights is None else " (public)" if weights.startswith(PREFIX) else " (given)"
    return network_title(reference["network"], reference["width"]) + given
