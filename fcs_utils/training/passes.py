"""Execution of training passes: plain, through torch.compile, or as replayed CUDA graphs; in fp32 or bf16.

Compiling takes as long as some trainings. Graphs spare a GPU the wait for the host in small steps. So both are options.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fcs_utils.errors import first_line, is_out_of_memory, refuse
from fcs_utils.inputs import Inputs
from fcs_utils.machine import Precision

Pass = Callable[..., Tensor]  # takes what the network takes
Mode = Literal["plain", "compiled", "graphs"]
FELL_BACK = ".*training goes on without it"  # the warning's text


@dataclass(frozen=True)
class Execution:
    """How passes are executed: in fp32 or under bf16 autocast; plain, compiled or as CUDA graphs."""

    precision: Precision = "fp32"
    passes: Mode = "plain"

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise refuse("precision", self.precision, "fp32, bf16")


def check_mode(mode: str, device: torch.device) -> None:
    """Raises StudyError for an execution mode that is unknown or that this device lacks."""
    allowed = [known for known in get_args(Mode) if known != "graphs" or device.type == "cuda"]
    if mode not in allowed:
        raise refuse("passes", mode, ", ".join(allowed) + (" (graphs need a CUDA device)" if device.type != "cuda" else ""))


def autocast(device: torch.device, precision: str, cache: bool = True) -> torch.autocast:
    """bf16 where the precision says so. cache: cast weights once a pass, which graphs of single passes cannot share."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=cache)


@contextmanager
def training_passes(networks: Sequence[nn.Module], trained: int, images: Inputs, execution: Execution) -> Iterator[list[Pass]]:
    """A pass for each network, equal to the plain one up to rounding; the networks are plain again afterwards.

    trained: how many train, from the first on; the others get plain passes from graphs. images: a batch (B, C, H, W)
    on the networks' device, of the size that all batches have. The device must have the mode, see ``check_mode``.

    Raises StudyError for graphs of networks with several inputs.
    """
    mode = execution.passes
    if mode == "plain":
        yield list(networks)
    elif mode == "compiled":
        try:
            yield [_compiled(network) for network in networks]
        finally:
            torch.compiler.reset()  # PyTorch compiles a class for some networks only, then silently runs further ones plainly
    elif not isinstance(images, Tensor):
        raise refuse("passes", mode, "plain, compiled (graphs are of networks with one input)")
    else:
        try:
            for network in networks[:trained]:
                _graph(network, images, execution.precision)
            yield list(networks)
        finally:
            for network in networks:
                network.__dict__.pop("forward", None)
            gc.collect()  # graphs are in a reference cycle, and a full GPU does not start the collector


def _compiled(network: nn.Module) -> Pass:
    """Where compiling fails, such as on a machine without a C++ compiler, it warns once and is the plain pass."""
    # Runs side by side have a thread each already; on a lone GPU run compiling may take all.
    if torch.get_num_threads() == 1:
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    attempt: Pass = torch.compile(network)
    tried = False

    def forward(*inputs: Tensor, **named: Tensor) -> Tensor:
        nonlocal attempt, tried
        if tried:
            return attempt(*inputs, **named)
        tried = True
        before = _buffers(network)
        try:
            return attempt(*inputs, **named)
        except RuntimeError as error:  # all of the compiler's errors are RuntimeErrors
            _go_on_without("torch.compile", error)
            _put_back(network, before)
            attempt = network
            return attempt(*inputs, **named)

    return forward


def _graph(network: nn.Module, images: Tensor, precision: str) -> None:
    """Let the network's training passes be replays of CUDA graphs; where capturing fails, warn and leave it plain.

    PyTorch puts the replay into the instance's ``forward``; evaluation goes past it.
    """
    network.train()
    before = _buffers(network)
    try:
        with autocast(images.device, precision, cache=False):
            torch.cuda.make_graphed_callables(network, (images.clone(),))
    except (RuntimeError, AssertionError) as error:  # PyTorch asserts what it requires of a network
        network.__dict__.pop("forward", None)
        _go_on_without("capturing a CUDA graph", error)
    _put_back(network, before)  # capturing runs real passes, which update BatchNorm


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.named_buffers()}


def _put_back(network: nn.Module, buffers: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in network.named_buffers():
            value.copy_(buffers[name])


def _go_on_without(what: str, error: Exception) -> None:
    if is_out_of_memory(error):
        raise error
    warnings.warn(f"{what} failed, training goes on without it: {first_line(error)[:200]}", stacklevel=3)
