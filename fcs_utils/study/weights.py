"""The weights of reference networks in files: read only where they are those of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.files import read_tensors, set_aside, tensors_sum, write_tensors
from fcs_utils.models import load_state
from fcs_utils.study.records import Store
from fcs_utils.study.runs import Run, describe


def load_weights(store: Store, run: Run, network: nn.Module, recorded: str | None) -> str | None:
    """Put weights from this machine into the network; returns their checksum, or None where there are none of this run.

    recorded: the checksum in the run's record. Weights that were trained here name their run in their file. All others, and
    those that no such network can have, are set aside with a warning.
    """
    own = store.weights(run.identity)
    for path in (path for path in (store.published(own), own) if path.exists()):
        try:
            state, metadata = read_tensors(path)
            if (found := tensors_sum(state)) != recorded and metadata.get("run") != run.identity:
                raise StudyError(f"{path} has not the weights of {describe(run)}")
            _check_state(state, network, path)
        except StudyError as error:
            set_aside(path, f"{error}; trained again")
        else:
            load_state(network, state)
            return found
    return None


def keep_weights(store: Store, run: Run, network: nn.Module) -> str:
    """Keep a trained network; returns the checksum of its weights.

    Filters are rounded to half precision, in the network too: what is measured on it is what the file holds, and a repository
    can carry it in half the bytes. BatchNorm's vectors stay: they are few, and variances may leave the range of half precision.
    """
    trained = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    state = {name: t.half() if t.is_floating_point() and t.dim() > 1 else t for name, t in trained.items()}
    load_state(network, state)
    write_tensors(store.weights(run.identity), state, {"run": run.identity})
    return tensors_sum(state)


def _check_state(state: Mapping[str, Tensor], network: nn.Module, path: Path) -> None:
    """Raises StudyError for weights with other names, shapes or kinds of numbers than the network's, and for NaN."""
    wanted = network.state_dict()
    if state.keys() != wanted.keys():
        raise StudyError(f"{path} has other layers than the network: {min(state.keys() ^ wanted.keys())}")
    for name, tensor in state.items():
        like = wanted[name]
        if tensor.shape != like.shape or tensor.is_floating_point() != like.is_floating_point() or not tensor.isfinite().all():
            needed = f"{like.dtype} {tuple(like.shape)} and finite is needed"
            raise StudyError(f"{path}: {name} is {tensor.dtype} {tuple(tensor.shape)}; {needed}")
