"""The networks that were tried, as a page and as a table for the terminal."""

from __future__ import annotations

import importlib.metadata
from collections import defaultdict
from collections.abc import Mapping

import pandas as pd

from fcs_utils.benchmarks.networks import TOOLS, NetworkRow, Outcome, ProcessLimits
from fcs_utils.benchmarks.zoo import ZOO, known
from fcs_utils.builders import TORCHVISION
from fcs_utils.errors import counted

OUTPUTS = "its channels are the network's outputs"  # no failure: every network has such layers
PACKAGES = ("torch", "torchvision", "timm", "torch-pruning")

ABOUT = """# Which networks can be pruned

{summary}

{table}

## How to read it

- Every network has random weights. Each layer that can shrink loses half of its output channels, by the norms of its kernels
  (`ratio=0.5`). `scope="all"` prunes residual sums, too; it takes every layer that the scope `inner` takes. Neither the MACs
  left nor exactness depends on the weights.
- *layers*: how many of all convolutions and linear layers shrink. Those that write the network's outputs never do.
- *exact*: the narrower network yields what the dense one yields with zeros in the inputs that its layers lost, in float64, on
  two random images. Both tools are checked alike. The check needs no graph and no plan: it looks up which rows and columns of
  the dense weights are left. Before that, vectors such as BatchNorm's weights are drawn anew, because many networks start with
  zeros there, which hide mistakes.
- *wrong*: the output is not the same, or the network no longer runs. Where a LayerNorm averages over channels, no removal of
  some of them is exact. Whether fine-tuning makes up for it is another question.
- *refused*: the tool says why it does nothing. *crashed*: it ends with another error. *no end*: it takes longer than
  {seconds:g} seconds.
- **A success is a network that is exact and has at most half of its MACs left.** Every other one is a failure, and its
  reasons are below.
- *Torch-Pruning* is its `BasePruner` with `GroupMagnitudeImportance`, `pruning_ratio=0.5` and its defaults, told to leave the
  layers alone that write the outputs.

Images have 128 pixels a side, those of the SSDs 300 and 320, of networks with attention among a fixed number of positions
224 or 256, of the networks written here 32 or 64. One network may take {seconds:g} seconds and {gigabytes:g} GB with one tool.

## How to run it

```bash
pip install timm  # if you want its networks, too
fcs-mlft networks --out docs/networks.md --rows rows.json  # this page, in some hours
fcs-mlft networks --only resnet50 mymodule:build           # some of them, and networks of your own
```

The command prints a line when a network is done, and at the end this table with the time of tracing and planning: in seconds,
and in forward passes of one image. `--rows` keeps what is done; the next command goes on from there. Your own function gets
`num_classes=1000` where it has such a parameter, and its network takes images (N, 3, 64, 64).

## Why networks fail

Shares are those of the dense network's MACs. A layer that stays whole may still read fewer channels.

{reasons}

{details}
"""


def page(rows: Mapping[str, NetworkRow], limits: ProcessLimits) -> str:
    """The page for the documentation: it holds no times, which are the machine's."""
    good = {tool: sum(row[tool].success for row in rows.values()) for tool in TOOLS}
    exact = {tool: sum(row[tool].outcome == "exact" for row in rows.values()) for tool in TOOLS}
    made = ", ".join(f"{package} {version}" for package in PACKAGES if (version := _version(package)))
    summary = (
        f"Of {len(rows)} networks, this package prunes {good['here']} exactly and to at most half of their MACs, and "
        f"{exact['here']} exactly to any extent. For Torch-Pruning's own pruner these are {good['torch-pruning']} and "
        f"{exact['torch-pruning']}. Made with {made}."
    )
    if missing := [name.removeprefix(TORCHVISION) for name in ZOO if name not in rows]:
        summary += f"\n\nThe command knows more networks, which were not tried for this page: {', '.join(missing)}."
    details = "\n\n".join(_details(name, row["here"]) for name, row in rows.items() if not row["here"].success)
    table, why = _markdown(pd.DataFrame([_line(name, row) for name, row in rows.items()])), reasons(rows)
    listed = "No layer stays whole in a network that fails." if why.empty else _markdown(why)
    return ABOUT.format(summary=summary, table=table, reasons=listed, details=details, **limits.model_dump()).rstrip() + "\n"


def terminal_table(rows: Mapping[str, NetworkRow]) -> pd.DataFrame:
    """One line a network, with this machine's times."""
    times = [
        {
            "planning (s)": "" if (found := row["here"]).seconds is None else f"{found.seconds:.1f}",
            "in forward passes": "" if found.passes is None else f"{found.passes:.0f}",
        }
        for row in rows.values()
    ]
    return pd.DataFrame([_line(name, row) | time for (name, row), time in zip(rows.items(), times, strict=True)])


def reasons(rows: Mapping[str, NetworkRow]) -> pd.DataFrame:
    """Why layers of networks that fail stay whole, by the MACs that they keep: sum of the shares over these networks."""
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in rows.values():
        for why, whole in row["here"].reasons.items() if not row["here"].success else ():
            if why != OUTPUTS:
                found[why].append((whole.layers, whole.macs))
    order = sorted(found, key=lambda why: -sum(macs for _, macs in found[why]))
    return pd.DataFrame(
        {
            "reason": why,
            "networks": len(found[why]),
            "layers": sum(layers for layers, _ in found[why]),
            "mean share of their MACs": _percent(sum(macs for _, macs in found[why]) / len(found[why])),
        }
        for why in order
    )


def said(found: Outcome) -> str:
    """What a tool made of a network, in a word or a line."""
    return found.outcome if found.outcome == "exact" or not found.why else _in_brief(found)


def _in_brief(found: Outcome) -> str:
    if found.outcome == "stopped":
        return "no end" if found.why.startswith("no end") else found.why
    return f"{found.outcome}: {found.why}"


def _line(name: str, row: NetworkRow) -> dict[str, str]:
    here, other = row["here"], row["torch-pruning"]
    return {
        "network": name.removeprefix(TORCHVISION),
        "family": known(name).family,
        "layers": "" if here.shrunk is None else f"{here.shrunk} of {here.layers}",
        "MACs left": _percent(here.left),
        "result": here.outcome if here.outcome != "stopped" else _in_brief(here),
        "success": "yes" if here.success else "no",
        "Torch-Pruning: MACs left": _percent(other.left),
        "Torch-Pruning: result": said(other),
    }


def _details(name: str, found: Outcome) -> str:
    """Why one network is no success, behind a line that unfolds."""
    head = f"{_percent(found.left)} left" if found.outcome == "exact" else found.outcome if found.reasons else _in_brief(found)
    lines = [
        f"- {counted(whole.layers, 'layer')}, {_percent(whole.macs)} of the MACs: {why} (first: `{whole.first}`)"
        for why, whole in sorted(found.reasons.items(), key=lambda item: -item[1].macs)
        if why != OUTPUTS
    ]
    title = f"<summary>{name.removeprefix(TORCHVISION)}: {head}</summary>"
    return "\n".join(["<details>", title, "", *(lines or [f"- {found.why}"]), "", "</details>"])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _markdown(table: pd.DataFrame) -> str:
    cells = [[*table.columns], ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None
