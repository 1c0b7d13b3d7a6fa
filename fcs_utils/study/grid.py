"""A profile as runs, stage by stage."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from fcs_utils.builders import code_of_network
from fcs_utils.errors import refuse
from fcs_utils.files import canonical_json
from fcs_utils.machine import Precision
from fcs_utils.pruning.criteria import CRITERIA, check_options, code_of, criterion_title
from fcs_utils.study.catalogue import STAGES, Stage
from fcs_utils.study.profiles import Profile
from fcs_utils.study.runs import Pruning, Reference, Run, Similarity, Tuning
from fcs_utils.study.sections import Further, Given, Longer, Network, Point, Readings
from fcs_utils.training.arms import code_of_arm

COMMON_NOUN = re.compile(r"^[^']* (norm|scale)\b")  # how a title ends that is no name, such as 'kernel L1 norm'

Rates = Mapping[tuple[str, str], float]  # the learning rate of a network's arm
Cell = Readings | Longer | Further | Given


def check_stages(stages: Iterable[Stage] | None) -> tuple[Stage, ...]:
    """Stages as they were asked for, None being all. Raises StudyError for an unknown one."""
    wanted = STAGES if stages is None else tuple(stages)
    if unknown := [stage for stage in wanted if stage not in STAGES]:
        raise refuse("stages", unknown, ", ".join(STAGES))
    return wanted


def grid(profile: Profile, precision: Precision, rates: Rates | None = None) -> dict[Stage, list[Run]]:
    """Every run of a profile by stage. Runs that two stages share appear in both and are done once.

    rates: the chosen learning rates; without them the stages ``AFTER_RATES`` are left out, for they are not known yet.
    Raises StudyError for an unknown criterion or option, and for a criterion that is in no module.
    """
    _code_with.cache_clear()  # a notebook may have entered a criterion again
    ablations, arms = profile.ablations, profile.arms
    trained = [one for one in profile.networks if one.network in arms.networks]
    references = _references(profile, precision, profile.networks, profile.seeds)
    further = _references(profile, precision, trained, arms.further_seeds)
    given = _references(profile, precision, profile.given.networks, profile.seeds[:1]) if profile.given else []
    points = [(point, run) for point in profile.points for run in _references(profile, precision, (point.network,), point.seeds)]
    cut = [_prune_run(profile, run, c, ratio) for run in references for ratio in profile.ratios for c in profile.criteria]
    compact = [_prune_run(profile, run, arms.criterion, arms.ratio) for run in references if run.reference.network in arms.networks]
    more = [_prune_run(profile, run, arms.criterion, arms.ratio) for run in further]
    headstart = [
        _prune_run(profile, run, arms.criterion, arms.ratio, compensate=how) for run in compact for how in ("none", "merge")
    ]
    first = _references(profile, precision, trained, arms.pilot_seeds)
    pilots = [_prune_run(profile, run, arms.criterion, arms.ratio) for run in first]
    stages: dict[Stage, list[Run]] = {
        "reference": [*references, *further, *given, *(run for _, run in points)],
        "similarity": [
            run.model_copy(update={"similarity": Similarity(calibration=profile.calibration)}) for run in (*references, *given)
        ],
        "pruned": cut,
        "readings": _tuned_for(profile, first, profile.readings, profile.readings.candidates) if profile.readings else [],
        "tuned": [_tune_run(profile, run, "tft") for run in cut],
        "longer": _tuned_for(profile, references, profile.longer, profile.criteria) if profile.longer else [],
        "further": [run for cell in profile.further for run in _tuned_for(profile, references, cell, cell.criteria)],
        "given": _with_tuned(profile, given, profile.given) if profile.given else [],
        "points": [run for point, dense in points for run in _at_point(profile, dense, point)],
        "ablation": [varied for run in references for varied in _ablated(profile, run)],
        "headstart": [_tune_run(profile, run, "tft", epochs=ablations.headstart) for run in headstart],
        "rates": [
            _tune_run(profile, run, method, epochs=arms.pilot_epochs, learning_rate=rate)
            for run in pilots
            for method in arms.methods
            for rate in arms.learning_rates
        ],
    }
    if rates is not None:
        tuned = _by_arm(profile, [*compact, *more], {method: arms.epochs_of(method) for method in arms.methods}, rates)
        scratch = [
            run.model_copy(update={"tuning": Tuning(method="scratch", training=training, budget=budget)})
            for run in compact
            if (training := run.reference.training) and run.reference.seed in profile.seeds[: arms.scratch_seeds]
            for budget in arms.scratch
        ]
        longer = _by_arm(profile, compact, profile.longer_arms, rates)
        stages |= {"arms": [*tuned, *scratch], "longer_arms": longer, "recipe": _recipe(profile, references, rates)}
    return stages


def _references(profile: Profile, precision: Precision, networks: Iterable[Network], seeds: Iterable[int]) -> list[Run]:
    return [
        Run(
            reference=Reference(
                **dict(one), dataset=profile.dataset, seed=seed, precision=precision, code=code_of_network(one.network)
            )
        )
        for one in networks
        for seed in seeds
    ]


def parse_criterion(text: str) -> tuple[str, dict[str, Any]]:
    """``fcs bins=1 redundancy=greedy`` as a criterion's name and options. Raises StudyError for a word without ``=``."""
    name, *words = text.split()
    options = dict(word.split("=", 1) for word in words if "=" in word)
    if len(options) < len(words):
        raise refuse(
            "criterion", text, "a name, then OPTION=VALUE for each option that differs from its default, such as fcs bins=1"
        )
    return name, {option: _value(text) for option, text in options.items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def titled(criterion: str, article: bool = False) -> str:
    """A criterion as ``parse_criterion`` takes it, as texts and figures call it; any other text as it is.

    article: 'the kernel L1 norm', as inside a sentence, where the title asks for one.
    """
    if criterion.partition(" ")[0] not in CRITERIA:
        return criterion
    title = criterion_title(*parse_criterion(criterion))
    return f"the {title}" if article and COMMON_NOUN.search(title) else title


def name_criterion(name: str, options: Mapping[str, Any]) -> str:
    """What ``parse_criterion`` takes apart, with the options in the order of the alphabet."""
    words = (value if isinstance(value, str) else json.dumps(value) for _, value in sorted(options.items()))
    return " ".join([name, *map("{}={}".format, sorted(options), words)])


def _tuned_for(profile: Profile, references: Iterable[Run], what: Cell, criteria: Iterable[str]) -> list[Run]:
    """Every criterion at one ratio, fine-tuned by TFT for a number of epochs of its own, or for that of the profile."""
    chosen = [run for run in references if not isinstance(what, Longer) or run.reference.network == what.network]
    cut = [_prune_run(profile, run, criterion, what.ratio) for run in chosen for criterion in criteria]
    return [_tune_run(profile, run, "tft", **({} if isinstance(what, Further) else {"epochs": what.epochs})) for run in cut]


def _by_arm(profile: Profile, compact: Iterable[Run], epochs: Mapping[str, Iterable[int]], rates: Rates) -> list[Run]:
    """Compact networks fine-tuned by every arm that has epochs, at its chosen learning rate."""
    return [
        _tune_run(profile, run, method, epochs=one, learning_rate=rates[run.reference.network, method])
        for run in compact
        for method, schedules in epochs.items()
        for one in schedules
    ]


def _with_tuned(profile: Profile, references: Iterable[Run], what: Given) -> list[Run]:
    """Every criterion on given networks, before and after fine-tuning."""
    tuned = _tuned_for(profile, references, what, what.criteria)
    return [*(run.model_copy(update={"tuning": None}) for run in tuned), *tuned]


def _at_point(profile: Profile, reference: Run, point: Point) -> list[Run]:
    goal = point.model_dump(include={"rates", "rates_as", "rounding", "scope"})
    cut = [_prune_run(profile, reference, criterion, None, **goal) for criterion in point.criteria]
    return [_tune_run(profile, run, "tft", epochs=point.epochs) for run in cut]


def _recipe(profile: Profile, references: Iterable[Run], rates: Rates) -> list[Run]:
    if not (recipe := profile.recipe):
        return []
    ways = [(criterion, how) for criterion in recipe.criteria for how in recipe.compensate]
    runs = []
    for reference in (run for run in references if run.reference.network in profile.arms.networks):
        by_default = _prune_run(profile, reference, recipe.default, recipe.ratio)
        cut = [by_default, *(_prune_run(profile, reference, criterion, recipe.ratio, compensate=how) for criterion, how in ways)]
        runs += [
            _tune_run(profile, run, method, epochs=epochs, learning_rate=rates[run.reference.network, method])
            for run in cut
            for method, epochs in recipe.epochs.items()
            if method == "tft" or run is not by_default
        ]
    return runs


def _prune_run(profile: Profile, run: Run, criterion: str, ratio: float | None, **more: Any) -> Run:
    name, options = parse_criterion(criterion)
    source = _code_with(name, canonical_json(more.setdefault("options", options)))
    known = {"criterion": name, "ratio": ratio, "calibration": profile.calibration, "source": source}
    return run.model_copy(update={"pruning": Pruning(**{**known, **more})})


@cache  # for one grid
def _code_with(criterion: str, options: str) -> str | None:
    """The code of a criterion, see ``code_of``, after checking its options, which are JSON here."""
    check_options(criterion, json.loads(options))
    return code_of(criterion)


def _tune_run(profile: Profile, run: Run, method: str, **training: Any) -> Run:
    schedule = profile.tuning.model_copy(update=training)
    return run.model_copy(update={"tuning": Tuning(method=method, training=schedule, source=code_of_arm(method))})


def _ablated(profile: Profile, run: Run) -> list[Run]:
    """FCS on one reference, varied one thing at a time; none on a reference that the ablations leave out."""
    ablations = profile.ablations
    chosen = ablations.networks or [run.reference.network]
    if run.reference.seed not in profile.seeds[: ablations.seeds] or run.reference.network not in chosen:
        return []
    counts = dict.fromkeys((profile.calibration, *ablations.calibrations))
    draws = [(count, seed) for count in counts for seed in (None, *range(1000, 1000 + ablations.draws))]
    merged = [(c, ratio, how) for c in ablations.merged for ratio in profile.ratios for how in ("none", "merge")]
    return [
        _prune_run(profile, run, "fcs", ablations.ratio),
        *(_prune_run(profile, run, "fcs", ablations.ratio, options=options) for options in ablations.variants()),
        *(_prune_run(profile, run, "fcs", ablations.ratio, calibration=count, calibration_seed=seed) for count, seed in draws),
        *(_prune_run(profile, run, c, ratio, compensate=how) for c, ratio, how in merged),
    ]
