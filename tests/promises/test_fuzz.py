"""Random configurations, plans and files from hypothesis: each is accepted whole, or refused with a StudyError."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fcs_utils.data.imagefolder import read_image_folder
from fcs_utils.errors import StudyError
from fcs_utils.files import read_checksummed, read_tensors, write_checksummed
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import load_compact, save_compact
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.surgery import prune
from fcs_utils.study.runs import Run, parse_run
from tests.data.pictures import FILES, put
from tests.data.test_imagefolder import ARCHIVES
from tests.pruning.test_properties import networks
from tests.pruning.toys import zeroed
from tests.study.test_runs import TUNED

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 1000),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["fcs", "mlft", "vgg16", "fp32", "none", "inner", 0.5]),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))


@st.composite
def changed(draw: st.DrawFn, original: Any) -> Any:
    """A copy with some values replaced, removed or added, anywhere inside."""
    value = json.loads(json.dumps(original))
    for _ in range(draw(st.integers(1, 3))):
        place = value
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not isinstance(place[key], dict | list) or not place[key] or draw(st.booleans()):
                what = draw(st.sampled_from(["replace", "remove", "add"]))
                if what == "replace":
                    place[key] = draw(VALUES)
                elif what == "remove":
                    del place[key]
                elif isinstance(place, dict):
                    place[draw(st.text(max_size=8))] = draw(VALUES)
                break
            place = place[key]
    return value


@given(changed(TUNED.model_dump(mode="json")))
def test_a_configuration_is_a_run_with_a_stable_identity_or_refused(data: dict[str, Any]) -> None:
    try:
        run = parse_run(data)
    except StudyError as error:
        assert "\n" not in str(error)
        return
    again = parse_run(json.loads(json.dumps(run.model_dump(mode="json"), allow_nan=False)))
    assert isinstance(run, Run) and again == run and again.identity == run.identity


PLAN = {
    "kept": {"0": [0, 2, 3]},
    "channels": {"0": 6},
    "skipped": {"3": "no importance given"},
    "input_shape": [3, 8, 8],
    "ratio": 0.5,
    "scope": "inner",
    "macs": None,
    "macs_left": 0.5,
}
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@given(changed(PLAN))
@torch.no_grad()
def test_a_plan_cuts_exactly_or_is_refused(data: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()
    try:
        plan = PruningPlan.from_data(data)
        compact = prune(net, plan)
    except StudyError as error:
        assert "\n" not in str(error)
        return
    assert PruningPlan.from_json(plan.model_dump_json()) == plan
    torch.testing.assert_close(compact(IMAGES), zeroed(net, plan, IMAGES), rtol=1e-4, atol=1e-5)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    what = draw(st.sampled_from(["flip", "cut", "insert", "overwrite"]))
    at = draw(st.integers(0, len(content) - 1))
    if what == "flip":
        return content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
    if what == "cut":
        return content[:at]
    some = draw(st.binary(min_size=1, max_size=20))
    return content[:at] + some + content[at + (len(some) if what == "overwrite" else 0) :]


@given(st.data(), st.dictionaries(st.text(max_size=5), VALUES.filter(lambda v: "nan" not in repr(v) and "inf" not in repr(v))))
def test_a_damaged_record_is_refused_or_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: Any
) -> None:
    path = folder(tmp_path_factory) / "record.json"
    value.pop("volatile", None)
    write_checksummed(path, value)
    whole = read_checksummed(path)
    assert {key: inner for key, inner in whole.items() if key != "volatile"} == json.loads(json.dumps(value))
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    try:
        assert read_checksummed(path) == whole  # a blank more or less
    except StudyError as error:
        assert path.name in str(error)


@given(st.data(), networks())
def test_a_damaged_compact_network_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, network: nn.Module
) -> None:
    path = folder(tmp_path_factory) / "compact.safetensors"
    plan = make_plan(network, IMAGES, importance("kernel_l1", model=network), ratio=0.5)
    compact = prune(network, plan)
    save_compact(path, compact, plan)
    with torch.no_grad():
        assert load_compact(path, network)(IMAGES).equal(compact(IMAGES))
    before, tensors = path.read_bytes(), read_tensors(path)[0]
    after = data.draw(damaged(before))
    path.write_bytes(after)
    try:
        again = load_compact(path, network).state_dict()
    except StudyError as error:
        assert path.name in str(error)
    else:
        assert all(tensor.equal(again[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("ending", sorted(ARCHIVES))
@given(data=st.data())
def test_a_damaged_archive_of_images_is_refused_or_read_in_one_piece(
    tmp_path_factory: pytest.TempPathFactory, ending: str, data: st.DataObject
) -> None:
    place = folder(tmp_path_factory)
    whole = place / "pets"
    if not whole.exists():
        put(whole, FILES)
    ARCHIVES[ending](whole, place / ending)
    (place / ending).write_bytes(data.draw(damaged((place / ending).read_bytes())))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("FCS_CACHE", "/dev/null")  # no damaged file is taken from the cache
        warnings.simplefilter("ignore")
        try:
            arrays, classes = read_image_folder(place, ending.partition(".")[0], 8)
        except StudyError as error:
            assert str(error).isprintable() and str(place) in str(error)
        else:
            train, labels = arrays["train_images"], arrays["train_labels"]
            assert len(train) == len(labels) >= 2 * len(classes) >= 4 and train.dtype == arrays["test_images"].dtype == np.uint8


def folder(factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples: hypothesis calls a test many times within one of pytest's."""
    path = factory.getbasetemp() / "fuzz"
    path.mkdir(exist_ok=True)
    return path
