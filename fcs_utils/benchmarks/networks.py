"""Which networks can be pruned, and what Torch-Pruning's own pruner makes of them: each in a process of its own, within limits.

Weights are random, and half of the channels of every layer that can shrink go, by the norms of their kernels. What is left of the
MACs and whether it is exact does not depend on the weights.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch_pruning as tp
from pydantic import ValidationError
from torch import Tensor, nn

from fcs_utils.benchmarks.exactness import inexactness
from fcs_utils.benchmarks.isolated import Stopped, in_turns, measure_limited
from fcs_utils.benchmarks.zoo import build_known, output_layers
from fcs_utils.config import Amount, Config, NotNegative, Positive, Ratio
from fcs_utils.errors import StudyError, first_line, is_out_of_memory, refuse_field
from fcs_utils.files import read_json, write_json
from fcs_utils.models import count_macs, module_macs
from fcs_utils.pruning.baselines import kernel_l1
from fcs_utils.pruning.flow import candidates
from fcs_utils.pruning.kinds import out_width
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.reasons import names_in, without_names
from fcs_utils.pruning.surgery import prune

Tool = Literal["here", "torch-pruning"]
TOOLS: tuple[Tool, ...] = get_args(Tool)
LONGEST_WHY = 160  # characters of an error


class NetworkJob(Config):
    """One network and the tool that prunes it. network: see ``zoo.ZOO``. ratio: the share of channels that every layer loses."""

    network: str
    tool: Tool
    ratio: Ratio = 0.5


class ProcessLimits(Config):
    """Of one network with one tool. seconds, gigabytes: of its process; the imports of PyTorch are among them."""

    seconds: Positive = 300.0
    gigabytes: Positive = 12.0


class LeftWhole(Config):
    """Layers that stay whole for one reason: how many, the first of them, and their share of the dense MACs."""

    layers: Amount
    first: str
    macs: NotNegative


class Outcome(Config):
    """What one tool makes of one network.

    outcome: ``refused`` with a StudyError, ``crashed`` with another error, ``stopped`` at a limit or by a signal; why: in one line.
    left: the share of MACs. layers, shrunk: how many there are, and how many lose outputs. reasons: why others stay whole. seconds,
    passes: the time of tracing and planning, in seconds and in forward passes of one image.
    """

    outcome: Literal["exact", "wrong", "refused", "crashed", "stopped"]
    why: str = ""
    left: NotNegative | None = None
    layers: Amount | None = None
    shrunk: Amount | None = None
    reasons: dict[str, LeftWhole] = {}
    seconds: NotNegative | None = None
    passes: NotNegative | None = None

    @property
    def success(self) -> bool:
        """Whether the surgery is exact and leaves half of the MACs at most."""
        return self.outcome == "exact" and self.left is not None and self.left <= 0.5


NetworkRow = Mapping[Tool, Outcome]


def read_rows(path: Path) -> dict[str, NetworkRow]:
    """Rows by network, as ``try_networks`` keeps them; a tool may lack. Raises StudyError for a file with other content."""
    found = read_json(path)
    try:
        return {name: {tool: Outcome.model_validate(row[tool]) for tool in TOOLS if tool in row} for name, row in found.items()}
    except ValidationError as error:
        raise refuse_field(error, f"{path}: ") from error
    except TypeError as error:
        raise StudyError(f"{path} does not hold rows of networks") from error


def try_networks(names: Sequence[str], limits: ProcessLimits, kept: Path | None = None) -> Iterator[tuple[str, NetworkRow]]:
    """Each network and its row, as soon as it is there.

    kept: a file of rows. Those in it are not measured again, and new ones are added at once. A process that ends without a result
    gives a row, too: its outcome is ``stopped``.
    """
    known = read_rows(kept) if kept and kept.exists() else {}
    for name in names:
        for tool in TOOLS:
            if tool not in known.get(name, {}):
                known[name] = {**known.get(name, {}), tool: _tried(NetworkJob(network=name, tool=tool), limits)}
                if kept:
                    write_json(kept, {one: _as_data(row) for one, row in known.items()})
        yield name, known[name]


def _as_data(row: NetworkRow) -> dict[str, Any]:
    return {tool: found.model_dump(exclude_defaults=True) for tool, found in row.items()}


def _tried(job: NetworkJob, limits: ProcessLimits) -> Outcome:
    # The process starts elsewhere, but modules of the user's are looked for where the command is.
    paths = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    try:
        return Outcome(**measure_limited(prune_known, job, limits.seconds, int(limits.gigabytes * 2**30), settings))
    except Stopped as error:
        return Outcome(outcome="stopped", why=_in_short(error))


def prune_known(job: NetworkJob) -> dict[str, Any]:
    """Prunes one network and compares: the fields of an ``Outcome``."""
    network, example = build_known(job.network)
    try:
        narrow, facts = {"here": _here, "torch-pruning": _theirs}[job.tool](network, example, job)
    except StudyError as error:
        return {"outcome": "refused", "why": _in_short(error), **_left_whole(network, example)}
    except Exception as error:  # whatever a tool raises is what is to be found out
        why = "memory ran out" if is_out_of_memory(error) else f"{type(error).__name__}: {_in_short(error)}"
        return {"outcome": "crashed", "why": why}
    fault = inexactness(network, narrow.eval(), example)
    return facts | {"outcome": "wrong" if fault else "exact", "why": fault or "", "left": _left(network, narrow, example)}


def _in_short(error: BaseException) -> str:
    line = first_line(error)
    return line if len(line) <= LONGEST_WHY else line[: LONGEST_WHY - 3] + "..."


def _here(network: nn.Module, example: Tensor, job: NetworkJob) -> tuple[nn.Module, dict[str, Any]]:
    """With ``make_plan`` and ``prune`` of this package: the narrower network and what is known of it."""
    layers = trace_layers(network, example)
    scores = {name: kernel_l1(module) for name, module in candidates(network) if name in layers}
    started = time.perf_counter()
    plan = make_plan(network, example, scores, ratio=job.ratio, scope="all")
    seconds = time.perf_counter() - started
    with torch.no_grad():
        forward = in_turns({"forward": lambda: network(example)}, rounds=3, warm_up=1)["forward"]
    return prune(network, plan), {
        "layers": len([*candidates(network)]),
        "shrunk": len(plan.kept),
        "reasons": by_reason(plan.skipped, network, example),
        "seconds": seconds,
        "passes": seconds / sorted(forward)[1],
    }


def _theirs(network: nn.Module, example: Tensor, job: NetworkJob) -> tuple[nn.Module, dict[str, Any]]:
    """With Torch-Pruning's pruner and its defaults, told only to leave the layers whole that write the outputs."""
    narrow = copy.deepcopy(network)
    pruner = tp.pruner.BasePruner(
        narrow,
        example,
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=job.ratio,
        global_pruning=False,
        ignored_layers=output_layers(job.network, narrow),
    )
    pruner.step()
    dense, left = ({name: out_width(module) for name, module in candidates(one)} for one in (network, narrow))
    return narrow, {"layers": len(dense), "shrunk": sum(left[name] < dense[name] for name in dense)}


def _left(network: nn.Module, narrow: nn.Module, example: Tensor) -> float | None:
    """The share of MACs that a narrower network has; None where it does not run."""
    try:
        return count_macs(narrow, example) / count_macs(network, example)
    except Exception:  # as the comparison of outputs says
        return None


def _left_whole(network: nn.Module, example: Tensor) -> dict[str, Any]:
    """Why each layer of a network without a plan stays whole, where its layers can be told at all."""
    found = {"layers": len([*candidates(network)]), "shrunk": 0}
    try:
        whole = {path: layer.obstacle("all") or "" for path, layer in trace_layers(network, example).items()}
    except Exception:  # the refusal says why
        return found
    return found | {"reasons": by_reason(whole, network, example)}


def by_reason(whole: Mapping[str, str], network: nn.Module, example: Tensor) -> dict[str, dict[str, Any]]:
    """By reason, the fields of a ``LeftWhole``. whole: reasons by layer. example: images (N, C, H, W) to count MACs on."""
    names = names_in(network)
    total, macs = count_macs(network, example), module_macs(network, example)
    found: dict[str, dict[str, Any]] = {}
    for layer, why in whole.items():
        group = found.setdefault(without_names(why, names), {"layers": 0, "first": layer, "macs": 0.0})
        group["layers"] += 1
        group["macs"] += macs.get(layer, 0) / total
    return found
