"""Fine-tuning inside the explorer: the numbers of ``fit``, stoppable between two batches, and nothing shared is changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from itertools import count

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from torch import Tensor

from fcs_utils.pruning.surgery import prune, recalibrate
from fcs_utils.report.arm_figures import accuracy_by_epoch
from fcs_utils.report.channels import accuracy_over_ratios
from fcs_utils.report.exploration import CURVE, Choice, Exploration
from fcs_utils.report.live_tuning import ARMS_HERE, LiveTuning
from fcs_utils.report.plots import use_house_style
from fcs_utils.training.evaluate import evaluate
from fcs_utils.training.loop import Callbacks, fit
from fcs_utils.training.optimiser import Training

FEW_BATCHES = 2  # of 64 images, in an epoch of 128


def state(here: Exploration) -> dict[str, Tensor]:
    return copy.deepcopy(here.dense.state_dict())


def steady() -> Callable[[], float]:
    """A clock that goes on by 3 s each time it is read."""
    return map(float, count(0, 3)).__next__


@pytest.mark.parametrize("arm", ["tft", "kd", "mlft"])
def test_the_numbers_are_those_of_fit_by_hand_and_the_dense_network_stays(here: Exploration, choice: Choice, arm: str) -> None:
    before, tuning = state(here), LiveTuning(here, choice, False, arm, 2)
    while tuning.step():
        torch.rand(7)  # what others draw in between changes nothing
    compact = prune(here.dense, here.whole(choice).plan)
    recalibrate(compact, here.images[:128])
    data = here.subject
    networks = [compact, *([copy.deepcopy(here.dense)] if arm != "tft" else [])]
    beside = Callbacks(evaluate=lambda networks: evaluate(networks, data.judges))
    by_hand = fit(networks, Training(epochs=2, learning_rate=0.02, batch_size=64), data.batches, arm, seed=0, callbacks=beside)
    mine, theirs = ([asdict(epoch) | {"seconds": 0} for epoch in history] for history in (tuning.history or [], by_hand))
    assert mine == theirs and len(mine) == 2
    assert tuning.accuracies == [here.whole(choice).plain[1], *(epoch.validation for epoch in by_hand)]
    assert all(value.equal(before[name]) for name, value in here.dense.state_dict().items()) and not here.dense.training


def test_others_draw_the_same_numbers_whether_a_training_goes_on_or_not(here: Exploration, choice: Choice) -> None:
    torch.manual_seed(5)
    alone = torch.rand(4)
    torch.manual_seed(5)
    tuning = LiveTuning(here, choice, False, "tft", 1)
    assert tuning.step() and tuning.step()
    tuning.close()
    assert torch.rand(4).equal(alone)


def test_legends_of_the_live_curves_lie_inside_their_figures() -> None:
    use_house_style()
    curve = pd.DataFrame({"ratio": CURVE, "plain": 50.0, "merged": 60.0})
    drawn = [accuracy_by_epoch({arm: [10.0, 60.0, 70.0] for arm in ARMS_HERE}, 80.0, 128)]
    drawn.append(accuracy_over_ratios({name: curve for name in ("feature_norm", "fcs_greedy")}, 80.0, 128))
    for figure in drawn:
        figure.canvas.draw()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1
        plt.close(figure)


def test_a_curve_that_has_just_begun_has_room_for_its_first_epoch() -> None:
    figure = accuracy_by_epoch({"tft": [10.0]}, 80.0, 128)
    assert figure.axes[0].get_xlim() == (-0.1, 1.1)
    plt.close(figure)
