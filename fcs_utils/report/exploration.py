"""What a choice of criterion, reading, bins and ratio does to one reference network; behind the explorer, without widgets."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from fcs_utils.errors import refuse
from fcs_utils.files import write_json
from fcs_utils.models import Cost, measure_cost
from fcs_utils.pruning.counts import keep_count
from fcs_utils.pruning.criteria import check_options, importance, scoring
from fcs_utils.pruning.export import export_onnx, save_compact
from fcs_utils.pruning.fcs import assign_bins
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.statistics import feature_maps
from fcs_utils.pruning.sums import EXTRAS, READINGS, Reading
from fcs_utils.pruning.surgery import prune, recalibrate
from fcs_utils.report.notebook import check_bins, open_reference, pick
from fcs_utils.study.study import Study
from fcs_utils.training.evaluate import accuracy

# Enough to see a trend, few enough to answer at once.
JUDGES = 128  # validation images behind the accuracies
CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # ratios of the curve of accuracies
RECALIBRATION = 128  # calibration images behind BatchNorm's statistics, of what is saved too


@dataclass(frozen=True)
class Choice:
    """What the controls hold. A criterion without a reading or bins is shown with these controls but ignores them."""

    layer: str
    criterion: str = "fcs"
    reading: Reading = "pooled"
    bins: int = 4
    ratio: float = 0.2  # where networks still work without fine-tuning

    def __post_init__(self) -> None:
        """Raises StudyError for what is not allowed in any network."""
        check_options(self.criterion, {})
        pick("reading", self.reading, READINGS)
        keep_count(1, self.ratio)
        check_bins(self.bins)


@dataclass(frozen=True)
class Whole:
    """The whole network under a choice. Top-1 in percent, after surgery and after recalibration, without fine-tuning."""

    plan: PruningPlan
    cost: Cost
    plain: tuple[float, float]
    merged: tuple[float, float]


class Exploration:
    """One trained reference of a study with its statistics, gathered once: every answer takes a fraction of a second.

    ``first`` is the layer asked for, or an early one. Raises StudyError for a network, seed or layer that the study does
    not have. The reference is trained if its weights are not on this machine.
    """

    def __init__(self, study: Study, network: str, seed: int, layer: str = "") -> None:
        self.study, self.bench = study, study.bench
        self.reference, self.first = open_reference(study, network, seed, layer)
        self.dense, self.data = self.bench.trained(self.reference), self.bench.data(self.reference)
        self.calibration = self.data.calibration(study.profile.calibration, seed)
        self.images = self.data.normalise(self.calibration.images)
        self.statistics = self.bench.statistics(self.reference, len(self.images), readings=READINGS, extras=EXTRAS)
        self.layers = list(self.statistics)
        judges = self.data.validation
        self.judges = replace(judges, images=judges.images[:JUDGES], labels=judges.labels[:JUDGES])
        self.dense_cost, self.dense_accuracy = measure_cost(self.dense, self.images), self._accuracy(self.dense)
        known: dict[str, Any] = {"statistics": self.statistics, "images": self.images, "labels": self.calibration.labels}
        self._scores = lru_cache(maxsize=64)(partial(importance, model=self.dense, seed=seed, **known))
        self._whole = lru_cache(maxsize=64)(self._prune_all)
        for criterion in scoring():  # Taylor's gradients take longer than an answer may
            self._scores(criterion, **self.options(Choice(self.layers[0], criterion)))

    def options(self, choice: Choice) -> dict[str, Any]:
        """The part of a choice that its criterion takes. Raises StudyError for an unknown criterion."""
        taken = check_options(choice.criterion, {}).options()
        return {name: getattr(choice, name) for name in ("reading", "bins") if name in taken}

    def layer(self, choice: Choice) -> pd.DataFrame:
        """The channels of one layer: which stay, the score that decided it, and the kept channel most similar to each.

        The lowest scores go. The similar channel is of the same bin where there is one. Raises StudyError for a bad choice.
        """
        if choice.layer not in self.layers:
            raise refuse("layer", choice.layer, ", ".join(self.layers))
        known = self.statistics[choice.layer]
        similarity, bins = known.similarity(choice.reading).numpy(), assign_bins(known.l1, choice.bins).numpy()
        channels = np.arange(len(bins))
        stays = np.isin(channels, self.whole(choice).plan.kept.get(choice.layer, channels))
        near = (bins[:, None] == bins) & stays  # (C, C), each row one channel's candidates
        near |= stays & ~near.any(1, keepdims=True)
        best = np.where(near, similarity, -np.inf).argmax(1)
        score = self._scores(choice.criterion, **self.options(choice))[choice.layer].cpu().numpy()
        columns = {
            "score": score,
            "bin": bins,
            "L1 norm": known.l1,
            "stays": stays,
            "most similar kept": best,
            "its bin": bins[best],
        }
        return pd.DataFrame({**columns, "cosine": similarity[channels, best]}).rename_axis("channel")

    def both(self, choice: Choice, criterion: str) -> dict[str, list[int]]:
        """The channels of a layer that another criterion drops, too, and those that only one of the two drops."""
        gone, theirs = (
            set(frame.index[~frame.stays]) for frame in (self.layer(choice), self.layer(replace(choice, criterion=criterion)))
        )
        parts = {"both": gone & theirs, choice.criterion: gone - theirs, criterion: theirs - gone}
        return {name: sorted(map(int, part)) for name, part in parts.items()}

    def over_ratios(self, choice: Choice, tell: Callable[[str], None] = lambda words: None) -> pd.DataFrame:
        """Top-1 of the whole network at several ratios, with BatchNorm recalibrated: by plain and by merged surgery.

        tell: called with words on how far it has come.
        """
        rows = []
        for number, ratio in enumerate(CURVE, 1):
            tell(f"{choice.criterion}: {number} of {len(CURVE)} ratios")
            whole = self.whole(replace(choice, ratio=ratio))
            left = 100 * whole.cost.macs / self.dense_cost.macs
            rows.append({"ratio": ratio, "MACs left (%)": left, "plain": whole.plain[1], "merged": whole.merged[1]})
        return pd.DataFrame(rows)

    def whole(self, choice: Choice) -> Whole:
        """The whole network under a choice, whatever its layer."""
        return self._whole(choice.criterion, choice.ratio, **self.options(choice))

    def _prune_all(self, criterion: str, ratio: float, **options: Any) -> Whole:
        plan = make_plan(self.dense, self.images[:1], self._scores(criterion, **options), ratio=ratio)
        (compact, *plain), (_, *merged) = self._cut(plan, merge=False), self._cut(plan, merge=True)
        return Whole(plan, measure_cost(compact, self.images), (plain[0], plain[1]), (merged[0], merged[1]))

    def _cut(self, plan: PruningPlan, merge: bool) -> tuple[nn.Module, float, float]:
        """The compact network with BatchNorm recalibrated, and its top-1 before and after that."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # layers that merge leaves out are notebook 04's subject
            compact = prune(self.dense, plan, compensate="merge" if merge else "none", statistics=self.statistics)
        before = self._accuracy(compact)
        recalibrate(compact, self.images[:RECALIBRATION])
        return compact, before, self._accuracy(compact)

    def _accuracy(self, network: nn.Module) -> float:
        return accuracy(network, self.data, self.judges, self.study.precision)

    def maps(self, layer: str, image: int) -> tuple[Tensor, Tensor]:
        """A calibration image (H, W, C) uint8 and a layer's maps of it (C, H, W). Raises StudyError for a bad layer or index."""
        if not 0 <= image < len(self.images):
            raise refuse("image", image, f"0 to {len(self.images) - 1}")
        return self.calibration.images[image].cpu(), feature_maps(self.dense, self.images[image : image + 1], layer)[0].cpu()

    def save(self, choice: Choice, merge: bool) -> Path:
        """Prune, recalibrate BatchNorm and write the compact network, with its plan as JSON beside it.

        Returns its file, for ``load_compact``.
        """
        reference, plan = self.reference, self.whole(choice).plan
        words = [f"{reference.network}-x{reference.width:g}-seed{reference.seed}", choice.criterion, *self.options(choice).values()]
        path = self.study.store.explored("-".join(map(str, [*words, f"{choice.ratio:g}", *(["merge"] if merge else [])])))
        save_compact(path, self._cut(plan, merge)[0], plan)
        write_json(path.with_suffix(".plan.json"), plan.model_dump(mode="json"))
        return path

    def export(self, choice: Choice, merge: bool, path: Path) -> Path:
        """Write the compact network of ``save`` as ONNX, too. Raises StudyError as ``export_onnx`` does."""
        return export_onnx(self._cut(self.whole(choice).plan, merge)[0], path.with_suffix(".onnx"), self.images[:2])

    def loading_code(self, path: Path) -> str:
        """A script's lines that load a saved network, anywhere that has ``fcs_utils``, and normalise images for it."""
        one, data = self.reference, self.data
        arguments = f"width={one.width:g}, in_channels={data.channels}, shortcut={one.shortcut!r}"
        return (
            "from fcs_utils import build_model, load_compact\n\n"
            f"dense = build_model({one.network!r}, num_classes={len(data.classes)}, {arguments})\n"
            f"compact = load_compact({str(path)!r}, dense).eval()\n"
            f"mean, std = {_in_words(data.mean)}, {_in_words(data.std)}  # a channel, of images in 0..1"
        )


def _in_words(levels: Tensor) -> str:
    """Levels in 0..255 as a tuple of numbers in 0..1."""
    return repr(tuple(round(level / 255, 4) for level in levels.tolist()))
