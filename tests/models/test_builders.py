"""Networks that other code builds: a function of the user's own, and timm's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fcs_utils.builders import code_of_network, file_of_network, is_elsewhere
from fcs_utils.errors import StudyError
from fcs_utils.models import build_model, build_seeded

MODULE = """
from torch import nn

def build(num_classes, in_channels=3):
    return nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(num_classes))

def fixed():
    return nn.Conv2d(3, 8, 3)

def everything(**options):
    return nn.Conv2d(options["in_channels"], options["num_classes"], 1)

def fails():
    raise RuntimeError("no such file\\nin this folder")

def nothing(): ...

number = 3
"""


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of the user's in the current folder, which is not on Python's path, as in a command that pip installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "mynets.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found")
    code_of_network.cache_clear()
    yield tmp_path / "mynets.py"
    sys.modules.pop("mynets", None)


def test_a_function_of_ones_own_gets_what_it_asks_for(mine: Path) -> None:
    network = build_model("mynets:build", num_classes=7, in_channels=2)
    assert network(torch.zeros(1, 2, 8, 8)).shape == (1, 7) and network[0].in_channels == 2
    assert isinstance(build_model("mynets:fixed", num_classes=7), nn.Conv2d)
    assert build_model("mynets:everything", num_classes=7, in_channels=2).weight.shape == (7, 2, 1, 1)
    assert file_of_network("mynets:build") == mine and str(mine.parent) not in sys.path
    one, same, other = (build_seeded(seed, "mynets:fixed", num_classes=7) for seed in (1, 1, 2))
    assert one.weight.equal(same.weight) and not one.weight.equal(other.weight)


WRONG = {
    "mynets:fails": r"network 'mynets:fails' cannot be built: RuntimeError: no such file$",
    "mynets:nothing": "allowed: a function that returns a torch.nn.Module; this one returned a NoneType",
    "mynets:number": "allowed: a function of mynets, which has no number",
    "mynets:nowhere": "allowed: a function of mynets, which has no nowhere",
    "notthere:build": r"cannot be imported \(ModuleNotFoundError: .*\); notthere is a module's name, and its folder must be",
    "broken:build": "network 'broken:build' cannot be imported .*nowhere_to_be_found",
    "my nets:build": "allowed: MODULE:FUNCTION, such as mymodule:build",
    "mynets:__import__('os')": "allowed: MODULE:FUNCTION, such as mymodule:build",
    "../mynets:build": "allowed: MODULE:FUNCTION, such as mymodule:build",
    ":build": "allowed: MODULE:FUNCTION",
    "mynets.py:build": "network 'mynets.py:build' cannot be imported",
}


@pytest.mark.parametrize(("name", "message"), WRONG.items(), ids=WRONG)
def test_what_goes_wrong_is_one_line_that_names_the_network(name: str, message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        build_model(name, num_classes=3)
    assert "\n" not in str(caught.value)


def test_widths_belong_to_this_packages_networks() -> None:
    with pytest.raises(StudyError, match="width=0.5 is not allowed; allowed: 1.0 for mynets:build, whose channels are fixed"):
        build_model("mynets:build", num_classes=3, width=0.5)
    assert not is_elsewhere("vgg16") and is_elsewhere("torchvision/resnet18")


def test_edited_code_has_another_checksum(mine: Path) -> None:
    first = code_of_network("mynets:build")
    assert first and code_of_network("torchvision/resnet18") is None and code_of_network("timm:resnet18") is None
    mine.write_text(MODULE + "# edited\n")
    assert code_of_network("mynets:build") == first  # as it was imported
    code_of_network.cache_clear()
    assert code_of_network("mynets:build") != first


def test_timms_networks_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def create_model(name: str, **options: Any) -> nn.Module:
        asked.update(name=name, **options)
        return nn.Conv2d(options["in_chans"], options["num_classes"], 1)

    stand_in = SimpleNamespace(
        create_model=create_model, is_model=lambda name: name == "resnet18", list_models=lambda pattern: ["resnet18"]
    )
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    assert build_model("timm:resnet18", num_classes=7, in_channels=1).weight.shape == (7, 1, 1, 1)
    assert asked == {"name": "resnet18", "pretrained": False, "num_classes": 7, "in_chans": 1}  # weights are never downloaded
    with pytest.raises(StudyError, match=r"network='timm:resnet81' is not allowed; .*did you mean timm:resnet18\?"):
        build_model("timm:resnet81", num_classes=7)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(StudyError, match="network 'timm:resnet18' needs the package timm: pip install timm"):
        build_model("timm:resnet18", num_classes=7)
