"""Running a network that belongs to somebody else: whatever happens meanwhile, it is left as it was."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fcs_utils.errors import StudyError, first_line, is_out_of_memory, refuse
from fcs_utils.inputs import Inputs, call, first_of, images_in_words, laid_out, parts_of

shared = threading.RLock()  # held while a thread uses what the whole process shares, such as torch's global generator
_turns: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()  # a lock for each network in use


@contextmanager
def in_turn(model: nn.Module) -> Iterator[None]:
    """Threads that use one network take turns: no other one has its hooks or modes on it inside the block."""
    with shared:
        turn = _turns.setdefault(model, threading.RLock())
    with turn:
        yield


class EagerMode(TorchDispatchMode):
    """A TorchDispatchMode for networks that are not compiled. Without the method below torch imports its compiler for it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # older versions of torch do not ask
        return False


class MacsCounter(EagerMode):
    """Multiply-adds by the modules in which they run, by the formulas of torch's FlopCounterMode.

    That one hooks every module of the process, those of other threads too, and imports torch's compiler.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inside, self.found = {"Global"}, Counter[str]()
        for name, module in model.named_modules():  # ``untouched`` removes the hooks
            module.register_forward_pre_hook(lambda _module, _inputs, name=name: self.inside.add(name))
            module.register_forward_hook(lambda _module, _inputs, _output, name=name: self.inside.discard(name), always_call=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:
            with self:  # an operation may be made of others that count
                result = func.decompose(*args, **(kwargs or {}))
            return func(*args, **(kwargs or {})) if result is NotImplemented else result
        result = func(*args, **(kwargs or {}))
        macs = formula(*args, **(kwargs or {}), out_val=result) // 2  # one multiply-add is two operations
        self.found.update(dict.fromkeys(self.inside, macs))
        return result


def seed_draws(seed: int, device: torch.device | str = "cpu") -> None:
    """``torch.manual_seed`` for this device.

    That one seeds all kinds of devices, also those that nobody restores. For each kind that has not started it keeps the stack of
    calls, which takes longer than a forward pass of a small network.
    """
    (torch.default_generator if torch.device(device).type == "cpu" else torch).manual_seed(seed)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every module has the mode, hooks and attributes that it had before.

    Threads take turns. Values of parameters and buffers are not put back; see ``untouched``.
    """
    with in_turn(model):
        modes = {module: module.training for module in model.modules()}
        tables: list[Any] = [vars(module) for module in modes]
        # A module keeps its hooks, parameters and buffers in tables of their own, one level down.
        tables += [value for table in tables for value in table.values() if isinstance(value, (dict, list))]
        before = [(table, list(table) if isinstance(table, list) else dict(table)) for table in tables]
        for module in modes:  # what module.compile() made may run past hooks
            vars(module).pop("_compiled_call_impl", None)
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for table, content in before:
                if not _same(table, content):
                    table.clear()
                    table.extend(content) if isinstance(table, list) else table.update(content)


def _same(table: Any, content: Any) -> bool:
    """Whether two lists or dicts hold the same objects, in the same order."""
    same = len(table) == len(content) and all(map(is_, table, content))
    return same and (isinstance(table, list) or all(map(is_, table.values(), content.values())))


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """As ``evaluating``, and buffers get their values back where a forward pass changed them."""
    with evaluating(model):
        before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    if not buffer.is_meta and not buffer.equal(value):
                        buffer.copy_(value)


@contextmanager
def without_numbers(model: nn.Module) -> Iterator[None]:
    """As ``untouched``; inside the block all parameters and buffers are on the device meta, which knows shapes only."""
    with untouched(model):
        empty: dict[int, Tensor] = {}
        for module in model.modules():
            tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for table in tables:
                for name, tensor in table.items():
                    if tensor is not None and id(tensor) not in empty:
                        empty[id(tensor)] = tensor.to("meta")
                    table[name] = None if tensor is None else empty[id(tensor)]
        yield


def run_network(model: Callable[..., Any], images: Inputs) -> Any:
    """What the network returns. Raises StudyError with the network's own words when it does not run on the images."""
    try:
        return call(model, images)
    except (StudyError, Warning):  # a warning is an error only where somebody wants it to be one
        raise
    except Exception as error:  # a network of somebody else raises whatever it likes
        if is_out_of_memory(error):
            raise
        raise StudyError(
            f"the network does not run on {images_in_words(images)}: {type(error).__name__}: {first_line(error)}"
        ) from error


def check_hooks(model: nn.Module) -> None:
    """Raises StudyError for a network made by torch.compile: it may run past the hooks that look into it."""
    for name, module in model.named_modules():
        if "_orig_mod" in module._modules:
            given = f"its part {name}, made by torch.compile" if name else "a network made by torch.compile"
            raise refuse("model", given, "the network that was compiled, which is its attribute _orig_mod")


@torch.no_grad()
def memory_format(model: nn.Module, images: Inputs) -> torch.memory_format:
    """channels_last, in which convolutions are fastest, or contiguous where the network runs only with that.

    images: (N, C, ...); two are tried where a tensor is (N, C, H, W), as others do not have the format. Networks with
    ``x.view(len(x), -1)`` do not run with channels_last.
    """
    if not any(one.dim() == 4 for one in parts_of(images)):
        return torch.contiguous_format
    with untouched(model):
        try:
            call(model, laid_out(first_of(images, 2), torch.channels_last))
        except Exception as error:  # in contiguous memory the same error, if it is another one, says what is wrong
            if is_out_of_memory(error):
                raise
            return torch.contiguous_format
    return torch.channels_last


def tensors_in(value: object) -> list[Tensor]:
    """The tensors in what a module takes or returns: nested lists, tuples, dicts, sets and dataclasses, in order."""
    found, waiting, known = [], [value], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor):
            found.append(one)
        elif id(one) not in known:
            known.add(id(one))
            if isinstance(one, Mapping):
                waiting += reversed([*one.values()])
            elif isinstance(one, list | tuple | set | frozenset):
                waiting += reversed([*one])
            elif hasattr(one, "__dict__") and not isinstance(one, type | nn.Module):  # a dataclass or another plain object
                waiting += reversed([*vars(one).values()])
    return found
