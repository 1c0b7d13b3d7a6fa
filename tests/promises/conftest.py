"""What tests of hostile files share."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import GUARD


@pytest.fixture
def guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends a test that waits for a pipe for ever, or takes more memory than there should be."""
    monkeypatch.setenv("FCS_CACHE", str(tmp_path / "cache"))
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if Path("/proc/self/statm").exists() else 0
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, before[1]))
    signal.alarm(GUARD)
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, before)
