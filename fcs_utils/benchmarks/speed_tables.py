"""Measured speeds as tables: against the usual loop, against the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from fcs_utils.models import build_seeded, count_macs


def machine_name(measured: dict[str, Any]) -> str:
    """The machine that one entry of ``speed.measurements`` is of."""
    machine = measured["machine"]
    threads = f"{machine['threads']} threads, " if machine["device_type"] == "cpu" else ""
    return f"{machine['device']}, {threads}{measured['precision']}"


def speed_table(measured: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Images a second by machine and way, and how many times the usual loop's on the same machine."""
    return pd.concat([_of_one(one) for one in measured], ignore_index=True)


def _of_one(measured: dict[str, Any]) -> pd.DataFrame:
    rows = pd.DataFrame(measured["rows"])
    rows["network"] = rows.network + rows.width.map(lambda width: "" if width == 1 else f" x{width:g}")
    usual = rows[rows.way == "usual"].set_index(["network", "what", "batch_size"]).images_per_second
    rows = rows[[key in usual.index for key in zip(rows.network, rows.what, rows.batch_size, strict=True)]]
    ratios = [row.images_per_second / usual[row.network, row.what, row.batch_size] for row in rows.itertuples()]
    return pd.DataFrame({
        "machine": machine_name(measured), "network": rows.network, "batch": rows.batch_size, "what": rows.what, "way": rows.way,
        "images/s": rows.images_per_second.map("{:,.0f}".format),
        "seconds for 50,000 images": (50_000 / rows.images_per_second).map("{:,.2f}".format),
        "times the usual loop": [f"{ratio:.2f}" for ratio in ratios],
    })  # fmt: skip


def growth_table(measured: dict[str, Any]) -> pd.DataFrame:
    """Training throughput against the batch, in images and in multiply-adds; then an estimate for ResNet-50."""
    import torchvision

    rows = _own_training(measured)
    lines = [
        {"network": f"{row.network} x{row.width:g}", "data": "32x32 images", "batch": str(row.batch_size),
         "images/s": f"{row.images_per_second:,.0f}", "10^9 MACs/s": f"{row.macs_per_second / 1e9:,.0f}",
         "hours for one epoch": f"{45_000 / row.images_per_second / 3600:.2g} (45,000 images)"}
        for row in rows.itertuples()
    ]  # fmt: skip
    large, best = 3 * count_macs(torchvision.models.resnet50(), torch.zeros(1, 3, 224, 224)), float(rows.macs_per_second.max())
    lines.append({"network": "resnet50", "data": "ImageNet, 224x224", "batch": "", "images/s": f"{best / large:,.1f}",
                  "10^9 MACs/s": f"{best / 1e9:,.0f}",
                  "hours for one epoch": f"{1_281_167 * large / best / 3600:,.0f} (ESTIMATE at the best rate above)"})  # fmt: skip
    return pd.DataFrame(lines)


def _own_training(measured: dict[str, Any]) -> pd.DataFrame:
    rows = pd.DataFrame(measured["rows"])
    rows = rows[(rows.what == "training") & (rows.way == "study")].sort_values(["network", "batch_size"], ascending=[False, True])
    networks = [build_seeded(0, row.network, num_classes=10, width=row.width) for row in rows.itertuples()]
    macs = [3 * count_macs(network, torch.zeros(1, 3, 32, 32)) for network in networks]
    return rows.assign(macs_per_second=rows.images_per_second * macs)
