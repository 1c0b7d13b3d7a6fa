"""How each kind of run is done on the workbench: reference, similarity, pruned, tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fcs_utils.errors import refuse
from fcs_utils.models import count_macs, initialise, measure_cost
from fcs_utils.pruning.criteria import code_of
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.pruning.redundancy import near_duplicate_shares
from fcs_utils.study.networks import Bench, OnMacs, Result
from fcs_utils.study.runs import Run
from fcs_utils.training.arms import code_of_arm
from fcs_utils.training.evaluate import accuracy, evaluate
from fcs_utils.training.loop import Epoch


def do(bench: Bench, run: Run, parent: Mapping[str, Any] | None, on_macs: OnMacs) -> tuple[Result, Result]:
    """Do a run: (what is equal in equal runs, what is volatile). ``parent``: the record it builds on.

    ``on_macs`` is told the training MACs of every epoch. Raises StudyError when the run cannot be done.
    """
    if run.kind == "reference":
        result, volatile = _reference(bench, run, on_macs)
    elif run.kind == "similarity":
        result, volatile = _similarity(bench, run)
    elif run.kind == "pruned":
        result, volatile = _pruned(bench, run)
    else:
        assert parent is not None
        result, volatile = _tuned(bench, run, PruningPlan.from_data(parent["result"]["plan"]), on_macs)
    if run.kind != "reference":
        result["reference_sha256"] = bench.load(run.reference).sha256
    return {**result, "dataset_fingerprint": bench.dataset.fingerprint}, volatile


def _reference(bench: Bench, run: Run, on_macs: OnMacs) -> tuple[Result, Result]:
    if run.reference.weights:
        return _given(bench, run)
    network = bench.untrained(run.reference)
    history, sha256 = bench.train_reference(run, network, on_macs)
    result = {
        "cost": measure_cost(network, bench.example).as_dict(),
        "weights_sha256": sha256,
        **_outcome(bench, network, history, run),
    }
    return result, _timing(history)


def _given(bench: Bench, run: Run) -> tuple[Result, Result]:
    """What is known of weights that were not trained here; ``seen`` are the splits that they may have been trained on."""
    network, sha256, _ = bench.load(run.reference)
    result = {"cost": measure_cost(network, bench.example).as_dict(), "weights_sha256": sha256, **_accuracies(bench, network, run)}
    return {**result, "history": [], "seen": ["train", "validation"]}, _timing([])


def _similarity(bench: Bench, run: Run) -> tuple[Result, Result]:
    assert run.similarity is not None
    seed, options = run.reference.seed, run.similarity
    images = bench.calibration_images(run.reference, options.calibration)
    networks = {
        "trained": bench.trained(run.reference),
        "untrained": bench.untrained(run.reference, images),
        "untrained, BatchNorm as made": bench.untrained(run.reference),
    }
    return {"shares": {name: near_duplicate_shares(net, images, options.quantile, seed) for name, net in networks.items()}}, {}


def _pruned(bench: Bench, run: Run) -> tuple[Result, Result]:
    pruning, dense = run.pruning, bench.trained(run.reference)
    assert pruning is not None
    plan = bench.plan(run)
    compact, data = bench.cut(run, plan), bench.data(run.reference)
    straight = accuracy(compact, data, data.test, run.reference.precision)
    compact = bench.settle(run, compact)
    result = {
        "plan": plan.model_dump(mode="json", exclude={"layer_macs"}),  # follows from the plan
        "cost": measure_cost(compact, bench.example).as_dict(),
        "dense_cost": measure_cost(dense, bench.example).as_dict(),
        "before_recalibration": {"test": straight},
        "before_tuning": _accuracies(bench, compact, run),
    }
    return result, {}


def _tuned(bench: Bench, run: Run, plan: PruningPlan, on_macs: OnMacs) -> tuple[Result, Result]:
    tuning, data = run.tuning, bench.data(run.reference)
    assert tuning is not None
    if (code := code_of_arm(tuning.method)) != tuning.source:
        raise refuse(f"source of arm {tuning.method}", tuning.source, f"{code}: its module was edited; start again")
    arm, training, compact = tuning.arm, tuning.training, bench.compact(run, plan)
    if arm.fresh:
        initialise(compact, run.reference.seed)
    if tuning.budget == "macs":
        saved = count_macs(bench.trained(run.reference), bench.example) / count_macs(compact, bench.example)
        training = training.model_copy(update={"epochs": round(training.epochs * saved)})
    networks = [compact, *_peers(bench, run)]
    start = evaluate(networks, data.in_order(data.validation), run.reference.precision)
    history = bench.train(run, networks, training, arm, on_macs)
    result = {
        "cost": measure_cost(compact, bench.example).as_dict(),
        "dense_cost": measure_cost(bench.trained(run.reference), bench.example).as_dict(),
        "start": start,
        **_outcome(bench, compact, history, run),
    }
    for peer in networks[1:]:
        result["peer"] = _accuracies(bench, peer, run)
    return result, _timing(history)


def _peers(bench: Bench, run: Run) -> list[nn.Module]:
    """The second network where the arm has one: the unpruned original, or a compact one, pruned by another criterion."""
    pruning, tuning = run.pruning, run.tuning
    assert pruning is not None and tuning is not None
    if tuning.arm.peer == "none":
        return []
    if tuning.arm.peer == "compact":
        criterion: dict[str, Any] = {"criterion": tuning.twin_criterion, "options": {}, "source": code_of(tuning.twin_criterion)}
        other = run.model_copy(update={"pruning": pruning.model_copy(update=criterion)})
        return [bench.compact(other, bench.plan(other))]
    original = bench.untrained(run.reference)
    original.load_state_dict(bench.trained(run.reference).state_dict())
    return [original]


def _accuracies(bench: Bench, network: nn.Module, run: Run) -> dict[str, float]:
    data, precision = bench.data(run.reference), run.reference.precision
    parts = {"validation": data.validation, "test": data.test}
    return {name: accuracy(network, data, split, precision) for name, split in parts.items()}


def _outcome(bench: Bench, network: nn.Module, history: list[Epoch], run: Run) -> Result:
    return {
        **_accuracies(bench, network, run),  # of the final epoch; the best one is only named
        "best_validation_epoch": max(history, key=lambda epoch: epoch.validation or 0.0).epoch,
        "history": [{k: v for k, v in vars(epoch).items() if k != "seconds"} for epoch in history],
    }


def _timing(history: list[Epoch]) -> Result:
    return {"epoch_seconds": [epoch.seconds for epoch in history]}
