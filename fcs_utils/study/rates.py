"""The learning rate of every arm, chosen on validation from the pilot runs; the test split plays no part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def margin(validation_images: int) -> float:
    """Points of accuracy within which two results count as equal: the larger of 0.2 and one image."""
    return max(0.2, 100 / validation_images)


def best_rates(pilots: pd.DataFrame, slack: float) -> pd.Series:
    """The learning rate of each network's arm, from pilot runs with ``validation`` and ``validation_loss``.

    Of the rates whose mean validation accuracy is within the slack of the best one's, the one with the lowest mean
    validation loss: among accuracies that count as equal, the loss decides.
    """
    means = pilots.groupby(["network", "method", "learning_rate"])[["validation", "validation_loss"]].mean()
    best = means.groupby(["network", "method"]).validation.transform("max")
    near = means[means.validation >= best - slack - 1e-9].reset_index()
    lowest = near.loc[near.groupby(["network", "method"]).validation_loss.idxmin()]
    return lowest.set_index(["network", "method"]).learning_rate


def choose_learning_rates(records: Iterable[Mapping[str, Any]], slack: float) -> dict[tuple[str, str], float]:
    """The learning rate of each network's arm from the pilot runs' validation results; the test split plays no part."""
    import pandas as pd

    frame = pd.DataFrame(
        [
            {
                "network": r["config"]["reference"]["network"],
                "method": r["config"]["tuning"]["method"],
                "learning_rate": r["config"]["tuning"]["training"]["learning_rate"],
                **{name: r["result"]["history"][-1][name] for name in ("validation", "validation_loss")},
            }
            for r in records
        ]
    )
    return best_rates(frame, slack).to_dict() if len(frame) else {}
