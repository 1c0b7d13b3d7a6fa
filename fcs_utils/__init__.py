"""Structured pruning by feature-channel similarity (FCS) and fine-tuning by mutual learning (MLFT), and the study that tests them.

Data flows one way, room by room::

    data -> reference network -> statistics -> importance -> plan -> compact network -> fine-tuning -> record -> table, figure, page

What people use is offered here and loaded at first use, so importing the package costs nothing:

- ``collect_statistics``: channel norms and Gram matrices of a network on calibration images, in one pass
- ``importance``: one number per channel by any criterion; higher means keep
- ``make_plan``: which channels stay, for a share of channels, of MACs or of a measured latency
- ``plan_by_hand``: a plan that keeps the channels that you name
- ``prune_in_rounds``: prune a little, train, and again
- ``prune``: a smaller copy of the network by a plan
- ``recalibrate``: BatchNorm statistics estimated again on calibration images
- ``save_compact``, ``load_compact``: files of compact networks
- ``export_onnx``: a compact network as ONNX, checked against PyTorch
- ``FCSImportance``: this study's criteria inside Torch-Pruning
- ``fit``, ``mutual``: fine-tuning, alone or by mutual learning
- ``build_model``: the networks of the study and of torchvision by name
- ``load_dataset``: the data sets of the study by name
- ``Study``: a profile's runs and their records
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

_HOME = {
    "FCSImportance": "pruning.torch_pruning",
    "Study": "study.study",
    "build_model": "models",
    "collect_statistics": "pruning.statistics",
    "export_onnx": "pruning.export",
    "fit": "training.loop",
    "importance": "pruning.criteria",
    "load_compact": "pruning.export",
    "load_dataset": "data.dataset",
    "make_plan": "pruning.plan",
    "mutual": "training.losses",
    "plan_by_hand": "pruning.by_hand",
    "prune": "pruning.surgery",
    "prune_in_rounds": "study.rounds",
    "recalibrate": "pruning.surgery",
    "save_compact": "pruning.export",
}
__all__ = sorted(_HOME)  # noqa: PLE0605 - names are typed once


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
