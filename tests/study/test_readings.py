"""Every option of FCS, and every pruner of Torch-Pruning, is a run that can be pruned and fine-tuned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.pruning.pruners import pruner_plan
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.study.kinds import do
from fcs_utils.study.networks import Bench
from fcs_utils.study.records import Store
from fcs_utils.study.runs import Pruning, Reference, Run, Tuning, parse_run
from fcs_utils.study.study import Study
from fcs_utils.training.optimiser import Training

TRAINING = Training(epochs=1, learning_rate=0.05)
REFERENCE = Reference(dataset="digits[:200]", network="vgg16", width=0.125, seed=0, training=TRAINING, precision="fp32")


def pruned(criterion: str = "fcs", options: dict[str, Any] | None = None, **goal: Any) -> Run:
    pruning = Pruning(criterion=criterion, options=options or {}, calibration=50, **(goal or {"ratio": 0.5}))
    return Run(reference=REFERENCE, pruning=pruning)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(Store(tmp_path_factory.mktemp("bench"), "small"), "digits[:200]", None, torch.device("cpu"))
    bench.trained(REFERENCE)
    return bench


@pytest.mark.parametrize(
    "options",
    [
        {"redundancy": "max", "bins": 16},
        {"quota": "layer", "reading": "per_image"},
        {"order": "norm", "redundancy": "greedy"},
        {"quota": "global", "redundancy": "greedy"},
        {"tap": "convolution", "reading": "mean_map", "bins": 1},
    ],
    ids=str,
)
def test_a_reading_is_pruned_and_fine_tuned(bench: Bench, options: dict[str, Any]) -> None:
    run = pruned(options=options)
    assert parse_run(run.model_dump(mode="json")).identity == run.identity != pruned().identity
    cut, _ = do(bench, run, None, lambda macs: None)
    tuning = Tuning(method="tft", training=TRAINING)
    tuned, _ = do(bench, run.model_copy(update={"tuning": tuning}), {"result": cut}, lambda macs: None)
    assert tuned["cost"] == cut["cost"] and 0 < tuned["test"] <= 100
    # The literal reading leaves the MACs of half of every layer; one threshold comes as near as one channel of one layer.
    literal = bench.plan(pruned())
    share, plan = cut["cost"]["macs"] / cut["dense_cost"]["macs"], PruningPlan.from_data(cut["plan"])
    assert share == pytest.approx(plan.macs_left) and cut["plan"] == bench.plan(run).model_dump(mode="json", exclude={"layer_macs"})
    if options.get("quota") == "global":
        rates = {1 - len(kept) / plan.channels[name] for name, kept in plan.kept.items()}
        assert abs(share - literal.macs_left) < 0.01 and plan.macs == literal.macs_left and len(rates) > 2
    else:
        assert share == pytest.approx(literal.macs_left)


@pytest.mark.parametrize("name", ["tp_group_norm_global", "tp_group_taylor"])
def test_a_pruner_of_torch_pruning_is_a_run_like_any_other(bench: Bench, name: str) -> None:
    run, literal = pruned(name), bench.plan(pruned())
    cut, _ = do(bench, run, None, lambda macs: None)
    plan = PruningPlan.from_data(cut["plan"])
    assert plan.kept.keys() == literal.kept.keys() and plan.macs == literal.macs_left
    assert cut["cost"]["macs"] / cut["dense_cost"]["macs"] == pytest.approx(plan.macs_left)
    assert abs(plan.macs_left - literal.macs_left) < 0.02 and cut["plan"] == bench.plan(run).model_dump(mode="json")
    data = bench.dataset.calibration(50, 0)
    images = bench.dataset.normalise(data.images)
    given = {"model": bench.trained(REFERENCE), "images": images, "labels": data.labels, "macs": literal.macs_left}
    assert plan == pruner_plan(name, **given)
    tuning = Tuning(method="tft", training=TRAINING)
    tuned, _ = do(bench, run.model_copy(update={"tuning": tuning}), {"result": cut}, lambda macs: None)
    assert tuned["cost"] == cut["cost"] and 0 < tuned["test"] <= 100
    at_macs = bench.plan(pruned(name, macs=0.4))
    assert at_macs.macs == 0.4 and abs(at_macs.macs_left - 0.4) < 0.03


@pytest.mark.parametrize(
    "goal",
    [
        {"criterion": "tp_group_norm"},
        {"criterion": "tp_bn_scale", "macs": 0.6},
        {"criterion": "tp_group_norm_global"},
        {"criterion": "fcs", "options": {"quota": "global"}},
        {"criterion": "random", "macs": 0.6},
    ],
    ids=str,
)
def test_the_record_of_a_run_is_found_again(bench: Bench, goal: dict[str, Any]) -> None:
    study = Study("smoke:digits[:200]", bench.store.root / "records")
    run = pruned(**goal)
    assert study.ensure(run)["result"] == study.record(run)["result"]


def test_the_switch_scores_the_maps_that_it_names_and_merging_still_reads_those_of_the_readers(bench: Bench) -> None:
    run = pruned(options={"tap": "convolution"})
    assert run.pruning
    raw = collect_statistics(bench.trained(REFERENCE), bench.calibration_images(REFERENCE, 50), scope="inner", tap="convolution")
    want = importance("fcs", model=bench.trained(REFERENCE), statistics=raw, tap="convolution")
    got = bench.importance(REFERENCE, run.pruning)
    assert all(got[name].equal(want[name]) for name in want)
    merged = run.model_copy(update={"pruning": run.pruning.model_copy(update={"compensate": "merge"})})
    with pytest.warns(UserWarning, match="merge left out"):
        compact = bench.cut(merged, bench.plan(run))
    # The first layer's dropped channels are made up for in the weights of the second.
    plain = bench.cut(run, bench.plan(run))
    assert plain.features.conv1.weight.equal(compact.features.conv1.weight)
    assert not plain.features.conv2.weight.equal(compact.features.conv2.weight)
