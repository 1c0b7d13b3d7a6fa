"""Importance of channels: statistics or weights in, one number per channel out, higher = keep.

Every criterion is a function in one registry. What it returns is finite, one-dimensional, float64;
sign flips stay inside it. ``keep_count`` is the only rounding rule.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fcs_utils.activations import ChannelStatistics
from fcs_utils.errors import StudyError, refuse
from fcs_utils.fcs import fcs
from fcs_utils.linear import fcs_linear
from fcs_utils.sums import Extra, Reading
from fcs_utils.taylor import taylor


def keep_count(channels: int, ratio: float) -> int:
    """How many channels stay when a share ``ratio`` of them goes (M6): the study's only rounding rule.

    Raises StudyError for a ratio outside (0, 1).
    """
    if not isinstance(ratio, int | float) or not 0 < ratio < 1:  # also refuses NaN
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
    return _filters(layer).abs().sum(1)


def kernel_l2(layer: nn.Conv2d) -> Tensor:
    """L2 norm of each output filter (Li et al. 2017, their alternative)."""
    return _filters(layer).norm(dim=1)


def fpgm(layer: nn.Conv2d) -> Tensor:
    """Sum of Euclidean distances to all filters of the layer (He et al. 2019): low near their geometric median."""
    filters = _filters(layer)
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def _filters(layer: nn.Conv2d) -> Tensor:
    return layer.weight.detach().double().flatten(1).cpu()


def feature_norm(statistics: ChannelStatistics) -> Tensor:
    """a_c of (M1), ranked over the whole layer: the paper's layer-wise feature-norm baseline."""
    return statistics.l1


def bn_scale(model: nn.Module, statistics: ChannelStatistics) -> Tensor:
    """|gamma| of the BatchNorm behind the convolution (Liu et al. 2017), without their sparsity training."""
    if statistics.norm is None:
        raise StudyError("criterion 'bn_scale' needs a BatchNorm right behind every scored convolution; here one has none")
    weight = model.get_submodule(statistics.norm).weight
    if not isinstance(weight, Tensor):
        raise StudyError(f"criterion 'bn_scale' needs BatchNorm with a scale; {statistics.norm} has affine=False")
    return weight.detach().double().abs().cpu()


def apoz(statistics: ChannelStatistics) -> Tensor:
    """Minus the average percentage of zeros (Hu et al. 2016), here of the maps that the consumer reads."""
    return 1 - _extra(statistics, "apoz")


def hrank(statistics: ChannelStatistics) -> Tensor:
    """Mean rank of the channel's map over images (Lin et al. 2020)."""
    return _extra(statistics, "hrank")


def chip(statistics: ChannelStatistics) -> Tensor:
    """Channel independence (Sui et al. 2021): mean drop of an image's nuclear norm without the channel."""
    return _extra(statistics, "chip")


def _extra(statistics: ChannelStatistics, name: Extra) -> Tensor:
    if name not in statistics.extras:
        raise StudyError(f"criterion {name!r} needs extras=({name!r},) passed to collect_statistics")
    return statistics.extras[name]


@dataclass(frozen=True)
class Criterion:
    """A criterion's function, what it reads, options fixed by its name, and how tables name its reading."""

    function: Callable[..., Any]
    reads: Literal["noise", "weights", "statistics", "network", "gradients"]
    reading: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    extra: Extra | None = None

    def options(self) -> dict[str, Any]:
        """Options a caller may set, with their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in self.fixed}


FCS = "{reading} cosine, {redundancy}, quota by {quota}, B = {bins}"
CRITERIA: dict[str, Criterion] = {
    "random": Criterion(random, "noise", "random channels"),
    "kernel_l1": Criterion(kernel_l1, "weights", "L1 norm of the filter"),
    "kernel_l2": Criterion(kernel_l2, "weights", "L2 norm of the filter"),
    "fpgm": Criterion(fpgm, "weights", "distance to the layer's other filters"),
    "feature_norm": Criterion(feature_norm, "statistics", "L1 norm of the map, whole layer"),
    "bn_scale": Criterion(bn_scale, "network", "scale of the BatchNorm"),
    "apoz": Criterion(apoz, "statistics", "share of non-zeros in the map", extra="apoz"),
    "taylor": Criterion(taylor, "gradients", "first-order Taylor on activations"),
    "hrank": Criterion(hrank, "statistics", "mean rank of the map", extra="hrank"),
    "chip": Criterion(chip, "statistics", "nuclear-norm drop", extra="chip"),
    "fcs": Criterion(fcs, "statistics", FCS),
    "fcs_greedy": Criterion(fcs, "statistics", FCS, fixed={"redundancy": "greedy"}),
    "fcs_linear": Criterion(fcs_linear, "network", "residual of least squares on the kept channels"),
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


def needs(name: str, options: Mapping[str, Any] = {}) -> tuple[tuple[Reading, ...], tuple[Extra, ...]]:  # noqa: B006
    """The readings and extras that ``collect_statistics`` must gather for a criterion."""
    criterion = check_options(name, options)
    return (options.get("reading", "pooled"),), (criterion.extra,) if criterion.extra else ()


def importance(
    name: str,
    *,
    model: nn.Module,
    statistics: Mapping[str, ChannelStatistics] | None = None,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    seed: int = 0,
    **options: Any,
) -> dict[str, Tensor]:
    """Importance of every channel by convolution name: finite float64 tensors (C,), higher = keep.

    name: a key of ``CRITERIA``. statistics: from ``collect_statistics``; decides which layers are scored
    (default: every ungrouped convolution, for criteria that read weights only). images (N, C, H, W) and
    labels (N,): for ``taylor``. seed: for ``random`` and sklearn's binning. Options are the criterion
    function's keyword arguments.

    Raises StudyError for an unknown criterion or option, missing statistics, images or labels, a scored
    layer that the network does not have, and values that are not finite.
    """
    criterion = check_options(name, options)
    if criterion.reads in ("statistics", "network") and statistics is None:
        raise StudyError(f"criterion {name!r} needs statistics: pass what collect_statistics returns")
    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    if unknown := [n for n, s in (statistics or {}).items() if n not in convolutions or convolutions[n].out_channels != len(s.l1)]:
        raise StudyError(f"statistics are of another network: this one has no convolution {unknown[0]} of that width")
    layers = {n: m for n, m in convolutions.items() if (n in statistics if statistics is not None else m.groups == 1)}
    if criterion.reads == "gradients":
        if images is None or labels is None:
            raise StudyError(f"criterion {name!r} needs images and labels")
        return taylor(model, images, labels, list(layers) if statistics is not None else None)
    generator = torch.Generator().manual_seed(seed)
    keywords = {**criterion.fixed, **options}
    if "seed" in inspect.signature(criterion.function).parameters:
        keywords.setdefault("seed", seed)
    scores = {}
    for layer, module in layers.items():
        known = statistics[layer] if statistics is not None else None
        arguments = {"noise": (module, generator), "weights": (module,), "statistics": (known,), "network": (model, known)}
        score = criterion.function(*arguments[criterion.reads], **keywords)
        if not score.isfinite().all():
            raise StudyError(f"criterion {name!r}: layer {layer} has NaN or infinite values")
        scores[layer] = score
    return scores
