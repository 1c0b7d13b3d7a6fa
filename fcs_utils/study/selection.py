"""Picking runs by their fields: ``criterion=fcs seed=2 network=vgg16``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fcs_utils.config import Config
from fcs_utils.errors import StudyError, did_you_mean, refuse
from fcs_utils.pruning.criteria import CRITERIA
from fcs_utils.study.catalogue import Stage
from fcs_utils.study.runs import Pruning, Reference, Run, Similarity, Tuning
from fcs_utils.training.optimiser import Training

# A short name belongs to the first part that has it: ``epochs`` are fine-tuning's, ``seed`` is the reference's.
PARTS_OF_RUNS: dict[str, type[Config]] = {"tuning": Tuning, "reference": Reference, "pruning": Pruning, "similarity": Similarity}
Stages = Mapping[Stage, Sequence[Run]]


class Selection:
    """Runs that have certain values in certain fields; without any, every run."""

    def __init__(self, wanted: Mapping[str, Sequence[str]]) -> None:
        self.wanted = wanted  # full name of a field -> the values it may have, as text

    def pick(self, stages: Stages) -> list[Run]:
        """The runs that are wanted, each once, in order."""
        pairs = ((run, _fields(run, stage) if self.wanted else {}) for stage, runs in stages.items() for run in runs)
        found = (run for run, fields in pairs if all(fields.get(name) in values for name, values in self.wanted.items()))
        return list({run.identity: run for run in found}.values())

    def check(self, *grids: Stages) -> None:
        """Raises StudyError for a value that no run of any grid has, and when no run has all the wanted values together."""
        if not self.wanted:
            return
        there = [_fields(run, stage) for stages in grids for stage, runs in stages.items() for run in runs]
        for name, values in self.wanted.items():
            known = list(dict.fromkeys(fields[name] for fields in there if name in fields))
            for value in (value for value in values if value not in known):
                raise _unknown(f"{name}={value}", value, known or ["no run of these stages has this field"])
        if not any(self.pick(stages) for stages in grids):
            words = (f"{name}={value}" for name, values in self.wanted.items() for value in values)
            raise refuse("only", " ".join(words), "values that one run has together")


def parse_only(words: Sequence[str]) -> Selection:
    """``["criterion=fcs", "seed=2"]`` as a selection. A field that is given twice may have either value.

    Fields are those of a run's parts, of their trainings and of criteria, besides ``kind`` and ``stage``, by short name
    or as ``reference.epochs``. Raises StudyError for a word without ``=`` and for an unknown field.
    """
    options = dict.fromkeys(option for known in CRITERIA.values() for option in (*known.options(), *known.fixed))
    names = ["kind", "stage"]
    for part, model in PARTS_OF_RUNS.items():
        inner = (*(Training.model_fields if "training" in model.model_fields else ()), *(options if model is Pruning else ()))
        names += [f"{part}.{name}" for name in (*model.model_fields, *inner) if name not in ("training", "options")]
    wanted: dict[str, list[str]] = {}
    for word in words:
        field, _, value = word.partition("=")
        if not value:
            raise refuse("only", word, "FIELD=VALUE, such as criterion=fcs")
        full = next((name for name in names if field in (name, name.rpartition(".")[2])), None)
        if full is None:
            raise _unknown(word, field, list(dict.fromkeys(name.rpartition(".")[2] for name in names)))
        wanted.setdefault(full, []).append(_as_text(value))
    return Selection(wanted)


def _fields(run: Run, stage: str) -> dict[str, str]:
    """A run's fields as text, by full name; those of a training and the options count as the part's own."""
    found = {"kind": run.kind, "stage": stage}
    for part in PARTS_OF_RUNS:
        if content := getattr(run, part):
            values = content.model_dump()
            values |= values.pop("training", {})
            if isinstance(content, Pruning):
                values |= CRITERIA[content.criterion].values(values.pop("options"))
            found |= {f"{part}.{name}": _as_text(value) for name, value in values.items()}
    return found


def _as_text(value: object) -> str:
    """A value as people type it: 0.5 and 0.50 are the same; none and true have small letters."""
    try:
        return f"{float(str(value)):.12g}"
    except ValueError:
        return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _unknown(word: str, part: str, allowed: Sequence[str]) -> StudyError:
    return StudyError(f"only={word!r} is not allowed; allowed: {', '.join(allowed)}{did_you_mean(part, allowed)}")
