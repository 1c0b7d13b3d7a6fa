"""The machine: its device and cores, and what a record says about where and when it was made."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision

import fcs_utils
from fcs_utils.errors import refuse


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU. Raises StudyError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise refuse("device", name, "auto, cpu" + (", cuda" if torch.cuda.is_available() else " (no CUDA device here)"))
    if name == "cuda":
        torch.backends.cudnn.deterministic = True
    return torch.device(name)


def pick_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """bf16 where the hardware multiplies bf16, else fp32: emulated bf16 is ten times slower than fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # torch has no public name for these yet
    return "bf16" if any(getattr(torch.cpu, check, lambda: False)() for check in checks) else "fp32"


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Device and versions, which may change the last digits of results."""
    return {
        "device_type": device.type,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "fcs_utils": fcs_utils.__version__,
    }


def describe_moment() -> dict[str, Any]:
    """Date, commit and operating system, which differ between equal runs. The name of the host is not published."""
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return {"date": now.isoformat(), "commit": commit(), "host": platform.platform()}


@cache
def commit() -> str:
    """The commit of this checkout, with '-modified' where the package differs from it; 'unknown' outside of a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603

    try:
        git("ls-files", "--error-unmatch", __file__)  # fails if .venv lies inside another project's checkout
        return git("rev-parse", "--short=10", "HEAD") + ("-modified" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or f"{sys.platform} CPU"


def pick_workers(workers: int | None, device: torch.device) -> int:
    """How many runs at once: None is one for each core that this process may use, or one on a GPU."""
    if workers is not None:
        return workers
    if device.type != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has no affinity


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside the block. PyTorch splits sums among threads, so their number changes the last bits of results."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
