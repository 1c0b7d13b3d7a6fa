"""Pictures of any size: the layouts people have, draws that follow from seed, epoch and index, and sets larger than memory."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fcs_utils import machine
from fcs_utils.data import pictures
from fcs_utils.data.imagefolder import as_rgb
from fcs_utils.data.listing import list_pictures
from fcs_utils.data.pictures import load_pictures
from fcs_utils.errors import StudyError
from fcs_utils.machine import fitting_batch, free_memory
from fcs_utils.models import images_at_once
from tests.conftest import GUARD, ROOT
from tests.data.pictures import one_colour


def picture(path: Path, number: int, size: tuple[int, int] = (40, 30)) -> None:
    """Noise of a colour by its number, as PNG whatever the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures of each of two classes for training, two of each for validation."""
    base = tmp_path_factory.mktemp("set") / "photos"
    for part, count in (("train", 7), ("val", 2)):
        for label in ("cat", "dog"):
            for number in range(count):
                picture(base / part / label / f"{number}.png", 100 * number + len(part) + (label == "dog"))
    return base


def by_class(listing: tuple[tuple[Path, int], ...], root: Path) -> list[tuple[str, int]]:
    return [(path.relative_to(root).as_posix(), label) for path, label in listing]


def test_class_folders(folder: Path, tmp_path: Path) -> None:
    listing = list_pictures(folder)
    assert listing.classes == ("cat", "dog") and len(listing.train) == 14
    assert by_class(listing.val, folder) == [("val/cat/0.png", 0), ("val/cat/1.png", 0), ("val/dog/0.png", 1), ("val/dog/1.png", 1)]
    for label in ("a", "b"):  # classes alone: every tenth picture, the fifth first
        for number in range(15):
            picture(tmp_path / label / f"{number:02}.png", number)
    listing = list_pictures(tmp_path)
    assert by_class(listing.val, tmp_path) == [("a/04.png", 0), ("a/14.png", 0), ("b/04.png", 1), ("b/14.png", 1)]
    assert len(listing.train) == 26 and not {*listing.train} & {*listing.val}


def test_tiny_imagenets_layout(tmp_path: Path) -> None:
    for number, label in enumerate(("n01", "n02")):
        picture(tmp_path / "train" / label / "images" / f"{label}_0.JPEG", number)
        (tmp_path / "train" / label / f"{label}_boxes.txt").write_text("x\t0\t0\t1\t1\n")
    picture(tmp_path / "val/images" / "val_0.JPEG", 0)
    picture(tmp_path / "val" / "val_1.JPEG", 1)  # an empty line, a line without boxes and a place beside the list do no harm
    (tmp_path / "val/val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t1\t1\n\nval_1.JPEG\tn01\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # its text files belong there
        listing = list_pictures(tmp_path)
    assert by_class(listing.train, tmp_path) == [("train/n01/images/n01_0.JPEG", 0), ("train/n02/images/n02_0.JPEG", 1)]
    assert by_class(listing.val, tmp_path) == [("val/images/val_0.JPEG", 1), ("val/val_1.JPEG", 0)]


def test_a_csv_of_paths_and_labels(tmp_path: Path) -> None:
    lines = [f"pics/{number}.png,{'cat' if number % 2 else 'dog'},{'val' if number > 3 else 'train'}" for number in range(6)]
    listed = tmp_path / "set.csv"
    listed.write_text("\n".join(["path,label,split", *lines]))
    listing = list_pictures(listed)
    assert listing.classes == ("cat", "dog") and [label for _, label in listing.train] == [1, 0, 1, 0] and len(listing.val) == 2
    with pytest.raises(StudyError, match="pics/0.png is listed, but there is no such file"):
        load_pictures(listed)
    listed.write_text("\n".join(["label,path", *(f"{'ab'[number % 2]},{number:02}.jpg" for number in reversed(range(20)))]))
    assert [path.name for path, _ in list_pictures(listed).val] == ["08.jpg", "09.jpg"]
    for text, says in {
        "path,class\na.png,x": "no column 'label'",
        "path,label,split\na.png,,train": "line 2: a picture's path, a label and a split",
        "path,label,split\na.png,x,train\nb.exe,x,val": "line 3: a picture's path",
        "path,label,split\na.png,x,training": "line 2: ",
    }.items():
        listed.write_text(text)
        with pytest.raises(StudyError, match=says):
            list_pictures(listed)


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="images '.*nowhere' not found; give a folder or CSV file: train/CLASS"):
        list_pictures(tmp_path / "nowhere")
    picture(tmp_path / "train/cat/0.png", 0)
    with pytest.raises(StudyError, match="has train/ but neither val/ nor test/"):
        list_pictures(tmp_path)
    picture(tmp_path / "val/cat/0.png", 0)
    with pytest.raises(StudyError, match="has 1 classes that can be shown; two or more"):
        list_pictures(tmp_path)
    picture(tmp_path / "val/dog/0.png", 0)
    with pytest.raises(StudyError, match="class 'dog' has validation pictures and no training pictures"):
        list_pictures(tmp_path)
    picture(tmp_path / "train/dog/0.png", 0)
    picture(tmp_path / "train/emu/0.png", 0)
    with pytest.raises(StudyError, match="class 'emu' has training pictures and no validation pictures"):
        list_pictures(tmp_path)
    numbers = ({"std": (0.2, 0.2, 0.0)}, "std above 0"), ({"mean": (0.5, float("nan"), 0.5)}, "three finite numbers")
    for bad, says in (({"size": 7}, "size=7"), ({"size": 4097}, "size=4097"), *numbers, ({"workers": -1}, "workers=-1")):
        with pytest.raises(StudyError, match=says):
            load_pictures(tmp_path, **bad)  # type: ignore[arg-type]


def drawn(source: Path, seed: int, epoch: int, **options: object) -> list[tuple[Tensor, Tensor]]:
    return [*load_pictures(source, size=16, **options).batches(4)(seed, epoch)]  # type: ignore[arg-type]


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return all(a.equal(c) and b.equal(d) for (a, b), (c, d) in zip(one, other, strict=True))


def test_draws_follow_from_seed_epoch_and_index(folder: Path) -> None:
    first = drawn(folder, 3, 2, resident=False)
    assert len(first) == 3 and first[0][0].shape == (4, 3, 16, 16) and first[0][0].dtype == torch.float32
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert same(first, drawn(folder, 3, 2, resident=False, workers=2))
    assert same(first, drawn(folder, 3, 2, resident=False, workers=1))
    assert same(first, drawn(folder, 3, 2, resident=True))
    assert torch.get_rng_state().equal(before)
    assert not same(first, drawn(folder, 3, 3, resident=True)) and not same(first, drawn(folder, 4, 2, resident=True))
    # A picture's crop depends on its own index alone, not on where it stands in the pass.
    few = load_pictures(folder, size=16, resident=True)
    at = few.batches(1)(3, 2)
    torch.testing.assert_close(
        torch.cat([images for images, _ in at])[:12], torch.cat([images for images, _ in first]), atol=0, rtol=0
    )


def test_pictures_to_judge_by_are_cropped_at_the_centre(folder: Path) -> None:
    chosen = load_pictures(folder, size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resident=False)
    ((images, labels),) = chosen.in_order(10)
    assert labels.tolist() == [0, 0, 1, 1]
    # The shorter side of 30 becomes 256 / 224 of 16, which is 18; then the centre of 24 x 18.
    with Image.open(folder / "val/cat/0.png") as image:
        resized = np.asarray(image.resize((24, 18), Image.Resampling.BILINEAR))
    torch.testing.assert_close(images[0], torch.from_numpy(resized[1:17, 4:20] / 255).float().permute(2, 0, 1))
    assert [len(labels) for _, labels in chosen.in_order(3)] == [3, 1] and len(chosen.in_order(3)) == 2
    assert [labels.tolist() for _, labels in chosen.in_order(9, most=2)] == [[0, 1]]  # spread over the part
    images, labels = chosen.calibration(5, seed=1)
    assert images.shape == (5, 3, 16, 16) and images.equal(chosen.calibration(5, seed=1)[0])
    with pytest.raises(StudyError, match="calibration=15 is not allowed; allowed: 1 to 14"):
        chosen.calibration(15)


def test_what_is_kept_in_memory_follows_from_its_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 18 * 3 * 18**2  # 18 pictures; the shorter side of 16 pixels is 18
    for free, kept in ((4 * needed + 4, True), (4 * needed, False)):
        monkeypatch.setattr(pictures, "free_memory", lambda free=free: free)
        assert load_pictures(folder, size=16, workers=2).resident is kept
    assert load_pictures(folder, size=16, resident=True, workers=2).workers == 0
    assert not load_pictures(folder, size=16, resident=False).resident


def test_a_broken_picture_is_named_in_one_line_by_a_worker_too(folder: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        for label in ("a", "b"):
            picture(tmp_path / part / label / "0.png", 0)
    whole = (tmp_path / "train/a/0.png").read_bytes()
    (tmp_path / "train/a/0.png").write_bytes(whole[:200])
    for workers in (0, 1):
        with pytest.raises(StudyError, match=r"^picture '.*train/a/0.png' cannot be decoded: .*replace or remove it$"):
            list(load_pictures(tmp_path, size=16, resident=False, workers=workers).batches(2)(0, 1))
    with pytest.raises(StudyError, match="train/a/0.png' cannot be decoded"):
        load_pictures(tmp_path, size=16, resident=True)


def test_batches_follow_from_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda device=None: 4000)
    assert [fitting_batch(most, one) for most, one in ((10, 50), (10, 100), (10, 300), (10, 5000), (3, 0))] == [10, 10, 3, 1, 3]
    # Flatten reads and writes the most: 8 + 8 channels of 8 x 8 float32. Twice that is 8192 bytes an image.
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1), nn.Flatten(), nn.Linear(512, 2)).eval()
    monkeypatch.setattr(machine, "free_memory", lambda device=None: 4 * 8192 * 5 + 1)
    assert images_at_once(net, torch.zeros(100, 1, 8, 8), 64) == 5 and not net[1]._forward_hooks
    monkeypatch.setattr(machine, "free_memory", lambda device=None: 4 * 25600 * 64)  # a hundred times the images: not even tried
    assert images_at_once(nn.Identity(), torch.zeros(100, 1, 8, 8), 64) == 64


def test_free_memory_heeds_a_limit() -> None:
    code = (
        "import resource, fcs_utils.machine as m\n"
        "size = 1024 * int(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmSize')))\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, -1))\n"
        "print(2**27 < m.free_memory() <= 2**28)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=GUARD)
    assert done.stdout.strip() == "True", done.stderr
    assert free_memory() > 0


def test_a_containers_limit_counts_without_what_files_left_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "/proc/meminfo": ["MemTotal: 9000000 kB", "MemAvailable: 8000000 kB"],
        "/sys/fs/cgroup/memory.max": ["1000000"],
        "/sys/fs/cgroup/memory.current": ["900000"],
        "/sys/fs/cgroup/memory.stat": ["anon 200000", "inactive_file 600000"],
    }
    monkeypatch.setattr(machine, "_lines", lambda path: said.get(path, []))
    assert free_memory() == 700_000
    said["/sys/fs/cgroup/memory.max"] = ["max"]
    assert free_memory() == 8_000_000 * 1024


MANY = """
import os
import resource, sys
import torch
from torch import nn
from fcs_utils.data.pictures import load_pictures
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.training.evaluate import predict
import torchvision.transforms.v2

torch.set_num_threads(1)
net = nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
size = 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize")))
resource.setrlimit(resource.RLIMIT_AS, (size + 600 * 2**20, -1))  # decoded, the pictures take 1.2 GB
found = load_pictures(sys.argv[1], size=224)
collect_statistics(net, found.calibration(64)[0])
mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
(_, colours), labels = predict([net, mean], found.in_order(64, "train"))
images, _ = next(iter(found.batches(32)(0, 1)))
print(found.resident, len(labels), len(labels.unique()), tuple(images.shape), len(colours.unique(dim=0)))
"""


@pytest.mark.slow
def test_a_set_larger_than_memory_is_streamed(tmp_path: Path) -> None:
    """6,000 different files at 224 pixels; some more for validation."""
    for part in ("train", "val"):
        for label in "abcd":
            (tmp_path / part / label).mkdir(parents=True)
    content = one_colour(224)
    for number in range(6300):
        part = "train" if number < 6000 else "val"
        (tmp_path / part / "abcd"[number % 4] / f"{number}.png").write_bytes(content(2500 * number))  # of 256^3 colours
    assert as_rgb(content(0x123456)).getcolors() == [(224 * 224, (0x12, 0x34, 0x56))]
    plain = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}  # the allocator's gaps are no pictures
    command = [sys.executable, "-c", MANY, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, timeout=GUARD)
    assert done.stdout.strip() == "False 6000 4 (32, 3, 224, 224) 6000", done.stderr
