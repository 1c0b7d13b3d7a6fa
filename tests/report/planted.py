"""Runs with planted accuracies, for tests of what is concluded from them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fcs_utils.report.claims import ledger
from fcs_utils.report.schedules import c3, c3_by_compute


def arm(method: str, curve: list[float], test: float = 0.0, seed: int = 0, macs: int = 10) -> dict[str, object]:
    history = [{"epoch": e, "validation": v, "training_macs": macs * e} for e, v in enumerate(curve, 1)]
    seconds = [float(epoch) for epoch in range(1, len(curve) + 1)]
    return {
        "network": "n",
        "seed": seed,
        "method": method,
        "epochs": len(curve),
        "history": history,
        "validation": curve[-1],
        "test": test,
        "training_macs": macs * len(curve),
        "epoch_seconds": seconds,
    }


def ledger_of(tft: dict[int, float], mlft: dict[int, float], noise: float = 0.05) -> pd.DataFrame:
    """The ledger of six seeds of arms whose mean final accuracy by schedule is given; MLFT costs three times TFT."""
    draw = np.random.default_rng(1)
    rows = [
        arm(method, [0.0] * epochs, mean + noise * draw.normal(), seed, macs)
        for method, means, macs in (("tft", tft, 10), ("mlft", mlft, 30))
        for epochs, mean in means.items()
        for seed in range(6)
    ]
    frame = pd.DataFrame(rows)
    return ledger([*c3(frame), *c3_by_compute(frame)])
