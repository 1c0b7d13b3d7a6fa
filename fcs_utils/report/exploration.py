"""What a choice of criterion, reading, bins and ratio does to one reference network; behind the explorer, without widgets.

Statistics are gathered once, when an ``Exploration`` is opened; every answer after that takes a fraction of a second.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

from fcs_utils.data.dataset import Split
from fcs_utils.errors import refuse
from fcs_utils.models import count_macs
from fcs_utils.pruning.criteria import CRITERIA, importance
from fcs_utils.pruning.export import save_compact
from fcs_utils.pruning.fcs import assign_bins
from fcs_utils.pruning.plan import PruningPlan, keep_count, make_plan, select
from fcs_utils.pruning.statistics import ChannelStatistics, feature_maps
from fcs_utils.pruning.sums import EXTRAS, READINGS, Reading
from fcs_utils.pruning.surgery import prune, recalibrate
from fcs_utils.study.runs import Reference
from fcs_utils.study.study import Study
from fcs_utils.training.evaluate import accuracy

# Enough to see a trend, few enough to answer at once.
JUDGES = 128  # validation images behind the accuracies
RECALIBRATION = 128  # calibration images behind BatchNorm's statistics, of what is saved too


@dataclass(frozen=True)
class Choice:
    """What the controls hold. A criterion that takes no reading or bins is shown with them, but not moved by them."""

    layer: str
    criterion: str = "fcs"
    reading: Reading = "pooled"
    bins: int = 4
    ratio: float = 0.5


@dataclass(frozen=True)
class LayerView:
    """One layer under a choice: similarity (C, C), norms and bins (C,), kept channels, each dropped one's nearest kept one."""

    similarity: Tensor
    norms: Tensor
    labels: Tensor
    kept: list[int]
    twins: dict[int, int]  # dropped channel -> the kept channel that resembles it most, of its own bin where there is one

    def why(self) -> pd.DataFrame:
        """A row for each dropped channel, the most redundant first."""
        rows = [
            {
                "channel": gone,
                "bin": int(self.labels[gone]),
                "L1 norm": round(float(self.norms[gone]), 3),
                "nearest kept": twin,
                "its bin": int(self.labels[twin]),
                "cosine": round(float(self.similarity[gone, twin]), 3),
            }
            for gone, twin in self.twins.items()
        ]
        frame = pd.DataFrame(rows, columns=["channel", "bin", "L1 norm", "nearest kept", "its bin", "cosine"])
        return frame.sort_values("cosine", ascending=False, ignore_index=True)


@dataclass(frozen=True)
class Whole:
    """The whole network under a choice. Top-1 in percent on a fixed part of the validation split, no fine-tuning."""

    plan: PruningPlan
    macs: int
    params: int
    plain: float
    merged: float
    plain_recalibrated: float
    merged_recalibrated: float


class Exploration:
    """One trained reference of a study with its statistics.

    Raises StudyError for a network or seed that the study's profile does not have. The reference is trained where
    its weights are not on this machine.
    """

    def __init__(self, study: Study, network: str = "", seed: int | None = None) -> None:
        self.study, self.bench = study, study.bench
        references = [run.reference for run in study.grid["reference"]]
        names, seeds = list(dict.fromkeys(r.network for r in references)), list(study.profile.seeds)
        network, seed = network or names[0], seeds[0] if seed is None else seed
        if network not in names:
            raise refuse("network", network, ", ".join(names))
        if seed not in seeds:
            raise refuse("seed", seed, ", ".join(map(str, seeds)))
        self.reference: Reference = next(r for r in references if (r.network, r.seed) == (network, seed))
        study.run(["reference"], only=[f"network={network}", f"seed={seed}"])
        self.dense: nn.Module = self.bench.trained(self.reference)
        count = study.profile.calibration
        self.calibration: Split = self.bench.dataset.calibration(count, seed)
        self.images: Tensor = self.bench.calibration_images(seed, count)
        self.statistics: dict[str, ChannelStatistics] = self.bench.statistics(
            self.reference, count, readings=READINGS, extras=EXTRAS
        )
        self.layers = list(self.statistics)
        validation = self.bench.dataset.validation
        self.judges = replace(validation, images=validation.images[:JUDGES], labels=validation.labels[:JUDGES])
        self.dense_macs = count_macs(self.dense, self.images[:1])
        self.dense_params = sum(p.numel() for p in self.dense.parameters())
        self.dense_accuracy = self._accuracy(self.dense)
        self._scores = lru_cache(maxsize=64)(self._score)
        self._whole = lru_cache(maxsize=64)(self._cut)
        for criterion in CRITERIA:  # Taylor's gradients take longer than an answer may
            self._importance(Choice(self.layers[0], criterion))

    def options(self, choice: Choice) -> dict[str, Any]:
        """The part of a choice that its criterion takes. Raises StudyError for a value that no control offers."""
        for name, value, allowed in (
            ("criterion", choice.criterion, tuple(CRITERIA)),
            ("reading", choice.reading, READINGS),
            ("layer", choice.layer, tuple(self.layers)),
        ):
            if value not in allowed:
                raise refuse(name, value, ", ".join(allowed))
        if choice.bins < 1:
            raise refuse("bins", choice.bins, "1 or more")
        taken = CRITERIA[choice.criterion].options()
        return {name: value for name, value in (("reading", choice.reading), ("bins", choice.bins)) if name in taken}

    def _score(self, criterion: str, options: tuple[tuple[str, Any], ...]) -> dict[str, Tensor]:
        return importance(
            criterion,
            model=self.dense,
            statistics=self.statistics,
            images=self.images,
            labels=self.calibration.labels,
            **{"seed": self.reference.seed, **dict(options)},
        )

    def _importance(self, choice: Choice) -> dict[str, Tensor]:
        return self._scores(choice.criterion, tuple(sorted(self.options(choice).items())))

    def layer(self, choice: Choice) -> LayerView:
        """One layer: what goes, and which kept channel makes it redundant. Raises StudyError for a bad choice."""
        score, known = self._importance(choice)[choice.layer], self.statistics[choice.layer]
        similarity, labels = known.similarity(choice.reading), assign_bins(known.l1, choice.bins)
        kept = select(score, keep_count(len(score), choice.ratio))
        twins = {}
        for gone in sorted(set(range(len(score))) - set(kept)):
            near = [channel for channel in kept if labels[channel] == labels[gone]] or kept
            twins[gone] = max(near, key=lambda channel: float(similarity[gone, channel]))
        return LayerView(similarity, known.l1, labels, kept, twins)

    def whole(self, choice: Choice) -> Whole:
        """The whole network under a choice, whatever its layer."""
        return self._whole(replace(choice, layer=self.layers[0]))

    def _cut(self, choice: Choice) -> Whole:
        plan = make_plan(self.dense, self.images[:1], self._importance(choice), ratio=choice.ratio)
        plain, found = prune(self.dense, plan), {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # layers that merge leaves out are notebook 04's subject
            merged = prune(self.dense, plan, compensate="merge", statistics=self.statistics)
        for name, network in (("plain", plain), ("merged", merged)):
            found[name] = self._accuracy(network)
            recalibrate(network, self.images[:RECALIBRATION])
            found[f"{name}_recalibrated"] = self._accuracy(network)
        return Whole(plan, count_macs(plain, self.images[:1]), sum(p.numel() for p in plain.parameters()), **found)

    def _accuracy(self, network: nn.Module) -> float:
        return accuracy(network, self.bench.dataset, self.judges, self.study.precision)

    def maps(self, choice: Choice, image: int) -> tuple[Tensor, Tensor]:
        """A calibration image (H, W, C) uint8 and the layer's maps of it (C, H, W). Raises StudyError for a bad index."""
        if not 0 <= image < len(self.images):
            raise refuse("image", image, f"0 to {len(self.images) - 1}")
        return self.calibration.images[image].cpu(), feature_maps(self.dense, self.images[image : image + 1], choice.layer)[0].cpu()

    def save(self, choice: Choice, merge: bool) -> Path:
        """Prune, recalibrate BatchNorm and write the compact network; returns its file, for ``load_compact``."""
        whole = self.whole(choice)
        compact = prune(self.dense, whole.plan, compensate="merge" if merge else "none", statistics=self.statistics)
        recalibrate(compact, self.images[:RECALIBRATION])
        reference, options = self.reference, map(str, self.options(choice).values())
        network = f"{reference.network}-x{reference.width:g}-seed{reference.seed}"
        words = [network, choice.criterion, *options, f"{choice.ratio:g}", *(["merge"] if merge else [])]
        path = self.study.store.explored("-".join(words))
        save_compact(path, compact, whole.plan)
        return path

    def loading_code(self, path: Path) -> str:
        """A script's lines that load a saved network, anywhere that has ``fcs_utils``."""
        reference, data = self.reference, self.bench.dataset
        return (
            "from fcs_utils.models import build_model\nfrom fcs_utils.pruning import load_compact\n\n"
            f'dense = build_model("{reference.network}", num_classes={len(data.classes)}, width={reference.width:g}, '
            f"in_channels={data.channels})\n"
            f'compact = load_compact("{path}", dense).eval()'
        )
