"""Shared fixtures: small networks with BatchNorm statistics from real batches, and one smoke study."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # tests side by side: two processes of two threads each would slow each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from torch import nn

from fcs_utils.cli import main
from fcs_utils.data.dataset import Dataset, load_dataset
from fcs_utils.models import build_seeded
from fcs_utils.running import seed_draws
from fcs_utils.study.profiles import get_profile

ROOT = Path(__file__).resolve().parents[1]
GUARD = 900  # seconds: no test waits by the clock, this only ends one that hangs for ever
FEW = get_profile("smoke").model_copy(update={"dataset": "digits[:128]"})  # networks that train in a second

# The same examples each time; ./run_tests.sh --hypothesis-profile nightly tries ten times as many, new ones each time.
settings.register_profile("study", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("nightly", deadline=None, max_examples=500)
settings.load_profile("study")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that read the smoke study are slow, for it takes minutes. They run first, then other slow ones.

    One worker makes the study while the other one goes on, and at the end no core is idle.
    """
    smoky = [item for item in items if "smoke" in getattr(item, "fixturenames", ())]
    for item in smoky:
        item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: ("smoke" not in getattr(item, "fixturenames", ()), item.get_closest_marker("slow") is None))


def pytest_collection_finish() -> None:
    """What the imports made stays: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test draws the same numbers each time, whichever tests ran before."""
    seed_draws(0)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


def warm(network: nn.Module, size: int = 32, channels: int = 3, images: int = 64) -> nn.Module:
    """BatchNorm statistics from real batches: with fresh ones the output hardly depends on the input.

    Scales and shifts are drawn too, so that no two channels are alike.
    """
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.3, 0.3, generator=generator)
            module.momentum = 0.3
    network.train()
    with torch.no_grad():
        for _ in range(8):
            network(torch.randn(images, channels, size, size, generator=generator))
    return network.eval()


@pytest.fixture(scope="session")
def small_vgg() -> nn.Module:
    return warm(build_seeded(0, "vgg16", num_classes=5, width=0.125))


def study_command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run ``python -m fcs_utils`` as a user would."""
    environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "fcs_utils", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=GUARD
    )


def command_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has imported everything already: for what a command does, not how it starts."""
    said, complained = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(complained):
        try:
            status = main(arguments)
        except SystemExit as end:
            status = int(end.code or 0)
    return subprocess.CompletedProcess(arguments, status, said.getvalue(), complained.getvalue())


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The out folder of a whole smoke study: runs, notebooks, pages. Tests side by side share it and leave it as it is."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    out, made = base / "study", base / "study-is-made"
    with FileLock(base / "study.lock"):
        if not made.exists():
            done = study_command("study", "--profile", "smoke", "--out", str(out))
            assert done.returncode == 0, done.stderr
            made.touch()
    return out
