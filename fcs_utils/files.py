"""Files that carry a checksum of themselves: records as JSON, networks and images as safetensors.

Reading a file that was cut short, changed or written by something else raises an error. Nothing here unpickles: both
formats hold plain values. Only regular files of bounded size are read. JSON needs the standard library alone, so that
profiles can be listed before anything is installed.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import secrets
import stat
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcs_utils.errors import StudyError

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 2**26  # bytes of a file that is read, where nothing else is said
LARGEST_TENSORS = 2**34  # bytes of a file of tensors
TOO_LARGE = "{} has {:,} bytes; at most {:,} are read"


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks, no NaN. Identities are hashes of it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def open_regular(path: Path, most: int = LARGEST) -> io.BufferedReader:
    """Open a regular file of at most ``most`` bytes for reading; it may stand behind a link.

    A folder, a pipe, a socket, a device and a larger file raise StudyError, and so does a file that cannot be opened. A pipe
    is not waited for. Whoever takes a file from a user or a results folder opens it here.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise StudyError(f"cannot read {path}: {error.strerror or error}") from error
    state = os.fstat(handle)  # of what was opened: nobody can put another file there in between
    if not (plain := stat.S_ISREG(state.st_mode)) or state.st_size > most:
        os.close(handle)
        raise StudyError(TOO_LARGE.format(path, state.st_size, most) if plain else f"{path} is not a regular file")
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """The content of a regular file. Raises StudyError as ``open_regular`` does."""
    with open_regular(path, most) as file:
        try:
            # read takes at once the memory that it is asked for. Some files, such as those in /proc, do not tell their size.
            content = file.read(min(os.fstat(file.fileno()).st_size, most) + 1)
            while len(content) <= most and (more := file.read(2**20)):
                content += more
        except OSError as error:
            raise StudyError(f"cannot read {path}: {error.strerror or error}") from error
    if len(content) > most:
        raise StudyError(TOO_LARGE.format(path, len(content), most))
    return content


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises StudyError when the disk refuses (full, read-only); the old file is then untouched.
    """
    temporary = path.parent / f"{path.name[:40]}{secrets.token_hex(6)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:  # the umask decides who may read it
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StudyError(f"cannot write {path}: {error.strerror or error}; what was there before is kept") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # Without this a power cut can take back the new name, though not leave a part of the file.
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):  # some network file systems cannot
                os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as JSON for people and programs, atomically. NaN and infinity are refused."""
    # Keys stay in the order they were made in: layers from input to output, epochs after accuracies.
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises StudyError for a file that is missing, truncated, foreign, absurdly large or not regular."""
    return parse_json(read_bytes(path), str(path))


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """A JSON object from its text. Raises StudyError, naming where it comes from, for anything else."""
    try:
        value = json.loads(content, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{where} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise StudyError(f"{where} holds a {type(value).__name__}, not an object")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):  # NaN, Infinity, or 1e999
        raise ValueError(f"{text} is not a JSON number")
    return value


def write_checksummed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as JSON, atomically, with its checksum as ``volatile.sha256``.

    It covers the volatile part too and is therefore volatile itself: records of equal runs are equal except for that part.
    """
    bare = json.loads(json.dumps(value, allow_nan=False))  # what a reader will see: keys are strings, tuples are lists
    volatile = {key: inner for key, inner in bare.get("volatile", {}).items() if key != "sha256"}
    bare["volatile"] = volatile
    write_json(path, {**bare, "volatile": {**volatile, "sha256": _text_sum(bare)}})


def read_checksummed(path: Path) -> dict[str, Any]:
    """Read what ``write_checksummed`` wrote. Raises StudyError when the file is missing, damaged or was changed."""
    return check_checksum(read_json(path), str(path))


def check_checksum(value: dict[str, Any], where: str) -> dict[str, Any]:
    """A value that carries its checksum, unchanged. Raises StudyError, naming its source, when the checksum does not match."""
    volatile = value.get("volatile")
    if not isinstance(volatile, dict) or "sha256" not in volatile:
        raise StudyError(f"{where} has no checksum: it was not written by this study")
    bare = {**value, "volatile": {key: inner for key, inner in volatile.items() if key != "sha256"}}
    if _text_sum(bare) != volatile["sha256"]:
        raise StudyError(f"{where} does not match its checksum: it was changed or damaged")
    return value


def _text_sum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def read_or_set_aside(
    path: Path, check: Callable[[dict[str, Any]], object] = lambda value: None, read: Callable[..., Any] = read_checksummed
) -> dict[str, Any] | None:
    """What ``write_checksummed`` wrote, or None where there is no file or a damaged or wrong one, which is set aside.

    check, read: raise StudyError, the first for a whole file with wrong content.
    """
    if not path.exists():
        return None
    try:
        value: dict[str, Any] = read(path)
        check(value)
        return value
    except StudyError as error:
        set_aside(path, f"{error}; it is made again")
        return None


def module_sum(module: str) -> str | None:
    """SHA-256 of the file of an imported module; None where there is no file that others can import (a notebook, a script)."""
    file = None if module == "__main__" else getattr(sys.modules.get(module), "__file__", None)
    return hashlib.sha256(read_bytes(Path(file))).hexdigest() if file else None


def set_aside(path: Path, why: str) -> None:
    """Rename a file that cannot be used to ``.corrupt``, where it can still be looked at, and warn.

    An earlier ``.corrupt`` stays: the next ones are ``.corrupt-2`` and so on. A file that cannot be renamed stays too.
    """
    aside, number = path.with_suffix(".corrupt"), 1
    while os.path.lexists(aside):
        aside, number = path.with_suffix(f".corrupt-{number + 1}"), number + 1
    try:
        path.replace(aside)
        where = f"set aside as {aside.name}"
    except FileNotFoundError:
        where = "set aside by another process"
    except OSError as error:
        where = f"it cannot be set aside: {error.strerror or error}"
    warnings.warn(f"{why} ({where})", stacklevel=3)


def tensors_sum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, kinds, shapes and bytes of tensors, whatever their order or device."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically, with their checksum beside ``metadata``."""
    from safetensors.torch import save

    plain, ties = untied(tensors)
    metadata = {**(metadata or {}), **({"ties": canonical_json(ties)} if ties else {})}
    seal = _text_sum({"tensors": tensors_sum(plain), "metadata": metadata})
    write_atomic(path, save(plain, {**metadata, "sha256": seal}))


def untied(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors on the CPU, each in memory of its own; and by name of one that is left out, the one whose memory it shares."""
    plain: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and (known := first.setdefault(place, name)) != name:
            ties[name] = known
        else:
            plain[name] = tensor.detach().cpu().contiguous().clone()
    return plain, ties


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata as ``write_tensors`` wrote them. Raises StudyError when the file is missing, damaged or foreign."""
    from safetensors import SafetensorError, safe_open

    open_regular(path, LARGEST_TENSORS).close()
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
    for name, known in parse_json(metadata.pop("ties", "{}").encode(), f"{path}, list of ties,").items():
        if not isinstance(known, str) or known not in tensors or name in tensors:
            raise StudyError(f"{path} is damaged: {name} and {known} cannot be one tensor")
        tensors[name] = tensors[known]
    return tensors, metadata
