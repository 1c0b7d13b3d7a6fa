"""How each kind of run is done on the workbench: reference, similarity, pruned, tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fcs_utils.models import count_macs, initialise, measure_cost
from fcs_utils.pruning.criteria import code_of
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.pruning.redundancy import near_duplicate_shares
from fcs_utils.study.networks import Bench, OnMacs, Result
from fcs_utils.study.runs import Run, describe
from fcs_utils.training.evaluate import accuracy, evaluate
from fcs_utils.training.loop import Epoch, fit
from fcs_utils.training.losses import Losses, cross_entropy, mutual


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
        result["reference_sha256"] = bench.weights_sha256(run)
    return {**result, "dataset_fingerprint": bench.dataset.fingerprint}, volatile


def _reference(bench: Bench, run: Run, on_macs: OnMacs) -> tuple[Result, Result]:
    network = bench.untrained(run.reference)
    history = bench.train_reference(run, network, on_macs)
    result = {
        "cost": measure_cost(network, bench.example).as_dict(),
        "weights_sha256": bench.weights_sha256(run),
        **_outcome(bench, network, history, run),
    }
    return result, _timing(history)


def _similarity(bench: Bench, run: Run) -> tuple[Result, Result]:
    assert run.similarity is not None
    seed, options = run.reference.seed, run.similarity
    images = bench.calibration_images(seed, options.calibration)
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
    compact, data = bench.compact(run, plan), bench.dataset
    result = {
        "plan": plan.model_dump(mode="json"),
        "cost": measure_cost(compact, bench.example).as_dict(),
        "dense_cost": measure_cost(dense, bench.example).as_dict(),
        "before_recalibration": {"test": accuracy(bench.cut(run, plan), data, data.test, run.reference.precision)},
        "before_tuning": _accuracies(bench, compact, run),
    }
    return result, {}


def _tuned(bench: Bench, run: Run, plan: PruningPlan, on_macs: OnMacs) -> tuple[Result, Result]:
    tuning = run.tuning
    assert tuning is not None
    compact, training = bench.compact(run, plan), tuning.training
    networks: list[nn.Module] = [compact]
    if tuning.method == "scratch":
        initialise(compact, run.reference.seed)
        if tuning.budget == "macs":
            saved = count_macs(bench.trained(run.reference), bench.example) / count_macs(compact, bench.example)
            training = training.model_copy(update={"epochs": round(training.epochs * saved)})
    elif tuning.method != "tft":
        networks.append(_peer(bench, run))
    losses: Losses = mutual(tuning.temperature, tuning.strength) if len(networks) > 1 else cross_entropy
    precision = run.reference.precision
    start = evaluate(networks, bench.dataset, precision)
    history = fit(networks, bench.dataset, training, seed=run.reference.seed, losses=losses,
                  trained=1 if tuning.method == "kd" else None, peer_learning_rate=tuning.peer_learning_rate,
                  sequential=tuning.updates == "sequential", precision=precision, passes=bench.passes,
                  label=describe(run), on_epoch=on_macs, on_batch=bench.deadline.check,
                  checkpoint=bench.checkpoint(run))  # fmt: skip
    result = {
        "cost": measure_cost(compact, bench.example).as_dict(),
        "dense_cost": measure_cost(bench.trained(run.reference), bench.example).as_dict(),
        "start": start,
        **_outcome(bench, compact, history, run),
    }
    if len(networks) > 1:
        result["peer"] = _accuracies(bench, networks[1], run)
    return result, _timing(history)


def _peer(bench: Bench, run: Run) -> nn.Module:
    """The second network: the unpruned original, or a twin of the compact one, pruned by another criterion."""
    pruning, tuning = run.pruning, run.tuning
    assert pruning is not None and tuning is not None
    if tuning.method == "twin":
        criterion: dict[str, Any] = {"criterion": tuning.twin_criterion, "options": {}, "source": code_of(tuning.twin_criterion)}
        other = run.model_copy(update={"pruning": pruning.model_copy(update=criterion)})
        return bench.compact(other, bench.plan(other))
    original = bench.untrained(run.reference)
    original.load_state_dict(bench.trained(run.reference).state_dict())
    return original


def _accuracies(bench: Bench, network: nn.Module, run: Run) -> dict[str, float]:
    parts = {"validation": bench.dataset.validation, "test": bench.dataset.test}
    return {name: accuracy(network, bench.dataset, split, run.reference.precision) for name, split in parts.items()}


def _outcome(bench: Bench, network: nn.Module, history: list[Epoch], run: Run) -> Result:
    return {
        **_accuracies(bench, network, run),  # of the final epoch; the best one is only named
        "best_validation_epoch": max(history, key=lambda epoch: epoch.validation).epoch,
        "history": [{k: v for k, v in vars(epoch).items() if k != "seconds"} for epoch in history],
    }


def _timing(history: list[Epoch]) -> Result:
    return {"epoch_seconds": [epoch.seconds for epoch in history]}
