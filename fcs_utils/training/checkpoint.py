"""The state of a training in a file, so that one that was cut off goes on bit for bit, here or on another machine.

One safetensors file holds the networks, the momenta and the state of PyTorch's generators, which dropout draws from; its
metadata holds the schedules and the history. Batches need no state: seed and epoch name them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.files import parse_json, read_tensors, set_aside, write_tensors
from fcs_utils.models import load_state
from fcs_utils.training.optimiser import Optimiser

EVERY = 60.0  # seconds between saves: a kill loses at most this and the current epoch


class Checkpoint:
    """The state of one training in a file.

    key: names the training; a file of another one is not used.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last save is long enough ago for the next."""
        return time.monotonic() - self._saved >= EVERY

    def save(self, networks: Sequence[nn.Module], optimisers: Sequence[Optimiser], history: Sequence[dict[str, Any]]) -> None:
        """Write the state after an epoch, atomically. history: one entry per epoch, plain data."""
        tensors = _network_tensors(networks)
        for n, optimiser in enumerate(optimisers):
            states = optimiser.sgd.state_dict()["state"]
            momenta = {i: state.get("momentum_buffer") for i, state in states.items()}
            tensors |= {f"momentum.{n}.{i}": momentum for i, momentum in momenta.items() if momentum is not None}
        tensors["dropout"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["dropout.cuda"] = torch.cuda.get_rng_state()
        content = {"key": self.key, "history": list(history), "schedules": _cycles(optimisers)}
        write_tensors(self.path, tensors, {"training": json.dumps(content)})
        self._saved = time.monotonic()

    def restore(
        self, networks: Sequence[nn.Module], optimisers: Sequence[Optimiser], fields: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """Put a saved state back in place; returns the history so far, which is empty where there is no file.

        fields: of a history's entry. A file that is damaged, wrong or of another training is set aside (``.corrupt``) with a
        warning, and the training starts over: nothing is put back in part.
        """
        if not self.path.exists():
            return []
        try:
            content, tensors = self._read(networks, optimisers, fields)
        except StudyError as error:
            set_aside(self.path, f"{error}; the training starts over")
            return []
        for n, network in enumerate(networks):
            prefix = f"network.{n}."
            load_state(network, {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        for n, (optimiser, schedule) in enumerate(zip(optimisers, content["schedules"], strict=True)):
            (own,) = optimiser.sgd.param_groups
            # A file keeps values without their layout in memory; a fused step takes the parameter's layout for granted.
            states = {
                i: {"momentum_buffer": torch.empty_like(parameter).copy_(tensors[f"momentum.{n}.{i}"])}
                for i, parameter in enumerate(own["params"])
                if f"momentum.{n}.{i}" in tensors
            }
            # Whether the step is fused depends on this machine, not on the one that saved.
            groups = [{**group, "fused": own["fused"]} for group in schedule["groups"]]
            optimiser.sgd.load_state_dict({"state": states, "param_groups": groups})
            optimiser.cycle.load_state_dict(schedule["cycle"])
        torch.set_rng_state(tensors["dropout"])
        if "dropout.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["dropout.cuda"])
        history: list[dict[str, Any]] = content["history"]
        return history

    def _read(
        self, networks: Sequence[nn.Module], optimisers: Sequence[Optimiser], fields: Sequence[str]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What the file holds. Raises StudyError where these networks and optimisers could not have left it."""
        tensors, metadata = read_tensors(self.path)
        content = parse_json(metadata.get("training", "{}").encode(), str(self.path))
        if content.get("key") != self.key:
            raise StudyError(f"{self.path} is of another training")
        wanted = _network_tensors(networks) | {"dropout": torch.get_rng_state()}
        for n, optimiser in enumerate(optimisers):
            (own,) = optimiser.sgd.param_groups
            wanted |= {f"momentum.{n}.{i}": p for i, p in enumerate(own["params"]) if f"momentum.{n}.{i}" in tensors}
        found = {name: tensor for name, tensor in tensors.items() if name != "dropout.cuda"}
        if found.keys() != wanted.keys() or not all(_fits(found[name], like) for name, like in wanted.items()):
            raise StudyError(f"{self.path} does not hold the tensors of this training, finite and of their shapes")
        history = content.get("history")
        if not isinstance(history, list) or not all(_is_epoch(entry, n, fields) for n, entry in enumerate(history, 1)):
            raise StudyError(f"{self.path} has no history of epochs from 1 on")
        if not _alike(content.get("schedules"), _cycles(optimisers)):
            raise StudyError(f"{self.path} does not hold the learning-rate schedules of this training")
        return content, tensors


def _network_tensors(networks: Sequence[nn.Module]) -> dict[str, Tensor]:
    return {f"network.{n}.{name}": tensor for n, network in enumerate(networks) for name, tensor in network.state_dict().items()}


def _cycles(optimisers: Sequence[Optimiser]) -> Any:
    found = [{"groups": o.sgd.state_dict()["param_groups"], "cycle": o.cycle.state_dict()} for o in optimisers]
    return json.loads(json.dumps(found, default=_plain))


def _fits(found: Tensor, like: Tensor) -> bool:
    return found.shape == like.shape and found.dtype == like.dtype and bool(found.isfinite().all())


def _is_epoch(entry: Any, number: int, fields: Sequence[str]) -> bool:
    if not isinstance(entry, dict) or entry.get("epoch") != number or (fields and entry.keys() != set(fields)):
        return False
    return all(value is None or type(value) is float or (type(value) is int and value >= 0) for value in entry.values())


def _alike(found: Any, like: Any) -> bool:
    """Whether two JSON values have the same keys, lengths and types; numbers may be whole or not."""
    if isinstance(like, dict):
        return isinstance(found, dict) and found.keys() == like.keys() and all(_alike(found[key], like[key]) for key in like)
    if isinstance(like, list):
        return isinstance(found, list) and len(found) == len(like) and all(map(_alike, found, like))
    number = isinstance(like, int | float) and not isinstance(like, bool)
    return type(found) in (int, float) if number else type(found) is type(like)


def _plain(value: object) -> object:
    return value.item() if isinstance(value, Tensor) else str(value)
