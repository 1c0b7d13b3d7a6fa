"""Measured speeds as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from fcs_utils.models import build_seeded, count_macs, network_title


def machine_name(measured: dict[str, Any]) -> str:
    """The machine of one measurement by ``measure_speeds``."""
    machine = measured["machine"]
    threads = f"{machine['threads']} threads, " if machine["device_type"] == "cpu" else ""
    return f"{machine['device']}, {threads}{measured['precision']}"


def speed_table(measured: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Images a second by machine and loop, and how many times the usual loop's on the same machine."""
    tables = []
    for one in measured:
        rows = pd.DataFrame(one["rows"])
        keys = ["network", "width", "what", "batch_size"]
        usual = rows[rows.way == "usual"].set_index(keys).images_per_second.rename("usual")
        rows = rows.join(usual, on=keys, how="inner").sort_index()
        tables.append(
            pd.DataFrame(
                {
                    "machine": machine_name(one),
                    "network": [*map(network_title, rows.network, rows.width)],
                    "batch": rows.batch_size,
                    "what": rows.what,
                    "way": rows.way,
                    "images/s": rows.images_per_second.map("{:,.0f}".format),
                    "seconds for 50,000 images": (50_000 / rows.images_per_second).map("{:,.2f}".format),
                    "times the usual loop": (rows.images_per_second / rows.usual).map("{:.2f}".format),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def growth_table(measured: dict[str, Any]) -> pd.DataFrame:
    """Training throughput against the batch, in images and in multiply-adds; then an estimate for ResNet-50."""
    import torchvision

    rows = pd.DataFrame(measured["rows"])
    rows = rows[(rows.what == "training") & (rows.way == "study")].sort_values(["network", "batch_size"], ascending=[False, True])
    networks = [build_seeded(0, row.network, num_classes=10, width=row.width) for row in rows.itertuples()]
    rates = rows.images_per_second * [3 * count_macs(network, torch.zeros(1, 3, 32, 32)) for network in networks]
    table = pd.DataFrame(
        {
            "network": [*map(network_title, rows.network, rows.width)],
            "data": "32x32 images",
            "batch": rows.batch_size.map(str),
            "images/s": rows.images_per_second.map("{:,.0f}".format),
            "10^9 MACs/s": (rates / 1e9).map("{:,.0f}".format),
            "hours for one epoch": (45_000 / rows.images_per_second / 3600).map("{:.2g} (45,000 images)".format),
        }
    )
    large, best = 3 * count_macs(torchvision.models.resnet50(), torch.zeros(1, 3, 224, 224)), float(rates.max())
    estimate = [
        network_title("torchvision/resnet50"),
        "ImageNet, 224x224",
        "",
        f"{best / large:,.1f}",
        f"{best / 1e9:,.0f}",
        f"{1_281_167 * large / best / 3600:,.0f} (ESTIMATE at the best rate above)",
    ]
    return pd.concat([table, pd.DataFrame([estimate], columns=table.columns)], ignore_index=True)
