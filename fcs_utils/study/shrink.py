"""A network of the user's, made smaller: score, prune, merge, recalibrate, tune, measure, and write what came out."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from fcs_utils.benchmarks.latency import latencies, stopwatch
from fcs_utils.builders import file_of_network, is_own
from fcs_utils.config import Amount, Config, Count, Finite, Positive, Ratio, Seed
from fcs_utils.data.listing import list_pictures
from fcs_utils.data.pictures import IMAGENET_MEAN, IMAGENET_STD, PictureSet, load_pictures
from fcs_utils.errors import StudyError, counted, refuse
from fcs_utils.files import write_atomic, write_json
from fcs_utils.machine import describe_machine, describe_moment, pick_device
from fcs_utils.models import build_seeded, images_at_once, measure_cost
from fcs_utils.pretrained import give, read_given
from fcs_utils.pruning.criteria import importance, needs, ranking_of
from fcs_utils.pruning.export import export_onnx, has_onnx, save_compact
from fcs_utils.pruning.latency_goal import Latency
from fcs_utils.pruning.layers import Scope
from fcs_utils.pruning.options import Allocation
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune, recalibrate
from fcs_utils.running import run_network
from fcs_utils.study.guards import check_writable
from fcs_utils.training.arms import arm_label
from fcs_utils.training.evaluate import evaluate, predict, top1
from fcs_utils.training.loop import Callbacks, Epoch, fit
from fcs_utils.training.optimiser import Training

HALF = 0.5  # of the MACs: the goal where none is named
WATCHED = 1000  # pictures, at most, that the curve of a training is judged by


class Shrinking(Config):
    """What ``fcs-mlft prune`` is asked for.

    model: as for ``build_model``. weights: a safetensors file; without one a network of the user's own brings its weights itself.
    images: a folder or CSV file, see ``data.listing``. macs (by default 0.5), or in its place latency: the goal.
    arm: how the compact network is tuned, ``tft`` alone, ``kd`` taught by the dense one, ``mlft`` together with it.
    mean, std: of images in 0..1. resident: whether decoded pictures stay in memory; None: where they fit.
    threads, batches, rounds: of the measurement of latency. runtime: where a goal in latency is measured, at the first batch.
    """

    model: Annotated[str, Field(min_length=1)]
    images: Annotated[str, Field(min_length=1)]
    weights: str | None = None
    macs: Ratio | None = None
    latency: Latency | None = None
    criterion: str = "fcs"
    scope: Scope = "inner"
    allocation: Allocation = "uniform"
    multiple: Count = 8
    keep: tuple[str, ...] = ()
    epochs: Amount = 5
    arm: Literal["tft", "kd", "mlft"] = "tft"
    learning_rate: Positive = 0.01
    batch_size: Count = 32
    size: Annotated[int, Field(ge=8, le=4096)] = 224
    calibration: Annotated[int, Field(ge=2)] = 256  # networks are tried on two images
    seed: Seed = 0
    mean: tuple[Finite, Finite, Finite] = IMAGENET_MEAN
    std: tuple[Positive, Positive, Positive] = IMAGENET_STD
    workers: Amount = 0
    resident: bool | None = None
    device: str = "auto"
    threads: Count = 1
    batches: tuple[Count, ...] = (1, 32)
    rounds: Count = 15
    runtime: Literal["pytorch", "onnxruntime"] = "pytorch"


class Shrunk(NamedTuple):
    """What came out. measured: before and after, as ``report.json`` has it. history: of the tuning."""

    dense: nn.Module
    compact: nn.Module
    plan: PruningPlan
    history: list[Epoch]
    measured: dict[str, Any]


def shrink(wanted: Shrinking, out: Path, say: Callable[[str], None] = print) -> Shrunk:
    """Prune a network, tune it, and write ``compact.safetensors``, ``plan.json``, ``compact.onnx`` and ``report.json``.

    out: the folder; files of these names are replaced. say: takes a line for every step.

    Raises StudyError for options, a network, weights or pictures that do not fit, before anything is trained or written.
    """
    if wanted.macs is not None and wanted.latency is not None:
        raise refuse("latency", wanted.latency, "None beside macs: give one goal")
    if wanted.macs is None and wanted.latency is None:
        wanted = wanted.model_copy(update={"macs": HALF})
    if wanted.runtime == "onnxruntime" and not has_onnx():
        raise refuse("runtime", wanted.runtime, "pytorch: ONNX needs pip install .[deploy]")
    check_writable(out)
    needs(wanted.criterion)
    device, listing = pick_device(wanted.device), list_pictures(Path(wanted.images))
    dense = open_network(wanted, len(listing.classes), say).to(device)  # before pictures are decoded, which may take minutes
    pictures = load_pictures(
        wanted.images, size=wanted.size, mean=wanted.mean, std=wanted.std, resident=wanted.resident, workers=wanted.workers
    )
    how = "kept in memory" if pictures.resident else "decoded when needed"
    say(f"{len(listing.train):,} training pictures, {len(listing.val):,} for validation, {len(listing.classes)} classes, {how}")
    images, labels = (part.to(device) for part in pictures.calibration(min(wanted.calibration, len(listing.train)), wanted.seed))
    plan, compact = _cut(wanted, dense, images, labels, say)
    say(str(plan))
    before, pruned = (top1_on(network, pictures) for network in (dense, compact))
    say(f"top-1 on {len(listing.val):,} pictures: {before:.1f} % dense, {pruned:.1f} % pruned")
    curve = [top1_on(network, pictures, most=WATCHED) for network in (dense, compact)]
    history = _tune(wanted, dense, compact, pictures) if wanted.epochs else []
    after = top1_on(compact, pictures) if history else pruned
    say(f"top-1: {after:.1f} % after {counted(len(history), 'epoch')} of {arm_label(wanted.arm)}")
    cost = {name: measure_cost(network, images[:1]).as_dict() for name, network in (("dense", dense), ("compact", compact))}
    say(f"measuring the latency of both, {wanted.rounds} rounds at batches of {' and '.join(map(str, wanted.batches))}")
    taken = latencies(
        {"dense": dense, "compact": compact}, images[:2], batches=wanted.batches, rounds=wanted.rounds, threads=wanted.threads
    )
    measured = {
        "asked": wanted.model_dump(mode="json"),
        "top1": {"dense": before, "pruned": pruned, "compact": after},
        "watched": {"pictures": min(WATCHED, len(listing.val)), "dense": curve[0], "pruned": curve[1]},
        "cost": cost,
        "milliseconds": taken,
        "history": [vars(epoch) for epoch in history],
        "machine": describe_machine(device),
        **describe_moment(),
    }
    save_compact(out / "compact.safetensors", compact, plan)
    write_atomic(out / "plan.json", plan.model_dump_json(indent=1).encode())
    if has_onnx():
        export_onnx(compact, out / "compact.onnx", images[:2])
    else:
        say("no ONNX file: pip install .[deploy]")
    write_json(out / "report.json", measured)
    return Shrunk(dense, compact, plan, history, measured)


def open_network(wanted: Shrinking, classes: int, say: Callable[[str], None]) -> nn.Module:
    """The dense network in eval mode. Raises StudyError for weights that do not fit, and logits of other classes than the set's."""
    if is_own(wanted.model):
        say(f"building the network runs your own code, {file_of_network(wanted.model)}")
    network = build_seeded(wanted.seed, wanted.model, num_classes=classes)  # first: a wrong name has no weights
    if wanted.weights is None and not is_own(wanted.model):
        raise StudyError(f"weights of {wanted.model} are needed: --weights FILE.safetensors")
    if wanted.weights is not None:
        give(network, read_given(str(Path(wanted.weights).absolute()), None), wanted.weights)
    network.eval()
    with torch.no_grad():
        logits = run_network(network, torch.zeros(2, 3, wanted.size, wanted.size))
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise refuse(
            "model", f"{wanted.model}, whose output is {shape}", f"a network that gives logits (2, {classes}) for two pictures"
        )
    return network


def _cut(
    wanted: Shrinking, dense: nn.Module, images: Tensor, labels: Tensor, say: Callable[[str], None]
) -> tuple[PruningPlan, nn.Module]:
    """The plan, and the compact network with merged weights and its own BatchNorm statistics."""
    statistics = collect_statistics(dense, images, scope=wanted.scope, **needs(wanted.criterion)._asdict())
    scores = importance(wanted.criterion, model=dense, statistics=statistics, images=images, labels=labels, seed=wanted.seed)
    options: dict[str, Any] = {
        "scope": wanted.scope,
        "allocation": wanted.allocation,
        "multiple": wanted.multiple,
        "keep": wanted.keep,
    }
    options |= {"ranking": ranking_of(wanted.criterion)} if wanted.allocation == "uniform" else {}
    options |= {"statistics": statistics} if wanted.allocation == "sensitivity" else {}
    if wanted.latency is None:
        options["macs"] = wanted.macs
    else:
        watch = stopwatch(dense, images[:2], wanted.runtime, batch=wanted.batches[0], rounds=wanted.rounds, threads=wanted.threads)
        options |= {"latency": wanted.latency, "measure": watch}
    plan = make_plan(dense, images[:2], scores, **options)
    with warnings.catch_warnings(record=True) as warned:  # of layers that merging leaves out
        warnings.simplefilter("always", UserWarning)
        compact = prune(dense, plan, compensate="merge", statistics=statistics, example=images[:2])
    for message in dict.fromkeys(str(one.message) for one in warned):
        say(message)
    recalibrate(compact, images)
    return plan, compact


def top1_on(network: nn.Module, pictures: PictureSet, most: int | None = None) -> float:
    """Top-1 in percent on the validation pictures, or on ``most`` of them, in batches that fit in memory."""
    (logits,), labels = predict([network], pictures.in_order(_batch(network, pictures), most=most))
    return top1(logits, labels)


def _batch(network: nn.Module, pictures: PictureSet) -> int:
    device = next(network.parameters()).device
    return images_at_once(network, torch.zeros(1, 3, pictures.size, pictures.size, device=device).expand(128, -1, -1, -1), 128)


def _tune(wanted: Shrinking, dense: nn.Module, compact: nn.Module, pictures: PictureSet) -> list[Epoch]:
    """Train the compact network in place; the dense one stays as it is."""
    networks = [compact] if wanted.arm == "tft" else [compact, copy.deepcopy(dense)]
    training = Training(epochs=wanted.epochs, learning_rate=wanted.learning_rate, batch_size=wanted.batch_size)
    watched = pictures.in_order(_batch(networks[-1], pictures), most=WATCHED)
    callbacks = Callbacks(evaluate=lambda networks: evaluate(networks, watched), label=f"tuning {wanted.model}")
    history = fit(networks, training, pictures.batches(wanted.batch_size), wanted.arm, seed=wanted.seed, callbacks=callbacks)
    compact.eval()
    if not math.isfinite(history[-1].validation_loss or 0):
        raise refuse("learning_rate", wanted.learning_rate, "a smaller one, because fine-tuning ended in a loss that is not finite")
    return history
