"""What can be asked for by name: profiles and stages. It needs the standard library alone, so help comes before installation."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from fcs_utils.errors import StudyError, refuse
from fcs_utils.files import read_bytes

FOLDER = Path(__file__).with_name("profiles")  # a profile is the file NAME.toml in it
DATASET = re.compile(r"\w[\w:.@\[\]-]*")
HEADLINE = "cifar"  # the profile whose findings stand in the README

# In the order of the study; each notebook needs some of them.
Stage = Literal[
    "reference",
    "similarity",
    "pruned",
    "readings",
    "tuned",
    "longer",
    "further",
    "given",
    "points",
    "ablation",
    "headstart",
    "rates",
    "arms",
    "longer_arms",
    "recipe",
]
STAGES: tuple[Stage, ...] = get_args(Stage)
AFTER_RATES: tuple[Stage, ...] = ("arms", "longer_arms", "recipe")  # their learning rates follow from stage ``rates``
ABOUT_STAGES: dict[Stage, str] = {
    "reference": "train the networks that are pruned",
    "similarity": "measure how similar their channels are, against untrained networks and chance (C1)",
    "pruned": "prune by every criterion at every ratio and evaluate before fine-tuning",
    "readings": "fine-tune readings of FCS on pilot seeds, to choose the best on validation",
    "tuned": "fine-tune every pruned network by one schedule, to compare criteria (C2)",
    "longer": "fine-tune one network at one ratio for longer, to see whether the order of criteria changes",
    "further": "fine-tune after further criteria and at further ratios, which decide no claim",
    "given": "prune and fine-tune networks whose weights are given, to compare criteria on them",
    "points": "prune at the layer rates of published results, and fine-tune",
    "ablation": "vary FCS one choice at a time, before fine-tuning",
    "headstart": "fine-tune from plain and from merged weights",
    "rates": "choose the learning rate of each way to fine-tune, on validation",
    "arms": "fine-tune by TFT, MLFT and their controls for several schedules (C3)",
    "longer_arms": "fine-tune by the arms for longer schedules, which decide no claim",
    "recipe": "combine criteria, ways of surgery and arms at equal training compute",
}


@cache
def profile_names() -> tuple[str, ...]:
    """The profiles, in the order of the alphabet."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def check_profile(text: str) -> str:
    """``NAME`` or ``NAME:DATASET`` as it is. Raises StudyError for an unknown profile or a malformed data set."""
    base, colon, dataset = text.partition(":")
    if base not in profile_names():
        raise refuse("profile", text, ", ".join(profile_names()) + ", or NAME:DATASET such as paper:cifar100")
    if bool(colon) != bool(DATASET.fullmatch(dataset)):
        raise refuse("profile", text, "NAME or NAME:DATASET, such as paper:cifar100")
    return text


def check_datasets(text: str) -> list[str]:
    """``A,B`` as a list. Raises StudyError for names that no data set can have."""
    if not all(DATASET.fullmatch(name) for name in text.split(",")):
        raise refuse("datasets", text, "names joined by commas, such as cifar10,cifar100")
    return text.split(",")


def read_profile(name: str) -> dict[str, Any]:
    """The fields of a profile as its file spells them, over those of the profile that it ``extends``.

    Raises StudyError for an unknown profile, for a file that is not TOML, and for one without a summary.
    """
    fields = _read(name)
    base = fields.pop("extends", None)
    if not isinstance(base, str | None):
        raise refuse(f"extends in profile {name}", base, "a profile's name")
    below = _read(base) if base is not None else {}
    if "extends" in below:
        raise refuse(f"extends in profile {name}", base, "a profile that extends no other")
    merged = _merged(below, fields)
    if not isinstance(summary := merged.get("summary"), str):  # the command line's help shows it
        raise refuse(f"summary in profile {name}", summary, "a line of text")
    return merged


def _read(name: str) -> dict[str, Any]:
    check_profile(name)
    path = FOLDER / f"{name}.toml"
    try:
        return tomllib.loads(read_bytes(path).decode())
    except ValueError as error:
        raise StudyError(f"{path} is not valid TOML: {error}") from error


def _merged(base: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Tables are merged key by key; everything else is replaced."""
    tables = {
        k: _merged(base[k], value) for k, value in fields.items() if isinstance(value, dict) and isinstance(base.get(k), dict)
    }
    return {**base, **fields, **tables}
