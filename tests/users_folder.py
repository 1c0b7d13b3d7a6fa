"""A user's folder: a module with networks, a file of weights, and photographs of three classes."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from fcs_utils.builders import code_of_network
from fcs_utils.models import build_seeded
from tests.conftest import warm
from tests.data.test_pictures import picture

MODULE = """
import torch
from torch import nn

def build(num_classes):
    def block(before, after):
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(block(3, 16), block(16, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, num_classes))

def two_outputs(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7))
"""


def make_users_folder(folder: Path, module: str) -> None:
    """Fill the folder, which must be the current one: the module is looked for there."""
    (folder / f"{module}.py").write_text(MODULE)
    code_of_network.cache_clear()
    network = warm(build_seeded(1, f"{module}:build", num_classes=3), size=16, images=16)
    save_file(network.state_dict(), folder / "my.safetensors")
    for part, count in (("train", 12), ("val", 3)):
        for label in range(3):
            for number in range(count):
                picture(folder / "photos" / part / f"class{label}" / f"{number}.png", 100 * label + number, (30, 24))
