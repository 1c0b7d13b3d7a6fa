"""Hostile files: no code runs, no path leaves its folder, memory stays small."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fcs_utils.data.dataset import load_dataset
from fcs_utils.data.readers import read_idx
from fcs_utils.errors import StudyError
from fcs_utils.files import LARGEST, read_checksummed, read_json, read_tensors
from fcs_utils.study.records import Store
from tests.conftest import ROOT
from tests.data.test_datasets import image_folder


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / "fcs_utils").rglob("*.py")), *sorted((ROOT / "notebooks").glob("*.ipynb"))], ids=lambda p: p.name
)
def test_nothing_here_unpickles_or_evaluates(path: Path) -> None:
    words = r"\b(import pickle|from pickle|torch\.load\(|allow_pickle|joblib|marshal|shelve|yaml\.load|(?<![.\w])(?:eval|exec)\()"
    text = path.read_text()
    if path.name == "pretrained.py":  # public checkpoints, checked by their digits, are opened without running code
        assert set(re.findall(r"\bpickle\.\w+", text)) == {"pickle.UnpicklingError"}
        loads = r"torch\.load\(io\.BytesIO\(content\), map_location=\"cpu\", weights_only=True\)"
        text, opened = re.subn(loads, "", text.replace("import pickle\n", ""))
        assert opened == 1
        text = text.replace("safetensors.torch.load(", "")
    assert not re.findall(words, text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder inside a folder in which nothing else may appear."""
    monkeypatch.setenv("FCS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def picture(colour: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(out, "PNG")
    return out.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def test_archives_cannot_write_or_read_outside(folder: Path) -> None:
    secret = folder.parent / "secret.png"
    secret.write_bytes(picture(250))
    with tarfile.open(folder / "evil.tar", "w") as archive:
        for part, count in (("train", 12), ("test", 2)):
            for label in ("a", "b"):
                for i in range(count):
                    add(archive, f"{part}/{label}/{i}.png", picture(i))
        add(archive, "../../outside.png", picture())
        add(archive, "/tmp/fcs-absolute.png", picture())  # noqa: S108 - the attack itself
        add(archive, "train/a/../../../../climb.png", picture())
        add(archive, "train/a/link.png", type=tarfile.SYMTYPE, linkname=str(secret))
        add(archive, "train/a/hard.png", type=tarfile.LNKTYPE, linkname="../../secret.png")
        add(archive, "train/a/device.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        add(archive, "train/a/pipe.png", type=tarfile.FIFOTYPE)
    before = {path for path in folder.parent.rglob("*")}
    data = load_dataset("imagefolder:evil", folder)
    made = {path for path in folder.parent.rglob("*")} - before
    assert {path.relative_to(folder.parent).parts[0] for path in made} == {"cache"}
    assert not Path("/tmp/fcs-absolute.png").exists()  # noqa: S108
    assert len(data.train) + len(data.validation) == 24 and data.train.images.max() < 250


@pytest.mark.parametrize("name", ["imagefolder:../secret", "imagefolder:/etc", "imagefolder:..", "imagefolder:a/b", "imagefolder:"])
def test_names_of_folders_cannot_climb(folder: Path, name: str) -> None:
    with pytest.raises(StudyError, match="dataset="):
        load_dataset(name, folder)


@pytest.mark.parametrize("profile", ["../../etc", "/etc/passwd", "..", "paper:../../x", "a\0b"])
def test_names_of_profiles_cannot_climb(tmp_path: Path, profile: str) -> None:
    root = Store(tmp_path, profile).root
    assert root.resolve().is_relative_to(tmp_path) and re.fullmatch(r"[\w.-]*", root.name)


def png_of(width: int, height: int) -> bytes:
    """A header that promises a picture of any size, and no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")


def test_bombs_are_refused_before_memory_is_taken(folder: Path) -> None:
    picture_bomb = image_folder(folder / "bomb") / "train" / "cat" / "bomb.png"
    picture_bomb.write_bytes(png_of(40_000, 40_000))
    with pytest.raises(StudyError, match=r"bomb.png.*cannot be decoded"):
        load_dataset("imagefolder:bomb", folder)
    (folder / "bomb.gz").write_bytes(gzip.compress(b"\0\0\x08\x01" + bytes(1000)))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StudyError, match="unpacks to more than 500 bytes"):
        patch.setattr("fcs_utils.data.readers.LARGEST_IDX", 500)
        read_idx(folder / "bomb.gz")
    (folder / "claims.idx").write_bytes(b"\0\0\x08\x03" + b"\xff" * 12 + b"few")
    with pytest.raises(StudyError, match="is truncated: 3 bytes of"):
        read_idx(folder / "claims.idx")


def test_a_damaged_cache_is_decoded_again(folder: Path) -> None:
    image_folder(folder / "pets")
    first = load_dataset("imagefolder:pets", folder).fingerprint
    (cached,) = (folder.parent / "cache").iterdir()
    content = bytearray(cached.read_bytes())
    content[-5] ^= 4
    cached.write_bytes(content)
    with pytest.warns(UserWarning, match="does not match its checksum.*decoded again.*set aside"):
        assert load_dataset("imagefolder:pets", folder).fingerprint == first
    assert cached.with_suffix(".corrupt").read_bytes() == content and cached.exists()


class Planted:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch /tmp/fcs-planted",)


def header(content: dict[str, object], data: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


TENSORS = {
    "a pickle": pickle.dumps(Planted()),
    "a header of exabytes": struct.pack("<Q", 1 << 62) + b"{}",
    "a header beyond the file": struct.pack("<Q", 1 << 20) + b"{}",
    "data beyond the file": header({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
    "a shape that overflows": header({"w": {"dtype": "F32", "shape": [1 << 33, 1 << 33], "data_offsets": [0, 4]}}, bytes(4)),
    "overlapping data": header({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, bytes(4)),
    "an unknown kind": header({"w": {"dtype": "OBJ", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "negative offsets": header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, bytes(4)),
    "deep nesting": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "no checksum": header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "a wrong checksum": header(
        {"__metadata__": {"sha256": "0" * 64}, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)
    ),
}


@pytest.mark.parametrize("attack", TENSORS)
def test_hostile_tensors_are_an_error(tmp_path: Path, attack: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(TENSORS[attack])
    with pytest.raises(StudyError, match="file.safetensors"):
        read_tensors(path)
    assert not Path("/tmp/fcs-planted").exists()  # noqa: S108


JSON = {
    "deep nesting": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "a list": b"[1, 2]",
    "not a number": b'{"x": NaN}',
    "infinity": b'{"x": -Infinity}',
    "a number of a million digits": b'{"x": ' + b"9" * 1_000_000 + b"}",
    "bad UTF-8": b'{"x": "\xff\xfe"}',
    "a pickle": pickle.dumps({"x": 1}),
    "two objects": b"{}{}",
    "no checksum": b'{"id": "a", "volatile": {}}',
    "a checksum of something else": b'{"id": "a", "volatile": {"sha256": "00"}}',
    "a volatile part that is none": b'{"id": "a", "volatile": "sha256"}',
}


@pytest.mark.parametrize("attack", JSON)
def test_hostile_json_is_an_error(tmp_path: Path, attack: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(JSON[attack])
    with pytest.raises(StudyError, match="file.json"):
        read_checksummed(path)


@pytest.mark.parametrize("number", ["1e999", "-1" + "0" * 400 + ".5"])
@pytest.mark.parametrize("read", [read_json, read_checksummed])
def test_a_json_number_beyond_all_numbers_is_an_error(tmp_path: Path, number: str, read: Callable[[Path], object]) -> None:
    path = tmp_path / "file.json"
    path.write_text(f'{{"x": {number}, "volatile": {{"sha256": "00"}}}}')
    with pytest.raises(StudyError, match="file.json is not valid JSON"):
        read(path)


def test_huge_json_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)  # a sparse file
    with pytest.raises(StudyError, match="has 67,108,865 bytes"):
        read_json(path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process its peak")
def test_a_hostile_file_costs_little_memory(tmp_path: Path) -> None:
    """Compares the peak memory of a process that reads every hostile file with one that reads none."""
    for number, content in enumerate([*TENSORS.values(), *JSON.values()]):
        (tmp_path / f"{number}").write_bytes(content)
    code = """
import sys, torch, safetensors.torch; from pathlib import Path; from fcs_utils.errors import StudyError
from fcs_utils.files import read_checksummed, read_tensors
peak = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
before = peak()
for path in Path(sys.argv[1]).iterdir():
    for read in (read_checksummed, read_tensors):
        try: read(path)
        except StudyError: pass
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200_000  # kB
