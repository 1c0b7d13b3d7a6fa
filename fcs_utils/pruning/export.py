"""Files of compact networks: safetensors with the plan inside, and ONNX, checked against PyTorch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import InstanceOf
from torch import Tensor, nn

from fcs_utils.config import FilePath, Images, Model, checked
from fcs_utils.errors import StudyError, first_line, refuse
from fcs_utils.files import read_tensors, tensors_sum, write_atomic, write_tensors
from fcs_utils.inputs import Inputs, call, count_of, of_each, parts_of
from fcs_utils.models import load_state
from fcs_utils.pruning.cutting import duplicate
from fcs_utils.pruning.flow import candidates
from fcs_utils.pruning.kinds import check_axes, out_width
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.pruning.surgery import prune
from fcs_utils.running import tensors_in

TOLERANCE = 1e-4  # of the logits, absolute and relative


@checked
def export_onnx(model: Model, path: FilePath, example: Images) -> Path:
    """Write a network as one ONNX file with input ``images`` (N, C, ...), any N, and output ``logits`` (N, classes).

    example: two images or more, (N, C, ...), or several inputs as for ``make_plan``; on them onnxruntime's logits must equal
    PyTorch's up to ``TOLERANCE``. Several inputs have the names of forward's arguments; several outputs are numbered, or have the
    names that the network gives them in a dict. A copy is exported in eval mode, on the CPU; the network stays as it is. Returns
    the path.

    Raises StudyError when packages of the extra ``deploy`` are missing, the example does not fit, the network cannot
    be exported, or the logits differ; nothing is written then.
    """
    path = Path(path)
    _need_packages()
    check_axes(model, example, "example")
    if count_of(example) < 2:
        raise refuse("example", example, "two images or more, (N, C, ...)")
    example, model = of_each(example, lambda one: one.cpu().contiguous()), duplicate(model).cpu().eval()
    inputs = _as_arguments(model, example)
    several, batch = isinstance(example, Mapping), torch.export.Dim("batch")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="# The axis name: batch")  # several inputs have it alike
        made = Path(folder) / "network.onnx"
        try:
            outputs = call(model, example)
            torch.onnx.export(
                model,
                () if several else tuple(parts_of(example)),
                str(made),
                kwargs=inputs if several else None,
                input_names=[*inputs],
                output_names=_output_names(outputs),
                dynamo=True,
                dynamic_shapes={name: {0: batch} for name in inputs} if several else tuple({0: batch} for _ in inputs),
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # noqa: BLE001 - the exporter raises many kinds
            why = first_line(error.__cause__ or error)  # its own words only say at which step it failed
            raise StudyError(f"{type(model).__name__} cannot be exported to ONNX: {why}") from error
        content = made.read_bytes()
    _compare(session(content), inputs, tensors_in(outputs))
    write_atomic(path, content)
    return path


def _as_arguments(model: nn.Module, example: Inputs) -> dict[str, Tensor]:
    """The inputs by the names that they have in a file, in forward's order."""
    if isinstance(example, Tensor):
        return {"images": example}
    known = [one.name for one in inspect.signature(model.forward).parameters.values() if one.kind is not one.VAR_POSITIONAL]
    if isinstance(example, Mapping):
        ordered = [*(name for name in known if name in example), *(name for name in example if name not in known)]
        return {name: example[name] for name in ordered}
    names = known if len(known) >= len(example) else [f"input{number}" for number in range(len(example))]
    return dict(zip(names, example, strict=False))


def _output_names(outputs: Any) -> list[str]:
    found = tensors_in(outputs)
    if isinstance(outputs, Mapping) and len(outputs) == len(found):
        return [*map(str, outputs)]
    return ["logits"] if len(found) == 1 else [f"output{number}" for number in range(len(found))]


def _compare(runtime: Any, inputs: Mapping[str, Tensor], expected: Sequence[Tensor]) -> None:
    """Raises StudyError where onnxruntime's outputs are not PyTorch's."""
    found = [torch.from_numpy(one) for one in runtime.run(None, {name: one.numpy() for name, one in inputs.items()})]
    if [one.shape for one in found] != [one.shape for one in expected]:
        shapes = [tuple(one.shape) for one in found]
        raise StudyError(f"onnxruntime's outputs have other shapes than PyTorch's: {shapes}: not written")
    for one, wanted in zip(found, expected, strict=True):
        if not torch.allclose(one.to(wanted), wanted, rtol=TOLERANCE, atol=TOLERANCE):
            gap = float((one.double() - wanted.double()).abs().max())
            raise StudyError(f"onnxruntime's logits differ from PyTorch's by up to {gap:.2g}, more than {TOLERANCE:g}: not written")


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


def _missing_package() -> str | None:
    """The first package of the extra that is not installed."""
    return next((name for name in ("onnx", "onnxruntime", "onnxscript") if not importlib.util.find_spec(name)), None)


def _need_packages() -> None:
    if missing := _missing_package():
        raise StudyError(f"ONNX needs {missing}: pip install -e .[deploy]")


def has_onnx() -> bool:
    """Whether the packages of the extra are installed."""
    return _missing_package() is None


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
        raise StudyError(f"the plan did not make this network: by the plan, {odd[0]} has {widths[odd[0]]} channels")
    state = compact.state_dict()
    if odd := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise StudyError(f"the network cannot be saved: its {odd[0]} is no tensor")
    metadata = {f"plan{number or ''}": one.model_dump_json() for number, one in enumerate(plans)}
    write_tensors(Path(path), state, metadata)


@checked
def load_compact(path: FilePath, dense: Model, example: Images | None = None) -> nn.Module:
    """Read a compact network, bit-equal to the one that was saved.

    dense: the unpruned architecture, with any weights; it stays as it was. example: see ``prune``; a network that reads whole
    numbers needs it. Raises StudyError for a file that is missing or damaged, or that belongs to another architecture.

        save_compact("compact.safetensors", compact, plan)
        again = load_compact("compact.safetensors", build_model("vgg16", num_classes=10))
    """
    state, metadata = read_tensors(Path(path))
    if "plan" not in metadata:
        raise StudyError(f"{path} holds weights but no pruning plan: it was not written by save_compact")
    compact = dense
    for number in range(len(metadata)):
        if text := metadata.get(f"plan{number or ''}"):
            compact = prune(compact, PruningPlan.from_json(text), example=example)
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
