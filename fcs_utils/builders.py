"""Networks that other code builds: torchvision's and timm's classifiers, and functions of the user's own."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fcs_utils.errors import StudyError, first_line, refuse
from fcs_utils.files import module_sum

TORCHVISION, TIMM = "torchvision/", "timm:"


def is_elsewhere(name: str) -> bool:
    """Whether a network's name leads out of this package: ``torchvision/NAME``, ``timm:NAME`` or ``module:function``."""
    return name.startswith(TORCHVISION) or ":" in name


def is_own(name: str) -> bool:
    """Whether a network is built by code of the user's: ``module:function``."""
    return ":" in name and not name.startswith((TORCHVISION, TIMM))


def build_elsewhere(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """A network with new random weights.

    name: ``torchvision/NAME``; ``timm:NAME``, which needs the package timm; or ``module:function``. The module is imported, from
    the current folder or from PYTHONPATH, and the function is called: **this runs the user's code**. It gets ``num_classes`` and
    ``in_channels`` as keywords where it has parameters of these names, and returns the network.

    Raises StudyError, naming the network, for an unknown name and for whatever goes wrong in the user's code.
    """
    if name.startswith(TORCHVISION):
        return _torchvision(name, num_classes, in_channels)
    if name.startswith(TIMM):
        return _timm(name, num_classes, in_channels)
    function = _function(name)
    offered = {"num_classes": num_classes, "in_channels": in_channels}
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
    wanted = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    try:
        network = function(**{key: value for key, value in offered.items() if takes_all or key in wanted})
    except StudyError:
        raise
    except Exception as error:  # the user's code can raise anything
        raise StudyError(f"network {name!r} cannot be built: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise refuse("network", name, f"a function that returns a torch.nn.Module; this one returned a {type(network).__name__}")
    return network


@cache  # as it was when it was imported
def code_of_network(name: str) -> str | None:
    """What a run's identity holds of a network's code: nothing unless the user's module builds it, else that file's SHA-256."""
    return module_sum(_function(name).__module__) if is_own(name) else None


def file_of_network(name: str) -> Path:
    """The file of the module that builds a network of the user's own."""
    return Path(inspect.getfile(_function(name)))


def _function(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise refuse("network", name, "MODULE:FUNCTION, such as mymodule:build, or timm:NAME")
    found = getattr(import_own(module, f"network {name!r}"), function, None)
    if not callable(found):
        raise refuse("network", name, f"a function of {module}, which has no {function}")
    return found  # type: ignore[no-any-return]


def import_own(module: str, what: str) -> ModuleType:
    """A module of the user's, from the current folder or from PYTHONPATH. what: it is imported for.

    Raises StudyError, naming that, whatever is wrong with the module.
    """
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path  # a command that pip installed does not look into the current folder
    if added:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except StudyError:
        raise
    except Exception as error:  # as above
        where = f"{module} is a module's name, and its folder must be the current one or on PYTHONPATH"
        raise StudyError(f"{what} cannot be imported ({type(error).__name__}: {first_line(error)}); {where}") from error
    finally:
        if added:
            sys.path.remove(here)


def _timm(name: str, num_classes: int, in_channels: int) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise StudyError(f"network {name!r} needs the package timm: pip install timm") from error
    short = name.removeprefix(TIMM)
    if not timm.is_model(short):
        near = [TIMM + one for one in timm.list_models(f"*{short[:6]}*")]
        raise refuse("network", name, ", ".join([*near, "or another that timm.list_models() names"]))
    return timm.create_model(short, pretrained=False, num_classes=num_classes, in_chans=in_channels)  # type: ignore[no-any-return]


def _torchvision(name: str, num_classes: int, in_channels: int) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    short = name.removeprefix(TORCHVISION)
    if short not in known:
        raise refuse("network", name, "torchvision/ and one of " + ", ".join(known))
    # Auxiliary heads serve their own recipe of training; with them a network returns three tensors in place of logits.
    plain = {"aux_logits": False, "init_weights": True} if short in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(short, weights=None, num_classes=num_classes, **plain)
    if in_channels != 3:
        path, first = next((p, m) for p, m in network.named_modules() if isinstance(m, nn.Conv2d))
        fresh = copy.deepcopy(first)
        fresh.in_channels = in_channels
        fresh.weight = nn.Parameter(first.weight.new_empty(first.out_channels, in_channels, *first.kernel_size))
        fresh.reset_parameters()
        network.set_submodule(path, fresh)
    return network
