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

from fcs_utils.errors import StudyError, refuse
from fcs_utils.pruning.baselines import apoz, bn_scale, chip, feature_norm, fpgm, hrank, kernel_l1, kernel_l2, random, taylor
from fcs_utils.pruning.fcs import fcs
from fcs_utils.pruning.linear import fcs_linear
from fcs_utils.pruning.statistics import ChannelStatistics
from fcs_utils.pruning.sums import Extra, Reading


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
