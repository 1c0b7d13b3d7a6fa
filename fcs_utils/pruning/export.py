"""Files of compact networks: safetensors with the plan inside, and ONNX, checked against PyTorch."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import InstanceOf
from torch import Tensor, nn

from fcs_utils.config import FilePath, Images, Model, checked
from fcs_utils.errors import StudyError, first_line, refuse
from fcs_utils.files import read_tensors, tensors_sum, write_atomic, write_tensors
from fcs_utils.models import load_state
from fcs_utils.pruning.flow import candidates
from fcs_utils.pruning.kinds import check_axes, out_width
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.pruning.surgery import prune

TOLERANCE = 1e-4  # of the logits, absolute and relative


@checked
def export_onnx(model: Model, path: FilePath, example: Images) -> Path:
    """Write a network as one ONNX file with input ``images`` (N, C, ...), any N, and output ``logits`` (N, classes).

    example: two images or more, (N, C, ...); on them onnxruntime's logits must equal PyTorch's up to ``TOLERANCE``.
    A copy is exported in eval mode, on the CPU; the network stays as it is. Returns the path.

    Raises StudyError when packages of the extra ``deploy`` are missing, the example does not fit, the network cannot
    be exported, or the logits differ; nothing is written then.
    """
    path = Path(path)
    _need_packages()
    check_axes(model, example, "example")
    if len(example) < 2:
        raise refuse("example", example, "two images or more, (N, C, ...)")
    example, model = example.cpu().contiguous(), copy.deepcopy(model).cpu().eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        made = Path(folder) / "network.onnx"
        try:
            torch.onnx.export(
                model,
                (example,),
                str(made),
                input_names=["images"],
                output_names=["logits"],
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
            expected = model(example)
        except Exception as error:  # noqa: BLE001 - the exporter raises many kinds
            raise StudyError(f"{type(model).__name__} cannot be exported to ONNX: {first_line(error)}") from error
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
    # Else its threads go on spinning after a call and take cores from whatever runs next, such as a network timed in turn with it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    content = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _need_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise StudyError(f"ONNX needs {error.name}: pip install -e .[deploy]") from error


def has_onnx() -> bool:
    """Whether the packages of the extra are installed."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))


@checked
def save_compact(path: FilePath, compact: Model, plan: InstanceOf[PruningPlan] | Sequence[InstanceOf[PruningPlan]]) -> None:
    """Write a compact network as one safetensors file: its weights, and the plan as JSON in the metadata.

    plan: the one that ``compact`` was pruned with; for a network that was pruned several times, all of them in that order.
    An older file at ``path`` is replaced at once or not at all. Raises StudyError for plans that do not lead to this network.
    """
    plans = [plan] if isinstance(plan, PruningPlan) else list(plan)
    if not plans:
        raise refuse("plan", plan, "one plan or more")
    widths: dict[str, int] = {}
    for one in plans:
        if odd := [name for name, width in one.channels.items() if widths.get(name, width) != width]:
            raise StudyError(f"the plans do not follow one another: before the next, {odd[0]} has {widths[odd[0]]} channels")
        widths |= {name: len(kept) for name, kept in one.kept.items()}
    found = {name: out_width(module) for name, module in candidates(compact)}
    if odd := [name for name, width in widths.items() if found.get(name) != width]:
        raise StudyError(f"the plan did not make this network: by it, {odd[0]} has {widths[odd[0]]} channels")
    state = compact.state_dict()
    if odd := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise StudyError(f"the network cannot be saved: its {odd[0]} is no tensor")
    metadata = {f"plan{number or ''}": one.model_dump_json() for number, one in enumerate(plans)}
    write_tensors(Path(path), state, metadata)


@checked
def load_compact(path: FilePath, dense: Model) -> nn.Module:
    """Read a compact network, bit-equal to the one that was saved.

    dense: the unpruned architecture, with any weights; it stays as it was. Raises StudyError for a file that is
    missing or damaged, or that belongs to another architecture.

        save_compact("compact.safetensors", compact, plan)
        again = load_compact("compact.safetensors", build_model("vgg16", num_classes=10))
    """
    state, metadata = read_tensors(Path(path))
    if "plan" not in metadata:
        raise StudyError(f"{path} holds weights but no pruning plan: it was not written by save_compact")
    compact = dense
    for number in range(len(metadata)):
        if text := metadata.get(f"plan{number or ''}"):
            compact = prune(compact, PruningPlan.from_json(text))
    own = compact.state_dict()
    for name in own.keys() | state.keys():
        if name not in own or name not in state or own[name].shape != state[name].shape:
            raise StudyError(f"{path} belongs to another architecture: its {name} does not fit")
        if own[name].dtype != state[name].dtype:
            raise StudyError(f"{path} does not fit: its {name} is {state[name].dtype}, the architecture's {own[name].dtype}")
    load_state(compact, state)
    if tensors_sum(compact.state_dict()) != tensors_sum(state):  # two layers of the architecture share what differs in the file
        raise StudyError(f"{path} belongs to another architecture, whose layers do not share the same weights")
    return compact
