"""The machine: its device and cores, and what a record says about where and when it was made."""

from __future__ import annotations

import datetime
import hashlib
import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

import fcs_utils
from fcs_utils.errors import refuse

Precision = Literal["fp32", "bf16"]


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU. Raises StudyError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise refuse("device", name, "auto, cpu" + (", cuda" if torch.cuda.is_available() else " (no CUDA device here)"))
    if name == "cuda":
        torch.backends.cudnn.deterministic = True
    return torch.device(name)


def pick_precision(device: torch.device) -> Precision:
    """bf16 where the hardware multiplies bf16, else fp32: emulated bf16 is ten times slower than fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # torch has no public name for these yet
    return "bf16" if any(getattr(torch.cpu, check, lambda: False)() for check in checks) else "fp32"


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Device and versions, which may change the last digits of results."""
    import torchvision  # seconds, which commands that do no run need not wait

    return {
        "device_type": device.type,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "fcs_utils": fcs_utils.__version__,
    }


def describe_measurement(device: torch.device, **more: Any) -> dict[str, Any]:
    """The ``machine`` and the ``date`` of a measurement. more: of the machine."""
    return {"machine": {**describe_machine(device), **more}, "date": describe_moment()["date"]}


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
def sources_sum() -> str:
    """SHA-256 over the package's sources as this process found them, though the files may change."""
    package, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


@cache
def _cpu_name() -> str:
    lines = _lines("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or f"{sys.platform} CPU"


def free_memory(device: torch.device | None = None) -> int:
    """Bytes that this process may still take: of a GPU, or of the machine, within the limits of its container and of ``ulimit -v``.

    Where the system does not say, as on macOS, half of the machine's memory.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    if lines := _lines("/proc/meminfo"):
        found = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    most, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if most and used and most[0].isdigit():
        # What files left in memory counts as used, and is given back when it is needed.
        cache = sum(int(line.split()[1]) for line in _lines("/sys/fs/cgroup/memory.stat") if line.startswith("inactive_file "))
        found.append(int(most[0]) - int(used[0]) + cache)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        size = next((1024 * int(line.split()[1]) for line in _lines("/proc/self/status") if line.startswith("VmSize")), 0)
        found.append(limit - size)
    return max(0, min(found))


def fitting_batch(most: int, bytes_of_one: int, device: torch.device | None = None) -> int:
    """How many images go through a network at once: ``most``, or fewer where they would take over a quarter of the free memory."""
    return max(1, min(most, free_memory(device) // (4 * max(1, bytes_of_one))))


def steady_batch(images: torch.Tensor, most: int = 256) -> int:
    """How many images go through a network at once in a study: ``most``, or fewer where they have more than 64 x 64 positions.

    images: (N, C, ...). Their number changes the last bits of sums, so that of records may not depend on free memory.
    """
    return max(1, min(most, most * 64 * 64 // math.prod(images.shape[2:])))


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def pick_workers(workers: int | None, device: torch.device) -> int:
    """How many runs at once: None is one for each core that this process may use, or one on a GPU."""
    if workers is not None:
        return workers
    return cores() if device.type == "cpu" else 1


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has no affinity


@contextmanager
def some_threads(count: int) -> Iterator[None]:
    """So many threads inside the block. PyTorch splits sums among threads, so their number changes the last bits of results."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
