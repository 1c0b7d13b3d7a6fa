"""What tests have a cluster's workers do. It imports little, for workers that are killed import it again."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from fcs_utils.study.pool import report_macs


def where() -> tuple[str, str]:
    from distributed import get_worker

    return get_worker().address, os.environ.get("CUDA_VISIBLE_DEVICES", "")


def images_of_a_loader() -> int:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    return sum(len(images) for (images,) in DataLoader(TensorDataset(torch.zeros(6, 1)), batch_size=2, num_workers=1))


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.02)


def die(notes: str) -> None:
    """Note that it began; the n-th time, end this worker as soon as there is a file for it."""
    with open(notes, "a") as file:
        file.write("begun\n")
    wait_for(f"{notes}.{Path(notes).read_text().count('begun')}")
    os.kill(os.getpid(), signal.SIGKILL)


def train_for_ever(notes: str) -> None:
    try:
        while True:
            report_macs(7)
            time.sleep(0.05)
    finally:
        Path(notes).write_text("ended")


def fail_oddly() -> None:
    raise ValueError("odd", threading.Lock())  # which no pickle takes
