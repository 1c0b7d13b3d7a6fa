"""Which of PyTorch's operators the time of a call goes to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library would write of each start, and of GPUs that are not there
LISTED = 5  # operators that are named


def operator_shares(call: Callable[[], object]) -> dict[str, float]:
    """Percent of the operators' time by operator, those that take most; empty where a call runs none in this thread.

    The time is an operator's own on the CPU, without that of others that it calls.

        operator_shares(lambda: model(images))  # {'mkldnn_convolution': 69.5, ..., 'all others': 12.1}
    """
    call()  # libraries allocate and compile at their first use
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    taken = sorted(((one.self_cpu_time_total, one.key.removeprefix("aten::")) for one in seen.key_averages()), reverse=True)
    total = sum(microseconds for microseconds, _ in taken)
    if not total:
        return {}
    shares = {name: 100 * microseconds / total for microseconds, name in taken[:LISTED]}
    return {**shares, "all others": 100 - sum(shares.values())}


def operator_table(rows: list[Mapping[str, Any]]) -> pd.DataFrame:
    """The shares for readers; rows: mappings with ``what`` and ``operators``, as ``operator_shares`` returns them."""
    shares = {row["what"]: row["operators"] for row in rows if row["operators"]}
    words = [", ".join(f"{name} {share:.1f}" for name, share in own.items()) for own in shares.values()]
    return pd.DataFrame({"what": [*shares], "operators, and their share of the time (%)": words})
