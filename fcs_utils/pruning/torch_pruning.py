"""For scripts built on Torch-Pruning: this study's criteria as one of its importances.

pruner = torch_pruning.pruner.BasePruner(model, images[:1], importance=FCSImportance(model, images), ...)
"""

from __future__ import annotations

from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from fcs_utils.config import Images, Model, checked
from fcs_utils.errors import StudyError
from fcs_utils.pruning.criteria import check_options, importance, needs
from fcs_utils.pruning.kinds import CONVOLUTIONS, check_axes
from fcs_utils.pruning.statistics import collect_statistics


class FCSImportance(tp.importance.Importance):  # type: ignore[misc]
    """Scores the convolutions of a network for Torch-Pruning's pruners, in local mode.

    model: the network that the pruner prunes. images: calibration images (N, C, ...), normalised. criterion
    and options: any of ``fcs_utils.pruning.criteria.CRITERIA`` but ``taylor``; default ``fcs``. In a group the mean
    over its convolutions counts (M7). Groups without a scorable convolution, such as linear layers, get None,
    which the pruners skip.

    Statistics are collected at the first call and again after a step has narrowed the network. Raises
    StudyError as ``collect_statistics`` and ``importance`` do.
    """

    @checked
    def __init__(self, model: Model, images: Images, criterion: str = "fcs", **options: Any) -> None:
        if check_options(criterion, options).reads == "gradients":
            raise StudyError(f"criterion {criterion!r} needs labels; Torch-Pruning has a Taylor importance of its own")
        check_axes(model, images)
        self.model, self.images, self.criterion, self.options = model, images, criterion, options
        self._scores: dict[nn.Module, Tensor] = {}

    def __call__(self, group: tp.Group) -> Tensor | None:
        """One importance per channel of the group's root (C,), or None."""
        members = [
            (dependency.target.module, [int(i) for i in indices])
            for dependency, indices in group
            if isinstance(dependency.target.module, CONVOLUTIONS)
            and dependency.handler in (tp.prune_conv_out_channels, tp.prune_depthwise_conv_out_channels)
        ]
        if not self._scores or any(m in self._scores and len(self._scores[m]) != m.out_channels for m, _ in members):
            self._scores = self._score()
        found = [self._scores[module][indices] for module, indices in members if module in self._scores]
        return torch.stack(found).mean(0) if found else None  # in float64, whose single steps break ties

    def _score(self) -> dict[nn.Module, Tensor]:
        statistics = collect_statistics(self.model, self.images, **needs(self.criterion, self.options)._asdict())
        if not statistics:
            raise StudyError("nothing to prune: no convolution of this network can be scored")
        scores = importance(self.criterion, model=self.model, statistics=statistics, **self.options)
        return {self.model.get_submodule(name): score for name, score in scores.items()}
