"""Where a network's weights come from: what a profile may say of it."""

from __future__ import annotations

from typing import Any

import pytest

from fcs_utils.errors import StudyError
from fcs_utils.pretrained import DIGITS
from fcs_utils.study.profiles import Profile, get_profile
from fcs_utils.study.runs import Reference, Run
from fcs_utils.study.sections import Network
from fcs_utils.training.optimiser import Training

SCHEDULE = Training(epochs=1, learning_rate=0.02, batch_size=50)
FILE = "mine.safetensors"
NETWORK = {"network": "resnet20", "weights": "pretrained:resnet20"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({**NETWORK, "training": SCHEDULE}, "give either training or weights"),
    ({"network": "resnet20"}, "give either training or weights"),
    ({**NETWORK, "weights": "pretrained:resnet110"}, "allowed: pretrained:resnet20, .*, pretrained:resnet56, or a file"),
    ({**NETWORK, "network": "resnet32"}, "are those of network 'resnet20' at width 1"),
    ({**NETWORK, "width": 0.5}, "are those of network 'resnet20' at width 1"),
    ({**NETWORK, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}, "mean belongs to weights from a file"),
    ({"network": "resnet20", "training": SCHEDULE, "weights_sha256": "0"}, "weights_sha256 belongs to weights from a file"),
    ({"network": "resnet20", "weights": FILE, "mean": (0.5,)}, "mean and std belong together"),
    ({"network": "resnet20", "weights": FILE, "mean": (0.5,), "std": (0.5, 0.5)}, "one number a channel in each"),
    ({"network": "resnet20", "weights": FILE, "mean": (125.3,), "std": (63.0,)}, "mean.0=125.3"),
    ({"network": "resnet20", "weights": FILE, "mean": (0.5,), "std": (0.0,)}, "std.0=0.0"),
]


@pytest.mark.parametrize(("fields", "said"), WRONG)
def test_a_wrong_source_of_weights_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        Network(**fields)


def test_a_reference_names_the_checksum_of_a_file_and_public_shortcuts() -> None:
    base = {"dataset": "digits", "network": "resnet20", "seed": 0, "precision": "fp32"}
    with pytest.raises(StudyError, match="weights_sha256 is missing"):
        Reference(**base, weights=FILE)
    with pytest.raises(StudyError, match="shortcuts 'A'"):
        Reference(**base, weights="pretrained:resnet20", shortcut="B")
    public = Reference(**base, weights="pretrained:resnet20")
    assert public.normalisation == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert public.model_dump().keys() == {"dataset", "network", "width", "shortcut", "seed", "precision", "weights"}
    # A golden identity, as those in test_runs.py.
    assert Run(reference=public).identity == "1c550ad0396ad037"


@pytest.mark.parametrize("weights", [f"pretrained:{name}" for name in DIGITS][:1] + [FILE])
def test_rates_are_never_chosen_on_given_networks(weights: str) -> None:
    fields = get_profile("smoke").model_dump()
    fields["networks"] = [fields["networks"][0], {"network": "resnet20", "weights": weights}]
    assert Profile.model_validate(fields).networks[1].weights == weights
    fields["arms"]["networks"] = ("vgg16", "resnet20")
    with pytest.raises(ValueError, match="arms.networks: the weights of 'resnet20' are given and may have seen the validation"):
        Profile.model_validate(fields)
