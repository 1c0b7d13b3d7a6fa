"""Every bad value in a command or profile is one clear error that names it and what is allowed, before any work starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fcs_utils import __version__
from fcs_utils.cli import main, parser
from fcs_utils.errors import StudyError
from fcs_utils.study import catalogue, networks
from fcs_utils.study.profiles import Profile, get_profile
from fcs_utils.study.study import Study
from tests.conftest import ROOT

COMMANDS: list[tuple[str, str]] = [
    ("", "COMMAND"),
    ("runn", "allowed: study, run, estimate, speed, latency, tables, publish, prune, networks (did you mean run?)"),
    ("study --profile quik", "profile='quik' is not allowed; allowed: cifar, cifar-resnet20, paper"),
    ("study --profile quik", "(did you mean quick?)"),
    ("study --profile=", "profile='' is not allowed"),
    ("study --profile paper:", "profile='paper:' is not allowed; allowed: NAME or NAME:DATASET"),
    ("run --profile quick:../x", "'quick:../x' is not allowed"),
    ("run --profile smoke:nowhere", "dataset='nowhere'"),
    ("run --profile smoke:digits[:3]", "dataset='digits[:3]'"),
    ("run --profile smoke:imagefolder:nothing", "'imagefolder:nothing' not found. Looked in"),
    ("run --profile paper --datasets cifar10,,x", "'cifar10,,x' is not allowed; allowed: names joined by commas"),
    ("run --profile paper --datasets ../x", "'../x' is not allowed"),
    ("run --profile smoke:digits --datasets digits", "datasets='digits' is not allowed; allowed: none beside"),
    ("study --workers 0", "workers='0' is not allowed; allowed: a whole number from 1"),
    ("study --workers -2", "workers"),
    ("run --workers 1.5", "'1.5' is not allowed"),
    ("run --workers all", "'all' is not allowed"),
    ("study --notebooks 3", "notebooks='3' is not allowed; allowed: 01, 02"),
    ("study --notebooks 3", "(did you mean 03?)"),
    ("study --notebooks 03,,06", "notebooks="),
    ("study --notebooks 03;06", "notebooks='03;06'"),
    ("prune --model m:f --images . --ratio 0.5", "unknown: --ratio 0.5 (did you mean --macs?)"),
    ("prune --model m:f --images . --lr 0.1", "unknown: --lr 0.1 (did you mean --learning-rate?)"),
    ("study --notebook 03", "unknown: --notebook 03 (did you mean --notebooks?)"),
    ("study --prof quick", "unknown: --prof quick (did you mean --profile?)"),
    ("study --data nowhere", "data='nowhere'"),
    (f"study --data {__file__}", "allowed: an existing folder"),
    (f"study --out {__file__}", "allowed: a folder, this is a file"),
    ("study --out=", "out='' is not allowed; allowed: a folder"),
    (f"run --out {__file__}/below", "out="),
    ("run --stages prunned", "stages='prunned' is not allowed; allowed: reference, similarity, pruned"),
    ("run --stages prunned", "(did you mean pruned?)"),
    ("run --stages", "--stages"),
    ("run --profile smoke --only resnet99", "only='resnet99' is not allowed; allowed: FIELD=VALUE"),
    ("run --profile smoke --only netwrk=vgg16", "(did you mean network?)"),
    ("run --profile smoke --only network=vgg19", "allowed: vgg16, resnet20 (did you mean vgg16?)"),
    ("run --profile smoke:fashon_mnist --list", "dataset='fashon_mnist' is not allowed; allowed: digits, fashion_mnist, cifar10"),
    ("run --profile smoke:fashon_mnist --list", "(did you mean fashion_mnist?)"),
    ("run --profile smoke:imagefolder:x@5 --list", "allowed: imagefolder:NAME@SIZE"),
    ("run --profile smoke --list --fresh", "give either --list, which changes nothing, or --fresh"),
    (f"run --out {'x' * 500}", "File name too long"),
    (f"run --data {'x' * 500}", "data='xx"),
    (f"run --profile smoke --list --out {'abcdefghi/' * 450}", "File name too long"),
    (
        f"tables --profile smoke:imagefolder:{'x' * 500}",
        "imagefolder:NAME@SIZE, NAME a folder or archive in the data folder, of at most 200",
    ),
    ("run --profile smoke --plugin no_such_module", "plugin 'no_such_module' cannot be imported"),
    ("run --device tpu", "device='tpu' is not allowed; allowed: auto, cpu, cuda"),
    ("run --time-budget 0m", "time-budget='0m' is not allowed; allowed: a number with s, m or h"),
    ("run --time-budget soon", "'soon' is not allowed"),
    ("run --time-budget nanh", "'nanh' is not allowed"),
    ("run --time-budget infh", "'infh' is not allowed"),
    ("run --time-budget 5", "'5' is not allowed"),
    ("run --time-budget=-1h", "'-1h' is not allowed"),
    ("networks --only resnet51", "(did you mean resnet"),
    ("networks --only lenet --seconds 0", "seconds=0.0 is not allowed"),
    ("networks --only lenet --gigabytes nan", "gigabytes=nan is not allowed"),
    (
        "networks --only lenet --out nowhere/x.md",
        "out='nowhere/x.md' is not allowed; allowed: a file in a folder that exists",
    ),
    ("networks --only lenet --rows .", "rows='.' is not allowed; allowed: a file in a folder that exists"),
    ("tables --profile smoke", "have no record in"),
    ("publish --profile smoke", "have no record in"),
]


@pytest.mark.parametrize(("arguments", "message"), COMMANDS)
def test_commands(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = main(arguments.split())
    except SystemExit as end:
        status = int(end.code or 0)
    said = capsys.readouterr().err
    assert status in (1, 2) and said.startswith("error: ") and message in said and said.count("\n") == 1, said
    assert not list(tmp_path.iterdir())  # nothing was begun


@pytest.mark.parametrize("command", ["run --profile smoke", "study --parse-only", "tables --profile smoke"])
@pytest.mark.parametrize("below", ["", "/further/down"])
def test_paths_that_are_links_to_nothing(
    command: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("nowhere")
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--out", f"link{below}"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    assert f"out='link{below}' is not allowed; allowed: a folder, this is a link to nothing" in said
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("kilobytes", [300_000, 1_500_000])
def test_too_little_memory_is_one_line(kilobytes: int, tmp_path: Path) -> None:
    """Too little to load PyTorch at all."""
    command = f"ulimit -v {kilobytes} && exec {sys.executable} -m fcs_utils run --profile smoke --out {tmp_path}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)  # noqa: S607
    assert done.returncode == 1 and done.stderr.startswith("error: memory ran out, perhaps by a limit (ulimit -v): ")
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_memory_that_runs_out_later_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("fcs_utils.study.profiles.studies", lambda *_: torch.empty(2**50))  # the allocator's own error
    assert main(["run", "--profile", "smoke"]) == 1
    assert capsys.readouterr().err.startswith("error: memory ran out")
    monkeypatch.setattr("fcs_utils.study.profiles.studies", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size|size mismatch"):  # a fault of the code is not hidden
        main(["run", "--profile", "smoke"])


@pytest.mark.parametrize(
    "command", ["--profile paper", "--profile smoke:imagefolder:x", "--profile smoke --datasets cifar10,digits"]
)
def test_a_list_needs_no_data_and_says_nothing_else(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(networks, "load_dataset", lambda *_, **__: pytest.fail("loaded data"))
    assert main(["run", *command.split(), "--list", "--stages", "reference", "arms"]) == 0
    out, err = capsys.readouterr()
    assert "vgg16" in out and ", mlft " in out and not err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("dataset", "change", "message"),
    [
        ("digits[:100]", {}, "calibration=128 is not allowed; allowed: 1 to 100, the training split of digits[:100]"),
        ("digits[:130]", {"ablations": {"calibrations": (131,)}}, "calibration=131 is not allowed; allowed: 1 to 130"),
        ("digits[:60]", {"calibration": 50}, "batch_size=64 is not allowed; allowed: 1 to 60"),
        ("digits", {"networks": ({"network": "torchvision/alexnet", "width": 1.0},)}, "takes the 32x32 images of digits"),
    ],
)
def test_what_the_data_set_cannot_give_is_known_before_any_work(
    dataset: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    smoke = get_profile("smoke").model_dump()
    change = {name: {**smoke[name], **new} if isinstance(new, dict) else new for name, new in change.items()}
    if "networks" in change:
        change["networks"] = tuple({**smoke["networks"][0], **one} for one in change["networks"])
        change["arms"] = {**smoke["arms"], "networks": ()}
    study = Study(Profile.model_validate({**smoke, "dataset": dataset, **change}), tmp_path)
    with pytest.raises(StudyError) as caught:
        study.run()
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_are_as_private_as_the_umask_says(mask: int, mode: int, tmp_path: Path) -> None:
    code = (
        "import os, sys, torch; from pathlib import Path; from fcs_utils.files import write_checksummed, write_tensors;"
        "os.umask(int(sys.argv[2])); folder = Path(sys.argv[1]) / 'a' / 'b';"
        "write_checksummed(folder / 'x.json', {}); write_tensors(folder / 'x.safetensors', {'x': torch.zeros(1)})"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), str(mask)], cwd=ROOT, check=True)
    made = list((tmp_path / "a" / "b").iterdir())
    assert len(made) == 2 and all(path.stat().st_mode & 0o777 == mode for path in made)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", "--profile", "smoke", "--device", "cuda", "--out", str(tmp_path)]) == 1
    assert "device='cuda' is not allowed" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_python_without_the_packages_is_told_where_they_are(tmp_path: Path) -> None:
    bare = [sys.executable, "-S", "-m", "fcs_utils", "run", "--profile", "smoke", "--out", str(tmp_path)]
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: No ") and ".venv/bin/python" in done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_help_and_refusals_need_no_packages() -> None:
    bare = [sys.executable, "-S", "-m", "fcs_utils"]
    refused, helped, version = (
        subprocess.run([*bare, *words], cwd=ROOT, capture_output=True, text=True)
        for words in (["study", "--profile", "quik"], ["study", "--help"], ["--version"])
    )
    assert refused.returncode == 2 and refused.stderr.startswith("error: profile='quik'") and refused.stderr.count("\n") == 1
    assert helped.returncode == 0 and "digits, quarter-width" in helped.stdout
    assert version.returncode == 0 and version.stdout == f"fcs-mlft {__version__}\n"


@pytest.mark.parametrize("command", [*parser.COMMANDS, *parser.WITHOUT_PROFILE])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parser.build_parser().parse_args([command, "--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and f"example: python -m fcs_utils {command} " in said and "--out" in said


def test_a_profile_with_a_wrong_field_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)
    monkeypatch.setattr(catalogue, "profile_names", lambda: ("mine", "base", "loop"))
    (tmp_path / "mine.toml").write_text("seeds = [0")
    with pytest.raises(StudyError, match="mine.toml is not valid TOML"):
        get_profile("mine")
    (tmp_path / "base.toml").write_text((ROOT / "fcs_utils" / "study" / "profiles" / "smoke.toml").read_text())
    (tmp_path / "mine.toml").write_text('extends = "base"\n[arms]\nepochs = ["two"]')
    with pytest.raises(StudyError, match=r"profile mine: arms.epochs.0='two' is not allowed"):
        get_profile("mine")
    (tmp_path / "loop.toml").write_text('extends = "mine"')
    with pytest.raises(StudyError, match="extends in profile loop='mine' is not allowed; allowed: a profile that extends no other"):
        get_profile("loop")
    for text, said in (
        ("", "summary in profile mine=None is not allowed"),
        ("summary = 5", "summary in profile mine=5"),
        ("extends = 3", "extends in profile mine=3 is not allowed; allowed: a profile's name"),
        ('extends = ["base"]', "extends in profile mine="),
        ('extends = "base"\n[calibration]\nimages = 3', "profile mine: calibration="),
        ('extends = "base"\n[seeds]\nfirst = 0', "profile mine: seeds="),
    ):
        (tmp_path / "mine.toml").write_text(text)
        with pytest.raises(StudyError, match=said):
            get_profile("mine")
