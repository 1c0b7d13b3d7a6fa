"""One row an arm: what follows from it, what is refused, and an arm that a module outside the package adds."""

from __future__ import annotations

import doctest
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fcs_utils.data.dataset import Dataset
from fcs_utils.errors import StudyError
from fcs_utils.files import module_sum
from fcs_utils.models import count_macs
from fcs_utils.study.kinds import do
from fcs_utils.study.networks import Bench
from fcs_utils.study.records import Store
from fcs_utils.study.runs import Pruning, Reference, Run, Tuning, parse_run
from fcs_utils.study.schedule import expected_macs
from fcs_utils.study.sections import Arms
from fcs_utils.training import loop, losses
from fcs_utils.training.arms import ARMS, Arm, arm_label, arm_row, arm_style, code_of_arm, get_arm, is_searched, register_arm
from fcs_utils.training.evaluate import evaluate
from fcs_utils.training.loop import Callbacks, fit
from fcs_utils.training.optimiser import Training
from fcs_utils.training.passes import Execution
from tests.training.test_loop import QUICK, tiny, train

MODULE = '''
import torch.nn.functional as F
from fcs_utils.training.arms import Arm, register_arm

def taught(smoothing=0.1, temperature=1.0):
    """Label smoothing, and the teacher's answer as a further label."""
    def losses(logits, labels):
        own, teacher = logits
        hard = F.cross_entropy(own, labels, label_smoothing=smoothing)
        return [hard + F.cross_entropy(own / temperature, teacher.argmax(1))]
    return losses

register_arm(Arm("taught", "taught by the original", loss=taught, peer="original", frozen=True, style=("#000000", "h")))
'''


@pytest.fixture
def taught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arm]:
    """An arm of a module that lies in a folder of its own; the registry is put back afterwards."""
    (tmp_path / "my_arms.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("my_arms")
    yield ARMS["taught"]
    del ARMS["taught"], sys.modules["my_arms"]


TRAINING = Training(epochs=1, learning_rate=0.05)
REFERENCE = Reference(dataset="digits[:200]", network="vgg16", width=0.125, seed=0, training=TRAINING, precision="fp32")
PRUNED = Run(reference=REFERENCE, pruning=Pruning(criterion="kernel_l1", ratio=0.5, calibration=50))


def test_an_arm_from_outside_is_a_run_like_any_other(taught: Arm, tmp_path: Path) -> None:
    run = PRUNED.model_copy(update={"tuning": Tuning(method="taught", training=QUICK, temperature=2.0, source=taught.code)})
    assert parse_run(run.model_dump(mode="json")).identity == run.identity
    assert run.tuning and run.tuning.arm.settings == {"temperature": 2.0}
    profile = {"networks": ("vgg16",), "epochs": (1,), "learning_rates": (0.1,), "pilot_epochs": 1}
    assert Arms(**profile, methods=("tft", "taught")).methods == ("tft", "taught")
    assert arm_label("taught") == "taught by the original" and is_searched("taught")
    bench = Bench(Store(tmp_path, "small"), "digits[:200]", None, torch.device("cpu"))
    reference, _ = do(bench, Run(reference=REFERENCE), None, lambda macs: None)
    pruned, _ = do(bench, PRUNED, None, lambda macs: None)
    spent: list[int] = []
    result, _ = do(bench, run, {"result": pruned}, spent.append)
    # One batch of 128 of the 200 images an epoch: the compact network learns, the original is asked.
    once = 128 * (3 * pruned["cost"]["macs"] + pruned["dense_cost"]["macs"])
    assert spent == [once] * 2 and [epoch["training_macs"] for epoch in result["history"]] == [once, 2 * once]
    assert result["peer"]["test"] == reference["test"]
    assert result["history"][1]["loss"] != result["history"][0]["loss"]


def test_an_arm_from_outside_trains_with_its_own_loss_and_options(taught: Arm, digits: Dataset) -> None:
    compact, teacher = tiny(), tiny(1)
    start = teacher.head.weight.detach().clone()
    history = train([compact, teacher], digits, QUICK, taught.with_options(smoothing=0.0))
    other = train([tiny(), tiny(1)], digits, QUICK, "taught")
    assert teacher.head.weight.equal(start) and history[0].loss != other[0].loss
    assert taught.options == ("smoothing", "temperature")


def test_a_name_is_taken_once(taught: Arm) -> None:
    assert taught.code == module_sum(taught.module)
    with pytest.raises(StudyError, match="name of an arm='taught' is not allowed; .* taken: tft, mlft, twin, kd, scratch, taught"):
        register_arm(Arm("taught", "another"))


@pytest.mark.parametrize(
    ("name", "options", "networks", "trained", "cost"),
    [
        ("tft", (), 1, 1, 30),
        ("mlft", ("temperature", "strength", "peer_learning_rate", "updates"), 2, 2, 330),
        ("twin", ("temperature", "strength", "peer_learning_rate", "updates", "twin_criterion"), 2, 2, 330),
        ("kd", ("temperature", "strength"), 2, 1, 130),
        ("scratch", ("budget",), 1, 1, 30),
    ],
)
def test_what_follows_from_a_row(name: str, options: tuple[str, ...], networks: int, trained: int, cost: int) -> None:
    arm = ARMS[name]
    assert (arm.options, arm.networks, arm.trained) == (options, networks, trained)
    assert arm.fresh == (name == "scratch") and arm.searched != arm.fresh and arm.frozen == (name == "kd")
    assert arm.rows == (("scratch-E", "scratch-B") if name == "scratch" else (name,)) and not arm.sequential
    if trained == 2:  # the first network's renewed predictions cost one more pass of its own
        assert arm.with_options(updates="sequential").macs_per_image([10, 100]) == 340
    # A compact network of 10 MACs and a peer of 100; what learns costs three times its forward pass.
    assert arm.macs_per_image([10, 100][:networks]) == cost


def test_rows_of_tables() -> None:
    runs = (("mlft", "epochs"), ("scratch", "epochs"), ("scratch", "macs"), ("gone", "epochs"))
    assert [arm_row(*run) for run in runs] == ["mlft", "scratch-E", "scratch-B", "gone"]
    assert [is_searched(row) for row in ("tft", "gone", "scratch-E", "scratch-B")] == [True, True, False, False]
    assert [arm_label(row) for row in ("twin", "scratch-B", "gone")] == ["MLFT, compact peer", "scratch-B", "gone"]
    assert [arm_style(row) for row in ("tft", "gone")] == [("#E69F00", "s"), ("#6b6b6b", "P")]


def test_another_arm_may_take_the_references_schedule_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARMS, "longest", Arm("longest", "longest", searched=False))
    assert [is_searched(row) for row in ("longest", "scratch-E", "tft")] == [False, False, True]


def test_runs_are_of_an_arms_module_and_not_of_a_notebook(taught: Arm, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_of_arm("taught") == taught.code and code_of_arm("tft") is None
    monkeypatch.setitem(ARMS, "own", Arm("own", "own", module="__main__"))
    with pytest.raises(StudyError, match="arm 'own' is registered in __main__, a notebook or a script"):
        code_of_arm("own")


def test_expected_macs_are_those_of_the_arm(tmp_path: Path) -> None:
    bench = Bench(Store(tmp_path, "small"), "digits[:200]", None, torch.device("cpu"))
    runs = [PRUNED.model_copy(update={"tuning": Tuning(method=name, training=QUICK)}) for name in ARMS]
    runs.append(PRUNED.model_copy(update={"tuning": Tuning(method="scratch", training=QUICK, budget="macs")}))
    dense = count_macs(bench.untrained(REFERENCE), bench.example)
    # Half of the MACs are left; in units of the dense network's training.
    shares = [macs / (3 * QUICK.epochs * 200 * dense) for macs in expected_macs(bench, runs).values()]
    assert shares == pytest.approx([1 / 2, 3 / 2, 1, 1 / 2 + 1 / 3, 1 / 2, 1], rel=1e-3)


def test_a_run_with_rates_is_done_like_any_other(tmp_path: Path) -> None:
    bench = Bench(Store(tmp_path, "small"), "digits[:200]", None, torch.device("cpu"))
    do(bench, Run(reference=REFERENCE), None, lambda macs: None)
    pruning = Pruning(criterion="kernel_l1", rates="[0.5]*12", rates_as="chip", calibration=50)
    run = PRUNED.model_copy(update={"pruning": pruning})
    pruned, _ = do(bench, run, None, lambda macs: None)
    plan = pruned["plan"]
    assert plan["ratio"] is None and plan["rounding"] == "chip" and len(plan["kept"]) == len(plan["rates"]) == 12
    assert [len(kept) for kept in plan["kept"].values()] == [4, 4, 8, 8, 16, 16, 16] + [32] * 5
    assert plan["macs_left"] == pruned["cost"]["macs"] / pruned["dense_cost"]["macs"]
    # Before a run is done, its MACs are taken to fall with the mean of its rates.
    tuned = [one.model_copy(update={"tuning": Tuning(method="tft", training=QUICK)}) for one in (PRUNED, run)]
    assert len({*expected_macs(bench, tuned).values()}) == 1


def test_unknown_arms_and_options_are_named() -> None:
    with pytest.raises(StudyError, match="arm='magic' is not allowed; allowed: tft, mlft, twin, kd, scratch"):
        get_arm("magic")
    with pytest.raises(StudyError, match="options of arm kd='updates' is not allowed; allowed: temperature, strength"):
        ARMS["kd"].with_options(updates="sequential")
    with pytest.raises(StudyError, match="tuning.method='magic' is not allowed: .*allowed: tft, mlft"):
        parse_run({**PRUNED.model_dump(mode="json"), "tuning": {"method": "magic", "training": QUICK.model_dump()}})
    with pytest.raises(
        StudyError, match="is not allowed: 'scratch' is not an arm whose learning rate is searched; allowed: tft, mlft, twin, kd"
    ):
        Arms(networks=("vgg16",), epochs=(1,), learning_rates=(0.1,), pilot_epochs=1, methods=("tft", "scratch"))


@pytest.mark.parametrize("module", [loop, losses])
def test_the_examples_of_fit_and_mutual_run(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted >= 5 and not found.failed


# -- batches of one's own ------------------------------------------------------------------------------------------


def loader(count: int = 100, shuffle: bool = False) -> DataLoader[tuple[torch.Tensor, ...]]:
    images = torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(count) % 10), batch_size=40, shuffle=shuffle)


def test_a_loader_of_ones_own_trains_and_is_evaluated_by_a_callback() -> None:
    network, own = tiny(), loader()
    callbacks = Callbacks(evaluate=lambda networks: evaluate(networks, own))
    first, second = fit([network], QUICK, lambda seed, epoch: own, callbacks=callbacks)
    macs = 3 * count_macs(network, torch.zeros(1, 1, 32, 32))
    assert (first.training_macs, second.training_macs) == (100 * macs, 200 * macs)  # batches of 40, 40 and 20
    assert first.validation is not None and second.loss < first.loss and second.peer_kl is None


def test_shuffling_by_a_loader_follows_the_seed_and_leaves_the_callers_generator_alone() -> None:
    weights = []
    for seed in (1, 1, 2):
        network = tiny()
        before = torch.get_rng_state()
        fit([network], QUICK, lambda seed, epoch: loader(shuffle=True), seed=seed)
        assert torch.get_rng_state().equal(before)
        weights.append(network.head.weight)
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])


def test_an_iterable_without_a_length_is_counted() -> None:
    sized, counted = tiny(), tiny()
    fit([sized], QUICK, lambda seed, epoch: list(loader()))
    fit([counted], QUICK, lambda seed, epoch: (batch for batch in loader()))
    assert sized.head.weight.equal(counted.head.weight)


@pytest.mark.parametrize("count", [30, 130])
def test_epochs_of_unequal_length_are_refused(count: int) -> None:
    with pytest.raises(StudyError, match="training: epoch 2 has more or fewer batches than the 3 of epoch 1"):
        fit([tiny()], QUICK, lambda seed, epoch: loader(100 if epoch == 1 else count))


def test_bad_calls_of_fit_are_named_before_any_work() -> None:
    def never(seed: int, epoch: int) -> DataLoader[tuple[torch.Tensor, ...]]:
        raise AssertionError

    with pytest.raises(StudyError, match="gave no batch"):
        fit([tiny()], QUICK, lambda seed, epoch: [])
    with pytest.raises(StudyError, match="networks=1 is not allowed; allowed: 2 for arm mlft"):
        fit([tiny()], QUICK, never, "mlft")
    with pytest.raises(StudyError, match="arm='magic'"):
        fit([tiny()], QUICK, never, "magic")
    with pytest.raises(StudyError, match="passes='graphs' is not allowed; allowed: plain, compiled"):
        fit([tiny()], QUICK, never, execution=Execution(passes="graphs"))


def test_a_measure_of_an_unknown_name_is_refused() -> None:
    def strange(networks: list[nn.Module]) -> dict[str, float]:
        return {"top5": 1.0}

    with pytest.raises(StudyError, match="evaluate returned='top5' is not allowed; allowed: validation, validation_loss"):
        fit([tiny()], QUICK, lambda seed, epoch: loader(), callbacks=Callbacks(evaluate=strange))
