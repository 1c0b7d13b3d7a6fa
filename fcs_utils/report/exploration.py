"""What a choice of criterion, reading, bins and goal does to one trained network; behind the explorer, without widgets."""

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

from fcs_utils.benchmarks.latency import stopwatch
from fcs_utils.errors import StudyError, refuse
from fcs_utils.files import write_json
from fcs_utils.models import Cost, measure_cost
from fcs_utils.pruning.counts import keep_count
from fcs_utils.pruning.criteria import check_options, importance
from fcs_utils.pruning.export import export_onnx, save_compact
from fcs_utils.pruning.fcs import assign_bins
from fcs_utils.pruning.latency_goal import read_latency
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.statistics import feature_maps
from fcs_utils.pruning.sums import READINGS, Reading
from fcs_utils.pruning.surgery import prune, recalibrate
from fcs_utils.report.notebook import check_bins, pick
from fcs_utils.report.subject import Subject
from fcs_utils.training.evaluate import predict, top1

CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # ratios of the curve of accuracies
RECALIBRATION = 128  # calibration images behind BatchNorm's statistics, of what is saved too
WATCH_ROUNDS = 15  # of each measurement on the way to a goal in latency
GOALS = ("ratio", "macs", "latency")


@dataclass(frozen=True)
class Choice:
    """What the controls hold. A criterion without a reading or bins is shown with these controls but ignores them.

    ratio: the share of every layer's channels that goes. macs or latency, as ``make_plan`` takes them, are a goal in its place.
    """

    layer: str
    criterion: str = "fcs"
    reading: Reading = "pooled"
    bins: int = 4
    ratio: float = 0.1  # where networks still work without fine-tuning
    macs: float | None = None
    latency: float | str | None = None

    def __post_init__(self) -> None:
        """Raises StudyError for what is not allowed in any network."""
        check_options(self.criterion, {})
        pick("reading", self.reading, READINGS)
        keep_count(1, self.ratio)
        check_bins(self.bins)
        if self.macs is not None and not (type(self.macs) is float and 0 < self.macs < 1):
            raise refuse("macs", self.macs, "above 0 and below 1, the share of MACs to leave")
        if self.latency is not None:
            try:
                read_latency(self.latency)
            except ValueError as error:
                raise refuse("latency", self.latency, str(error)) from error
        if self.macs is not None and self.latency is not None:
            raise refuse("latency", self.latency, "None beside macs: give one goal")

    @property
    def goal(self) -> tuple[str, float | str]:
        """The name and the amount of what is asked for."""
        return next((name, value) for name in reversed(GOALS) if (value := getattr(self, name)) is not None)

    def with_goal(self, name: str, amount: float | str) -> Choice:
        """The same choice with another goal. Raises StudyError for a bad one."""
        goal: dict[str, Any] = {"macs": None, "latency": None, name: amount}
        return replace(self, **goal)


@dataclass(frozen=True)
class Whole:
    """The whole network under a choice. Top-1 in percent, after surgery and after recalibration, without fine-tuning."""

    plan: PruningPlan
    cost: Cost
    plain: tuple[float, float]
    merged: tuple[float, float]


class Exploration:
    """One trained network with the scores of its channels, gathered once: every answer takes a fraction of a second.

    criteria: those that can score this network. left_out: why others cannot, by name.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject, self.dense, self.images, self.statistics = subject, subject.dense, subject.images, subject.statistics
        self.layers, self.first, self.network = list(self.statistics), subject.first, subject.place.network
        self.dense_cost, self.dense_accuracy = measure_cost(self.dense, self.images), self.accuracy(self.dense)
        known: dict[str, Any] = {"statistics": self.statistics, "images": self.images, "labels": subject.labels}
        self._watch = stopwatch(self.dense, self.images[:2], "pytorch", rounds=WATCH_ROUNDS)  # one for all goals
        self._scores = lru_cache(maxsize=64)(partial(importance, model=self.dense, seed=subject.place.seed, **known))
        self._whole = lru_cache(maxsize=64)(self._prune_all)
        self.criteria, self.left_out = list[str](), dict[str, str]()
        for criterion in subject.criteria:  # all of them now, because Taylor's gradients take longer than an answer may
            try:
                self._scores(criterion, **self.options(Choice(self.layers[0], criterion)))
                self.criteria.append(criterion)
            except StudyError as error:
                self.left_out[criterion] = str(error)

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
        if choice.criterion in self.left_out:
            raise StudyError(self.left_out[choice.criterion])
        pick("criterion", choice.criterion, self.criteria)
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
            whole = self.whole(choice.with_goal("ratio", ratio))
            left = 100 * whole.cost.macs / self.dense_cost.macs
            rows.append({"ratio": ratio, "MACs left (%)": left, "plain": whole.plain[1], "merged": whole.merged[1]})
        return pd.DataFrame(rows)

    def whole(self, choice: Choice) -> Whole:
        """The whole network under a choice, whatever its layer. A goal in latency is measured, once: it takes seconds.

        Raises StudyError for a goal that cannot be reached.
        """
        return self._whole(choice.criterion, choice.goal, **self.options(choice))

    def _prune_all(self, criterion: str, goal: tuple[str, float | str], **options: Any) -> Whole:
        wanted: dict[str, Any] = dict([goal])
        if "latency" in wanted:
            wanted["measure"] = self._watch
        plan = make_plan(self.dense, self.images[:1], self._scores(criterion, **options), **wanted)
        (compact, *plain), (_, *merged) = self._cut(plan, merge=False), self._cut(plan, merge=True)
        return Whole(plan, measure_cost(compact, self.images), (plain[0], plain[1]), (merged[0], merged[1]))

    def measured(self, choice: Choice) -> str:
        """What was measured on the way to a goal in latency, as HTML; nothing for other goals."""
        name, amount = choice.goal
        found = self.whole(choice).plan.latency_left
        if name != "latency" or found is None:
            return ""
        unit, asked = (f"{found:.3g} ms", amount) if isinstance(amount, str) else (f"{found:.1%} of the unpruned", f"{amount:.1%}")
        return f"<p>latency of one image in PyTorch, one thread: {unit}, measured here; {asked} was the goal</p>"

    def compact(self, choice: Choice, merge: bool) -> nn.Module:
        """The compact network with BatchNorm recalibrated, a new one at each call."""
        return self._cut(self.whole(choice).plan, merge)[0]

    def _cut(self, plan: PruningPlan, merge: bool) -> tuple[nn.Module, float, float]:
        """The compact network with BatchNorm recalibrated, and its top-1 before and after that."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # layers that merge leaves out are notebook 04's subject
            compact = prune(self.dense, plan, compensate="merge" if merge else "none", statistics=self.statistics)
        before = self.accuracy(compact)
        recalibrate(compact, self.images[:RECALIBRATION])
        return compact, before, self.accuracy(compact)

    def accuracy(self, network: nn.Module) -> float:
        """Top-1 in percent on the images behind all accuracies here."""
        (logits,), labels = predict([network], self.subject.judges, self.subject.precision)
        return top1(logits, labels)

    def maps(self, layer: str, image: int) -> tuple[Tensor, Tensor]:
        """A calibration image (H, W, C) uint8 and a layer's maps of it (C, H, W). Raises StudyError for a bad layer or index."""
        if not 0 <= image < len(self.images):
            raise refuse("image", image, f"0 to {len(self.images) - 1}")
        return self.subject.pixels[image].cpu(), feature_maps(self.dense, self.images[image : image + 1], layer)[0].cpu()

    def save(self, choice: Choice, merge: bool, tuned: nn.Module | None = None, *how: str) -> Path:
        """Prune, recalibrate BatchNorm and write the compact network, with its plan as JSON beside it.

        tuned: this network after training, to write in its place; how: words on it for the file's name. Returns the file, for
        ``load_compact``.
        """
        name, amount = choice.goal
        goal = f"{amount:g}" if name == "ratio" else f"{name}{amount}"
        words = [self.subject.name, choice.criterion, *self.options(choice).values(), goal, *(["merge"] if merge else []), *how]
        path = self.subject.save_to("-".join(map(str, words)))
        save_compact(path, tuned or self.compact(choice, merge), self.whole(choice).plan)
        write_json(path.with_suffix(".plan.json"), self.whole(choice).plan.model_dump(mode="json"))
        return path

    def export(self, choice: Choice, merge: bool, path: Path, tuned: nn.Module | None = None) -> Path:
        """Write the compact network of ``save`` as ONNX, too. Raises StudyError as ``export_onnx`` does."""
        return export_onnx(tuned or self.compact(choice, merge), path.with_suffix(".onnx"), self.images[:2])

    def loading_code(self, path: Path) -> str:
        """A script's lines that load a saved network, anywhere that has ``fcs_utils``, and normalise images for it."""
        one = self.subject
        return (
            "from fcs_utils import build_model, load_compact\n\n"
            f"dense = build_model({one.place.network!r}, num_classes={one.classes}{one.arguments})\n"
            f"compact = load_compact({str(path)!r}, dense).eval()\n"
            f"mean, std = {one.mean}, {one.std}  # a channel, of images in 0..1"
        )
