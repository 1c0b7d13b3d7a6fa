"""Importance of channels: statistics or weights in, one number per channel out, higher = keep.

Every criterion is a pure function in one registry. What it returns is finite, one-dimensional, float64;
sign flips stay inside it. ``keep_count`` is the only rounding rule.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import kmeans1d
import torch
from torch import Tensor, nn

from fcs_utils.activations import ChannelStatistics
from fcs_utils.errors import StudyError, refuse

ALONE, DEAD = 2.0, -1.0  # (M6), quota "bin": outside the open interval (0, 1) of the ranks


def keep_count(channels: int, ratio: float) -> int:
    """How many channels stay when a share ``ratio`` of them goes (M6): the study's only rounding rule.

    Raises StudyError for a ratio outside (0, 1).
    """
    if not 0 < ratio < 1:  # also refuses NaN
        raise refuse("ratio", ratio, "above 0 and below 1, the share of channels to remove")
    return max(1, channels - round(ratio * channels))


def select(importance: Tensor, keep: int) -> list[int]:
    """Indices of the ``keep`` most important channels, sorted; equals go to the lower index."""
    return sorted(importance.argsort(descending=True, stable=True)[:keep].tolist())


def random(layer: nn.Conv2d, generator: torch.Generator) -> Tensor:
    """Uniform noise: the floor that every criterion must beat."""
    return torch.rand(layer.out_channels, generator=generator, dtype=torch.float64)


def kernel_l1(layer: nn.Conv2d) -> Tensor:
    """L1 norm of each output filter (Li et al. 2017), the paper's kernel-norm baseline."""
    return layer.weight.detach().double().flatten(1).abs().sum(1).cpu()


def feature_norm(statistics: ChannelStatistics) -> Tensor:
    """a_c of (M1), ranked over the whole layer: the paper's layer-wise feature-norm baseline."""
    return statistics.l1


def assign_bins(norms: Tensor, bins: int, binning: Literal["exact", "sklearn"] = "exact", seed: int = 0) -> Tensor:
    """K-Means on the channels' L1 norms (M2): (C,) norms -> (C,) bin numbers, 0 = smallest norms.

    ``exact`` finds the one-dimensional optimum by dynamic programming and is the same every time;
    ``sklearn`` is Lloyd's algorithm with its seed. Fewer distinct norms than bins give fewer bins.
    """
    if bins < 1:
        raise refuse("bins", bins, "1 or more")
    bins = min(bins, len(norms.unique()))
    if binning == "exact":
        return torch.tensor(kmeans1d.cluster(norms.tolist(), bins).clusters)
    if binning != "sklearn":
        raise refuse("binning", binning, "'exact' or 'sklearn'")
    from sklearn.cluster import KMeans

    fitted = KMeans(bins, n_init=10, random_state=seed).fit(norms[:, None].numpy())
    order = fitted.cluster_centers_[:, 0].argsort().argsort()  # cluster number -> rank of its centre
    return torch.as_tensor(order[fitted.labels_])


def redundancy_in_bin(similarity: Tensor, norms: Tensor, redundancy: Literal["mean", "max", "greedy"]) -> Tensor:
    """How well its bin's other members stand in for each channel (M4).

    similarity: (n, n) and norms: (n,) of the bin's members, n of 2 or more. Returns (n,) in -1..1.
    For ``greedy`` a channel's redundancy is its similarity to its twin at the moment it is dropped; the
    last one standing has no twin left and gets -1.
    """
    others = similarity.clone()
    if redundancy == "mean":
        return others.fill_diagonal_(0).sum(1) / (len(norms) - 1)
    others.fill_diagonal_(-math.inf)
    if redundancy == "max":
        return others.amax(1)
    if redundancy != "greedy":
        raise refuse("redundancy", redundancy, "'mean', 'max' or 'greedy'")
    dropped_at = torch.full((len(norms),), -1.0, dtype=similarity.dtype)
    for _ in range(len(norms) - 1):
        first, second = divmod(int(others.argmax()), len(norms))  # the first of equal pairs: first < second
        # The smaller norm goes; of two equals, the higher index.
        loser = first if norms[first] < norms[second] else second
        dropped_at[loser] = others[first, second]
        others[loser, :] = others[:, loser] = -math.inf
    return dropped_at


def break_ties(importance: Tensor, norms: Tensor) -> Tensor:
    """Nudge equal values apart by single float64 steps: the larger norm first, then the lower index (M5)."""
    order = sorted(range(len(norms)), key=lambda c: (importance[c].item(), norms[c].item(), -c))
    values, last = importance.clone(), -math.inf
    for channel in order:
        last = max(importance[channel].item(), math.nextafter(last, math.inf))
        values[channel] = last
    return values


def fcs(
    statistics: ChannelStatistics,
    *,
    redundancy: Literal["mean", "max", "greedy"] = "mean",
    quota: Literal["bin", "layer"] = "bin",
    bins: int = 4,
    binning: Literal["exact", "sklearn"] = "exact",
    seed: int = 0,
) -> Tensor:
    """Feature channels similarity (Yang and Xiao 2022), (M1) to (M6); the defaults read the abstract literally.

    Channels of similar L1 norm share a bin; inside it the channels that the others resemble go first. With
    ``quota="bin"`` every bin gives about the same share: importance is (rank in the bin + 1/2) / bin size.
    With ``quota="layer"`` it is minus the redundancy and the whole layer is ranked.
    """
    if quota not in ("bin", "layer"):
        raise refuse("quota", quota, "'bin' or 'layer'")
    if redundancy not in ("mean", "max", "greedy"):
        raise refuse("redundancy", redundancy, "'mean', 'max' or 'greedy'")
    norms, similarity = statistics.l1, statistics.similarity()
    dead = norms == 0
    labels = assign_bins(norms, bins, binning, seed)
    importance = torch.empty_like(norms)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        if len(members) == 1:
            importance[members] = ALONE
            continue
        inside = -redundancy_in_bin(similarity[members][:, members], norms[members], redundancy)
        if quota == "bin":
            inside = torch.where(dead[members], -math.inf, inside)
            ranks = break_ties(inside, norms[members]).argsort(stable=True).argsort(stable=True)
            inside = (ranks + 0.5) / len(members)
        importance[members] = inside.to(importance.dtype)
    # Under "layer", -redundancy spans -1..1, so a dead channel needs a value below that.
    importance[dead] = DEAD if quota == "bin" else -ALONE
    return break_ties(importance, norms)


@dataclass(frozen=True)
class Criterion:
    """A criterion's function, what it reads, options fixed by its name, and how tables name its reading."""

    function: Callable[..., Tensor]
    reads: Literal["weights", "statistics"]
    fixed: Mapping[str, Any]
    reading: str

    def options(self) -> dict[str, Any]:
        """Options a caller may set, with their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in self.fixed}


CRITERIA: dict[str, Criterion] = {
    "random": Criterion(random, "weights", {}, "random channels"),
    "kernel_l1": Criterion(kernel_l1, "weights", {}, "L1 norm of the filter"),
    "feature_norm": Criterion(feature_norm, "statistics", {}, "L1 norm of the map, whole layer"),
    "fcs": Criterion(fcs, "statistics", {}, "pooled cosine, {redundancy}, quota by {quota}, B = {bins}"),
    "fcs_greedy": Criterion(
        fcs, "statistics", {"redundancy": "greedy"}, "pooled cosine, {redundancy}, quota by {quota}, B = {bins}"
    ),
}


def check_options(name: str, options: Mapping[str, Any]) -> Criterion:
    """The criterion of a name. Raises StudyError for an unknown name or an option it does not take."""
    if name not in CRITERIA:
        raise refuse("criterion", name, ", ".join(CRITERIA))
    criterion = CRITERIA[name]
    allowed = criterion.options()
    for option, value in options.items():
        if option not in allowed:
            raise refuse(f"options of {name}", option, ", ".join(allowed) or "none")
        if type(value) is not type(allowed[option]):
            raise refuse(f"{name}'s option {option}", value, f"a value like {allowed[option]!r}")
    return criterion


def describe(name: str, options: Mapping[str, Any] = {}) -> str:  # noqa: B006 - read only
    """The reading a table must name beside a criterion, such as 'pooled cosine, mean, quota by bin, B = 4'."""
    criterion = check_options(name, options)
    return criterion.reading.format(**{**criterion.options(), **criterion.fixed, **options})


def importance(
    name: str,
    *,
    model: nn.Module,
    statistics: Mapping[str, ChannelStatistics] | None = None,
    seed: int = 0,
    **options: Any,
) -> dict[str, Tensor]:
    """Importance of every channel by convolution name: finite float64 tensors (C,), higher = keep.

    name: a key of ``CRITERIA``. statistics: from ``collect_statistics``; decides which layers are scored
    (default: every ungrouped convolution, for criteria that read weights only). seed: for ``random`` and
    sklearn's binning. Options are the criterion function's keyword arguments.

    Raises StudyError for an unknown criterion or option, missing statistics, or weights that are not finite.
    """
    criterion = check_options(name, options)
    if criterion.reads == "statistics" and statistics is None:
        raise StudyError(f"criterion {name!r} needs statistics: pass what collect_statistics returns")
    layers = {n: m for n, m in model.named_modules()
              if isinstance(m, nn.Conv2d) and (n in statistics if statistics is not None else m.groups == 1)}  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    keywords = {**criterion.fixed, **options}
    if "seed" in inspect.signature(criterion.function).parameters:
        keywords.setdefault("seed", seed)
    scores = {}
    for layer, module in layers.items():
        if criterion.reads == "statistics":
            assert statistics is not None
            score = criterion.function(statistics[layer], **keywords)
        else:
            score = criterion.function(module, generator) if name == "random" else criterion.function(module, **keywords)
        if not score.isfinite().all():
            raise StudyError(f"criterion {name!r}: layer {layer} has NaN or infinite values")
        scores[layer] = score
    return scores
