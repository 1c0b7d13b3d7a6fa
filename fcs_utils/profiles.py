"""What each profile runs. A profile is data; ``grid`` turns it into runs, stage by stage.

Batch sizes, learning rates and schedules of ``smoke`` and ``quick`` were set once, on the validation split
of a seed that no profile uses, to fit the profile's minutes. No number here was chosen on a test split.
"""

from __future__ import annotations

from typing import Literal

from fcs_utils.config import Config, Pruning, Reference, Run, Similarity, Training, Tuning
from fcs_utils.criteria import check_options
from fcs_utils.errors import refuse

# In the order of the study; each notebook needs some of them.
STAGES = ("reference", "similarity", "pruned", "tuned", "arms")
Stage = Literal["reference", "similarity", "pruned", "tuned", "arms"]

CRITERIA = ("random", "kernel_l1", "feature_norm", "fcs", "fcs_greedy")


class Network(Config):
    """An architecture of the grid with the schedule of its reference."""

    network: str
    width: float = 1.0
    training: Training


class Arms(Config):
    """TFT against MLFT from the same compact weights (C3): every schedule with every learning rate."""

    networks: tuple[str, ...]
    criterion: str = "fcs"
    ratio: float = 0.5
    epochs: tuple[int, ...]
    learning_rates: tuple[float, ...]
    methods: tuple[Literal["tft", "mlft"], ...] = ("tft", "mlft")


class Profile(Config):
    """One study: the data set, the networks, and how much of everything."""

    name: str
    summary: str
    dataset: str
    networks: tuple[Network, ...]
    seeds: tuple[int, ...]
    ratios: tuple[float, ...]
    criteria: tuple[str, ...] = CRITERIA
    calibration: int = 512
    tuning: Training  # the one schedule after which criteria are compared (C2)
    arms: Arms


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="smoke",
            summary="digits, one seed, tiny networks: shows that everything works, says nothing about the claims",
            dataset="digits",
            networks=(
                Network(network="vgg16", width=0.125, training=Training(epochs=4, learning_rate=0.05, batch_size=32)),
                Network(network="resnet20", width=0.25, training=Training(epochs=4, learning_rate=0.1, batch_size=32)),
            ),
            seeds=(0,),
            ratios=(0.3, 0.5),
            calibration=128,
            tuning=Training(epochs=1, learning_rate=0.02, batch_size=64),
            arms=Arms(networks=("vgg16",), epochs=(1, 2), learning_rates=(0.02,)),
        ),
        Profile(
            name="quick",
            summary="digits, quarter-width VGG-16 and full-width ResNet-20, three seeds",
            dataset="digits",
            networks=(
                Network(network="vgg16", width=0.25, training=Training(epochs=10, learning_rate=0.05, batch_size=32)),
                Network(network="resnet20", training=Training(epochs=9, learning_rate=0.1, batch_size=32)),
            ),
            seeds=(0, 1, 2),
            ratios=(0.3, 0.5, 0.7),
            tuning=Training(epochs=1, learning_rate=0.01, batch_size=32),
            arms=Arms(networks=("vgg16",), epochs=(2, 4), learning_rates=(0.005, 0.02, 0.05)),
        ),
        Profile(
            name="cifar",
            summary="CIFAR-10 (JPEG), quarter-width VGG-16 and full-width ResNet-20, three seeds",
            dataset="imagefolder:cifar10_jpeg",
            networks=(
                Network(network="vgg16", width=0.25, training=Training(epochs=30, learning_rate=0.2)),
                Network(network="resnet20", training=Training(epochs=30, learning_rate=0.2)),
            ),
            seeds=(0, 1, 2),
            ratios=(0.3, 0.5, 0.7),
            tuning=Training(epochs=4, learning_rate=0.05),
            arms=Arms(networks=("vgg16",), epochs=(2, 4, 8, 16), learning_rates=(0.02, 0.05, 0.1)),
        ),
        Profile(
            name="paper",
            summary="CIFAR-10, full-width VGG-16 and ResNet-56, five seeds; meant for a GPU",
            dataset="cifar10",
            networks=(
                Network(network="vgg16", training=Training(epochs=160, learning_rate=0.1)),
                Network(network="resnet56", training=Training(epochs=160, learning_rate=0.2)),
            ),
            seeds=(0, 1, 2, 3, 4),
            ratios=(0.3, 0.5, 0.7),
            calibration=1024,
            tuning=Training(epochs=40, learning_rate=0.05),
            arms=Arms(networks=("vgg16", "resnet56"), epochs=(10, 20, 40), learning_rates=(0.02, 0.05, 0.1)),
        ),
    )
}


def get_profile(name: str) -> Profile:
    """A profile by name. Raises StudyError for an unknown one."""
    if name not in PROFILES:
        raise refuse("profile", name, ", ".join(PROFILES))
    return PROFILES[name]


def grid(profile: Profile, precision: Literal["fp32", "bf16"]) -> dict[Stage, list[Run]]:
    """Every run of a profile by stage, in the order they are done.

    Runs that two stages share (TFT at the schedule of the comparison of criteria) appear in both and are
    done once.
    """
    references = [
        Run(reference=Reference(dataset=profile.dataset, network=n.network, width=n.width, seed=seed,
                                training=n.training, precision=precision))
        for n in profile.networks for seed in profile.seeds
    ]  # fmt: skip

    def pruned(run: Run, criterion: str, ratio: float) -> Run:
        check_options(criterion, {})
        pruning = Pruning(criterion=criterion, ratio=ratio, calibration=profile.calibration)
        return run.model_copy(update={"pruning": pruning})

    cut = [pruned(run, c, ratio) for run in references for ratio in profile.ratios for c in profile.criteria]
    arms = profile.arms
    return {
        "reference": references,
        "similarity": [r.model_copy(update={"similarity": Similarity(calibration=profile.calibration)}) for r in references],
        "pruned": cut,
        "tuned": [run.model_copy(update={"tuning": Tuning(method="tft", training=profile.tuning)}) for run in cut],
        "arms": [
            pruned(run, arms.criterion, arms.ratio).model_copy(
                update={"tuning": Tuning(method=method, training=profile.tuning.model_copy(
                    update={"epochs": epochs, "learning_rate": rate}))})
            for run in references if run.reference.network in arms.networks
            for method in arms.methods for epochs in arms.epochs for rate in arms.learning_rates
        ],
    }  # fmt: skip
