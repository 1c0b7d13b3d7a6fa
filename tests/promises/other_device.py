"""Does runs of a study on tensors that report another device and cannot be mixed with those of the CPU, like a GPU's.

It replaces the GPU that a test machine does not have. test_devices.py runs it in a subprocess, because it registers a
backend with PyTorch. Values lie on the CPU, so results must equal those of the CPU bit for bit. ``backward`` is not
possible, because autograd asks the device for threads.
"""

from __future__ import annotations

import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode

from fcs_utils import models as measure
from fcs_utils.study.study import Study
from fcs_utils.training import evaluate, loop

ELSEWHERE = torch.device("privateuseone:0")
# Copies cross over, and a GPU takes indices from the CPU.
CROSSING = ("aten._to_copy.default", "aten.copy_.default", "aten.index.Tensor", "aten.index_put_.default")


class Elsewhere(torch.Tensor):
    """A tensor on the other device; its numbers are in ``value``."""

    @staticmethod
    def __new__(cls, value: torch.Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(cls, value.size(), strides=value.stride(), dtype=value.dtype, device=ELSEWHERE)

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return perform(operation, args, kwargs or {})

    def __getitem__(self, index: Any) -> torch.Tensor:
        # Lists become tensors inside C++, past every dispatch.
        parts = index if isinstance(index, tuple) else (index,)
        return super().__getitem__(tuple(torch.tensor(part) if isinstance(part, list) else part for part in parts))


class Everywhere(TorchDispatchMode):
    """Makes a tensor on the other device when code asks for that device."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return perform(operation, args, kwargs or {})


def perform(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, on the device of its tensors or on the one asked for. Raises RuntimeError where devices are mixed."""
    tensors = [one for one in tree.tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    here = [one for one in tensors if not isinstance(one, Elsewhere)]
    moved, name = len(here) < len(tensors), str(operation)
    if moved and any(one.dim() for one in here) and name not in CROSSING:
        raise RuntimeError(f"{name} of tensors on two devices")
    if moved and name.startswith("aten.index") and not isinstance(args[0], Elsewhere):
        raise RuntimeError(f"{name} of a tensor on the CPU by indices elsewhere")
    asked = kwargs.get("device")
    there = isinstance(args[0], Elsewhere) if name == "aten.copy_.default" else moved
    there = there if asked is None else torch.device(asked).type == ELSEWHERE.type
    if there and kwargs.get("generator") is not None:
        raise RuntimeError(f"{name} elsewhere by a generator on the CPU")
    plain, named = tree.tree_map(lambda one: one.value if isinstance(one, Elsewhere) else one, (args, kwargs))
    found = operation(*plain, **{**named, **({"device": "cpu"} if asked is not None else {})})
    if operation._schema.is_mutable and isinstance(args[0], torch.Tensor) and name.split(".")[1].endswith("_"):
        return args[0]
    return tree.tree_map(lambda one: Elsewhere(one) if there and isinstance(one, torch.Tensor) else one, found)


def main(folder: Path, copy: Path) -> None:
    """Do runs of the smoke study in ``folder`` again elsewhere, in ``copy``, and compare."""
    torch.utils.backend_registration._setup_privateuseone_for_python_backend()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    shutil.copytree(folder, copy)
    known, study = Study("smoke", folder, device="cpu"), Study("smoke", copy, device="cpu")
    study.bench.device = ELSEWHERE
    measure.untied = lambda state: (state, {})  # compares addresses, of which these tensors have none
    save = measure.save  # reads memory itself
    measure.save = lambda state: save({name: torch.zeros(one.shape, dtype=one.dtype) for name, one in state.items()})
    loop.autocast = evaluate.autocast = lambda *_: nullcontext()  # unknown for this device
    # Of the check for channels that cross.
    torch.autograd.grad = lambda _, to, *__, **___: tuple(map(torch.zeros_like, to if isinstance(to, list) else [to]))
    similarity, pruned, ablation = (study.runs([stage]) for stage in ("similarity", "pruned", "ablation"))
    # A criterion does the same operations for every network, surgery does not: so all of them on the first, one on each.
    first = similarity[0].reference.network
    chosen = [
        similarity[0],
        *[run for run in pruned if run.pruning and (run.reference.network == first or run.pruning.criterion == "fcs")],
        *[run for run in ablation if run.pruning and run.pruning.compensate == "merge"],
    ]
    with Everywhere():
        for mixed in (
            lambda: torch.ones(2, device=ELSEWHERE) + torch.ones(2),
            lambda: torch.ones(2)[torch.ones(1).long().to(ELSEWHERE)],
        ):
            try:
                mixed()
            except RuntimeError:
                continue
            raise AssertionError("devices met unseen")
        for run in chosen:
            study.store.record(run.kind, run.identity).unlink()
            study.ensure(run)
            assert study.record(run)["result"] == known.record(run)["result"], run
    print(len(chosen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
