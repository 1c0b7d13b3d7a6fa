"""Why layers stay whole, in few words where there are many layers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from fcs_utils.errors import counted

FEW = 8  # layers that are named one by one


def every_reason(whole: Mapping[str, str], network: nn.Module) -> str:
    """Why layers stay whole, as one line. Of many layers, those with equal reasons are counted, the largest group first.

    whole: reasons by layer.
    """
    if len(whole) <= FEW:
        return "; ".join(f"{layer}: {why}" for layer, why in whole.items())
    names, alike = names_in(network), dict[str, list[str]]()
    for layer, why in whole.items():
        alike.setdefault(without_names(why, names), []).append(layer)
    groups = sorted(alike.items(), key=lambda group: -len(group[1]))
    said = []
    for why, (first, *others) in groups:
        said.append(f"{first} and {counted(len(others), 'more layer')}: {why}" if others else f"{first}: {whole[first]}")
    return "; ".join(said)


def names_in(network: nn.Module) -> set[str]:
    """The names of all modules, parameters and buffers."""
    parts = (network.named_modules(), network.named_parameters(), network.named_buffers())
    return {name for part in parts for name, _ in part}


def without_names(why: str, names: set[str]) -> str:
    """A reason with ``...`` for names of modules and without measured numbers, so that equal reasons are equal texts."""
    words = why.split(" ")
    for place, word in enumerate(words):
        name, before = word.rstrip(",:"), words[place - 1] if place else ""
        # A module may be called "network", as a reason may call the network.
        if name in names and (re.search(r"[._\d]", name) or before in ("by", "to", "of", "with", "meet", "convolution")):
            words[place] = word.replace(name, "...")
    text = re.sub(r" is off by [\d.e+-]+$| and \d+ more", "", " ".join(words))
    return re.sub(r"\.\.\.(,? \.\.\.)+", "...", text)
