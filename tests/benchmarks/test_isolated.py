"""Measurements take turns in one process, or have a process each that ends with the call."""

from __future__ import annotations

import subprocess

import pytest

from fcs_utils.benchmarks.isolated import in_turns, measure_isolated
from fcs_utils.benchmarks.scoring import PROCEDURES, ScoringJob, measure_procedure
from fcs_utils.errors import StudyError


def test_procedures_take_turns_and_warming_up_does_not_count() -> None:
    calls: list[str] = []
    seconds = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2, warm_up=1)
    assert calls == ["a", "b"] * 3
    assert [len(seconds[name]) for name in "ab"] == [2, 2] and min(*seconds["a"], *seconds["b"]) > 0


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_each() -> None:
    job = ScoringJob(network="vgg16", width=0.25, images=64, method="pass", memory=True)
    few, many = measure_isolated(measure_procedure, [job, job.model_copy(update={"method": "store"})], {"OMP_NUM_THREADS": "1"})
    assert ScoringJob(**{name: many[name] for name in ScoringJob.model_fields}).method == "store"
    assert 0 < few["bytes"] < many["bytes"]  # which keeps the maps of all layers


@pytest.mark.parametrize("method", PROCEDURES)
def test_every_procedure_runs_beside_the_forward_pass(method: str) -> None:
    row = measure_procedure(ScoringJob(network="resnet20", width=0.25, images=2, method=method))
    assert row["seconds"] > 0 and row["forward_seconds"] > 0 and row["method"] == method


@pytest.mark.parametrize("interrupted", [True, False])
def test_no_process_outlives_the_call(monkeypatch: pytest.MonkeyPatch, interrupted: bool) -> None:
    killed: list[object] = []

    class Process:
        returncode = -9

        def __init__(self, _command: list[str], env: dict[str, str], **_: object) -> None:
            assert "GLIBC_TUNABLES" not in env and env["OMP_NUM_THREADS"] == "1"

        def communicate(self) -> tuple[str, str]:
            if interrupted:
                raise KeyboardInterrupt
            return "", ""

        def kill(self) -> None:
            killed.append(self)

    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    monkeypatch.setattr(subprocess, "Popen", Process)
    job = ScoringJob(network="vgg16", images=8, method="pass")
    with pytest.raises(KeyboardInterrupt if interrupted else StudyError, match=None if interrupted else "failed: exit status -9"):
        measure_isolated(measure_procedure, [job, job], {"GLIBC_TUNABLES": None, "OMP_NUM_THREADS": "1"})
    assert len(killed) == 2
