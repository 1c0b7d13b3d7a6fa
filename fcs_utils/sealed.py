"""Files that carry a checksum of themselves: records as JSON, networks and images as safetensors.

A file that was cut short, changed or written by something else is an error when it is read, never data. Nothing here
unpickles: both formats hold plain values, and sizes are checked before memory is taken.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fcs_utils.errors import StudyError
from fcs_utils.store import Store, canonical_json, read_json, write_atomic, write_json


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as JSON, atomically, with its checksum as ``volatile.sha256``.

    It covers the volatile part too, so it is itself volatile: equal runs have equal records but for that part.
    """
    bare = json.loads(json.dumps(value, allow_nan=False))  # what a reader will see: keys are strings, tuples are lists
    volatile = {key: inner for key, inner in bare.get("volatile", {}).items() if key != "sha256"}
    bare["volatile"] = volatile
    write_json(path, {**bare, "volatile": {**volatile, "sha256": _text_sum(bare)}})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what ``write_sealed`` wrote. Raises StudyError when the file is missing, damaged or was changed."""
    value = read_json(path)
    volatile = value.get("volatile")
    if not isinstance(volatile, dict) or "sha256" not in volatile:
        raise StudyError(f"{path} has no checksum: it was not written by this study")
    bare = {**value, "volatile": {key: inner for key, inner in volatile.items() if key != "sha256"}}
    if _text_sum(bare) != volatile["sha256"]:
        raise StudyError(f"{path} does not match its checksum: it was changed or damaged")
    return value


def _text_sum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def read_or_set_aside(path: Path) -> dict[str, Any] | None:
    """What ``write_sealed`` wrote, or None where there is no file or a damaged one, which is set aside."""
    if not path.exists():
        return None
    try:
        return read_sealed(path)
    except StudyError as error:
        set_aside(path, f"{error}; it is made again")
        return None


def read_record(store: Store, kind: str, identity: str) -> dict[str, Any] | None:
    """The record of a run, or None where there is none.

    A file that is damaged or belongs to another run is set aside with a warning, so the run is done again.
    """
    path = store.record(kind, identity)
    record = read_or_set_aside(path)
    if record is None:
        return None
    missing = {"id", "kind", "config", "result", "provenance", "volatile"} - record.keys()
    if missing or (record["id"], record["kind"]) != (identity, kind):
        set_aside(path, f"{path} is not the record of {kind} {identity}; the run is done again")
        return None
    return record


def set_aside(path: Path, why: str) -> None:
    """Rename a file that cannot be used to ``.corrupt``, where it can still be looked at, and warn."""
    aside = path.with_suffix(".corrupt")
    with suppress(FileNotFoundError):  # another process was faster
        path.replace(aside)
    warnings.warn(f"{why} (set aside as {aside.name})", stacklevel=3)


def tensors_sum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, kinds, shapes and bytes of tensors, whatever their order or device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically, with their checksum beside ``metadata``."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = dict(metadata or {})
    seal = _text_sum({"tensors": tensors_sum(plain), "metadata": metadata})
    write_atomic(path, save(plain, {**metadata, "sha256": seal}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata as ``write_tensors`` wrote them. Raises StudyError when the file is missing, damaged or foreign."""
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from error
    seal = metadata.pop("sha256", None)
    if seal is None:
        raise StudyError(f"{path} has no checksum: it was not written by this study")
    if seal != _text_sum({"tensors": tensors_sum(tensors), "metadata": metadata}):
        raise StudyError(f"{path} does not match its checksum: it was changed or damaged")
    return tensors, metadata
