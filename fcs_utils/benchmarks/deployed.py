"""How much faster networks of ImageNet's size are with half of their MACs, and how well a goal in latency is met.

Time does not depend on the values of weights, so these are random, and channels are chosen by their kernels' norms.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fcs_utils.benchmarks.latency import RUNTIME_TITLES, latencies, speed_up, stopwatch
from fcs_utils.config import Config, Count, Ratio
from fcs_utils.machine import describe_measurement, some_threads
from fcs_utils.models import build_seeded, count_macs, module_macs, network_title
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.kinds import depthwise
from fcs_utils.pruning.layers import Scope
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.surgery import prune


class Deployed(Config):
    """What is measured. networks, with the scope that each is pruned in; multiples: of channels, 1 for none.

    timed: networks on which goals, shares of the dense latency, are asked for in PyTorch and then measured anew.
    """

    networks: tuple[tuple[str, Scope], ...] = (
        ("torchvision/resnet50", "all"),
        ("torchvision/vgg16_bn", "inner"),
        ("torchvision/mobilenet_v2", "all"),
    )
    size: Count = 224
    macs: Ratio = 0.5
    multiples: tuple[Count, ...] = (1, 8)
    batches: tuple[Count, ...] = (1, 32)
    threads: Count = 2
    rounds: Count = 9
    timed: tuple[str, ...] = ("torchvision/resnet18", "torchvision/mobilenet_v2")
    goals: tuple[Ratio, ...] = (0.55, 0.6, 0.7, 0.8, 0.9)


def measure_deployed(wanted: Deployed) -> dict[str, Any]:
    """This machine's measurements: ``rows`` by network, ``goals``, ``layers``, the ``machine``, the ``date`` and what was asked.

    rows: MACs and milliseconds by name, 'dense' and 'multiple M'. goals: asked and measured shares. layers: milliseconds by kind of
    layer in PyTorch at the first batch, and the MACs of each kind.
    """
    example = torch.randn(2, 3, wanted.size, wanted.size, generator=torch.Generator().manual_seed(0))
    rows, layers = [], []
    for name, scope in wanted.networks:
        dense = build_seeded(0, name, num_classes=1000).eval()
        networks = {"dense": dense}
        for multiple in wanted.multiples:
            plan = plan_by_norms(dense, example, scope=scope, multiple=multiple, macs=wanted.macs)
            networks[f"multiple-{multiple}"] = prune(dense, plan).eval()
        macs = {one: count_macs(network, example) for one, network in networks.items()}
        taken = latencies(networks, example, batches=wanted.batches, rounds=wanted.rounds, threads=wanted.threads)
        rows.append({"network": name, "scope": scope, "macs": macs, "milliseconds": taken})
        layers.append({"network": name, "kinds": time_by_kind(dense, example[:1], wanted.rounds, wanted.threads)})
    goals = [{"network": name, **_timed(name, example, goal, wanted)} for name in wanted.timed for goal in wanted.goals]
    asked = {"asked": wanted.model_dump(mode="json"), **describe_measurement(torch.device("cpu")), "precision": "fp32"}
    return {**asked, "rows": rows, "goals": goals, "layers": layers}


def plan_by_norms(dense: nn.Module, example: Tensor, **options: Any) -> PruningPlan:
    """A plan by the L1 norms of kernels; example: a batch as the network takes it. options: as ``make_plan`` takes them."""
    return make_plan(dense, example, importance("kernel_l1", model=dense), **options)


def _timed(name: str, example: Tensor, goal: float, wanted: Deployed) -> dict[str, float]:
    """A plan for a share of the dense latency, and the share when its network is measured anew."""
    dense = build_seeded(0, name, num_classes=1000).eval()
    watch = partial(stopwatch, dense, example, "pytorch", rounds=wanted.rounds, threads=wanted.threads)
    plan = plan_by_norms(dense, example, scope="all", latency=goal, measure=watch())
    again = watch()
    return {"asked": goal, "macs": float(plan.macs_left or 0), "reached": again(prune(dense, plan)) / again(dense)}


def time_by_kind(model: nn.Module, image: Tensor, rounds: int, threads: int) -> dict[str, dict[str, float]]:
    """Median milliseconds and MACs of one forward pass by kind of layer, in PyTorch; image: (1, C, H, W).

    Kinds: convolutions that are depthwise, pointwise or others, linear layers, BatchNorm, and all else.
    """
    kinds: dict[str, dict[str, float]] = defaultdict(lambda: {"milliseconds": 0.0, "macs": 0.0})
    taken: dict[str, list[float]] = defaultdict(list)
    started: dict[nn.Module, float] = {}
    spent: dict[str, float] = defaultdict(float)

    def after(module: nn.Module, _inputs: Any, _output: Any) -> None:
        spent[_kind(module)] += time.perf_counter() - started[module]

    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    hooks = [leaf.register_forward_pre_hook(lambda module, _: started.update({module: time.perf_counter()})) for leaf in leaves]
    hooks += [leaf.register_forward_hook(after) for leaf in leaves]
    with some_threads(threads), torch.no_grad():
        for turn in range(rounds + 1):
            spent.clear()
            model(image.contiguous(memory_format=torch.channels_last))
            for kind, seconds in spent.items() if turn else ():  # the first warms up
                taken[kind].append(1000 * seconds)
    for hook in hooks:
        hook.remove()
    for kind, times in taken.items():
        kinds[kind]["milliseconds"] = float(np.median(times))
    for name, macs in module_macs(model, image).items():
        kinds[_kind(model.get_submodule(name))]["macs"] += macs
    return dict(kinds)


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        return "depthwise" if depthwise(module) else "pointwise" if module.kernel_size == (1, 1) else "other convolutions"
    return {nn.Linear: "linear", nn.BatchNorm2d: "BatchNorm"}.get(type(module), "the rest")


def deployed_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """Speed of every compact network as a multiple of the dense one's by runtime and batch: median and middle half of the rounds.

    found: what ``measure_deployed`` returns.
    """
    rows = []
    for one in found["rows"]:
        taken = one["milliseconds"]
        for name in list(one["macs"])[1:]:
            line = {
                "network": network_title(one["network"]),
                "channels in multiples of": name.removeprefix("multiple-"),
                "MACs left (%)": f"{100 * one['macs'][name] / one['macs']['dense']:.1f}",
            }
            for case, dense in taken.items():
                runtime, which, batch = case.split()
                if which == "dense":
                    line[f"{RUNTIME_TITLES[runtime]}, batch {batch}"] = speed_up(dense, taken[f"{runtime} {name} {batch}"])
            rows.append(line)
    return pd.DataFrame(rows)


def bound_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """Where a dense network's time goes, and the speed to expect where only the time of layers with MACs falls, and with these."""
    rows = []
    for one in found["layers"]:
        total = sum(kind["milliseconds"] for kind in one["kinds"].values())
        macs = sum(kind["macs"] for kind in one["kinds"].values())
        fixed = sum(kind["milliseconds"] for name, kind in one["kinds"].items() if not kind["macs"])
        left = fixed + found["asked"]["macs"] * (total - fixed)
        for name, kind in one["kinds"].items():
            rows.append(
                {
                    "network": network_title(one["network"]),
                    "layers": name,
                    "time (%)": f"{100 * kind['milliseconds'] / total:.1f}",
                    "MACs (%)": f"{100 * kind['macs'] / macs:.1f}",
                    f"bound at {found['asked']['macs']:.0%} of the MACs".replace("%", " %"): f"{total / left:.2f}x",
                }
            )
    return pd.DataFrame(rows)


def goals_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """What a goal in latency reached: shares of the dense latency, and how far off, in percent of the goal."""
    frame = pd.DataFrame(found["goals"])
    off = 100 * (frame.reached / frame.asked - 1)
    return pd.DataFrame(
        {
            "network": frame.network.map(network_title),
            "asked": frame.asked.map("{:.2f}".format),
            "reached": frame.reached.map("{:.3f}".format),
            "off (%)": off.map("{:+.1f}".format),
            "MACs left (%)": (100 * frame.macs).map("{:.1f}".format),
        }
    )


def median_miss(found: Mapping[str, Any]) -> float:
    """The median over plans of how far the latency is off its goal, in percent of the goal."""
    return float(np.median([100 * abs(one["reached"] / one["asked"] - 1) for one in found["goals"]]))
