"""A rate for each layer: by name, as a list, or in the shorthand of a paper."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import PlainValidator

from fcs_utils.errors import StudyError, refuse
from fcs_utils.pruning.counts import Ranking, keep_count
from fcs_utils.pruning.layers import Layer, Scope

Shorthand = Literal["chip"]
MOST = 10_000  # numbers that a text may stand for
TERM = re.compile(r"\[\s*(\d+\.?\d*|\.\d+)\s*\](?:\s*\*\s*(\d{1,5}))?")  # [0.15]*2


def read_rates(value: Any) -> dict[str, float] | tuple[float, ...]:
    """Rates as Python's own numbers, by layer name or in order. Raises ValueError in words for what holds no rates.

    value: a mapping, a sequence of numbers, or a text as CHIP's command line takes it: ``[0.]+[0.15]*2+[0.4]*27`` stands for
    30 numbers. Every number is 0 or above and below 1: the share of a layer's channels to remove.
    """
    if isinstance(value, str):
        terms = [TERM.fullmatch(term.strip()) for term in value.split("+")]
        counts = [int(term[2] or 1) for term in terms if term]
        if len(counts) < len(terms) or sum(counts) > MOST:
            raise ValueError(f"a text such as [0.]+[0.15]*2+[0.4]*27, of at most {MOST} numbers")
        value = [float(term[1]) for term, count in zip(terms, counts, strict=True) if term for _ in range(count)]
    named = isinstance(value, Mapping)
    if not named and not isinstance(value, Sequence) or not len(value):
        raise ValueError("numbers by layer name, a list of numbers, or a text such as [0.]+[0.15]*2+[0.4]*27")
    for name, rate in value.items() if named else enumerate(value, 1):
        number = isinstance(rate, int | float | np.number) and not isinstance(rate, bool)
        if not number or not 0 <= rate < 1 or (named and not isinstance(name, str)):
            raise ValueError(f"numbers of 0 and above and below 1, the share of channels to remove; {name!r} has {rate!r}")
    return {name: float(rate) for name, rate in value.items()} if named else tuple(map(float, value))


LayerRates = Annotated[Mapping[str, float] | Sequence[float] | str, PlainValidator(read_rates)]


def check_goal(goals: Mapping[str, Any], rates_as: object, rounding: object, ranking: Ranking = "layer") -> None:
    """Raises StudyError unless a plan has one goal that makes sense, and options that belong to it.

    goals: by name, ``ratio``, ``macs``, ``rates`` and others, such as ``latency``; all but one are None.
    """
    ratio, macs, rates = (goals[name] for name in ("ratio", "macs", "rates"))
    if sum(value is not None for value in goals.values()) != 1:
        *first, last = goals
        got = ", ".join(f"{name}={value!r}" for name, value in goals.items())
        raise StudyError(f"give one of {', '.join(first)} and {last}; got {got}")
    if rates_as is not None and (rates is None or isinstance(rates, Mapping)):
        raise refuse("rates_as", rates_as, "None: it says whose shorthand a list of rates is")
    if ((ratio is None and rates is None) or ranking == "network") and rounding not in (None, "study"):
        raise refuse("rounding", rounding, "'study' where macs is the goal or ranking is 'network'")
    if rates is not None and ranking != "layer":
        raise refuse("ranking", ranking, "'layer' where layers have rates of their own")
    if macs is not None and not 0 < macs < 1:
        raise refuse("macs", macs, "above 0 and below 1, the share of MACs to leave")
    if ratio is not None:
        keep_count(1, ratio)  # refuses a bad ratio before any work


def fits(name: str, pattern: str) -> bool:
    """Whether a layer is meant: by its own name, the name of a module that holds it, or a pattern such as ``layer4.*.conv1``."""
    return fnmatchcase(name, pattern) or name.startswith(pattern + ".")


def rates_by_layer(
    rates: Mapping[str, float] | Sequence[float], rates_as: Shorthand | None, layers: Mapping[str, Layer], scope: Scope
) -> dict[str, float]:
    """The rate of every layer that a scope may shrink; 0 for those that are not named.

    A list holds one number for each of these layers in the network's order, or what a paper's shorthand stands for. Names may be
    patterns (``fits``), which leave out layers that the scope cannot shrink. A layer's own name counts before patterns, and a
    longer pattern before a shorter one.

    Raises StudyError for names that no layer has, a list of another length, a rate above 0 for a layer that cannot be pruned, and
    different rates in layers that lose the same channels.
    """
    able = [name for name, layer in layers.items() if layer.obstacle(scope) is None]
    if isinstance(rates, Mapping):
        if unknown := sorted(word for word in rates if not any(fits(name, word) for name in layers)):
            raise refuse("rates", unknown, f"the network's convolutions: {', '.join(layers)}")
        found = {name: rate for name in able if (rate := _by_pattern(name, rates)) is not None}
        found |= {name: rate for name, rate in rates.items() if name in layers}
    else:
        places, what = ([[name] for name in able], f"one for each layer of scope {scope!r}, in the network's order")
        if rates_as:
            places, what = _chip(layers)
        if len(rates) != len(places):
            raise refuse("rates", f"{len(rates)} numbers", f"{len(places)} numbers, {what}")
        found = {name: rate for names, rate in zip(places, rates, strict=True) for name in names}
    for name, rate in found.items():
        if rate and (why := layers[name].obstacle(scope)):
            raise refuse(f"rates.{name}", rate, f"0 in scope {scope!r}, for this layer {why}")
    complete = {name: found.get(name, 0.0) for name in able}
    for name in able:
        if odd := next((other for other in layers[name].coupled if complete[other] != complete[name]), None):
            said = f"{name}={complete[name]:g}, {odd}={complete[odd]:g}"
            raise StudyError(f"rates differ in layers that share a residual sum and lose the same channels: {said}")
    return complete


def _by_pattern(name: str, rates: Mapping[str, float]) -> float | None:
    """The rate of a layer by the longest pattern that it fits. Raises StudyError where two as long ask for different rates."""
    if not (matching := [word for word in rates if fits(name, word)]):
        return None
    longest = [word for word in matching if len(word) == max(map(len, matching))]
    if name not in rates and len({rates[word] for word in longest}) > 1:
        raise StudyError(f"rates: {' and '.join(map(repr, longest))} ask for different rates of {name}; name it by itself")
    return rates[longest[0]]


def _chip(layers: Mapping[str, Layer]) -> tuple[list[list[str]], str]:
    """CHIP's lists (Sui et al. 2021, its code for CIFAR-10): the layers of each number, and this in words."""
    free = {name: layer for name, layer in layers.items() if not layer.barrier and not layer.linear}
    inner = [[name] for name, layer in free.items() if layer.obstacle("inner") is None]
    sums = [[n for n in layers if n == name or n in layer.coupled] for name, layer in free.items() if layer.coupled or layer.beyond]
    streams = [names for number, names in enumerate(sums) if names not in sums[:number]]
    if not streams:
        return inner[:-1], "one for each convolution but the last, which stays whole"
    return [*streams[:-1], *inner], "for the first convolution, each stage's output but the last stage's, and each block's inside"
