"""Compact networks outside of PyTorch: ONNX files, and how much faster they really are.

ONNX needs the extra packages of ``pip install -e .[deploy]``. Fewer multiply-adds are not fewer milliseconds: the speed-up is
measured here, in PyTorch and where it is installed in onnxruntime, on one thread, dense and compact in turns.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.measure import count_macs
from fcs_utils.provenance import describe_machine, describe_moment
from fcs_utils.sealed import read_or_set_aside, write_sealed
from fcs_utils.store import write_atomic
from fcs_utils.structure import evaluating
from fcs_utils.study import Study
from fcs_utils.workers import one_thread

TOLERANCE = 1e-4  # of the logits, absolute and relative
BATCHES = (1, 64)
ROUNDS = 25


def export_onnx(model: nn.Module, path: str | Path, example: Tensor) -> Path:
    """Write a network as one ONNX file with input ``images`` (N, C, H, W), any N, and output ``logits`` (N, classes).

    example: images (N, C, H, W), N of 2 or more, on which onnxruntime must give the logits that PyTorch gives, to 1e-4.
    Raises StudyError when the packages are missing, the network cannot be exported, or the outputs differ; no file is
    then left.
    """
    path = Path(path)
    _need_packages()
    if example.dim() != 4 or len(example) < 2:
        raise StudyError(f"example must be two images or more (N, C, H, W), got shape {tuple(example.shape)}")
    example = example.detach().cpu().contiguous()
    with tempfile.TemporaryDirectory() as folder, evaluating(model), torch.no_grad():
        made = Path(folder) / "network.onnx"
        home = next(model.parameters()).device
        model.cpu()
        try:
            torch.onnx.export(model, (example,), str(made), input_names=["images"], output_names=["logits"], dynamo=True,
                              dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False)  # fmt: skip
            expected = model(example)
        except Exception as error:  # noqa: BLE001 - the exporter raises many kinds
            raise StudyError(f"{type(model).__name__} cannot be exported to ONNX: {str(error).splitlines()[0]}") from error
        finally:
            model.to(home)
        content = made.read_bytes()
    found = torch.from_numpy(session(content).run(None, {"images": example.numpy()})[0])
    if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
        gap = float((found - expected).abs().max())
        raise StudyError(f"onnxruntime's logits differ from PyTorch's by up to {gap:.2g}, more than {TOLERANCE:g}: not written")
    write_atomic(path, content)
    return path


def session(model: bytes | str | Path, threads: int = 1) -> Any:
    """An onnxruntime session on the CPU, from a file or its content."""
    _need_packages()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    content = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _need_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise StudyError(f"ONNX needs {error.name}: pip install -e .[deploy]") from error


def deployment(study: Study) -> dict[str, Any]:
    """Latencies of every network of a profile, dense and pruned at each ratio; measured at the first call and kept.

    Widths, and so speed, follow from the ratio alone: the first seed's FCS stands for every criterion. To measure again,
    remove ``deploy.json``.
    """
    runs = {run.identity: run for run in study.grid["pruned"] if run.reference.seed == study.profile.seeds[0]
            and run.pruning and run.pruning.criterion == "fcs"}  # fmt: skip
    found = read_or_set_aside(study.store.deploy())
    if found and found.get("runs") == list(runs):
        return found
    rows: list[dict[str, Any]] = []
    for reference in dict.fromkeys(run.reference for run in runs.values()):
        networks = {"dense": study.bench.trained(reference)}
        networks |= {f"{run.pruning.ratio:g}": study.bench.compact(run, study.bench.plan(run))
                     for run in runs.values() if run.pruning and run.reference == reference}  # fmt: skip
        macs = {name: count_macs(network, study.bench.example) for name, network in networks.items()}
        rows.append({"network": f"{reference.network} x{reference.width:g}", "macs": macs,
                     "milliseconds": _latencies(networks, study.bench.example)})  # fmt: skip
    version = importlib.metadata.version("onnxruntime") if has_onnx() else None
    found = {"machine": {**describe_machine(torch.device("cpu")), "threads": 1}, "date": describe_moment()["date"],
             "onnxruntime": version, "runs": list(runs), "rows": rows}  # fmt: skip
    write_sealed(study.store.deploy(), found)
    return found


def has_onnx() -> bool:
    """Whether the packages of the extra are installed."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))


def _latencies(networks: Mapping[str, nn.Module], example: Tensor) -> dict[str, list[float]]:
    """Milliseconds of every round by 'runtime network batch', all in turns with each other."""
    generator = torch.Generator().manual_seed(0)
    inputs = {batch: torch.randn(batch, *example.shape[1:], generator=generator) for batch in BATCHES}
    ways: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder, one_thread(), torch.no_grad():
        for name, shared in networks.items():
            network = copy.deepcopy(shared).eval().cpu()
            for batch, images in inputs.items():
                ways[f"pytorch {name} {batch}"] = partial(network, images.contiguous(memory_format=torch.channels_last))
            if has_onnx():
                runner = session(export_onnx(network, Path(folder) / name, inputs[BATCHES[-1]]))
                for batch, images in inputs.items():
                    ways[f"onnxruntime {name} {batch}"] = partial(runner.run, None, {"images": images.numpy()})
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(ROUNDS + 2):
            for way, do in ways.items():
                started = time.perf_counter()
                do()
                if turn >= 2:  # the first two warm up
                    times[way].append(1000 * (time.perf_counter() - started))
    return times


def deployment_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """Speed-up beside MACs: dense over compact milliseconds of the same round, median and middle half of the rounds."""
    rows = []
    for measured in found["rows"]:
        taken, macs = measured["milliseconds"], measured["macs"]
        for ratio in list(macs)[1:]:
            line = {"network": measured["network"], "ratio": ratio, "MACs left (%)": f"{100 * macs[ratio] / macs['dense']:.1f}",
                    "MACs reduction": f"{macs['dense'] / macs[ratio]:.2f}x"}  # fmt: skip
            for runtime, title in (("pytorch", "PyTorch"), ("onnxruntime", "onnxruntime")):
                for batch in BATCHES:
                    if f"{runtime} dense {batch}" in taken:
                        gains = np.divide(taken[f"{runtime} dense {batch}"], taken[f"{runtime} {ratio} {batch}"])
                        low, middle, high = np.quantile(gains, (0.25, 0.5, 0.75))
                        line[f"speed-up, {title}, batch {batch}"] = f"{middle:.2f}x ({low:.2f} to {high:.2f})"
            rows.append(line)
    return pd.DataFrame(rows)
