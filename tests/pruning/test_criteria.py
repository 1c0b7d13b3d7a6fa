"""The registry of criteria: what each one gives, asks for and refuses, and criteria from outside."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.criteria import CRITERIA, code_of, criterion, criterion_title, importance, needs, reading_of, scoring
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.sums import EXTRAS, READINGS
from fcs_utils.study.profiles import get_profile
from fcs_utils.study.study import Study
from tests.pruning.test_baselines import layer
from tests.pruning.test_fcs import SIX


@pytest.fixture(scope="module")
def everything(small_vgg: nn.Module) -> dict[str, object]:
    images = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    statistics = collect_statistics(small_vgg, images, readings=READINGS, extras=EXTRAS)
    return {"statistics": statistics, "images": images, "labels": torch.arange(12) % 5}


@pytest.mark.parametrize("name", scoring())
def test_contract(small_vgg: nn.Module, everything: dict, name: str) -> None:
    got = importance(name, model=small_vgg, **everything)
    assert list(got) == list(everything["statistics"]) and reading_of(name)
    for name, score in got.items():
        channels = small_vgg.get_submodule(name).out_channels
        assert score.shape == (channels,) and score.dtype == torch.float64 and score.isfinite().all() and not score.requires_grad


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("redundancy", ["mean", "max", "greedy"])
@pytest.mark.parametrize("more", [{}, {"quota": "layer"}, {"quota": "global"}, {"order": "norm"}], ids=str)
def test_every_reading_of_fcs(small_vgg: nn.Module, everything: dict, reading: str, redundancy: str, more: dict[str, str]) -> None:
    got = importance("fcs", model=small_vgg, reading=reading, redundancy=redundancy, **more, **everything)
    assert all(len(score.unique()) == len(score) for score in got.values())  # no ties left


def test_defaults_are_those_of_the_method_page() -> None:
    known = {"reading": "pooled", "redundancy": "mean", "quota": "bin", "order": "similarity", "bins": 4, "binning": "exact"}
    known |= {"tap": "reader", "seed": 0}
    assert CRITERIA["fcs"].options() == known
    del known["redundancy"]  # which its name fixes
    assert CRITERIA["fcs_greedy"].options() == known and CRITERIA["kernel_l1"].options() == {}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        # These stand in published tables.
        ("fcs", {}, "pooled cosine, mean, quota by bin, B = 4"),
        ("fcs_greedy", {"bins": 8}, "pooled cosine, greedy, quota by bin, B = 8"),
        ("fcs", {"reading": "per_image", "quota": "layer"}, "per_image cosine, mean, quota by layer, B = 4"),
        ("fcs", {"binning": "sklearn", "seed": 2}, "pooled cosine, mean, quota by bin, B = 4"),
        # These name what is not the default.
        ("fcs_greedy", {"order": "norm"}, "pooled cosine, greedy, lowest-norm bin first, B = 4"),
        ("fcs", {"quota": "global", "bins": 1}, "pooled cosine, mean, one threshold for all layers, B = 1"),
        ("fcs", {"tap": "convolution"}, "pooled cosine, mean, quota by bin, B = 4, raw convolution output"),
    ],
)
def test_tables_name_the_reading(name: str, options: dict[str, Any], words: str) -> None:
    assert reading_of(name, options) == words


def test_where_maps_were_taken_must_be_what_the_criterion_reads(small_vgg: nn.Module, everything: dict) -> None:
    images = everything["images"]
    raw = collect_statistics(small_vgg, images, tap="convolution")
    assert needs("fcs", {"tap": "convolution"}) == (("pooled",), (), "convolution") and needs("fcs").tap == "reader"
    assert importance("fcs", model=small_vgg, statistics=raw, tap="convolution").keys() == raw.keys()
    assert importance("kernel_l1", model=small_vgg, statistics=raw).keys() == raw.keys()  # it reads no maps
    for name, options, statistics in [
        ("fcs", {}, raw),
        ("feature_norm", {}, raw),
        ("fcs_linear", {}, raw),
        ("fcs", {"tap": "convolution"}, everything["statistics"]),
    ]:
        with pytest.raises(StudyError, match=f"criterion '{name}' reads maps with tap=.*collected with tap="):
            importance(name, model=small_vgg, statistics=statistics, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fsc", {}, "criterion='fsc'"),
        ("fcs", {"bins": 0}, "bins=0"),
        ("fcs", {"bins": 2.5}, "bins"),
        ("fcs", {"redundancy": "median"}, "redundancy='median'"),
        ("fcs", {"quota": "network"}, "quota='network'"),
        ("fcs", {"order": "random"}, "order='random'"),
        ("fcs", {"order": "norm", "quota": "layer"}, "quota='layer'"),
        ("fcs_greedy", {"order": "norm", "quota": "global"}, "quota='global'"),
        ("fcs", {"tap": "input"}, "tap='input' is not allowed; allowed: reader, convolution"),
        ("fcs", {"binning": "magic"}, "binning='magic'"),
        ("fcs", {"depth": 3}, "depth"),
        ("fcs", {"reading": "pairs"}, "reading='pairs'"),
        ("fcs", {"reading": "per_image"}, "was not collected"),
        ("fcs_greedy", {"redundancy": "mean"}, "redundancy"),
        ("kernel_l1", {"bins": 4}, "bins"),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        importance(name, model=layer([[1, 1]] * 6), statistics={"0": SIX}, **options)


def test_statistics_are_asked_for() -> None:
    with pytest.raises(StudyError, match="needs statistics"):
        importance("fcs", model=layer([[1, 1]]))


def test_weights_alone_are_scored_in_convolutions_that_mix_channels() -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1, groups=4), nn.ConvTranspose2d(4, 3, 1), nn.Flatten(), nn.Linear(3, 2)
    )
    assert importance("kernel_l1", model=net).keys() == {"0", "2"}


def test_nan_weights_are_an_error_and_not_the_largest_importance() -> None:
    with pytest.raises(StudyError, match="NaN"):
        importance("kernel_l1", model=layer([[1, math.nan], [1, 1]]))


def test_statistics_of_another_network_are_refused() -> None:
    with pytest.raises(StudyError, match="another network"):
        importance("fcs", model=layer([[1, 1]] * 5), statistics={"0": SIX})


def constant(convolution: nn.Conv2d, *, value: float = 1.0) -> torch.Tensor:
    return torch.full((convolution.out_channels,), value, dtype=torch.float64)


@pytest.fixture
def registry() -> Iterator[None]:
    """What a test enters is taken out again."""
    before = dict(CRITERIA)
    yield
    CRITERIA.clear()
    CRITERIA.update(before)


@pytest.mark.usefixtures("registry")
def test_a_criterion_from_outside_scores_like_the_packages_own() -> None:
    criterion("constant", reads="weights", reading="always {value}")(constant)
    assert importance("constant", model=layer([[1, 1]] * 3), value=2.0)["0"].tolist() == [2.0] * 3
    assert reading_of("constant") == "always 1.0" and CRITERIA["constant"].options() == {"value": 1.0}
    assert code_of("constant") == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    criterion("constant", reads="weights", reading="the same function again")(constant)  # as when a cell is run twice


@pytest.mark.usefixtures("registry")
def test_the_name_of_another_criterion_is_refused() -> None:
    with pytest.raises(StudyError, match="name of a criterion='fcs' is not allowed.*fcs_utils.pruning.fcs has a criterion"):
        criterion("fcs", reads="weights", reading="mine")(constant)
    assert not CRITERIA["fcs"].outside and code_of("fcs") is None


@pytest.mark.usefixtures("registry")
def test_a_notebooks_criterion_is_for_exploring_and_no_study_takes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constant, "__module__", "__main__")
    criterion("constant", reads="weights", reading="always {value}")(constant)
    assert importance("constant", model=layer([[1, 1]] * 3))["0"].tolist() == [1.0] * 3
    profile = get_profile("smoke").model_copy(update={"criteria": ("constant",)})
    with pytest.raises(StudyError, match="criterion 'constant' is defined in __main__.*a study needs a module"):
        Study(profile, tmp_path)


@pytest.mark.usefixtures("registry")
def test_a_criterion_with_a_seed_gets_the_one_of_the_call() -> None:
    def seeded(convolution: nn.Conv2d, *, seed: int = 3) -> torch.Tensor:
        return torch.full((convolution.out_channels,), float(seed), dtype=torch.float64)

    criterion("seeded", reads="weights", reading="its seed")(seeded)
    assert [importance("seeded", model=layer([[1, 1]] * 2), **more)["0"].tolist() for more in ({}, {"seed": 7})] == [[0, 0], [7, 7]]


@pytest.mark.usefixtures("registry")
def test_scores_of_the_wrong_length_are_refused() -> None:
    criterion("short", reads="weights", reading="one number")(lambda convolution: torch.zeros(1))
    with pytest.raises(StudyError, match=r"criterion 'short': layer 0 needs 3 scores, not \(1,\)"):
        importance("short", model=layer([[1, 1]] * 3))


def test_a_criterion_and_its_options_in_words() -> None:
    assert criterion_title("fcs") == "FCS" and criterion_title("of_mine") == "of_mine"
    assert criterion_title("fcs", {"bins": 1}) == "FCS (1 bin)" and criterion_title("fcs", {"bins": 8}) == "FCS (8 bins)"
    assert criterion_title("fcs", {"redundancy": "max", "tap": "convolution"}) == "FCS (largest similarity, raw convolution output)"
    assert criterion_title("of_mine", {"some_share": 0.5}) == "of_mine (some share 0.5)"
