"""Importance of channels: statistics or weights in, one number per channel out, higher = keep.

Every criterion is a function that ``@criterion`` enters into one registry. What it returns is finite, one-dimensional,
float64; sign flips stay inside it. ``keep_count`` is the only rounding rule.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor

from fcs_utils.config import Images, Labels, Model, Seed, checked
from fcs_utils.errors import StudyError, refuse
from fcs_utils.files import module_sum
from fcs_utils.pruning.counts import Ranking
from fcs_utils.pruning.flow import candidates
from fcs_utils.pruning.kinds import CONVOLUTIONS, check_axes, depthwise, out_width
from fcs_utils.pruning.statistics import ChannelStatistics, check_weights
from fcs_utils.pruning.sums import Extra, Reading, Where

Reads = Literal["noise", "weights", "statistics", "network", "gradients", "pruner"]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Criterion:
    """A criterion's function, what it reads, options fixed by its name, how tables name its reading, and figures the criterion.

    reading: a text, or what makes it from the options. code: SHA-256 of the file of its module, taken when that was imported;
    None for one that a notebook or a script defines.
    """

    function: Callable[..., Any]
    reads: Reads
    reading: str | Callable[[Mapping[str, Any]], str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    extra: Extra | None = None
    code: str | None = None
    title: str = ""

    def options(self) -> dict[str, Any]:
        """Options a caller may set, with their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in self.fixed}

    def values(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options: their defaults, those that the name fixes, and these."""
        return {**self.options(), **self.fixed, **options}

    @property
    def module(self) -> str:
        return self.function.__module__

    @property
    def outside(self) -> bool:
        """Whether it is no part of this package."""
        return self.module.partition(".")[0] != __name__.partition(".")[0]


CRITERIA: dict[str, Criterion] = {}


def criterion(
    name: str,
    *,
    reads: Reads,
    reading: str | Callable[[Mapping[str, Any]], str],
    fixed: Mapping[str, Any] | None = None,
    extra: Extra | None = None,
    title: str = "",
) -> Callable[[Function], Function]:
    """Enter a function into ``CRITERIA``; its keyword-only arguments are the criterion's options.

    reads: what the function is called with, for each layer: ``noise`` (convolution, generator), ``weights``
    (convolution), ``statistics`` (ChannelStatistics), ``network`` (model, ChannelStatistics); ``gradients`` is called once
    with (model, images, labels, names of layers or None) and returns a dict by layer; ``pruner`` with (a copy of the network,
    images, labels) and returns an importance of Torch-Pruning, whose own pruner then chooses, see ``pruner_plan``. reading: how
    tables name it; ``{option}`` stands for an option's value, and a function makes the text from all of them. fixed: options that
    the name fixes. extra: what ``collect_statistics`` must gather for it. title: what figures call it (default: its name).

    Raises StudyError where another function has the name.
    """

    def enter(function: Function) -> Function:
        known = CRITERIA.get(name)
        if known and (known.module, known.function.__qualname__) != (function.__module__, function.__qualname__):
            raise refuse("name of a criterion", name, f"a name that is not taken; {known.module} has a criterion of this name")
        CRITERIA[name] = Criterion(function, reads, reading, fixed or {}, extra, module_sum(function.__module__), title)
        return function

    return enter


def check_options(name: str, options: Mapping[str, Any]) -> Criterion:
    """The criterion of a name. Raises StudyError for an unknown name or an option it does not take."""
    if name not in CRITERIA:
        raise refuse("criterion", name, ", ".join(CRITERIA))
    found = CRITERIA[name]
    allowed = found.options()
    for option, value in options.items():
        if option not in allowed:
            raise refuse(f"options of {name}", option, ", ".join(allowed) or "none")
        if type(value) is not type(allowed[option]):
            raise refuse(f"{name}'s option {option}", value, f"a value like {allowed[option]!r}")
    return found


def code_of(name: str) -> str | None:
    """What a run's identity holds of a criterion's code: nothing for this package's own, else its file's SHA-256.

    Raises StudyError for an unknown criterion, and for one that a notebook or a script defines: no other process can import it.
    """
    found = check_options(name, {})
    if not found.outside:
        return None
    if found.code is None:
        raise StudyError(
            f"criterion {name!r} is defined in {found.module}, a notebook or a script; a study needs a module: "
            "move the function to a file of its own and name that file's module in plugins"
        )
    return found.code


def reading_of(name: str, options: Mapping[str, Any] = {}) -> str:  # noqa: B006 - read only
    """The reading a table must name beside a criterion, such as 'pooled cosine, mean, quota by bin, B = 4'."""
    found = check_options(name, options)
    values = found.values(options)
    return found.reading.format(**values) if isinstance(found.reading, str) else found.reading(values)


# Values of options as texts and figures say them.
OPTIONS_IN_WORDS = {
    "reading=pooled": "similarity over all images",
    "reading=per_image": "similarity by image",
    "reading=mean_map": "similarity of mean maps",
    "redundancy=mean": "mean similarity",
    "redundancy=max": "largest similarity",
    "redundancy=greedy": "greedy",
    "quota=bin": "equal shares of bins",
    "quota=layer": "ranked by layer",
    "quota=global": "ranked over the network",
    "order=norm": "lowest norms first",
    "tap=convolution": "raw convolution output",
    "binning=sklearn": "Lloyd's algorithm",
    "bins=1": "1 bin",
}


def option_in_words(option: str, value: Any) -> str:
    """One option of a criterion, such as '8 bins'; one without words of its own is said by name and value."""
    other = f"{value} bins" if option == "bins" else f"{option} {value}".replace("_", " ")
    return OPTIONS_IN_WORDS.get(f"{option}={value}", other)


def criterion_title(name: str, options: Mapping[str, Any] = {}) -> str:  # noqa: B006
    """What texts and figures call a criterion, such as 'FCS (8 bins)': its title, or its name without one, and its options."""
    title = (CRITERIA[name].title if name in CRITERIA else "") or name  # one from outside may not be imported
    words = ", ".join(option_in_words(option, value) for option, value in options.items())
    return f"{title} ({words})" if words else title


def scoring() -> list[str]:
    """The names of all criteria that give channels an importance; the others are pruners, which choose by themselves."""
    return [name for name, found in CRITERIA.items() if found.reads != "pruner"]


def ranking_of(name: str, options: Mapping[str, Any] = {}) -> Ranking:  # noqa: B006
    """How ``make_plan`` must rank a criterion's importances: over the whole network where its option ``quota`` is "global"."""
    return "network" if check_options(name, options).values(options).get("quota") == "global" else "layer"


class Needs(NamedTuple):
    """What ``collect_statistics`` must gather, as its arguments of these names."""

    readings: tuple[Reading, ...]
    extras: tuple[Extra, ...]
    tap: Where


def needs(name: str, options: Mapping[str, Any] = {}) -> Needs:  # noqa: B006
    """What a criterion needs from ``collect_statistics``. Raises StudyError for an unknown option or tap."""
    extra, tap = check_options(name, options).extra, options.get("tap", "reader")
    if tap not in get_args(Where):
        raise refuse("tap", tap, ", ".join(get_args(Where)))
    return Needs((options.get("reading", "pooled"),), (extra,) if extra else (), tap)


@checked
def importance(
    name: str,
    *,
    model: Model,
    statistics: Mapping[str, ChannelStatistics] | None = None,
    images: Images | None = None,
    labels: Labels | None = None,
    seed: Seed = 0,
    **options: Any,
) -> dict[str, Tensor]:
    """Importance of every channel by convolution name: finite float64 tensors (C,), higher = keep.

    name: a key of ``CRITERIA``. statistics: from ``collect_statistics``; decides which layers are scored
    (default: every convolution but depthwise ones, and no linear layer, for criteria that read weights only). images
    (N, C, ...), or several inputs, and labels (N,): for ``taylor``. seed: for ``random`` and sklearn's binning. Options are the
    criterion function's keyword arguments.

    Raises StudyError for an unknown criterion or option, missing statistics, images or labels, statistics of another
    network or of other weights, and values that are not finite.
    """
    found, tap = check_options(name, options), needs(name, options).tap
    check_axes(model, images)
    if found.reads == "pruner":
        raise StudyError(f"criterion {name!r} is a pruner of Torch-Pruning: it chooses channels and scores none; use pruner_plan")
    if found.reads in ("statistics", "network") and statistics is None:
        raise StudyError(f"criterion {name!r} needs statistics: pass what collect_statistics returns")
    known = dict(candidates(model))
    if odd := next((n for n, s in (statistics or {}).items() if n not in known or out_width(known[n]) != len(s.l1)), None):
        raise StudyError(f"statistics are of another network: this one has no layer {odd} of that width")
    check_weights(model, statistics or {})
    others = {one.tap for one in (statistics or {}).values()} - {tap}
    if others and found.reads in ("statistics", "network"):
        raise StudyError(
            f"criterion {name!r} reads maps with tap={tap!r}; these statistics were collected with tap={others.pop()!r}"
        )
    if statistics is not None:
        layers = {name: module for name, module in known.items() if name in statistics}
    else:
        layers = {name: module for name, module in known.items() if isinstance(module, CONVOLUTIONS) and not depthwise(module)}
    keywords = {**found.fixed, **options}
    if found.reads == "gradients":
        if images is None or labels is None:
            raise StudyError(f"criterion {name!r} needs images and labels")
        scores = found.function(model, images, labels, list(layers) if statistics is not None else None, **keywords)
    else:
        generator = torch.Generator().manual_seed(seed)
        if "seed" in inspect.signature(found.function).parameters:
            keywords.setdefault("seed", seed)
        scores = {}
        for layer, module in layers.items():
            own = statistics[layer] if statistics is not None else None
            arguments = {"noise": (module, generator), "weights": (module,), "statistics": (own,), "network": (model, own)}
            scores[layer] = found.function(*arguments[found.reads], **keywords)
    for layer, score in scores.items():
        if score.shape != ((channels := out_width(known[layer])),):
            raise StudyError(f"criterion {name!r}: layer {layer} needs {channels} scores, not {tuple(score.shape)}")
        if not score.isfinite().all():
            raise StudyError(f"criterion {name!r}: layer {layer} has NaN or infinite values")
    return scores
