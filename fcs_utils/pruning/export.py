"""Files of compact networks: safetensors with the plan inside, and ONNX, checked against PyTorch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.files import read_tensors, write_atomic, write_tensors
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.pruning.surgery import prune
from fcs_utils.running import evaluating

TOLERANCE = 1e-4  # of the logits, absolute and relative


def export_onnx(model: nn.Module, path: str | Path, example: Tensor) -> Path:
    """Write a network as one ONNX file with input ``images`` (N, C, H, W), any N, and output ``logits`` (N, classes).

    example: two images or more, (N, C, H, W); on them onnxruntime's logits must equal PyTorch's up to ``TOLERANCE``.
    The network is exported in eval mode, on the CPU; its mode and device are put back. Returns the path.

    Raises StudyError when packages of the extra ``deploy`` are missing, the example does not fit, the network cannot
    be exported, or the logits differ; nothing is written then.
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


def has_onnx() -> bool:
    """Whether the packages of the extra are installed."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))


def save_compact(path: str | Path, compact: nn.Module, plan: PruningPlan) -> None:
    """Write a compact network as one safetensors file: its weights, and the plan as JSON in the metadata.

    plan: the one that ``compact`` was pruned with. An older file at ``path`` is replaced at once or not at all.
    """
    write_tensors(Path(path), compact.state_dict(), {"plan": plan.model_dump_json()})


def load_compact(path: str | Path, dense: nn.Module) -> nn.Module:
    """Read a compact network, bit-equal to the one that was saved.

    dense: the unpruned architecture, with any weights; it stays as it was. Raises StudyError for a file that is
    missing or damaged, or that belongs to another architecture.

        save_compact("compact.safetensors", compact, plan)
        again = load_compact("compact.safetensors", build_model("vgg16", num_classes=10))
    """
    plan, state = _read_compact(Path(path))
    compact = prune(dense, plan)
    own = compact.state_dict()
    for name in own.keys() | state.keys():
        if name not in own or name not in state or own[name].shape != state[name].shape:
            raise StudyError(f"{path} belongs to another architecture: its {name} does not fit")
    compact.load_state_dict(state)
    return compact


def _read_compact(path: Path) -> tuple[PruningPlan, dict[str, Any]]:
    state, metadata = read_tensors(path)
    if "plan" not in metadata:
        raise StudyError(f"{path} holds weights but no pruning plan: it was not written by save_compact")
    return PruningPlan.from_json(metadata["plan"]), state
