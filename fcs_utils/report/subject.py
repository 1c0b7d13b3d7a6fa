"""What an exploration is about: one trained network with its images, of a study or of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fcs_utils.data.dataset import Batch, Split
from fcs_utils.data.listing import list_pictures
from fcs_utils.data.pictures import load_pictures
from fcs_utils.errors import refuse
from fcs_utils.machine import pick_device
from fcs_utils.models import network_title
from fcs_utils.pruning.criteria import needs, scoring
from fcs_utils.pruning.layers import prunable_layers
from fcs_utils.pruning.statistics import ChannelStatistics, collect_statistics
from fcs_utils.pruning.sums import EXTRAS, READINGS, Extra
from fcs_utils.report.notebook import open_reference, open_study, pick
from fcs_utils.study.profiles import get_profile
from fcs_utils.study.shrink import Shrinking, open_network
from fcs_utils.study.study import Study
from fcs_utils.training.loop import Batches
from fcs_utils.training.optimiser import Training

JUDGES = 128  # validation images behind the accuracies: enough to see a trend, few enough to answer at once
CALIBRATION = 128  # pictures of the user's that channels are scored on
Tell = Callable[[str], None]
OWN_SEEDS = 5  # offered for a network of the user's: they draw the calibration pictures, and the batches of tuning


def in_silence(words: str) -> None:
    """Tell nobody."""


class Spot(NamedTuple):
    """Where a subject stands among those of its source."""

    dataset: str
    network: str
    seed: int


@dataclass(frozen=True)
class Subject:
    """One trained network, and all that an exploration asks about it.

    name: of its files. title: of figures. dense: shared and in eval mode; copy before changing it. first: the layer to look at
    first. pixels, images, labels: the calibration images as they are (N, H, W, C) uint8, normalised (N, C, H, W), and their
    classes (N,). judges: normalised validation images in batches. batches, training: of fine-tuning. save_to: the file of a
    compact network by name. arguments: of ``build_model`` behind the name and the number of classes. mean, std: a channel, of
    images in 0..1.
    """

    place: Spot
    name: str
    title: str
    dense: nn.Module
    first: str
    pixels: Tensor
    images: Tensor
    labels: Tensor
    statistics: dict[str, ChannelStatistics]
    judges: list[Batch]
    batches: Batches
    training: Training
    save_to: Callable[[str], Path]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    arguments: str = ""
    precision: Literal["fp32", "bf16"] = "fp32"
    extras: tuple[Extra, ...] = EXTRAS

    @property
    def criteria(self) -> list[str]:
        """The criteria that give channels a score from what was gathered."""
        return [name for name in scoring() if {*needs(name).extras} <= {*self.extras}]

    @property
    def judged(self) -> int:
        """How many images are behind the accuracies."""
        return sum(len(labels) for _, labels in self.judges)


class Chooser(Protocol):
    """Opens a subject. Raises StudyError for what is not there. tell: hears how the training of a network without weights goes."""

    def __call__(self, dataset: str, network: str, seed: int, layer: str = "", tell: Tell = in_silence) -> Subject: ...


@dataclass(frozen=True)
class Subjects:
    """Subjects to choose from. networks: their titles by name. save_to: the file of a compact network by name."""

    datasets: Sequence[str]
    networks: Mapping[str, str]
    seeds: Sequence[int]
    save_to: Callable[[str], Path]
    choose: Chooser


def study_source(profile: str, out: str | Path, data: str) -> Subjects:
    """A profile's references, on its data set and on others that it names. Raises StudyError as ``open_study`` does."""
    study, base = open_study(profile, out, data), profile.partition(":")[0]
    first, *others = get_profile(base).dataset, *get_profile(base).others

    def one(dataset: str, network: str, seed: int, layer: str = "", tell: Tell = in_silence) -> Subject:
        nonlocal study
        if dataset != study.profile.dataset:
            study = open_study(base if dataset == first else f"{base}:{dataset}", out, data)
        return study_subject(study, network, seed, layer, tell)

    titles = {one.network: network_title(one.network, one.width) for one in study.profile.networks}
    datasets = [*dict.fromkeys((study.profile.dataset, first, *others))]
    return Subjects(datasets, titles, study.profile.seeds, study.store.explored, one)


def study_subject(study: Study, network: str, seed: int, layer: str = "", tell: Tell = in_silence) -> Subject:
    """A reference network of a study; it is trained if its weights are not on this machine, and ``tell`` hears of each epoch.

    Raises StudyError for a network, seed or layer that the study does not have, before anything is trained.
    """
    bench = study.bench
    bench.tell = tell
    reference, first = open_reference(study, network, seed, layer)
    data, tuning = bench.data(reference), study.profile.tuning
    shown, judges = data.calibration(study.profile.calibration, seed), data.validation
    images = data.normalise(shown.images)
    some = Split(judges.images[:JUDGES], judges.labels[:JUDGES])
    return Subject(
        place=Spot(study.profile.dataset, reference.network, reference.seed),
        name=f"{reference.network}-x{reference.width:g}-seed{reference.seed}",
        title=network_title(reference.network, reference.width),
        dense=bench.trained(reference),
        first=first,
        pixels=shown.images,
        images=images,
        labels=shown.labels,
        statistics=bench.statistics(reference, len(images), readings=READINGS, extras=EXTRAS),
        judges=[*data.in_order(some)],
        batches=data.batches(tuning.batch_size),
        training=tuning,
        save_to=study.store.explored,
        mean=in_unit(data.mean),
        std=in_unit(data.std),
        classes=len(data.classes),
        arguments=f", width={reference.width:g}, in_channels={data.channels}, shortcut={reference.shortcut!r}",
        precision=study.precision,
    )


def own_source(wanted: Shrinking, save_to: Callable[[str], Path]) -> Subjects:
    """One network of the user's on pictures of the user's, as ``fcs-mlft prune`` takes them; pictures are read when it opens.

    HRank and CHIP are left out: on pictures of 224 pixels they can take longer than the pass for all others together.
    Raises StudyError, before any picture is read, for a network, weights or a folder that do not fit.
    """
    listing, device = list_pictures(Path(wanted.images)), pick_device(wanted.device)
    dense = open_network(wanted, len(listing.classes), print).to(device)
    layers = [*prunable_layers(dense, torch.zeros(1, 3, wanted.size, wanted.size, device=device))]
    if not layers:
        raise refuse("model", wanted.model, "a network with convolutions that can be pruned one by one, outside residual sums")
    pictures = load_pictures(
        wanted.images, size=wanted.size, mean=wanted.mean, std=wanted.std, resident=wanted.resident, workers=wanted.workers
    )
    name, seeds = Path(wanted.images).name, sorted({*range(OWN_SEEDS), wanted.seed})
    training = Training(epochs=max(1, wanted.epochs), learning_rate=wanted.learning_rate, batch_size=wanted.batch_size)
    known_by = "-".join([wanted.model, *([Path(wanted.weights).stem] if wanted.weights else []), name])  # a file for each

    def one(dataset: str, network: str, seed: int, layer: str = "", tell: Tell = in_silence) -> Subject:
        pick("network", network, [wanted.model], default=wanted.model)
        pick("seed", seed, seeds)
        first = pick("layer", layer, layers, default=layers[len(layers) // 6])
        images, labels = pictures.calibration(min(wanted.calibration, len(listing.train)), seed)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (wanted.mean, wanted.std))
        pixels = ((images * std + mean) * 255).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        images, labels = images.to(device), labels.to(device)
        extras: tuple[Extra, ...] = ("apoz",)
        return Subject(
            place=Spot(name, wanted.model, seed),
            name="".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in f"{known_by}-seed{seed}"),
            title=wanted.model,
            dense=dense,
            first=first,
            pixels=pixels,
            images=images,
            labels=labels,
            statistics=collect_statistics(dense, images, scope="inner", readings=READINGS, extras=extras),
            judges=[*pictures.in_order(wanted.batch_size, most=JUDGES)],
            batches=pictures.batches(wanted.batch_size),
            training=training,
            save_to=save_to,
            mean=wanted.mean,
            std=wanted.std,
            classes=len(listing.classes),
            extras=extras,
        )

    return Subjects([name], {wanted.model: wanted.model}, seeds, save_to, one)


def in_unit(levels: Tensor) -> tuple[float, ...]:
    """Levels in 0..255 as numbers in 0..1."""
    return tuple(round(level / 255, 4) for level in levels.tolist())
