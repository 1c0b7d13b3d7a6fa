"""A plan for a measured latency: the share of MACs to leave is searched for the network that is as fast as wanted."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import PlainValidator
from torch import nn

from fcs_utils.errors import StudyError, refuse
from fcs_utils.pruning.options import Evaluate
from fcs_utils.pruning.sensitivity import evaluated

TRIES, NEAR = 10, 0.01  # at most so many networks are measured; a latency within this share of the goal is near enough
MILLISECONDS = re.compile(r"(\d+\.?\d*|\.\d+) ?ms")


def read_latency(value: Any) -> float | str:
    """A share above 0 and below 1, or a text such as ``12.5ms``. Raises ValueError in words for anything else."""
    share = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1
    if not share and not (isinstance(value, str) and (found := MILLISECONDS.fullmatch(value)) and float(found[1]) > 0):
        raise ValueError("a share of the dense network's, above 0 and below 1, or milliseconds as a string, such as '12.5ms'")
    return value


def latency_in_words(text: str) -> float | str:
    """A goal in latency as people type it, such as 0.7 or 12.5ms; ``read_latency`` checks it."""
    try:
        return float(text)
    except ValueError:
        return text


Latency = Annotated[float | str, PlainValidator(read_latency)]


def check_latency(latency: float | str | None, measure: Evaluate | None) -> None:
    """Raises StudyError where a latency is wanted and nothing measures it, or the other way round."""
    if (latency is None) != (measure is None):
        got = "latency without measure" if measure is None else "measure without latency"
        raise StudyError(f"{got}: they belong together; measure takes a network and returns its milliseconds")


def reach_latency(
    latency: float | str, measure: Evaluate, dense: nn.Module, cut: Callable[[float], nn.Module], least: float, most: float
) -> tuple[float, float]:
    """Find the share of MACs whose network has the wanted latency; returns it, and the latency measured, in ``latency``'s unit.

    measure: a network's milliseconds. cut: the compact network for a share of MACs, from ``least`` to ``most``. The dense network
    is measured first. Then bisection, led by the straight line between the nearest networks, measures at most ``TRIES`` others.

    Raises StudyError for a latency that no share reaches, with what can be reached, and for measures that are not above 0.
    """

    def taken(network: nn.Module) -> float:
        if (found := evaluated(measure, network, "measure")) <= 0:
            raise StudyError(f"measure must return milliseconds above 0, got {found}")
        return found

    full = taken(dense)
    goal, unit = (float(latency.removesuffix("ms")), 1.0) if isinstance(latency, str) else (latency * full, full)
    known = {1.0: full}
    low, high = least, 1.0
    share = min(most, max(least, goal / full))
    for _ in range(TRIES):
        known[share] = taken(cut(share))
        if abs(known[share] - goal) <= NEAR * goal:
            break
        low, high = (share, high) if known[share] < goal else (low, share)
        if low >= most:
            break
        share = _between(low, high, known, goal)
        if share in known:
            break
    tried = {one: found for one, found in known.items() if one < 1}
    best = min(tried, key=lambda one: abs(tried[one] - goal))
    if best == least and tried[best] > goal * (1 + 5 * NEAR):
        reached = f"{tried[best]:.3g}ms" if isinstance(latency, str) else f"{tried[best] / full:.3f}"
        raise refuse("latency", latency, f"{reached} and more: pruning these layers leaves no less")
    if share != best:
        cut(best)
    return best, tried[best] / unit


def _between(low: float, high: float, known: dict[float, float], goal: float) -> float:
    """Where the line between two measured shares meets the goal, but not too near to either."""
    if low not in known:
        return low  # the least that can be left, not tried yet
    part = (goal - known[low]) / (known[high] - known[low]) if known[high] > known[low] else 0.5
    return low + min(0.8, max(0.2, part)) * (high - low)
