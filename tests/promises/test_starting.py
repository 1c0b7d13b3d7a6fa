"""Starting costs little: help needs the standard library alone and one process, and the README says how to install less."""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from fcs_utils import cli
from fcs_utils.cli.process import ALLOCATOR, import_torch
from tests.conftest import ROOT

COUNT = """
import json, sys
before = {*sys.modules}
from fcs_utils.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    status = end.code
print("\\n" + json.dumps([status, sorted({*sys.modules} - before)]))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["latency", "--help"]])
def test_help_imports_the_standard_library_and_a_few_small_modules(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", COUNT, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    status, modules = json.loads(done.stdout.splitlines()[-1])
    assert status in (0, None) and "usage:" in done.stdout
    own = [name for name in modules if name.partition(".")[0] == "fcs_utils"]
    assert {name.partition(".")[0] for name in modules} - {"fcs_utils"} <= {*sys.stdlib_module_names}
    assert own == [
        "fcs_utils",
        "fcs_utils.cli",
        "fcs_utils.cli.parser",
        "fcs_utils.cli.process",
        "fcs_utils.errors",
        "fcs_utils.files",
        "fcs_utils.report",
        "fcs_utils.report.chapters",
        "fcs_utils.study",
        "fcs_utils.study.catalogue",
    ]


@pytest.mark.parametrize(
    ("arguments", "settings", "again"),
    [(["--help"], None, False), (["run", "-h"], None, False), (["run", "--list"], None, True), (["run", "--list"], "mine", False)],
)
def test_only_what_computes_starts_again_with_the_allocators_settings(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], settings: str | None, again: bool
) -> None:
    started: list[str | None] = []

    def noted(*_: object) -> None:
        started.append(os.environ.get("GLIBC_TUNABLES"))
        raise SystemExit(0)  # it does not come back

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "argv", ["fcs-mlft", *arguments])
    monkeypatch.setattr(os, "execv", noted)
    monkeypatch.setattr(atexit, "register", lambda _: None)  # the tests' process goes on
    monkeypatch.setattr(cli, "main", lambda prog: 0)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if settings:
        monkeypatch.setenv("GLIBC_TUNABLES", settings)
    try:
        cli.console()
    except SystemExit:
        assert again
    assert started == ([ALLOCATOR] if again else [])


ENDING = """
import atexit, sys
from fcs_utils.cli.process import QuickEnd

class Freed:
    def __del__(self):
        print("freed")

end, kept = QuickEnd(), Freed()
atexit.register(print, "called")
print("before")
if sys.argv[1] == "fails":
    raise ValueError("unforeseen")
end.status = int(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("status", "said", "code"), [("0", "before called", 0), ("3", "before called", 3), ("fails", "before called freed", 1)]
)
def test_a_process_ends_with_its_status_after_all_others_and_frees_nothing(status: str, said: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", ENDING, status], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == said.split() and done.returncode == code
    assert ("ValueError: unforeseen" in done.stderr) == (status == "fails")


def test_after_torch_is_imported_garbage_is_collected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[object] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    import_torch()
    assert frozen == []  # it was there: what this process has made since then stays in the collector's hands
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(importlib, "import_module", lambda name: frozen.append(name))
    import_torch()
    assert frozen == ["torch", False] and gc.isenabled()


PLANNING = """
import sys
import torch
from fcs_utils import collect_statistics, importance, make_plan, prune
from fcs_utils.models import build_seeded

net, images = build_seeded(0, "vgg16", num_classes=5, width=0.125), torch.rand(16, 3, 32, 32)
scores = importance("fcs", model=net, statistics=collect_statistics(net, images))
print(prune(net, make_plan(net, images, scores, macs=0.5)).features.conv1.out_channels)
print(*{"torch._dynamo", "torch._inductor", "torch.onnx"} & {*sys.modules})
"""


def test_planning_and_pruning_import_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", PLANNING], cwd=ROOT, capture_output=True, text=True, check=True)
    kept, compilers = done.stdout.split("\n")[:2]
    assert 0 < int(kept) <= 8 and compilers == ""


def test_the_readme_says_how_to_install_without_cuda() -> None:
    (pattern,) = re.findall(r"grep -E '(.+?)' requirements\.lock", (ROOT / "README.md").read_text())
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if re.search(pattern, line)]
    assert [line.split("==")[0] for line in lines] == ["torch", "torchvision"]
    for need in map(Requirement, lines):  # a build for one device has its name behind the version, and the lock takes it
        (version,) = [one.version for one in need.specifier]
        assert need.specifier.contains(f"{version}+cpu")
