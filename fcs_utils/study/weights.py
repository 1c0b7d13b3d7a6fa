"""The weights of reference networks in files: read only where they are those of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.files import read_tensors, set_aside, tensors_sum, write_tensors
from fcs_utils.models import load_state
from fcs_utils.pretrained import PREFIX, check_state, give, read_given
from fcs_utils.study.profiles import Profile
from fcs_utils.study.records import Store
from fcs_utils.study.runs import Reference, Run, describe
from fcs_utils.study.sections import Network


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
                raise StudyError(f"{path} does not hold the weights of {describe(run)}")
            check_state(state, network, path)
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


def load_given(reference: Reference, network: nn.Module, data: str | Path | None) -> str:
    """Put the weights that a given reference names into the network; returns their checksum.

    Raises StudyError where the file is missing, damaged or edited, and where it does not fit the network.
    """
    assert reference.weights is not None
    state = read_given(reference.weights, data)
    found, known = tensors_sum(state), reference.weights_sha256
    if known not in (None, found):
        raise StudyError(f"{reference.weights} does not hold the weights of this run: its tensors' SHA-256 is {found}, not {known}")
    give(network, state, reference.weights)
    return found


def with_sums(profile: Profile, data: str | Path | None) -> Profile:
    """A profile with the checksum of every file of weights that it names without one, so that an edited file is another run.

    Raises StudyError for a file that is missing or cannot be read.
    """

    def with_sum(one: Network) -> Network:
        if not one.weights or one.weights.startswith(PREFIX) or one.weights_sha256 is not None:
            return one
        return one.model_copy(update={"weights_sha256": tensors_sum(read_given(one.weights, data))})

    found: dict[str, Any] = {"networks": tuple(map(with_sum, profile.networks))}
    found["points"] = tuple(point.model_copy(update={"network": with_sum(point.network)}) for point in profile.points)
    if profile.given:
        found["given"] = profile.given.model_copy(update={"networks": tuple(map(with_sum, profile.given.networks))})
    return profile.model_copy(update=found)
